"""Small pieces of queries that the catalog puts together; functions of an open session or of none."""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import Any, cast

from sqlalchemy import ColumnElement, UnaryExpression, delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from registry.columns import Reference, Row
from registry.errors import BadInput, NotFound
from registry.grid_tables import ComparisonRow
from registry.hashing import hash_json
from registry.ids import ALPHABET, new_id
from registry.records import (
    Adapter,
    Base,
    Checkpoint,
    Comparison,
    Dataset,
    Evaluation,
    Export,
    Image,
    Job,
    Run,
    Sample,
    SavedFilter,
    Vote,
    Watch,
)  # fmt: skip
from registry.tables import ROWS, AdapterRow, DatasetRow, ImageRow, RunRow, SampleRow

NAMES: dict[type[Any], str] = {
    Base: "base",
    Dataset: "data set",
    Image: "picture",
    Run: "run",
    Checkpoint: "checkpoint",
    Adapter: "adapter",
    Sample: "sample",
    Job: "job",
    Export: "export",
    SavedFilter: "filter",
    Watch: "watched folder",
    Comparison: "comparison",
    Vote: "vote",
    Evaluation: "evidence",
}
_SHORTEST_PREFIX = 4
_USERS: dict[type[Any], tuple[tuple[str, InstrumentedAttribute[str]], ...]] = {
    Base: (
        ("runs", RunRow.base_id),
        ("adapters", AdapterRow.base_id),
        ("samples", SampleRow.base_id),
        ("comparisons", ComparisonRow.base_id),
    ),
    Run: (("adapters", AdapterRow.run_id),),
}  # whose rows refer to a kind, and through which column


def check_fields(kind: type[Any], values: dict[str, Any]) -> None:
    """Our own invariant: only fields of the record are named."""
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")


def conditions(row: type[Row], equals: dict[str, Any]) -> list[ColumnElement[bool]]:
    """`field = value` for each; a tuple, list or set means any of its members; None and "" find NULL."""
    check_fields(row.record, equals)
    found: list[ColumnElement[bool]] = []
    for name, value in equals.items():
        column = getattr(row, name)
        if isinstance(value, tuple | list | set | frozenset):
            found.append(_any_of(column, cast("tuple[object, ...]", value)))
        else:
            found.append(_equals(column, value))
    return found


def _any_of(column: InstrumentedAttribute[Any], values: Collection[object]) -> ColumnElement[bool]:
    """An IN list: SQLite takes thousands there, but only a thousand ORs."""
    listed = column.in_([value for value in values if not _is_none(column, value)])
    return or_(listed, column.is_(None)) if any(_is_none(column, value) for value in values) else listed


def _equals(column: InstrumentedAttribute[Any], value: object) -> ColumnElement[bool]:
    return column.is_(None) if _is_none(column, value) else column == value


def _is_none(column: InstrumentedAttribute[Any], value: object) -> bool:
    return value is None or (value == "" and isinstance(column.type, Reference))


def sort_keys(kind: type[Any], order: str) -> tuple[UnaryExpression[Any], UnaryExpression[Any]]:
    """`field` or `-field` as ORDER BY, ties by id; "" is newest first, and by position for pictures."""
    order = order or ("position" if kind is Image else "-created_at")
    name = order.removeprefix("-")
    check_fields(kind, {name: None})
    column, key = getattr(ROWS[kind], name), ROWS[kind].id
    return (column.desc(), key.desc()) if order.startswith("-") else (column.asc(), key.asc())


