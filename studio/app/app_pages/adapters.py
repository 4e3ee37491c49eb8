"""Adapters: find one, look at where it came from, keep it in order, hand it on."""

from typing import Any

import streamlit as st

from registry.records import Adapter
from studio.app import shell
from studio.app.components import adapter_detail
from studio.app.components.cards import adapter_card
from studio.app.components.gallery import gallery
from studio.app.words import ORIGIN_WORDS, plural
from trainers.families import FAMILIES

PER_PAGE = 24
SORTS = {"newest": "Newest", "oldest": "Oldest", "name": "Name", "rating": "Best rated", "size": "Largest"}
RATINGS = {0: "Any rating", 3: "3 stars or more", 4: "4 stars or more", 5: "5 stars"}


def page() -> None:
    """One adapter when the address names one, else the gallery."""
    if found := shell.asked(Adapter, "adapter"):
        adapter_detail.show(found)
        return
    listing()


def listing() -> None:
    """Search, filters, cards, pages."""
    catalog = shell.workspace().catalog
    shell.heading("Adapters", "Small files that add what was learned to a base model (LoRA).")
    trashed = st.query_params.get("trash") == "1"
    kept, binned = (catalog.search_adapters(limit=1, trashed=where)[1] for where in (False, True))
    if not kept and not binned:
        shell.empty(
            "adapters",
            "No adapters yet",
            "Train one from your pictures; it appears here when the run is finished.",
            [("Train an adapter", lambda: shell.go("train"))],
        )
        return
    wanted = filters()
    asked = st.session_state.get("adapters-page", 1)
    found, total = catalog.search_adapters(
        limit=PER_PAGE, offset=(asked - 1) * PER_PAGE, trashed=trashed, **wanted
    )
    if not found and total:  # fewer results than before: this page no longer exists
        offset = (shell.place(total, PER_PAGE, "adapters-page") - 1) * PER_PAGE
        found, total = catalog.search_adapters(limit=PER_PAGE, offset=offset, trashed=trashed, **wanted)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.caption(plural(total, "adapter") + (" in the trash" if trashed else ""))
        bin_link(trashed=trashed, binned=binned)
    if not found:
        shell.empty("none-found", "Nothing fits", "Try fewer words, or other filters.")
        return
    if opened := gallery([adapter_card(adapter) for adapter in found], key="adapters-grid"):
        shell.stay(adapter=opened)
    shell.pager(total, PER_PAGE, "adapters-page")


def filters() -> dict[str, Any]:
    """Widgets -> arguments of `search_adapters`."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query = st.text_input(
            "Search",
            key="adapters-query",
            type="search",
            live="200ms",
            icon=":material/search:",
            placeholder="Name, tag, trigger word or note",
            on_change=first_page,
            width=360,
            persist_state="session",
        )
        sort = st.selectbox(
            "Sort",
            list(SORTS),
            format_func=SORTS.__getitem__,
            key="adapters-sort",
            width=150,
            persist_state="session",
        )
        with st.popover("Filter", icon=":material/tune:", key="adapters-filter"):
            family = st.selectbox(
                "For base models of",
                ["", *FAMILIES],
                key="adapters-family",
                on_change=first_page,
                persist_state="session",
                format_func=lambda name: FAMILIES[name].label if name else "Any family",
            )
            origin = st.selectbox(
                "Comes from",
                ["", *ORIGIN_WORDS],
                key="adapters-origin",
                on_change=first_page,
                persist_state="session",
                format_func=lambda name: ORIGIN_WORDS[name] if name else "Anywhere",
            )
            rating = st.selectbox(
                "Rating",
                list(RATINGS),
                format_func=RATINGS.__getitem__,
                key="adapters-rating",
                on_change=first_page,
            )
            tag = st.text_input("Tag", key="adapters-tag", on_change=first_page, placeholder="a whole tag")
    return {
        "query": query or "",
        "sort": sort,
        "family": family,
        "origin": origin,
        "min_rating": rating,
        "tag": tag or "",
    }


def first_page() -> None:
    """Other results begin at the beginning."""
    st.session_state["adapters-page"] = 1


def bin_link(*, trashed: bool, binned: int) -> None:
    """To the trash and back."""
    if trashed:
        if st.button("Back to all adapters", icon=":material/arrow_back:", type="tertiary"):
            first_page()
            shell.stay()
    elif binned and st.button(f"Trash ({binned})", icon=":material/delete:", type="tertiary"):
        first_page()
        shell.stay(trash="1")


if __name__ == "__main__":
    page()
