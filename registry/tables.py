"""The catalog's tables: one per record, columns named as the record's fields.

A row class knows its record; `Row.of` and `Row.to_record` convert. What the record writes as "" for "none" is
NULL in a reference column, so that foreign keys can hold.
"""

import unicodedata
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    event,
    func,
)
from sqlalchemy.orm import Mapped, Mapper, mapped_column, relationship

from registry import records
from registry.columns import Reference, Row, Schema
from registry.grid_tables import ComparisonRow, EvaluationRow, VoteRow


class BaseRow(Row):
    """A base model."""

    __tablename__ = "bases"
    record = records.Base

    created_at: Mapped[datetime]
    name: Mapped[str] = mapped_column(unique=True)
    family: Mapped[str]
    variant: Mapped[str]
    location: Mapped[str]
    kind: Mapped[str]
    revision: Mapped[str]
    config: Mapped[str]
    weight_hash: Mapped[str] = mapped_column(index=True)
    builtin: Mapped[bool] = mapped_column(Boolean)
    made: Mapped[dict[str, Any]]
    part: Mapped[str]


class DatasetRow(Row):
    """A data set."""

    __tablename__ = "datasets"
    record = records.Dataset

    created_at: Mapped[datetime]
    name: Mapped[str] = mapped_column(unique=True)
    trigger: Mapped[str]
    source: Mapped[str]
    content_hash: Mapped[str]
    image_count: Mapped[int] = mapped_column(Integer)
    licence: Mapped[str]
    consent: Mapped[str]


class ImageRow(Row):
    """A picture of a data set; goes with it."""

    __tablename__ = "images"
    __table_args__ = (Index("ix_images_dataset_position", "dataset_id", "position"),)
    record = records.Image

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    blob: Mapped[str]
    pixel_hash: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    caption: Mapped[str]
    mask: Mapped[str]
    tags: Mapped[tuple[str, ...]]
    note: Mapped[str]
    repeats: Mapped[int] = mapped_column(Integer)
    weight: Mapped[float]


class RunRow(Row):
    """A run. Its data set may be removed: the run keeps its frozen manifest and `dataset_hash`."""

    __tablename__ = "runs"
    record = records.Run

    created_at: Mapped[datetime] = mapped_column(index=True)
    name: Mapped[str] = mapped_column(index=True)
    state: Mapped[records.RunState] = mapped_column(index=True)
    reason: Mapped[str]
    family: Mapped[str]
    goal: Mapped[str]
    base_id: Mapped[str] = mapped_column(ForeignKey("bases.id"), index=True)
    dataset_id: Mapped[str] = mapped_column(index=True)
    recipe: Mapped[dict[str, Any]]
    recipe_hash: Mapped[str]
    dataset_hash: Mapped[str]
    base_hash: Mapped[str]
    seed: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int] = mapped_column(BigInteger)
    steps: Mapped[int] = mapped_column(BigInteger)
    parent_run_id: Mapped[str]
    parent_step: Mapped[int] = mapped_column(BigInteger)
    versions: Mapped[dict[str, Any]]
    place: Mapped[str]
    process: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    pick_step: Mapped[int] = mapped_column(BigInteger)
    pick_reason: Mapped[str]
    pick_by: Mapped[str]


