"""Adapters: find one, look at where it came from, keep it in order, hand it on."""

import streamlit as st

from registry.paging import Page
from registry.records import Adapter
from registry.search import AdapterQuery
from studio.app import shell
from studio.app.components import adapter_detail
from studio.app.components.cards import adapter_card
from studio.app.components.gallery import gallery
from studio.app.words import ORIGIN_WORDS, plural
from trainers.families import FAMILIES

PER_PAGE = 24
SORTS = {
    "newest": "Newest",
    "oldest": "Oldest",
    "name": "Name",
    "rating": "Best rated",
    "size": "Largest",
    "best": "Best match",
}
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
    kept, binned = (catalog.count_adapters(trashed=where) for where in (False, True))
    if not kept and not binned:
        shell.empty(
            "adapters",
            "No adapters yet",
            "Train one from your pictures; it appears here when the run is finished.",
            [("Train an adapter", lambda: shell.go("train"))],
        )
        return
    wanted, sort = filters(trashed)
    cursors = visited(wanted, sort)
    found = catalog.search_adapters(wanted, sort=sort, limit=PER_PAGE, after=cursors[-1])
    if not found.adapters and len(cursors) > 1:  # this page no longer exists
        cursors[:] = [""]
        found = catalog.search_adapters(wanted, sort=sort, limit=PER_PAGE)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        count = plural(found.total, "adapter") + (" in the trash" if trashed else "")
        st.caption(f"more than {count}" if found.capped else count)
        bin_link(trashed=trashed, binned=binned)
    if not found.adapters:
        shell.empty("none-found", "Nothing fits", "Try fewer words, or other filters.")
        return
    if opened := gallery([adapter_card(adapter) for adapter in found.adapters], key="adapters-grid"):
        shell.stay(adapter=opened)
    pager(cursors, found)


def visited(wanted: AdapterQuery, sort: str) -> list[str]:
    """Cursors of the pages up to the shown one; another search begins at the beginning."""
    search = (wanted, sort)
    if st.session_state.get("adapters-search") != search:
        st.session_state["adapters-search"] = search
        st.session_state["adapters-cursors"] = [""]
    return st.session_state["adapters-cursors"]


def pager(cursors: list[str], found: Page) -> None:
    """First, previous and next, when there is more than one page."""
    if len(cursors) == 1 and not found.next:
        return
    pages = -(-found.total // PER_PAGE)
    of = "" if found.capped else f" of {max(pages, len(cursors)):,}"
    with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center"):
        first = len(cursors) == 1
        st.button(
            "First",
            key="adapters-first",
            disabled=first,
            on_click=cursors.__delitem__,
            args=(slice(1, None),),
        )
        st.button("Previous", key="adapters-previous", disabled=first, on_click=cursors.pop)
        st.caption(f"Page {len(cursors):,}{of}", width="content")
        st.button(
            "Next", key="adapters-next", disabled=not found.next, on_click=cursors.append, args=(found.next,)
        )


def filters(trashed: bool) -> tuple[AdapterQuery, str]:
    """Widgets -> what to look for, and in which order."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query = st.text_input(
            "Search",
            key="adapters-query",
            type="search",
            live="200ms",
            icon=":material/search:",
            placeholder="Name, tag, trigger word or note",
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
                persist_state="session",
                format_func=lambda name: FAMILIES[name].label if name else "Any family",
            )
            origin = st.selectbox(
                "Comes from",
                ["", *ORIGIN_WORDS],
                key="adapters-origin",
                persist_state="session",
                format_func=lambda name: ORIGIN_WORDS[name] if name else "Anywhere",
            )
            rating = st.selectbox(
                "Rating",
                list(RATINGS),
                format_func=RATINGS.__getitem__,
                key="adapters-rating",
            )
            tag = st.text_input("Tag", key="adapters-tag", placeholder="a whole tag")
    wanted = AdapterQuery(
        query=query or "",
        family=family,
        origin=origin,
        min_rating=rating,
        tags=(tag.strip(),) if tag and tag.strip() else (),
        trashed=trashed,
    )
    return wanted, sort


def bin_link(*, trashed: bool, binned: int) -> None:
    """To the trash and back."""
    if trashed:
        if st.button("Back to all adapters", icon=":material/arrow_back:", type="tertiary"):
            shell.stay()
    elif binned and st.button(f"Trash ({binned})", icon=":material/delete:", type="tertiary"):
        shell.stay(trash="1")


if __name__ == "__main__":
    page()
