"""Runs: the queue, what is happening, what happened."""

import streamlit as st

from registry.records import Adapter, Base, Checkpoint, Dataset, Run, RunState
from studio.app import shell, state
from studio.app.components import live, run_compare
from studio.app.components.cards import adapter_card, run_card
from studio.app.components.checkpoints_table import advice, checkpoints
from studio.app.components.evidence import evidence_of_run
from studio.app.components.gallery import gallery
from studio.app.components.run_actions import actions
from studio.app.words import duration, md, tail, value_text
from studio.runs import launch, speed
from studio.runs.ranking import ranking_of
from trainers.recipe import differences, preset_name, thaw, to_toml
from trainers.rundir import LOG

PER_PAGE = 12
LOG_LINES = 200
SOON, NOW_AND_THEN = 2, 15  # seconds between looks


def page() -> None:
    """One run when the address names one, else the list."""
    if found := shell.asked(Run, "run"):
        detail(found)
        return
    if st.query_params.get("compare") == "1":
        run_compare.two()
        return
    listing()


def listing() -> None:
    """What runs now, what waits, and the history."""
    catalog = shell.workspace().catalog
    shell.heading("Runs", "Each run teaches one adapter. They wait in line and take turns.")
    total = catalog.count(Run)
    if not total:
        shell.empty(
            "runs",
            "No runs yet",
            "Start one, and watch it learn here.",
            [("Train", lambda: shell.go("train"))],
        )
        return
    queue()
    ended = tuple(state for state in RunState if not state.active and state is not RunState.QUEUED)
    past = catalog.count(Run, state=ended)
    if not past:
        return
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.header("History", anchor=False, width="content")
        if total > 1 and st.button("Compare two runs", icon=":material/compare_arrows:"):
            shell.stay(compare="1")
    place = shell.place(past, PER_PAGE, "runs-page")
    runs = catalog.list(Run, state=ended, limit=PER_PAGE, offset=(place - 1) * PER_PAGE)
    if opened := gallery([run_card(run) for run in runs], key="history"):
        shell.stay(run=opened)
    shell.pager(past, PER_PAGE, "runs-page")