class CheckpointRow(Row):
    """A verified checkpoint; goes with its run."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("run_id", "step"),)
    record = records.Checkpoint

    created_at: Mapped[datetime]
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    step: Mapped[int] = mapped_column(BigInteger)
    path: Mapped[str]
    loss: Mapped[float | None]
    metrics: Mapped[dict[str, Any]]


class AdapterRow(Row):
    """An adapter, with four derived columns for the search.

    `search`: folded name, tags, trigger words, note and keywords, a line each, and two more line feeds: every
    letter then begins a run of three (`registry.fulltext`). `tag_lines`, `trigger_lines`: folded tags and
    trigger words between line feeds, so that `LIKE '%\\n<tag>\\n%'` finds a whole one. `sort_name`: the
    folded name; ordered by code point in every database. The first ones stand before the wide columns: SQLite
    then scans them without reading a row's overflow pages.
    """

    __tablename__ = "adapters"
    record = records.Adapter

    created_at: Mapped[datetime]
    trashed_at: Mapped[datetime | None]
    name: Mapped[str] = mapped_column(index=True)
    sort_name: Mapped[str] = mapped_column(Text().with_variant(Text(collation="C"), "postgresql"))
    search: Mapped[str]
    tag_lines: Mapped[str]
    tensor_sha256: Mapped[str]
    file_sha256: Mapped[str] = mapped_column(index=True)
    path: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    family: Mapped[str]
    method: Mapped[str]
    rank: Mapped[int] = mapped_column(Integer)
    alpha: Mapped[float]
    targets: Mapped[tuple[str, ...]]
    trigger_words: Mapped[tuple[str, ...]]
    recommended_weight: Mapped[float]
    tags: Mapped[tuple[str, ...]]
    note: Mapped[str]
    rating: Mapped[int] = mapped_column(Integer)
    favourite: Mapped[bool] = mapped_column(Boolean)
    licence: Mapped[str]
    consent: Mapped[str]
    keywords: Mapped[str]
    origin: Mapped[str]
    source: Mapped[str]
    file_state: Mapped[records.FileState] = mapped_column(index=True)
    checked_at: Mapped[datetime | None]
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    run_id: Mapped[str] = mapped_column(Reference, ForeignKey("runs.id"), nullable=True, index=True)
    step: Mapped[int] = mapped_column(BigInteger)
    base_id: Mapped[str] = mapped_column(Reference, ForeignKey("bases.id"), nullable=True, index=True)
    parents: Mapped[tuple[str, ...]]
    preview: Mapped[str]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    trigger_lines: Mapped[str]

    def assign(self, values: dict[str, Any]) -> None:
        """Set columns by field name; `metadata` is taken by the declarative base."""
        super().assign({"metadata_" if n == "metadata" else n: v for n, v in values.items()})

    def to_record(self) -> records.Adapter:
        """The frozen record of this row."""
        names = [f.name for f in fields(records.Adapter) if f.name != "metadata"]
        return records.Adapter(**{n: getattr(self, n) for n in names}, metadata=self.metadata_)


Index(
    "ix_adapters_identity",
    AdapterRow.tensor_sha256,
    func.coalesce(AdapterRow.run_id, ""),  # an expression, because NULLs differ from each other
    unique=True,
    sqlite_where=AdapterRow.tensor_sha256 != "",  # files that are not hashed yet
    postgresql_where=AdapterRow.tensor_sha256 != "",
)
Index("ix_adapters_path", AdapterRow.path)
for _order in (("created_at", "id"), ("sort_name", "id"), ("rating", "created_at", "id"), ("size", "id")):
    _columns = [getattr(AdapterRow, name) for name in ("trashed_at", *_order)]
    Index(f"ix_adapters_by_{_order[0]}", *_columns)  # each order of the search is one walk along an index


class RunImageRow(Schema):
    """A picture of a run; goes with it."""

    __tablename__ = "run_images"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    pixel_hash: Mapped[str] = mapped_column(index=True)
    blob: Mapped[str]
    name: Mapped[str]


class ExportRow(Row):
    """A written file; its adapter may be gone."""

    __tablename__ = "exports"
    record = records.Export

    created_at: Mapped[datetime] = mapped_column(index=True)
    adapter_id: Mapped[str] = mapped_column(index=True)
    path: Mapped[str]
    layout: Mapped[str]
    dtype: Mapped[str]
    publish: Mapped[bool] = mapped_column(Boolean)
    sha256: Mapped[str] = mapped_column(index=True)
    report: Mapped[dict[str, Any]]


class SavedFilterRow(Row):
    """A search under a name."""

    __tablename__ = "saved_filters"
    record = records.SavedFilter

    created_at: Mapped[datetime]
    name: Mapped[str] = mapped_column(unique=True)
    query: Mapped[dict[str, Any]]


class WatchRow(Row):
    """A watched folder."""

    __tablename__ = "watches"
    record = records.Watch

    created_at: Mapped[datetime]
    path: Mapped[str] = mapped_column(unique=True)
    scanned_at: Mapped[datetime | None]
    note: Mapped[str]


class SampleRow(Row):
    """Pictures made by one request."""

    __tablename__ = "samples"
    record = records.Sample

    created_at: Mapped[datetime] = mapped_column(index=True)
    base_id: Mapped[str] = mapped_column(ForeignKey("bases.id"), index=True)
    request: Mapped[dict[str, Any]]
    files: Mapped[tuple[str, ...]]
    key: Mapped[str] = mapped_column(index=True)
    purpose: Mapped[str]
    uses: Mapped[list["SampleAdapterRow"]] = relationship(
        cascade="all, delete-orphan", lazy="selectin", order_by="SampleAdapterRow.position"
    )

    def assign(self, values: dict[str, Any]) -> None:
        """Set columns by field name; `adapters` become rows of their own."""
        super().assign({n: v for n, v in values.items() if n != "adapters"})
        if (uses := values.get("adapters")) is not None:
            self.uses = [SampleAdapterRow(position=i, **asdict(use)) for i, use in enumerate(uses)]

    def to_record(self) -> records.Sample:
        """The frozen record of this row."""
        return records.Sample(
            id=self.id,
            created_at=self.created_at,
            base_id=self.base_id,
            request=self.request,
            files=self.files,
            key=self.key,
            purpose=self.purpose,
            adapters=tuple(
                records.AdapterUse(
                    adapter_id=use.adapter_id,
                    weight=use.weight,
                    text_weight=use.text_weight,
                    tensor_sha256=use.tensor_sha256,
                )
                for use in self.uses
            ),
        )


class SampleAdapterRow(Schema):
    """An adapter within a sample. It keeps the tensor hash, so it outlives the adapter."""

    __tablename__ = "sample_adapters"

    sample_id: Mapped[str] = mapped_column(ForeignKey("samples.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    adapter_id: Mapped[str] = mapped_column(index=True)
    weight: Mapped[float]
    text_weight: Mapped[float | None]
    tensor_sha256: Mapped[str]


class JobRow(Row):
    """A unit of work."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_queue", "state", "created_at", "id"),)
    record = records.Job

    created_at: Mapped[datetime]
    kind: Mapped[records.JobKind]
    state: Mapped[records.JobState]
    subject_id: Mapped[str] = mapped_column(index=True)
    payload: Mapped[dict[str, Any]]
    attempts: Mapped[int] = mapped_column(Integer)
    owner: Mapped[str]
    lease_until: Mapped[datetime | None]
    cancel: Mapped[bool] = mapped_column(Boolean)
    background: Mapped[bool] = mapped_column(Boolean)
    error: Mapped[str]
    result: Mapped[dict[str, Any]]


