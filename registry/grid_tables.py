"""The catalog's tables of comparisons: grids, their cells, votes. `registry.tables` has the others."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from registry import records
from registry.columns import Row, Schema


class ComparisonRow(Row):
    """A grid of samples."""

    __tablename__ = "comparisons"
    record = records.Comparison

    created_at: Mapped[datetime]
    name: Mapped[str] = mapped_column(unique=True)
    base_id: Mapped[str] = mapped_column(ForeignKey("bases.id"), index=True)
    spec: Mapped[dict[str, Any]]


class ComparisonCellRow(Schema):
    """A cell; goes with its comparison. Its sample may be gone."""

    __tablename__ = "comparison_cells"

    comparison_id: Mapped[str] = mapped_column(
        ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True
    )
    place: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str]
    sample_id: Mapped[str] = mapped_column(index=True)


class VoteRow(Row):
    """A vote; goes with its comparison."""

    __tablename__ = "votes"
    record = records.Vote

    created_at: Mapped[datetime]
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), index=True)
    axis: Mapped[str]
    left: Mapped[str]
    right: Mapped[str]
    outcome: Mapped[str]
    prompt: Mapped[str]
    context: Mapped[str]
