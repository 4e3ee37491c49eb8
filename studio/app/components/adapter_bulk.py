"""Several adapters at once: choose cards, then tag, rate, keep, export, put into the trash or take out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from registry.paging import Page
from registry.records import Adapter
from registry.search import AdapterQuery
from studio.app import shell
from studio.app.components import adapter_filters, notice
from studio.app.components.adapter_head import parts
from studio.app.components.bulk_export import export_dialog
from studio.app.components.merge_dialog import merge_chosen
from studio.app.words import plural

if TYPE_CHECKING:
    from studio.adapters_many import ManyReport

_CHOSEN = "adapters-chosen"  # ids, while one is choosing
_STARS, _TAGS = "bulk-stars", "bulk-tags"
MOST = 1000  # that one click chooses; more is for the command line


def chosen() -> list[str] | None:
    """Ids of the chosen adapters; None while nobody is choosing."""
    return st.session_state.get(_CHOSEN)


def begin_button() -> None:
    """Starts choosing, and ends it."""
    if chosen() is None:
        st.button("Select", icon=":material/check_circle:", key="bulk-begin", on_click=_choose, args=([],))
    else:
        st.button("Done", icon=":material/done:", key="bulk-end", on_click=end)


def toggle(id: str) -> None:
    """Choose an adapter, or not any more."""
    ids = chosen() or []
    _choose([other for other in ids if other != id] if id in ids else [*ids, id])


def bar(found: Page, query: AdapterQuery) -> None:
    """How many are chosen, and what can be done with them; nothing while nobody is choosing."""
    ids = chosen()
    if ids is None:
        return
    with st.container(key="panel-bulk", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f"**{plural(len(ids), 'adapter')} chosen**", width="content")
            page = [*ids, *(adapter.id for adapter in found.adapters if adapter.id not in ids)]
            st.button("All on this page", key="bulk-page", type="tertiary", on_click=_choose, args=(page,))
            if len(found.adapters) < found.total <= MOST and not found.capped:
                label = f"All {found.total:,} that fit"
                st.button(label, key="bulk-all", type="tertiary", on_click=_choose_all, args=(query,))
            if ids:
                st.button("None", key="bulk-none", type="tertiary", on_click=_choose, args=([],))
        if not ids:
            st.caption("Click the cards that you want to do something with.")
        elif query.trashed:
            st.button("Take out of the trash", icon=":material/restore_from_trash:", on_click=_restore)
        else:
            _actions(ids)


def _actions(ids: Sequence[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with st.popover("Tags", icon=":material/label:", key="bulk-tags-menu"):
            st.text_input("Tags", key=_TAGS, placeholder="separated by commas")
            with st.container(horizontal=True):
                st.button("Add to all", key="bulk-tag", type="primary", on_click=_tag, args=(True,))
                st.button("Take from all", key="bulk-untag", on_click=_tag, args=(False,))
        with st.popover("Rate", icon=":material/star_rate:", key="bulk-rate-menu"):
            st.feedback("stars", key=_STARS, on_change=_rate)
            st.button("No rating", key="bulk-unrate", type="tertiary", on_click=_rate)
        with st.popover("Favourite", icon=":material/favorite:", key="bulk-favourite-menu"):
            st.button("Make favourites", key="bulk-favourite", on_click=_favourite, args=(True,))
            st.button("No favourites any more", key="bulk-plain", on_click=_favourite, args=(False,))
        if st.button("Export", icon=":material/ios_share:", key="bulk-export"):
            export_dialog(list(ids))
        if len(ids) > 1 and st.button("Merge", icon=":material/merge:", key="bulk-merge"):
            with shell.guarded():
                merge_chosen(ids)
        st.button("To the trash", icon=":material/delete:", key="bulk-trash", on_click=_trash)


def _choose(ids: list[str]) -> None:
    st.session_state[_CHOSEN] = ids


def _choose_all(query: AdapterQuery) -> None:
    _choose(shell.workspace().catalog.adapter_ids(query))


def end() -> None:
    """Nobody is choosing any more."""
    st.session_state.pop(_CHOSEN, None)


def _tag(give: bool) -> None:
    from registry.files import check_name

    with shell.guarded():
        words = [check_name(tag, "tag") for tag in parts(st.session_state.get(_TAGS))]
        if not words:
            return
        add, remove = (words, ()) if give else ((), words)
        ids = chosen() or []
        before = _values("tags")
        changed = shell.workspace().catalog.tag_adapters(ids, add, remove)
        st.session_state[_TAGS] = ""
        _done(f"Tags of {plural(changed, 'adapter')} changed.", undo=partial(_put_back, "tags", before))


def _rate() -> None:
    stars = st.session_state.get(_STARS)
    st.session_state[_STARS] = None
    rating = 0 if stars is None else stars + 1
    words = f"rated {rating} of 5" if rating else "not rated any more"
    _update("rating", rating, words)


def _favourite(on: bool) -> None:
    _update("favourite", on, "favourites now" if on else "no favourites any more")


def _update(field: str, value: Any, words: str) -> None:
    with shell.guarded():
        before = _values(field)
        count = shell.workspace().catalog.update_many(Adapter, chosen() or [], **{field: value})
        _done(f"{plural(count, 'adapter')}: {words}.", undo=partial(_put_back, field, before))


def _values(field: str) -> dict[Any, list[str]]:
    """What the chosen adapters have now: value -> ids."""
    found: dict[Any, list[str]] = {}
    for adapter in shell.workspace().catalog.list(Adapter, id=tuple(chosen() or ())):
        found.setdefault(getattr(adapter, field), []).append(adapter.id)
    return found


def _put_back(field: str, before: dict[Any, list[str]]) -> None:
    for value, ids in before.items():
        shell.workspace().catalog.update_many(Adapter, ids, **{field: value})
    adapter_filters.recount()


def _trash() -> None:
    from studio.adapters_many import trash_many

    report = trash_many(shell.workspace(), chosen() or [])
    back = list(report.done)
    _moved(report, "in the trash", undo=partial(restore, back) if back else None)


def _restore() -> None:
    restore(chosen() or [])


def restore(ids: Sequence[str]) -> None:
    """Take adapters out of the trash, and say so."""
    from studio.adapters_many import restore_many

    _moved(restore_many(shell.workspace(), ids), "back")


def _moved(report: "ManyReport", where: str, undo: Callable[[], object] | None = None) -> None:
    if chosen() is not None:
        _choose([id for id, _ in report.failed])
    count = len(report.done)
    text = f"{plural(count, 'adapter')} {'is' if count == 1 else 'are'} {where}."
    _done(text, undo=undo, problems=[line for _, line in report.failed])


def _done(text: str, **more: Any) -> None:
    adapter_filters.recount()
    notice.leave(text, **more)
