"""The catalog's tables of comparisons: grids, their cells, votes, and what was measured of them.

`registry.tables` has the others.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from registry import records
from registry.columns import Reference, Row, Schema


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


class EvaluationRow(Row):
    """An evidence sheet; goes with its comparison, and with the run or adapter that it is about."""

    __tablename__ = "evaluations"
    record = records.Evaluation

    created_at: Mapped[datetime]
    run_id: Mapped[str] = mapped_column(
        Reference, ForeignKey("runs.id", ondelete="CASCADE"), nullable=True, index=True
    )
    adapter_id: Mapped[str] = mapped_column(
        Reference, ForeignKey("adapters.id", ondelete="CASCADE"), nullable=True, index=True
    )
    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), index=True)
    plan: Mapped[dict[str, Any]]
    plan_hash: Mapped[str] = mapped_column(index=True)
    result: Mapped[dict[str, Any]]
    measured_at: Mapped[datetime | None]
