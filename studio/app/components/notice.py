"""What an action has done, with its way back and what it could not do; stays until it is understood."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from studio.app import shell
from studio.app.words import md

_NOTICE = "adapters-notice"
LINES = 5  # problems that are shown


@dataclass(frozen=True)
class Notice:
    """One thing that was done."""

    text: str
    undo: Callable[[], object] | None = None
    problems: tuple[str, ...] = ()


def leave(text: str, *, undo: Callable[[], object] | None = None, problems: Sequence[str] = ()) -> None:
    """Say it on the next runs of the script, in place of what was said before."""
    st.session_state[_NOTICE] = Notice(text, undo, tuple(problems))


def show() -> None:
    """The last notice, if it is still there."""
    notice: Notice | None = st.session_state.get(_NOTICE)
    if notice is None:
        return
    with st.container(key="panel-notice"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(md(notice.text), width="stretch")
            if notice.undo is not None and st.button("Undo", icon=":material/undo:", key="notice-undo"):
                _take_back(notice.undo)
            if st.button("", icon=":material/close:", type="tertiary", key="notice-seen", help="Understood"):
                del st.session_state[_NOTICE]
                st.rerun()
        for line in notice.problems[:LINES]:
            st.markdown(f":orange[:material/warning:] {md(line)}")
        if len(notice.problems) > LINES:
            st.caption(f"and {len(notice.problems) - LINES:,} more")


def _take_back(undo: Callable[[], object]) -> None:
    """Undo it; the undoing may leave a notice of its own."""
    with shell.guarded():
        del st.session_state[_NOTICE]
        undo()
        st.rerun()
