"""What the catalog's tables are made of: column types that mean the same in every database, and the row."""

from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar, Self

from sqlalchemy import JSON, DateTime, Dialect, Float, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from registry import records


class UtcTime(TypeDecorator[datetime]):
    """Aware in, stored in UTC, aware out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; a naive time is a mistake of the caller."""
        assert value is None or value.tzinfo is not None, "times in the catalog carry a time zone"
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """SQLite forgets the zone; PostgreSQL answers in the session's."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Texts(TypeDecorator[tuple[str, ...]]):
    """A tuple of texts as a JSON array."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> list[str] | None:
        """To a list."""
        return None if value is None else list(value)

    def process_result_value(self, value: list[str] | None, dialect: Dialect) -> tuple[str, ...]:
        """To a tuple."""
        return tuple(value or ())


class Reference(TypeDecorator[str]):
    """The id of another row, or "" for none (NULL)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """ "" is NULL."""
        return value or None

    def process_result_value(self, value: str | None, dialect: Dialect) -> str:
        """NULL is ""."""
        return value or ""


class Choice(TypeDecorator[StrEnum]):
    """A StrEnum as its text; new members need no migration."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: StrEnum | None, dialect: Dialect) -> str | None:
        """To text, through the enum: an unknown text is a mistake of the caller."""
        return None if value is None else str(self.kind(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        """To the enum."""
        return None if value is None else self.kind(value)


class Schema(DeclarativeBase):
    """All tables together; `Schema.metadata` is what the migrations must add up to."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: UtcTime,
        dict[str, Any]: JSON(none_as_null=True),
        tuple[str, ...]: Texts,
        float: Float,
        records.RunState: Choice(records.RunState),
        records.JobKind: Choice(records.JobKind),
        records.JobState: Choice(records.JobState),
        records.FileState: Choice(records.FileState),
    }


class Row(Schema):
    """A table that holds one kind of record."""

    __abstract__ = True
    record: ClassVar[type[Any]]

    id: Mapped[str] = mapped_column(primary_key=True)

    @classmethod
    def of(cls, record: Any) -> Self:
        """A new row with the record's values."""
        row = cls()
        row.assign({f.name: getattr(record, f.name) for f in fields(record)})
        return row

    def assign(self, values: dict[str, Any]) -> None:
        """Set columns by field name."""
        for name, value in values.items():
            setattr(self, name, value)

    def to_record(self) -> Any:
        """The frozen record of this row."""
        return self.record(**{f.name: getattr(self, f.name) for f in fields(self.record)})
