"""What the adapters page looks for: words and order, filters with counts, chips of those in use.

The filters in use are one `AdapterQuery` of the session. Fields show it and change it, so a chip that is
clicked or a search that is picked shows in the fields at once.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import streamlit as st

from registry.facets import Facets
from registry.records import Base, FileState
from registry.search import UNIDENTIFIED, AdapterQuery
from studio.app import shell
from studio.app.components.cards import family_label, method_label
from studio.app.words import ORIGIN_WORDS, md, value_text

SORTS = {
    "newest": "Newest",
    "oldest": "Oldest",
    "name": "Name",
    "rating": "Best rated",
    "size": "Largest",
    "best": "Best match",
}
RATINGS = {
    0: "Any rating",
    1: "Rated",
    2: "2 stars or more",
    3: "3 stars or more",
    4: "4 stars or more",
    5: "5 stars",
}
FILES = {
    "": "Any",
    FileState.MISSING.value: "File missing",
    FileState.CHANGED.value: "File changed",
    FileState.EDITED.value: "Description changed",
    FileState.NEW.value: "Being read",
    FileState.OK.value: "As it was registered",
}
PREVIEW = {"": "With or without", "yes": "With a preview", "no": "Without a preview"}
LICENCE = {"": "With or without", "yes": "Licence stated", "no": "No licence stated"}
YES_OR_NO = {"has_preview", "has_licence"}
EITHER = {None: "", True: "yes", False: "no"}

QUERY, SORT, PANEL = "adapters-query", "adapters-sort", "adapters-panel"
_FILTERS, _FACETS = "adapters-filters", "adapters-facets"
FRESH = 30.0  # seconds; counts are not asked for again while one pages


def wanted(*, trashed: bool) -> AdapterQuery:
    """What to look for: the words that are typed, and the filters in use."""
    return replace(_filters(), query=st.session_state.get(QUERY) or "", trashed=trashed)


def use(query: AdapterQuery) -> None:
    """Look for this instead; only before the fields are drawn, so in callbacks."""
    st.session_state[QUERY] = query.query
    st.session_state[_FILTERS] = replace(query, query="", trashed=False)


def words_and_order() -> str:
    """The search field and the order; returns the order."""
    words = st.text_input(
        "Search",
        key=QUERY,
        type="search",
        live="200ms",
        icon=":material/search:",
        placeholder="Name, tag, trigger word or note",
        width=320,
        persist_state="session",
    )
    orders = [sort for sort in SORTS if sort != "best" or (words or "").strip()]
    if st.session_state.get(SORT, "newest") not in orders:
        st.session_state[SORT] = "newest"
    return st.selectbox(
        "Sort", orders, format_func=SORTS.__getitem__, key=SORT, width=140, persist_state="session"
    )


def panel_button() -> None:
    """Opens and closes the panel."""
    shown, used = st.session_state.get(PANEL, False), len(_filters().asked())
    st.button(
        f"Filter ({used})" if used else "Filter",
        icon=":material/expand_less:" if shown else ":material/tune:",
        key="adapters-filter",
        on_click=st.session_state.__setitem__,
        args=(PANEL, not shown),
    )


def panel(query: AdapterQuery) -> None:
    """All filters, with how many adapters each value has among what is found; nothing while it is closed."""
    if not st.session_state.get(PANEL):
        return
    counts = _facets(query)
    with st.container(key="panel-filters"), st.grid("auto", min_column_width=190, gap="small"):
        families = {UNIDENTIFIED if name == "" else name: n for name, n in counts.family.items()}
        _counted("family", "For base models of", "Any base model", families)
        _counted("method", "Kind (method)", "Any kind", counts.method)
        _counted("origin", "Comes from", "Anywhere", counts.origin)
        _tags(counts.tag)
        _field("trigger", st.text_input, "Trigger word", placeholder="the whole word")
        _chosen("min_rating", "Rating", RATINGS)
        _chosen("has_preview", "Preview", PREVIEW)
        _chosen("file_state", "File", FILES)
        _chosen("has_licence", "Licence", LICENCE)
        _field("favourite", st.toggle, "Favourites only")
        if counts.rough:
            st.caption("Words of one or two letters are left out of the counts.")


def chips(query: AdapterQuery) -> None:
    """The filters in use, each with its way out."""
    found = list(_chips(query))
    if not found:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="chips-adapters"):
        for number, (label, change) in enumerate(found):
            st.button(
                md(label),
                key=f"chip-{number}",
                icon=":material/close:",
                icon_position="right",
                on_click=_put,
                kwargs=change,
                help="Take this filter off",
            )
        st.button("Clear all", key="chips-clear", type="tertiary", on_click=use, args=(AdapterQuery(),))


def recount() -> None:
    """Adapters have changed: ask for the counts again."""
    st.session_state.pop(_FACETS, None)


def _filters() -> AdapterQuery:
    return st.session_state.setdefault(_FILTERS, AdapterQuery())


def _put(**changes: Any) -> None:
    st.session_state[_FILTERS] = replace(_filters(), **changes)


def _facets(query: AdapterQuery) -> Facets:
    kept = st.session_state.get(_FACETS)
    if kept is None or kept[0] != query or time.monotonic() - kept[1] > FRESH:
        kept = (query, time.monotonic(), shell.workspace().catalog.adapter_facets(query))
        st.session_state[_FACETS] = kept
    return kept[2]


def _field(name: str, widget: Any, label: str, **options: Any) -> None:
    """A widget that shows a filter and changes it."""
    key = f"filter-{name}"
    st.session_state[key] = _shown(name)
    widget(label, key=key, on_change=_changed, args=(name,), **options)


def _shown(name: str) -> Any:
    """A filter as its field has it."""
    value = getattr(_filters(), name)
    if name in YES_OR_NO:
        return EITHER[value]
    if name == "tags":
        return list(value)
    return bool(value) if name == "favourite" else value


def _changed(name: str) -> None:
    value = st.session_state[f"filter-{name}"]
    if name in YES_OR_NO:
        value = {"yes": True, "no": False}.get(value)
    elif name == "favourite":
        value = value or None
    elif name == "tags":
        value = tuple(value)
    elif isinstance(value, str):
        value = value.strip()
    _put(**{name: value})


def _chosen(name: str, label: str, options: dict[Any, str]) -> None:
    value = _shown(name)
    known = [*options, *([] if value in options else [value])]
    _field(name, st.selectbox, label, options=known, format_func=lambda v: options.get(v, str(v)))


def _counted(name: str, label: str, any_: str, counts: Mapping[str, int]) -> None:
    """Values that occur, the most frequent first, with their numbers."""
    used = getattr(_filters(), name)
    values = ["", *(value for value in counts if value)]
    values += [] if used in values else [used]
    words = {v: f"{_value_label(name, v)} ({counts.get(v, 0):,})" for v in values if v}
    _field(name, st.selectbox, label, options=values, format_func=lambda v: words.get(v, any_))


def _tags(counts: Mapping[str, int]) -> None:
    used = [tag for tag in _filters().tags if tag not in counts]
    _field(
        "tags",
        st.multiselect,
        "Tags",
        options=[*counts, *used],
        format_func=lambda tag: f"{tag} ({counts.get(tag, 0):,})",
        placeholder="All of these",
    )


def _value_label(name: str, value: Any) -> str:
    if name == "family":
        return "Not identified" if value == UNIDENTIFIED else family_label(value)
    if name == "method":
        return method_label(value)
    return ORIGIN_WORDS.get(value, value).capitalize()


def _chips(query: AdapterQuery) -> Iterator[tuple[str, dict[str, Any]]]:
    """(words, the change that takes the filter off) for each filter in use."""
    nothing = AdapterQuery()
    for name, value in query.asked().items():
        if name == "tags":
            for tag in value:
                yield f"tag {tag}", {"tags": tuple(other for other in value if other != tag)}
        else:
            yield _chip_label(name, value), {name: getattr(nothing, name)}


def _chip_label(name: str, value: Any) -> str:
    if name in {"family", "method", "origin"}:
        return _value_label(name, value)
    if name == "favourite":
        return "Favourites" if value else "No favourites"
    if name == "base_id":
        base = shell.workspace().catalog.find(Base, value)
        return f"base {base.name if base else 'since removed'}"
    known = {
        "min_rating": RATINGS,
        "file_state": FILES,
        "has_preview": {word: PREVIEW[EITHER[word]] for word in (True, False)},
        "has_licence": {word: LICENCE[EITHER[word]] for word in (True, False)},
    }
    if name in known:
        return known[name].get(value, str(value))
    return f"{name.replace('_', ' ')} {value_text(value)}"
