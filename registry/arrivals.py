"""Adapter rows of files that were listed by their header and get their identity later, when they are hashed.

A part of the catalog (`registry.catalog.Catalog`), in a file of its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Text, cast, literal_column, select
from sqlalchemy.orm import Session

from registry.ids import new_id
from registry.queries import check_fields
from registry.records import Adapter
from registry.sessions import Sessions
from registry.tables import AdapterRow

_AT_ONCE = 300  # values in one IN: SQLite's oldest limit on parameters is 999


class Arrivals(Sessions):
    """What taking files in, and looking after them, asks of the catalog."""

    def adapters_at(self, paths: Collection[str]) -> dict[str, Adapter]:
        """Adapters by `path`, as the catalog writes it; what lies in the trash gives way to what does not."""
        found: dict[str, Adapter] = {}
        with self._read() as session:
            for part in _parts(paths):
                for row in session.scalars(select(AdapterRow).where(AdapterRow.path.in_(part))):
                    known = found.get(row.path)
                    if known is None or known.trashed_at is not None:
                        found[row.path] = row.to_record()
        return found

    def adapters_with(self, tensor_sha256s: Collection[str]) -> dict[str, list[Adapter]]:
        """Adapters by the hash of their tensors, the oldest first."""
        found: dict[str, list[Adapter]] = {}
        with self._read() as session:
            for part in _parts(tensor_sha256s):
                for row in session.scalars(_with_tensors(part)):
                    found.setdefault(row.tensor_sha256, []).append(row.to_record())
        return found

    def adapters_naming(self, text: str) -> list[Adapter]:
        """Imported adapters without a base whose metadata holds `text`, digits of a hash; reads them all."""
        holds = cast(AdapterRow.metadata_, Text).contains(text, autoescape=True)
        open_ones = select(AdapterRow).where(AdapterRow.base_id.is_(None), AdapterRow.origin == "import")
        with self._read() as session:
            return [row.to_record() for row in session.scalars(open_ones.where(holds))]

    def adapter_names(self, names: Collection[str]) -> set[str]:
        """Those of `names` that adapters have."""
        found: set[str] = set()
        with self._read() as session:
            for part in _parts(names):
                found |= set(session.scalars(select(AdapterRow.name).where(AdapterRow.name.in_(part))))
        return found

    def settle_adapter(self, id: str, tensor_sha256: str, **changes: Any) -> Adapter | None:
        """Give a listed adapter its identity; None when another adapter has these tensors, or it is gone.

        Args:
            id: The listed row.
            tensor_sha256: Its identity.
            changes: Further fields.
        """
        check_fields(Adapter, changes)
        with self._write() as session:
            if any(row.id != id for row in session.scalars(_with_tensors([tensor_sha256]))):
                return None
            row = session.get(AdapterRow, id)
            if row is None:
                return None
            row.assign({**changes, "tensor_sha256": tensor_sha256})
            session.flush()
            session.refresh(row)
            return row.to_record()

    def drop_listed(self, id: str, *, known: str = "", **changes: Any) -> None:
        """Remove a row that is not hashed yet and change the adapter `known`; both or nothing.

        Args:
            id: The listed row; one that has its identity stays.
            known: Id of the adapter that the file turned out to be.
            changes: Fields of that one.
        """
        check_fields(Adapter, changes)
        with self._write() as session:
            row = session.get(AdapterRow, id)
            if row is not None and row.tensor_sha256 == "":
                session.delete(row)
            other = session.get(AdapterRow, known) if known and changes else None
            if other is not None:
                other.assign(changes)

    def update_each(self, changes: Mapping[str, Mapping[str, Any]]) -> int:
        """Change several adapters, each in its own way, in one transaction; how many there were."""
        for fields in changes.values():
            check_fields(Adapter, dict(fields))
        with self._write() as session:
            rows = [row for part in _parts(changes) for row in session.scalars(_by_id(part))]
            for row in rows:
                row.assign(dict(changes[row.id]))
            return len(rows)

    def add_listed(self, adapters: Collection[Adapter]) -> list[Adapter]:
        """Add rows of listed files in one transaction; a path that got a row meanwhile is left out."""

        def insert(session: Session) -> list[Adapter]:
            taken: set[str] = set()
            for part in _parts([adapter.path for adapter in adapters]):
                there = select(AdapterRow.path).where(
                    AdapterRow.path.in_(part), AdapterRow.trashed_at.is_(None)
                )
                taken |= set(session.scalars(there))
            made = [replace(adapter, id=new_id()) for adapter in adapters if adapter.path not in taken]
            session.add_all([AdapterRow.of(adapter) for adapter in made])
            return made

        return self._insert(insert)


def _with_tensors(hashes: Collection[str]) -> Any:
    # The literal makes SQLite use the index of identities, which leaves out what is not hashed.
    hashed = AdapterRow.tensor_sha256 != literal_column("''")
    return (
        select(AdapterRow).where(AdapterRow.tensor_sha256.in_(hashes), hashed).order_by(AdapterRow.created_at)
    )


def _by_id(ids: Collection[str]) -> Any:
    return select(AdapterRow).where(AdapterRow.id.in_(ids))


def _parts(values: Collection[str]) -> list[list[str]]:
    ordered = list(dict.fromkeys(values))
    return [ordered[at : at + _AT_ONCE] for at in range(0, len(ordered), _AT_ONCE)]