ROWS: dict[type[Any], type[Row]] = {
    row.record: row
    for row in (
        BaseRow, DatasetRow, ImageRow, RunRow, CheckpointRow, AdapterRow, SampleRow, JobRow, ExportRow,
        SavedFilterRow, WatchRow, ComparisonRow, VoteRow, EvaluationRow,
    )
}  # fmt: skip


SEPARATOR = "\ue000"  # for private use: stands in no folded text


def fold(text: str) -> str:
    """`text` for comparison without regard to case and to the many ways to write a letter."""
    plain = text.replace("\0", " ").replace(SEPARATOR, " ")
    # Once more after folding, so that what is folded stays as it is when it is folded again.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain).casefold())


def fold_line(text: str) -> str:
    """`text` folded, on one line."""
    return fold(text).replace("\n", " ")


def _between(texts: tuple[str, ...]) -> str:
    return "\n".join(["", *dict.fromkeys(map(fold_line, texts)), ""])


@event.listens_for(AdapterRow, "before_insert")
@event.listens_for(AdapterRow, "before_update")
def _derive(_mapper: Mapper[Any], _connection: Any, row: AdapterRow) -> None:
    lines = (row.name, *row.tags, *row.trigger_words, row.note, row.keywords)
    row.sort_name = fold(row.name)
    row.search = "\n".join(fold(line) for line in lines) + "\n\n"
    row.tag_lines = _between(row.tags)
    row.trigger_lines = _between(row.trigger_words)


DERIVED_FROM = frozenset({"name", "tags", "trigger_words", "note", "keywords"})  # what `_derive` reads
