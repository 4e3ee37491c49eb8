"""What to look for among the adapters, and the conditions it amounts to.

Words are folded and found anywhere in a text, also in the middle of a word. On SQLite an index of all runs of
three letters answers them (`registry.fulltext`); elsewhere they are plain comparisons, with the same answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, true

from registry.errors import BadInput
from registry.records import JSON, FileState
from registry.tables import fold, fold_line

UNIDENTIFIED = "unidentified"  # as a family: those whose family is not known
MAX_WORDS = 16
MAX_WORD = 100  # characters
SHORT = 2  # letters; a word no longer than that is in nearly every text
LARGEST = 2**63 - 1  # that a database can compare with

Columns = Any  # of `AdapterRow`, or of a table that has those that a query asks for
Make = Callable[[Columns, Any], ColumnElement[bool]]


@dataclass(frozen=True, kw_only=True)
class AdapterQuery:
    """What to look for; fields left at their default do not filter, and all others must hold."""

    query: str = ""  # words, all of which must occur in name, tags, trigger words, note or keywords
    family: str = ""  # `UNIDENTIFIED`: those without
    method: str = ""
    origin: str = ""
    tags: tuple[str, ...] = ()  # whole tags, whatever their case
    trigger: str = ""  # a whole trigger word, whatever its case
    base_id: str = ""
    file_state: str = ""
    min_rank: int | None = None
    max_rank: int | None = None
    min_rating: int = 0
    min_size: int | None = None  # bytes
    max_size: int | None = None
    since: datetime | None = None  # added then or later
    until: datetime | None = None  # added before
    favourite: bool | None = None
    has_preview: bool | None = None
    has_licence: bool | None = None
    trashed: bool = False  # True: only the trash, False: only what is not in it

    def __post_init__(self) -> None:
        if self.file_state and self.file_state not in {*FileState}:
            states = ", ".join(FileState)
            raise BadInput(f"file state {self.file_state[:40]!r}", "is unknown", f"use one of {states}")
        for name in ("min_rank", "max_rank", "min_size", "max_size"):
            if abs(getattr(self, name) or 0) > LARGEST:
                raise BadInput(name.replace("_", " "), "is too large a number", f"use at most {LARGEST}")

    @property
    def words(self) -> tuple[str, ...]:
        """The words to look for, folded; one that is part of another says nothing more."""
        words = dict.fromkeys(word[:MAX_WORD] for word in fold(self.query).split())
        needed = [w for w in words if not any(w != other and w in other for other in words)]
        return tuple(needed[:MAX_WORDS])

    @property
    def short(self) -> tuple[str, ...]:
        """The words of one or two letters."""
        return tuple(word for word in self.words if len(word) <= SHORT)

    @property
    def plainly(self) -> "AdapterQuery":
        """The same, with its words written as they are compared."""
        return replace(self, query=" ".join(self.words))

    @property
    def long(self) -> "AdapterQuery":
        """The same without words of one or two letters."""
        return replace(self, query=" ".join(word for word in self.words if len(word) > SHORT))

    def asked(self) -> dict[str, Any]:
        """The filters in use, by name; words and trash are not among them."""
        return {n: v for n, v in self._set().items() if n in CONDITIONS}

    def to_json(self) -> JSON:
        """As JSON types, without what does not filter."""
        return {n: v.isoformat() if isinstance(v, datetime) else v for n, v in self._set().items()}

    def _set(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_json(cls, values: JSON) -> "AdapterQuery":
        """The reverse of `to_json`.

        Raises:
            BadInput: a field that there is not, or a value that does not fit it.
        """
        known = {f.name: f.type for f in fields(cls)}
        read: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise BadInput(f"filter field {name[:40]!r}", "is unknown", f"use one of {', '.join(known)}")
            try:
                read[name] = _READ[known[name]](value)
            except (TypeError, ValueError) as error:
                raise BadInput(
                    f"filter field {name}", f"cannot be {value!r}"[:100], "save it anew"
                ) from error
        return cls(**read)


def _checked(kind: type[Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"is no {kind.__name__}")
        return value

    return read


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_checked(str)(item) for item in _checked(list)(value))


def _time(value: Any) -> datetime:
    time = datetime.fromisoformat(_checked(str)(value))
    if time.tzinfo is None:
        raise ValueError("has no time zone")
    return time


_READ: dict[Any, Callable[[Any], Any]] = {
    str: _checked(str),
    int: _checked(int),
    int | None: _checked(int),
    bool: _checked(bool),
    bool | None: _checked(bool),
    tuple[str, ...]: _texts,
    datetime | None: _time,
}


def _lines(column: str) -> Make:
    """All values are whole lines of a column that holds folded lines between line feeds."""

    def make(row: Columns, value: Any) -> ColumnElement[bool]:
        wanted: tuple[str, ...] = (value,) if isinstance(value, str) else value
        held = [getattr(row, column).contains(line(v), autoescape=True) for v in wanted]
        return and_(true(), *held)

    return make


def line(text: str) -> str:
    """`text` as it stands in `tag_lines` and `trigger_lines`."""
    return f"\n{fold_line(text)}\n"


CONDITIONS: dict[str, Make] = {
    "family": lambda a, v: a.family == ("" if v == UNIDENTIFIED else v),
    "method": lambda a, v: a.method == v,
    "origin": lambda a, v: a.origin == v,
    "tags": _lines("tag_lines"),
    "trigger": _lines("trigger_lines"),
    "base_id": lambda a, v: a.base_id == v,
    "file_state": lambda a, v: a.file_state == v,
    "min_rank": lambda a, v: a.rank >= v,
    "max_rank": lambda a, v: a.rank <= v,
    "min_rating": lambda a, v: a.rating >= v,
    "min_size": lambda a, v: a.size >= v,
    "max_size": lambda a, v: a.size <= v,
    "since": lambda a, v: a.created_at >= v,
    "until": lambda a, v: a.created_at < v,
    "favourite": lambda a, v: a.favourite.is_(v),
    "has_preview": lambda a, v: (a.preview != "") if v else (a.preview == ""),
    "has_licence": lambda a, v: (a.licence != "") if v else (a.licence == ""),
}
