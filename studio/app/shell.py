"""What every page shares: the workspace, headings, empty states, errors in one line, notes."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import streamlit as st

from registry.errors import StudioError
from registry.records import Adapter, Base, Comparison, Dataset, Run, RunState, Sample
from studio.app import state
from studio.app.words import duration, md, plural
from studio.workspace import Workspace
from trainers.rundir import Status

PAGES = ("home", "datasets", "train", "runs", "adapters", "sample", "compare", "bases", "settings")
ACTIVE = tuple(s for s in RunState if s.active)
_NOTE = "_note"
Asked = TypeVar("Asked", Adapter, Base, Comparison, Dataset, Run, Sample)
_CALLED = {
    Adapter: "adapter",
    Base: "base",
    Comparison: "comparison",
    Dataset: "data set",
    Run: "run",
    Sample: "sample",
}


def workspace() -> Workspace:
    """The workspace this server serves."""
    return state.current()


def heading(title: str, intro: str = "") -> None:
    """Where am I: the page's name (ours, never foreign text) and one sentence."""
    st.title(title, anchor=False)
    if intro:
        st.markdown(f":gray[{md(intro)}]")
    _show_note()


def go(page: str, **params: str) -> None:
    """Open another page, with `params` in its address; ends this run of the script."""
    st.switch_page(f"app_pages/{page}.py", query_params=params)


def link(page: str, label: str, *, icon: str | None = None, **params: str) -> None:
    """A link to another page."""
    st.page_link(f"app_pages/{page}.py", label=label, icon=icon, query_params=params)


def stay(**params: str) -> None:
    """Show this page anew with `params` alone in its address."""
    st.query_params.from_dict(params)
    st.rerun()


def asked(kind: type[Asked], name: str) -> Asked | None:
    """The record that parameter `name` of the address names; None when there is none, which is said."""
    return sought(kind, st.query_params.get(name, ""))


def sought(kind: type[Asked], key: str) -> Asked | None:
    """The record that a link names; None when it names none, or one that is not there, which is said."""
    with guarded():
        found = workspace().catalog.find(kind, key) if key else None
        if key and found is None:
            wrong = f"There is no {_CALLED[kind]} {md(key[:100])} here. It may have been removed."
            st.warning(wrong, icon=":material/link_off:")
        return found
    return None


def note(text: str) -> None:
    """Say `text` on the next run of the script: what an action has done."""
    st.session_state[_NOTE] = text


def _show_note() -> None:
    if text := st.session_state.pop(_NOTE, None):
        st.toast(md(text), icon=":material/check:")


@contextmanager
def guarded() -> Generator[None]:
    """Errors of an action as one line on the page; the rest of the page stays usable."""
    try:
        yield
    except StudioError as error:
        complain(error)


def complain(error: StudioError) -> None:
    """An error as one line."""
    st.error(md(error), icon=":material/error:")


def empty(key: str, title: str, text: str, actions: Sequence[tuple[str, Callable[[], None]]] = ()) -> None:
    """An empty state: what belongs here, and the button that brings it."""
    with st.container(key=f"empty-{key}", horizontal_alignment="center"):
        st.subheader(title, anchor=False, width="content")
        st.markdown(f":gray[{md(text)}]", width="content")
        with st.container(horizontal=True, horizontal_alignment="center"):
            for index, (label, action) in enumerate(actions):
                kind = "primary" if index == 0 else "secondary"
                if st.button(label, key=f"begin-{key}-{index}", type=kind):
                    action()


def place(total: int, per_page: int, key: str) -> int:
    """Number of the page to show, 1 or more; a page that no longer exists becomes the last one."""
    pages = max(1, -(-total // per_page))
    if st.session_state.get(key, 1) > pages:
        st.session_state[key] = pages
    return int(st.session_state.get(key, 1))


def pager(total: int, per_page: int, key: str) -> None:
    """Page numbers, when there is more than one page."""
    if total > per_page:
        with st.container(horizontal_alignment="center"):
            st.pagination(-(-total // per_page), key=key)


def fact(label: str, value: object, *, term: str = "") -> None:
    """A label with a value; the field's own term in small print beside the plain word."""
    beside = f" · {md(term)}" if term else ""
    st.markdown(f":small[:gray[{md(label)}{beside}]]  \n{md(value)}")


def run_progress(run: Run, status: Status | None) -> tuple[float, str]:
    """Fraction done and one line: what is happening, how far, how long still."""
    if run.state is RunState.QUEUED:
        return 0.0, "waits for its turn"
    if run.state is RunState.STARTING or status is None or status.state == "starting":
        return 0.0, run.reason or "getting ready"
    step, steps = status.step, status.steps or run.steps
    fraction = min(1.0, step / steps) if steps else 0.0
    parts = [f"step {step:,} of {steps:,}"]
    if run.state is RunState.RUNNING and status.seconds_left:
        parts.append(f"{duration(status.seconds_left)} left")
    return fraction, ", ".join(parts)


@st.fragment(run_every=3)
def sidebar_status() -> None:
    """What is happening, on every page."""
    catalog = workspace().catalog
    running = catalog.list(Run, state=ACTIVE, limit=1)
    waiting = catalog.count(Run, state=RunState.QUEUED)
    with st.container(key="sidebar-status"):
        if running:
            run = running[0]
            fraction, line = run_progress(run, workspace().run_dir(run.id).read_status())
            st.progress(fraction, text=f"**{md(run.name)}**  \n{md(line)}")
            link("runs", "Watch it", run=run.id)
        elif waiting:
            st.caption(f"{plural(waiting, 'run')} waiting to start")
            if workspace().holder() is None and st.button("Start the worker", icon=":material/play_arrow:"):
                with guarded():
                    state.wake_worker()
        else:
            st.caption("Nothing is running")