@st.fragment(run_every=SOON)
def queue() -> None:
    """Running and waiting runs."""
    workspace = shell.workspace()
    running = workspace.catalog.list(Run, state=shell.ACTIVE)
    waiting = workspace.catalog.list(Run, state=RunState.QUEUED, order="created_at")
    for run in running:
        with st.container(key=f"panel-running-{run.id}"):
            st.subheader(md(run.name), anchor=False)
            live.progress_panel(run, workspace.run_dir(run.id).read_status())
            with st.container(horizontal=True):
                if st.button("Watch it learn", key=f"watch-{run.id}", type="primary"):
                    shell.go("runs", run=run.id)
                actions(run)
    for place, run in enumerate(waiting, 1):
        with st.container(key=f"panel-waiting-{run.id}", horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{md(run.name)}** :gray[waits, number {place} in line]", width="stretch")
            if st.button("Look at it", key=f"look-{run.id}"):
                shell.go("runs", run=run.id)
            actions(run)
    if not running and not waiting:
        st.caption("Nothing is running.")


def detail(run: Run) -> None:
    """One run, live while it lasts."""
    if st.button("All runs", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading(md(run.name))
    with st.container():  # there also while it is empty: what follows keeps its place when the run ends
        run_compare.once_more(run)
    going_on = run.state.active or run.state is RunState.QUEUED
    # What has ended changes only when it is taken up again elsewhere, for example from a terminal.
    st.fragment(watch, run_every=SOON if going_on else NOW_AND_THEN)(run.id, run.state)
    outcome(run)
    settings(run)
    run_compare.compare(run)
    log(run.id)


def watch(run_id: str, state_before: RunState) -> None:
    """Progress, buttons, previews, curves, checkpoints; the whole page is shown anew when the run ends."""
    workspace = shell.workspace()
    run = workspace.catalog.get(Run, run_id)
    if run.state is not state_before:
        st.rerun()
    rundir = workspace.run_dir(run.id)
    status, lines = rundir.read_status(), rundir.read_metrics()
    ranking = ranking_of(workspace, run, lines=lines)
    with st.container(key="panel-run"):
        live.progress_panel(run, status)
        if run.reason:
            show = st.error if run.state is RunState.FAILED else st.warning
            show(
                md(run.reason), icon=":material/hourglass_empty:" if run.state.active else ":material/error:"
            )
        advice(ranking)
        with st.container(horizontal=True):
            actions(run)
    st.subheader("Pictures while it learns", anchor=False)
    live.previews(run)
    st.subheader("Curves", anchor=False)
    live.charts(run, lines)
    checkpoints(run, ranking)


def outcome(run: Run) -> None:
    """Adapters it made, and the way on from a checkpoint."""
    catalog = shell.workspace().catalog
    adapters = catalog.list(Adapter, run_id=run.id)
    if adapters:
        st.subheader("What came out", anchor=False)
        if opened := gallery([adapter_card(adapter) for adapter in adapters], key="run-adapters"):
            shell.go("adapters", adapter=opened)
    steps = [checkpoint.step for checkpoint in catalog.list(Checkpoint, run_id=run.id, order="-step")]
    if steps:
        evidence_of_run(run)
        with st.expander("Go on from a checkpoint", icon=":material/call_split:"):
            branch_form(run, steps)


def branch_form(run: Run, steps: list[int]) -> None:
    """A new run from a checkpoint of this one: longer, or gentler."""
    with (
        st.form(f"branch-{run.id}", border=False),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        step = st.selectbox("Go on from step", steps, width=150)
        until = st.number_input("until step", 1, 1_000_000, max(run.steps, steps[0] * 2), width=150)
        rate = st.number_input(
            "Learning rate", 1e-9, 10.0, float(run.recipe["optimizer"]["lr"]), format="%g", width=160
        )
        if st.form_submit_button("Branch", icon=":material/call_split:"):
            with shell.guarded():
                sets = [f"train.max_steps={until}", f"optimizer.lr={rate!r}"]
                made = launch.branch(shell.workspace(), run, int(step), sets)
                state.wake_worker()
                shell.note(f"{made.name} is in line")
                shell.go("runs", run=made.id)


def settings(run: Run) -> None:
    """What it was made from and with which choices."""
    catalog = shell.workspace().catalog
    recipe = thaw(run.recipe)
    dataset, base = catalog.find(Dataset, run.dataset_id), catalog.find(Base, run.base_id)
    with st.expander("Settings of this run", icon=":material/tune:"):
        with st.container(horizontal=True, vertical_alignment="center"):
            if dataset is not None:
                shell.link("datasets", md(dataset.name), icon=":material/photo_library:", dataset=dataset.id)
            st.caption(f"on {md(base.name) if base else 'a base since removed'}, {run.goal}, seed {run.seed}")
            if (took := speed.taken(shell.workspace(), run)) is not None:
                st.caption(f"took {duration(took)}")
        name = preset_name(run.family, run.goal, base.name if base else "")
        for change in differences(recipe, name):
            instead = f":gray[instead of {md(value_text(change.preset))}]"
            st.markdown(f"- `{change.key}` {md(value_text(change.value))} {instead}")
        text = to_toml(recipe)
        st.code(text, language="toml", height=400, wrap_lines=True)
        st.download_button(
            "Save as TOML", text, f"{run.id}.toml", "application/toml", icon=":material/download:"
        )


def log(run_id: str) -> None:
    """The trainer's own words."""
    with st.expander("Log", icon=":material/terminal:"):
        text = tail(shell.workspace().run_dir(run_id).file(LOG), LOG_LINES)
        st.code(text or "Nothing written yet.", language=None, height=320, wrap_lines=True)


if __name__ == "__main__":
    page()
