"""The catalog's methods for adapters: registering, finding, changing many."""

import builtins
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from registry import facets, finding
from registry.facets import Facets
from registry.ids import new_id
from registry.paging import Page
from registry.queries import check_fields, conditions
from registry.records import Adapter
from registry.search import AdapterQuery
from registry.sessions import Sessions
from registry.tables import DERIVED_FROM, ROWS, AdapterRow

_AT_ONCE = 500  # rows of one statement


class AdapterCatalog(Sessions):
    """Methods about adapters."""

    def register_adapter(self, adapter: Adapter) -> tuple[Adapter, bool]:
        """Add an adapter unless this run (or no run) has one with these tensors; the bool says "new".

        The same tensors from another run are another row; `list(Adapter, tensor_sha256=...)` finds them all.
        """
        same = {"tensor_sha256": adapter.tensor_sha256, "run_id": adapter.run_id}

        def insert(session: Session) -> tuple[Adapter, bool]:
            known = session.scalars(select(AdapterRow).where(*conditions(AdapterRow, same))).first()
            if known is not None:
                return known.to_record(), False
            made = replace(adapter, id=adapter.id or new_id())
            session.add(AdapterRow.of(made))
            session.flush()
            return made, True

        return self._insert(insert)

    def search_adapters(
        self, query: str | AdapterQuery = "", *, sort: str = "newest", limit: int = 60, after: str = "",
        **filters: Any,
    ) -> Page:  # fmt: skip
        """A page of adapters.

        Args:
            query: Words, or a whole `AdapterQuery`.
            sort: One of `registry.paging.SORTS`.
            limit: Adapters on the page.
            after: `next` of the page before; "" for the first page.
            filters: Further fields of `AdapterQuery`.

        Raises:
            BadInput: no such sort order, or a cursor of another search.
        """
        with self._read() as session:
            return finding.find(session, _query(query, filters), sort, limit, after)

    def count_adapters(self, query: str | AdapterQuery = "", **filters: Any) -> int:
        """How many adapters a search finds."""
        with self._read() as session:
            return finding.count(session, _query(query, filters))

    def adapter_ids(self, query: str | AdapterQuery = "", **filters: Any) -> builtins.list[str]:
        """The ids of all that a search finds, newest first."""
        with self._read() as session:
            return finding.ids(session, _query(query, filters))

    def adapter_facets(self, query: str | AdapterQuery = "", **filters: Any) -> Facets:
        """How many of a search's hits there are of each family, method, origin and tag."""
        with self._read() as session:
            return facets.facets(session, _query(query, filters))

    def update_many(self, kind: type[Any], ids: Collection[str], /, **changes: Any) -> int:
        """Change fields of several records in one transaction; returns how many there were.

        Raises:
            BadInput: a new name is taken, or what they now refer to does not exist.
        """
        check_fields(kind, changes)
        row = ROWS[kind]
        plain = kind is Adapter and not changes.keys() & {*DERIVED_FROM, "metadata"}
        with self._write() as session:
            found = 0
            for some in _chunks(ids):
                if plain:
                    statement = update(row).where(row.id.in_(some)).values(changes)
                    found += getattr(session.execute(statement), "rowcount", 0)
                    continue
                rows = session.scalars(select(row).where(row.id.in_(some)).with_for_update()).all()
                found += len(rows)
                for one in rows:
                    one.assign(changes)
                _write_out(session)
            return found

    def tag_adapters(self, ids: Collection[str], add: Sequence[str] = (), remove: Sequence[str] = ()) -> int:
        """Give adapters tags and take some from them, in one transaction; returns how many were changed.

        Tags are compared as they are written; those that an adapter has keep their place.
        """
        gone = set(remove)
        with self._write() as session:
            changed = 0
            for some in _chunks(ids):
                query = select(AdapterRow).where(AdapterRow.id.in_(some)).with_for_update()
                for row in session.scalars(query).all():
                    tags = tuple(tag for tag in dict.fromkeys((*row.tags, *add)) if tag not in gone)
                    if tags != row.tags:
                        row.tags, changed = tags, changed + 1
                _write_out(session)
            return changed


def _query(query: str | AdapterQuery, filters: dict[str, Any]) -> AdapterQuery:
    if isinstance(query, AdapterQuery):
        return replace(query, **filters)
    return AdapterQuery(query=query, **filters)


def _chunks(ids: Collection[str]) -> Iterator[builtins.list[str]]:
    rest = iter(dict.fromkeys(ids))
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def _write_out(session: Session) -> None:
    session.flush()
    session.expunge_all()  # 100,000 rows at once would be gigabytes
