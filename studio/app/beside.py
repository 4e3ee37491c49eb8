"""Work of seconds, done beside the page: begun once, and the page is shown anew when it is over."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import streamlit as st

from registry.errors import StudioError
from studio.app import shell

PATIENCE = 0.3  # seconds that a page waits, so that quick work shows at once
Found = TypeVar("Found")


def beside(key: str, work: Callable[[], Found], saying: str) -> Found | None:
    """What `work` returns; None while it is under way, or when it failed, both of which the page says.

    Args:
        key: Unique in the session; other work needs another.
        work: Runs in a thread, and must not use Streamlit.
        saying: Shown meanwhile.
    """
    name = f"beside-{key}"
    if name not in st.session_state:
        st.session_state[name] = _pool().submit(work)
    future: Future[Found] = st.session_state[name]
    wait([future], PATIENCE)
    if not future.done():
        _waiting(name, saying)
        return None
    try:
        return future.result()
    except StudioError as error:
        shell.complain(error)
        if st.button("Try again", key=f"{name}-again"):
            st.session_state.pop(name)
            st.rerun()
        return None


@st.cache_resource
def _pool() -> ThreadPoolExecutor:
    """One piece of work at a time over all visitors: each needs memory for a whole adapter."""
    return ThreadPoolExecutor(1, thread_name_prefix="beside")


@st.fragment(run_every=0.5)
def _waiting(name: str, saying: str) -> None:
    if name not in st.session_state or st.session_state[name].done():
        st.rerun()
    st.caption(saying)
    st.skeleton(height=120)
