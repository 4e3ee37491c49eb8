"""Find another adapter of the same family."""

from collections.abc import Collection

import streamlit as st

from registry.records import Adapter
from studio.app import shell

OFFERED = 50  # of a search


def pick_adapter(label: str, family: str, *, without: Collection[str], key: str) -> Adapter | None:
    """The chosen adapter; None while none is. Words narrow what is offered.

    Args:
        label: Of the list.
        family: Adapters of other families are not offered.
        without: Ids that are not offered.
        key: Unique on the page.
    """
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = st.text_input(
            "Search", key=f"{key}-words", type="search", live="200ms", icon=":material/search:",
            placeholder="Name, tag or trigger word", width=240,
        )  # fmt: skip
        page = shell.workspace().catalog.search_adapters(words or "", family=family, limit=OFFERED)
        found = {adapter.id: adapter for adapter in page.adapters if adapter.id not in without}
        chosen = st.selectbox(
            label, list(found), index=None, format_func=lambda id: found[id].name, key=f"{key}-choice",
            placeholder="choose one" if found else "none fits",
        )  # fmt: skip
    if page.next:
        st.caption(f"The first {OFFERED} of {page.total:,}; type to find the others.")
    return found.get(chosen) if chosen else None
