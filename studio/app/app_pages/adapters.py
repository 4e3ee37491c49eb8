"""Adapters: find one, look at where it came from, keep it in order, hand it on."""

from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from registry.paging import Page
from registry.records import Adapter
from registry.search import AdapterQuery
from studio.app import shell
from studio.app.components import (
    adapter_bulk,
    adapter_detail,
    adapter_filters,
    add_adapters,
    import_report,
    notice,
    picture_uses,
    saved_filters,
)
from studio.app.components.cards import adapter_card
from studio.app.components.gallery import Card, gallery
from studio.app.words import plural

PER_PAGE = 24


def page() -> None:
    """What the address names: one adapter, an import, the form for more; else the gallery."""
    if found := shell.asked(Adapter, "adapter"):
        adapter_detail.show(found)
    elif imports := st.query_params.get("imports"):
        import_report.show(imports)
    elif st.query_params.get("add") == "1":
        add_adapters.show()
    elif picture := st.query_params.get("picture"):
        picture_uses.show(picture)
    else:
        listing()


def listing() -> None:
    """Search, filters, cards, pages."""
    catalog = shell.workspace().catalog
    shell.heading("Adapters", "Small files that add what was learned to a base model (LoRA).")
    notice.show()
    import_report.banner()
    trashed = st.query_params.get("trash") == "1"
    kept, binned = (catalog.count_adapters(trashed=where) for where in (False, True))
    if not kept and not binned:
        nothing()
        return
    query, sort = search(trashed=trashed)
    cursors = visited(query, sort)
    found = catalog.search_adapters(query, sort=sort, limit=PER_PAGE, after=cursors[-1])
    if not found.adapters and len(cursors) > 1:  # this page no longer exists
        cursors[:] = [""]
        found = catalog.search_adapters(query, sort=sort, limit=PER_PAGE)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        count = plural(found.total, "adapter") + (" in the trash" if trashed else "")
        st.caption(f"more than {count}" if found.capped else count, width="stretch")
        bin_link(trashed=trashed, binned=binned)
        if not trashed:
            by_picture()
        adapter_bulk.begin_button()
        if st.button("Add adapters", icon=":material/add:", type="primary"):
            shell.stay(add="1")
    adapter_bulk.bar(found, query)
    if not found.adapters:
        shell.empty("none-found", "Nothing fits", "Try fewer words, or take filters off.")
        return
    cards(found)
    pager(cursors, found)


def nothing() -> None:
    """The first thing one sees here."""
    shell.empty(
        "adapters",
        "No adapters yet",
        "Train one from your pictures; it appears here when the run is finished. Or bring in what you have.",
        [
            ("Train an adapter", lambda: shell.go("train")),
            ("Add adapters", lambda: shell.stay(add="1")),
        ],
    )


def search(*, trashed: bool) -> tuple[AdapterQuery, str]:
    """Words, filters and what goes with them -> what to look for, and in which order."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        sort = adapter_filters.words_and_order()
        query = adapter_filters.wanted(trashed=trashed)
        adapter_filters.panel_button()
        saved_filters.menu(query)
    adapter_filters.panel(query)
    adapter_filters.chips(query)
    return query, sort


def cards(found: Page) -> None:
    """The adapters of this page; a click opens one, or chooses it while one is choosing."""
    chosen = adapter_bulk.chosen()
    shown = [card(adapter, chosen or ()) for adapter in found.adapters]
    clicked = gallery(shown, key="adapters-grid", picking=chosen is not None, on_heart=heart)
    if not clicked:
        return
    if chosen is None:
        shell.stay(adapter=clicked)
    adapter_bulk.toggle(clicked)
    st.rerun()


def card(adapter: Adapter, chosen: Sequence[str]) -> Card:
    """A card that shows whether it is chosen."""
    return replace(adapter_card(adapter), selected=adapter.id in chosen)


def heart(id: str) -> None:
    """A favourite, or not any more."""
    catalog = shell.workspace().catalog
    if found := catalog.find(Adapter, id):
        catalog.update(Adapter, id, favourite=not found.favourite)
        st.rerun()


def visited(query: AdapterQuery, sort: str) -> list[str]:
    """Cursors of the pages up to the shown one; another search begins at the beginning."""
    asked = (query, sort)
    if st.session_state.get("adapters-search") != asked:
        st.session_state["adapters-search"] = asked
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


def by_picture() -> None:
    """To the page that says which adapters hold a picture."""
    hint = "Which adapters hold a picture, and how it came into them"
    if st.button("By picture", icon=":material/image_search:", type="tertiary", help=hint):
        shell.stay(picture=picture_uses.ASK)


def bin_link(*, trashed: bool, binned: int) -> None:
    """To the trash and back."""
    if trashed:
        if st.button("Back to all adapters", icon=":material/arrow_back:", type="tertiary"):
            adapter_bulk.end()
            shell.stay()
    elif binned and st.button(f"Trash ({binned})", icon=":material/delete:", type="tertiary"):
        adapter_bulk.end()
        shell.stay(trash="1")


if __name__ == "__main__":
    page()
