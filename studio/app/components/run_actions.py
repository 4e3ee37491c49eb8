"""Pause, stop, resume: wishes that the worker carries out."""

from collections.abc import Callable

import streamlit as st

from registry.records import Run, RunState
from studio.app import shell, state
from studio.runs import launch
from studio.workspace import Workspace

Wish = Callable[[Workspace, Run], Run]


def actions(run: Run) -> None:
    """The buttons that make sense in the run's state."""
    if run.state in {RunState.STARTING, RunState.RUNNING, RunState.QUEUED}:
        _button(run, "Pause", ":material/pause:", launch.pause, "Saves where it is and frees the machine")
    if run.state in {RunState.STARTING, RunState.RUNNING, RunState.PAUSING, RunState.QUEUED}:
        _button(
            run, "Stop", ":material/stop:", launch.stop, "Saves where it is and keeps what was learned so far"
        )
    if run.state is RunState.STOPPING:
        _button(
            run, "Stop at once", ":material/stop_circle:", launch.stop, "Does not wait for the checkpoint"
        )
    if run.state.resumable:
        _button(run, "Go on", ":material/play_arrow:", launch.resume, "Continues exactly where it was saved")


def _button(run: Run, label: str, icon: str, wish: Wish, hint: str) -> None:
    if st.button(label, key=f"{label}-{run.id}", icon=icon, help=hint):
        with shell.guarded():
            moved = wish(shell.workspace(), run)
            state.wake_worker()
            shell.note(f"{run.name}: {moved.state}")
            st.rerun()
