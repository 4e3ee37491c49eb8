"""Where things come from, asked of the catalog: pictures of runs, descent of adapters, samples, exports.

`Catalog.lineage` hands a `Lineage` out; like the catalog's own, each method is one short transaction.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Text, func, or_, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import InstrumentedAttribute, Session

from registry.columns import Row
from registry.records import JSON, Adapter, Export, RunImage, Sample
from registry.tables import (
    AdapterRow,
    ExportRow,
    ImageRow,
    RunImageRow,
    RunRow,
    SampleAdapterRow,
    SampleRow,
)  # fmt: skip

Opener = Callable[[], AbstractContextManager[Session]]
Condition = Callable[[Sequence[str]], ColumnElement[bool]]

AT_ONCE = 500  # ids in one statement
MAX_KEYWORDS = 160  # words of an adapter
FIRST_HAND = ("run", "import")  # origins of adapters that were not made from others
MADE = ("merge", "resize", "extract", "edit")


class Lineage:
    """Questions about descent.

    Args:
        read: Opens a session to read in.
        write: Opens a session in a write transaction.
    """

    def __init__(self, read: Opener, write: Opener) -> None:
        self._read, self._write = read, write

    # --- pictures of runs

    def run_images(self, run_id: str, most: int | None = None) -> list[RunImage]:
        """The pictures that a run was given, in order; the first `most`."""
        query = select(RunImageRow).where(RunImageRow.run_id == run_id).order_by(RunImageRow.position)
        with self._read() as session:
            return [_run_image(row) for row in session.scalars(query.limit(most))]

    def count_run_images(self, run_id: str) -> int:
        """How many pictures a run was given."""
        query = select(func.count()).select_from(RunImageRow).where(RunImageRow.run_id == run_id)
        with self._read() as session:
            return session.scalar(query) or 0

    def runs_with(self, pixel_hash: str) -> list[str]:
        """Ids of the runs that were given a picture, oldest first."""
        query = select(RunImageRow.run_id).where(RunImageRow.pixel_hash == pixel_hash).distinct()
        with self._read() as session:
            return sorted(session.scalars(query))

    def runs_without_images(self) -> list[str]:
        """Ids of the runs whose pictures are not in the catalog."""
        with self._read() as session:
            return list(
                session.scalars(select(RunRow.id).where(RunRow.id.not_in(select(RunImageRow.run_id))))
            )

    def add_run_images(self, run_id: str, images: Sequence[RunImage]) -> bool:
        """Enter the pictures of a run once; False when it has some already, or is gone."""
        with self._write() as session:
            known = select(RunImageRow.run_id).where(RunImageRow.run_id == run_id).limit(1)
            if session.get(RunRow, run_id) is None or session.scalar(known) is not None:
                return False
            insert_run_images(session, images)
            return True

    def pictures_like(self, prefix: str, most: int = 6) -> dict[str, str]:
        """Pixel hash -> name of pictures whose pixel hash or blob begins with `prefix`, at most `most`."""
        found: dict[str, str] = {}
        with self._read() as session:
            for row in (ImageRow, RunImageRow):
                fits = or_(*(c.startswith(prefix, autoescape=True) for c in (row.pixel_hash, row.blob)))
                query = select(row.pixel_hash, func.min(row.name)).where(fits).group_by(row.pixel_hash)
                found = {pair[0]: pair[1] for pair in session.execute(query.limit(most))} | found
        return dict(list(found.items())[:most])

    # --- adapters

    def descent(self) -> dict[str, tuple[str, ...]]:
        """For each adapter that was made from others (or from bases): the ids of what it was made from."""
        query = select(AdapterRow.id, AdapterRow.parents, AdapterRow.metadata_)
        with self._read() as session:
            rows = session.execute(query.where(AdapterRow.origin.in_(MADE))).all()
        return {
            key: tuple(dict.fromkeys([*parents, *(str(p["id"]) for p in noted_parents(metadata))]))
            for key, parents, metadata in rows
        }

    def unrecorded(self) -> set[str]:
        """Ids of adapters whose pictures nobody wrote down: imported, or of a run without its list."""
        listed = select(RunImageRow.run_id).where(RunImageRow.run_id == AdapterRow.run_id).exists()
        query = select(AdapterRow.id).where(AdapterRow.origin.in_(FIRST_HAND), ~listed)
        with self._read() as session:
            return set(session.scalars(query))

    def existing(self, ids: Collection[str]) -> set[str]:
        """Those of the ids that are adapters of this catalog."""
        wanted, found = sorted(ids), set[str]()
        with self._read() as session:
            for start in range(0, len(wanted), AT_ONCE):
                some = AdapterRow.id.in_(wanted[start : start + AT_ONCE])
                found |= set(session.scalars(select(AdapterRow.id).where(some)))
        return found

    def adapters(self, ids: Collection[str]) -> list[Adapter]:
        """The adapters with these ids, newest first; those that are gone are left out."""
        return self._all(AdapterRow, AdapterRow.id.in_, ids)

    def of_runs(self, run_ids: Collection[str]) -> list[Adapter]:
        """The adapters that came out of these runs, newest first."""
        return self._all(AdapterRow, AdapterRow.run_id.in_, run_ids)

    def children(self, id: str) -> list[Adapter]:
        """The adapters that were made from this one, newest first."""
        named = sql_cast(AdapterRow.parents, Text).contains(f'"{id}"', autoescape=True)
        with self._read() as session:
            rows = session.scalars(select(AdapterRow).where(AdapterRow.origin.in_(MADE), named))
            return sorted((row.to_record() for row in rows), key=_age, reverse=True)

    def add_keywords(self, ids: Iterable[str], words: Iterable[str]) -> None:
        """Let adapters be found by more words; a word comes once, and there are at most MAX_KEYWORDS."""
        words = list(words)
        with self._write() as session:
            for row in filter(None, (session.get(AdapterRow, key, with_for_update=True) for key in ids)):
                kept = list(dict.fromkeys([*row.keywords.split(), *words]))[:MAX_KEYWORDS]
                row.keywords = " ".join(kept)

    # --- what was made with them

    def samples_with(
        self, adapters: Collection[tuple[str, str]] = (), base_ids: Collection[str] = (), limit: int = 1000
    ) -> list[Sample]:
        """Finished samples that used one of the adapters or bases, newest first.

        Args:
            adapters: Id and tensor hash of each; the same weights under another id count as well.
            base_ids: Bases.
            limit: At most so many.
        """
        ids, tensors = {key for key, _ in adapters}, {tensor for _, tensor in adapters if tensor}
        found = [
            *self._all(SampleRow, _using(SampleAdapterRow.adapter_id), ids),
            *self._all(SampleRow, _using(SampleAdapterRow.tensor_sha256), tensors),
            *self._all(SampleRow, SampleRow.base_id.in_, base_ids),
        ]
        once = {sample.id: sample for sample in found if sample.files}
        return sorted(once.values(), key=_age, reverse=True)[:limit]

    def exports_like(self, sha256: str, tensor_sha256: str) -> list[Export]:
        """Exports that wrote this file, or one with these tensors; newest first, the same file first."""
        tensors = ExportRow.report["tensor_sha256"].as_string() == tensor_sha256
        query = select(ExportRow).where(or_(ExportRow.sha256 == sha256, tensors))
        with self._read() as session:
            rows = [row.to_record() for row in session.scalars(query.order_by(ExportRow.id.desc()))]
        return sorted(rows, key=lambda export: export.sha256 != sha256)

    def _all(self, row: type[Row], fits: Condition, values: Collection[str]) -> list[Any]:
        """Records of the rows that fit any of the values, a few hundred of these at a time; newest first."""
        wanted = sorted(values)
        found: list[Any] = []
        with self._read() as session:
            for start in range(0, len(wanted), AT_ONCE):
                query = select(row).where(fits(wanted[start : start + AT_ONCE]))
                found += [each.to_record() for each in session.scalars(query)]
        return sorted(found, key=_age, reverse=True)


def insert_run_images(session: Session, images: Sequence[RunImage]) -> None:
    """Enter the pictures of a run; its row is there already."""
    session.add_all([RunImageRow(**asdict(image)) for image in images])


def noted_parents(metadata: Mapping[str, Any]) -> list[JSON]:
    """What an operation noted of its parents: dicts with an `id`, of adapters or of bases.

    The metadata of an adapter may come from a foreign file, so that anything may stand there.
    """
    made: Any = metadata.get("made")
    parents: Any = cast("JSON", made).get("parents") if isinstance(made, dict) else None
    listed: list[Any] = cast("list[Any]", parents) if isinstance(parents, list) else []
    dicts = [cast("JSON", parent) for parent in listed if isinstance(parent, dict)]
    return [parent for parent in dicts if parent.get("id")]


def _run_image(row: RunImageRow) -> RunImage:
    return RunImage(**{field.name: getattr(row, field.name) for field in fields(RunImage)})


def _using(column: InstrumentedAttribute[str]) -> Condition:
    """Samples one of whose uses has any of the values in `column`."""

    def fits(values: Sequence[str]) -> ColumnElement[bool]:
        return SampleRow.id.in_(select(SampleAdapterRow.sample_id).where(column.in_(values)))

    return fits


def _age(record: Any) -> tuple[datetime, str]:
    return record.created_at, record.id
