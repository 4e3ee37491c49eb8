"""A run once more, and beside another: buttons and the table of what differs."""

import streamlit as st

from registry.errors import BadInput
from registry.records import Run, RunState
from studio.app import shell, state
from studio.app.words import ago, md, plural, spoken, value_text
from studio.runs.diff import Difference, diff_runs

CHOICES = 50  # runs to choose from, newest first
ROWS = 60
PART_WORDS = {
    "recipe": "Setting",
    "pictures": "Picture",
    "base": "Base",
    "versions": "Version",
    "results": "Result",
}
PICTURE_WORDS = {"added": "only in the other", "removed": "only in this one", "dataset": "", "content": ""}


def once_more(run: Run) -> None:
    """The button; when pictures or base have changed it says so and offers the present ones."""
    if run.state.active or run.state is RunState.QUEUED:
        return
    refused = f"changed-since-{run.id}"
    with st.container(horizontal=True, vertical_alignment="center"):
        hint = "Same settings, base, pictures and seed, as a new run"
        if st.button("Run again", key=f"again-{run.id}", icon=":material/replay:", help=hint):
            try:
                _start(run, present=False)
            except BadInput as error:
                st.session_state[refused] = error
        if refused in st.session_state and st.button(
            "Run again with what is there now", key=f"present-{run.id}", icon=":material/update:"
        ):
            with shell.guarded():
                _start(run, present=True)
    if refused in st.session_state:
        shell.complain(st.session_state[refused])


def _start(run: Run, *, present: bool) -> None:
    from studio.runs.again import run_again

    made = run_again(shell.workspace(), run, present=present)
    st.session_state.pop(f"changed-since-{run.id}", None)
    state.wake_worker()
    shell.note(f"{made.name} is in line")
    shell.go("runs", run=made.id)


def compare(run: Run) -> None:
    """Choose another run and see what tells them apart."""
    others = _runs(without=run.id)
    if not others:
        return
    with st.expander("Compare with another run", icon=":material/compare_arrows:"):
        if other := _pick("Compare with", others, key=f"compare-{run.id}"):
            table(run, other, diff_runs(shell.workspace(), run, other), first="This run")


def two() -> None:
    """The page on which two runs are chosen."""
    if st.button("All runs", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading("Compare two runs", "Settings, pictures, base, versions and results: what is not the same.")
    left, right = st.columns(2)
    with left:
        one = _pick("One run", _runs(), key="compare-one")
    with right:
        other = _pick("The other", _runs(without=one.id if one else ""), key="compare-other")
    if one and other:
        table(one, other, diff_runs(shell.workspace(), one, other))


def _runs(*, without: str = "") -> dict[str, Run]:
    """The newest by id."""
    runs = shell.workspace().catalog.list(Run, limit=CHOICES)
    return {run.id: run for run in runs if run.id != without}


def _pick(label: str, runs: dict[str, Run], *, key: str) -> Run | None:
    chosen = st.selectbox(
        label,
        list(runs),
        index=None,
        format_func=lambda id: f"{runs[id].name}, {ago(runs[id].created_at)}",
        key=key,
        placeholder="choose a run",
    )
    return runs.get(chosen) if chosen else None


def table(run: Run, other: Run, found: list[Difference], *, first: str = "") -> None:
    """One row for each difference; `first` heads the column of `run` in the place of its name."""
    if not found:
        st.markdown("They do not differ in anything that is written down.")
        return
    same = not first and other.name == run.name
    second = f"{other.name}, the other" if same else other.name
    rows = [
        {
            "": PART_WORDS[difference.part],
            "What": md(words_for(difference)),
            md(first or run.name): md(value_text(difference.a)),
            md(second): md(value_text(difference.b)),
        }
        for difference in found[:ROWS]
    ]
    st.table(rows, border="horizontal", hide_index=True)
    if len(found) > ROWS:
        more = f"{plural(len(found) - ROWS, 'difference')} more: studio runs diff {run.id} {other.id}"
        st.caption(md(more))


def words_for(difference: Difference) -> str:
    """What differs, in a few words."""
    if difference.part == "recipe":
        return spoken(difference.key)
    if difference.part == "pictures":
        how = PICTURE_WORDS.get(difference.key, difference.key)
        return f"{difference.what}, {how}" if how else difference.what
    return difference.what
