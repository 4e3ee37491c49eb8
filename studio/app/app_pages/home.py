"""Home: what is happening, what is new, what to do next."""

from dataclasses import replace

import streamlit as st

from registry.records import Dataset, Run, RunState
from studio.app import shell
from studio.app.components.cards import adapter_card, run_card
from studio.app.components.demo import demo_button
from studio.app.components.gallery import gallery
from studio.app.components.live import phase_words, progress_panel
from studio.app.words import ago, md, plural

NEWEST = 8


def page() -> None:
    """The page."""
    catalog = shell.workspace().catalog
    newest = catalog.search_adapters(limit=NEWEST)
    adapters, total = newest.adapters, newest.total
    datasets, runs = catalog.count(Dataset), catalog.count(Run)
    shell.heading("Home", "Teach a model your style, a character or a thing, from a folder of pictures.")
    if not (total or datasets or runs):
        welcome()
        return
    now_panel()
    troubles()
    next_step(datasets, total)
    if adapters:
        st.header("Newest adapters", anchor=False)
        if opened := gallery([adapter_card(a) for a in adapters], key="newest"):
            shell.go("adapters", adapter=opened)
        if total > len(adapters):
            shell.link("adapters", f"All {plural(total, 'adapter')}", icon=":material/arrow_forward:")


def welcome() -> None:
    """Nothing here yet: two ways to begin, and what will happen."""
    with st.container(key="empty-welcome", horizontal_alignment="center"):
        st.header("Train your first style", anchor=False, width="content")
        st.markdown(
            ":gray[Ten to thirty pictures are enough. You will see what it costs before it starts, "
            "and pictures while it learns.]",
            width="content",
        )
        with st.container(horizontal=True, horizontal_alignment="center"):
            if st.button("Add your pictures", type="primary", icon=":material/add_photo_alternate:"):
                shell.go("datasets", new="1")
            demo_button("welcome")
    steps = (
        ("1. Pictures", "Drop them in, and say in a few words what each one shows."),
        ("2. Training", "Choose what it should learn. Presets hold the settings, each with its reason."),
        (
            "3. Adapter",
            "A small file that adds what was learned to the base model. Use it, mix it, hand it on.",
        ),
    )
    with st.grid(3, min_column_width=230, gap="medium"):
        for title, text in steps:
            with st.container():
                st.subheader(title, anchor=False)
                st.markdown(f":gray[{text}]")


@st.fragment(run_every=2)
def now_panel() -> None:
    """The running job with its newest picture."""
    workspace = shell.workspace()
    running = workspace.catalog.list(Run, state=shell.ACTIVE, limit=1)
    if not running:
        return
    run = running[0]
    status = workspace.run_dir(run.id).read_status()
    with st.container(key="panel-now"):
        picture, facts = st.columns([1, 3], vertical_alignment="center")
        with picture:
            gallery([replace(run_card(run), title="", lines=(), badges=())], key="now", opens=False, least=0)
        with facts:
            st.subheader(md(run.name), anchor=False)
            progress_panel(run, status)
            if not phase_words(status):
                shell.link("runs", "Watch it learn", icon=":material/arrow_forward:", run=run.id)


def troubles() -> None:
    """Runs that ended badly and whose trouble nobody has dealt with: the newest three."""
    bad = shell.workspace().catalog.list(Run, state=(RunState.FAILED, RunState.INTERRUPTED), limit=3)
    for run in bad:
        with st.container(key=f"panel-trouble-{run.id}"):
            words, button = st.columns([5, 1], vertical_alignment="center")
            word = "failed" if run.state is RunState.FAILED else "was interrupted"
            words.markdown(
                f"**{md(run.name)}** {word} {ago(run.ended_at or run.created_at)}: {md(run.reason)}"
            )
            if button.button("Look at it", key=f"trouble-{run.id}", width="stretch"):
                shell.go("runs", run=run.id)


def next_step(datasets: int, adapters: int) -> None:
    """What to do next."""
    with st.container(horizontal=True):
        if st.button("Train a style", type="primary", icon=":material/model_training:"):
            shell.go("train" if datasets else "datasets")
        if adapters and st.button("Make pictures", icon=":material/brush:"):
            shell.go("sample")
        if st.button("Add pictures", icon=":material/add_photo_alternate:"):
            shell.go("datasets", new="1")
        if not adapters:
            demo_button("next")


if __name__ == "__main__":
    page()
