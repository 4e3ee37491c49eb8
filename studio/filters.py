"""Searches of adapters under a name."""

from typing import TYPE_CHECKING

from registry.files import check_name
from registry.records import SavedFilter

if TYPE_CHECKING:
    from registry.search import AdapterQuery
    from studio.workspace import Workspace


def save_filter(ws: "Workspace", name: str, query: "AdapterQuery") -> SavedFilter:
    """Keep a search under a name, in place of an earlier one.

    Raises:
        BadInput: the name is none.
    """
    known = ws.catalog.list(SavedFilter, name=check_name(name))
    if known:
        return ws.catalog.update(SavedFilter, known[0].id, query=query.to_json())
    return ws.catalog.add(SavedFilter(name=name, query=query.to_json()))
