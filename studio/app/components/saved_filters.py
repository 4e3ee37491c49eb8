"""Searches of adapters that are kept under a name: pick one, keep this one, forget one."""

from functools import partial

import streamlit as st

from registry.records import SavedFilter
from registry.search import AdapterQuery
from studio.app import shell
from studio.app.components import adapter_filters, notice
from studio.app.words import md

_NAME = "saved-name"


def menu(query: AdapterQuery) -> None:
    """The list, and a name for what is looked for now."""
    kept = shell.workspace().catalog.list(SavedFilter, order="name")
    with st.popover("Saved searches", icon=":material/bookmark:", key="adapters-saved"):
        if not kept:
            st.caption("Keep a search and its filters under a name, to come back to them with one click.")
        for record in kept:
            with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
                st.button(
                    md(record.name),
                    key=f"saved-{record.id}",
                    icon=":material/search:",
                    width="stretch",
                    on_click=_pick,
                    args=(record,),
                )
                st.button(
                    "",
                    key=f"forget-{record.id}",
                    icon=":material/delete:",
                    type="tertiary",
                    help=f"Forget {md(record.name)}",
                    on_click=_forget,
                    args=(record,),
                )
        if query.query.strip() or query.asked():
            st.text_input("Keep this search as", key=_NAME, max_chars=100, placeholder="What you call it")
            if st.button("Save", key="saved-go", icon=":material/bookmark_add:"):
                _keep(query)
        elif kept:
            st.caption("To keep another, type words or set filters first.")


def _keep(query: AdapterQuery) -> None:
    from studio.filters import save_filter

    with shell.guarded():
        record = save_filter(shell.workspace(), (st.session_state.get(_NAME) or "").strip(), query)
        shell.note(f"{record.name} is kept")
        st.rerun()


def _pick(record: SavedFilter) -> None:
    with shell.guarded():
        adapter_filters.use(AdapterQuery.from_json(record.query))


def _forget(record: SavedFilter) -> None:
    catalog = shell.workspace().catalog
    with shell.guarded():
        catalog.delete(SavedFilter, record.id)
        notice.leave(f"The search {record.name} is forgotten.", undo=partial(catalog.add, record))