def find_row(session: Session, kind: type[Any], key: str) -> Row | None:
    """By id, then by name, then by an id prefix.

    Raises:
        BadInput: name or prefix fit several.
    """
    row = ROWS[kind]
    exact = session.get(row, key)
    if exact is not None:
        return exact
    ways: list[ColumnElement[bool]] = [_name(row) == key] if _has_name(kind) else []
    if len(key) >= _SHORTEST_PREFIX and set(key) <= set(ALPHABET):
        ways.append(row.id.startswith(key))
    for way in ways:
        found = session.scalars(select(row).where(way).order_by(row.id.desc()).limit(6)).all()
        if len(found) > 1 and kind is Adapter:  # what lies in the trash does not stand in the way
            found = [r for r in found if r.to_record().trashed_at is None] or found
        if len(found) > 1:
            ids = ", ".join(r.id for r in found)
            raise BadInput(f"{NAMES[kind]} {key!r}", f"is not unique ({ids})", "use one of these ids")
        if found:
            return found[0]
    return None


def why_missing(session: Session, kind: type[Any], key: str) -> NotFound:
    """The error for a key that names nothing; says what there is."""
    row, what = ROWS[kind], NAMES[kind]
    column = _name(row) if _has_name(kind) else row.id
    known = session.scalars(select(column).order_by(row.id.desc()).limit(8)).all()
    more = (session.scalar(select(func.count(row.id))) or 0) - len(known)
    names = ", ".join(map(str, known)) + (f" and {more} more" if more > 0 else "")
    do = f"there is {names}" if known else f"there is no {what} yet"
    return NotFound(f"{what} {key[:100]!r}", "does not exist", do)


def check_unused(session: Session, kind: type[Any], id: str) -> None:
    """Refuse to delete what others refer to.

    Raises:
        BadInput: with how many of what refer to it.
    """
    users: list[str] = []
    for name, column in _USERS.get(kind, ()):
        count = session.scalar(select(func.count()).where(column == id)) or 0
        if count:
            users.append(f"{count} {name.removesuffix('s') if count == 1 else name}")
    if users:
        raise BadInput(f"{NAMES[kind]} {id}", f"is used by {' and '.join(users)}", "remove those first")


def release_imports(session: Session, base_id: str) -> None:
    """Unlink imported adapters of a base that goes: its hash made the link, and will make it again."""
    linked = (AdapterRow.base_id == base_id, AdapterRow.origin == "import")
    session.execute(update(AdapterRow).where(*linked).values(base_id=None))


def insert_dataset(session: Session, dataset: Dataset, images: Sequence[Image]) -> Dataset:
    """A new data set and its pictures."""
    made = _with_content(replace(dataset, id=dataset.id or new_id()), images)
    session.add(DatasetRow.of(made))
    session.flush()  # the pictures refer to it
    session.add_all(_image_rows(made.id, images))
    return made


def exchange_images(session: Session, row: DatasetRow, images: Sequence[Image]) -> Dataset:
    """Other pictures for a data set."""
    session.execute(delete(ImageRow).where(ImageRow.dataset_id == row.id))
    session.add_all(_image_rows(row.id, images))
    changed = _with_content(row.to_record(), images)
    row.assign({"content_hash": changed.content_hash, "image_count": changed.image_count})
    return changed


def _with_content(dataset: Dataset, images: Sequence[Image]) -> Dataset:
    """The data set with count and hash of its pictures, in order."""
    content = hash_json([_identity(image) for image in images])
    return replace(dataset, content_hash=content, image_count=len(images))


def _identity(image: Image) -> list[str | int | float]:
    """What makes a picture of a set another one; usual values are left out, so that older hashes stay."""
    identity: list[str | int | float] = [image.pixel_hash, image.caption, image.mask]
    usual = image.repeats == 1 and image.weight == 1.0
    return identity if usual else [*identity, image.repeats, image.weight]


def _image_rows(dataset_id: str, images: Sequence[Image]) -> list[ImageRow]:
    return [
        ImageRow.of(replace(image, id=image.id or new_id(), dataset_id=dataset_id, position=position))
        for position, image in enumerate(images)
    ]


def _name(row: type[Row]) -> InstrumentedAttribute[str]:
    return getattr(row, "name")  # noqa: B009  not every table has one


def _has_name(kind: type[Any]) -> bool:
    return any(f.name == "name" for f in fields(kind)) and kind is not Image
