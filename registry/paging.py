"""Pages of adapters by keyset: a page begins after the last row of the one before, at whatever depth.

A cursor is text that names the order and the values of that row in it, so it stays right while adapters come
and go.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import BigInteger, ColumnElement, Text, Tuple, UnaryExpression, case, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from registry.columns import UtcTime
from registry.errors import BadInput
from registry.records import Adapter
from registry.search import AdapterQuery
from registry.tables import AdapterRow, fold

_LARGEST = 2**63  # integers of a database are below it
_BY = "ix_adapters_by_"
_TYPES: dict[type[Any], Any] = {datetime: UtcTime(), int: BigInteger(), str: Text()}
_A = AdapterRow

SORTS = ("newest", "oldest", "name", "rating", "size", "best")
RANKED = 2000  # hits; more of them are not ranked, and the best match is the newest


@dataclass(frozen=True)
class Page:
    """One page of a search.

    `total` counts all hits, on every page; with `capped` there are more than that. `next` is the cursor of
    the page after this one, "" on the last.
    """

    adapters: list[Adapter]
    total: int
    next: str = ""
    capped: bool = False


@dataclass(frozen=True)
class Order:
    """An order of adapters: its columns, the last one unique, all in one direction."""

    name: str
    columns: tuple[ColumnElement[Any] | InstrumentedAttribute[Any], ...]
    kinds: tuple[type[Any], ...]  # of the columns' values
    descending: bool
    index: str = ""  # the index that has this order

    def by(self) -> list[UnaryExpression[Any]]:
        """ORDER BY."""
        return [c.desc() if self.descending else c.asc() for c in self.columns]

    def after(self, cursor: str) -> ColumnElement[bool]:
        """The rows that come after the one a cursor names.

        Raises:
            BadInput: the cursor is of another order, or none at all.
        """
        mine, its = tuple_(*self.columns), self._place(self._values(cursor))
        return mine < its if self.descending else mine > its

    def until(self, values: Sequence[Any]) -> ColumnElement[bool]:
        """The rows up to one with these values in the order's columns, which is among them."""
        mine, its = tuple_(*self.columns), self._place(values)
        return mine >= its if self.descending else mine <= its

    def _place(self, values: Sequence[Any]) -> Tuple:
        """These values of the order's columns, to compare with a row's."""
        return tuple_(*(literal(v, _TYPES[kind]) for v, kind in zip(values, self.kinds, strict=True)))

    def cursor(self, values: tuple[Any, ...]) -> str:
        """The cursor of a row with these values in the order's columns."""
        plain = [v.isoformat() if isinstance(v, datetime) else v for v in values]
        packed = json.dumps([self.name, *plain], ensure_ascii=False).encode()
        return base64.urlsafe_b64encode(packed).decode()

    def _values(self, cursor: str) -> list[Any]:
        name, *values = _parts(cursor)
        if name != self.name or len(values) != len(self.kinds):
            raise _bad()
        return [_value(value, kind) for value, kind in zip(values, self.kinds, strict=True)]


def order(sort: str, query: AdapterQuery, hits: Callable[[], int], after: str = "") -> Order:
    """The order of a search.

    Args:
        sort: One of `SORTS`. The best match is the newest without words, with short ones, and with more than
            `RANKED` hits.
        query: What is looked for.
        hits: Counts the hits; only called when it matters.
        after: The cursor of the page: a search that began with the newest goes on with them.

    Raises:
        BadInput: no such sort order.
    """
    if sort not in SORTS:
        raise BadInput(f"sort {sort!r}", "is no sort order", f"use one of {', '.join(SORTS)}")
    if sort != "best":
        return _ORDERS[sort]
    words = query.words
    newest = not words or bool(query.short)
    newest = newest or (_parts(after)[0] == "newest" if after else hits() > RANKED)
    if newest:
        return _ORDERS["newest"]
    columns = (score(fold(query.query.strip()), words), *_ORDERS["newest"].columns)
    return Order("best", columns, (int, datetime, str), descending=True)


def score(phrase: str, words: tuple[str, ...]) -> ColumnElement[int]:
    """How well an adapter fits: words in its name count most, then tags and trigger words, then the rest."""
    name = AdapterRow.sort_name
    total: ColumnElement[int] = case((name == phrase, 10), else_=0)
    for word in words:
        total = total + case(
            (name.startswith(word, autoescape=True), 5),
            (name.contains(" " + word, autoescape=True), 4),
            (AdapterRow.trigger_lines.contains("\n" + word, autoescape=True), 3),
            (AdapterRow.tag_lines.contains("\n" + word, autoescape=True), 3),
            (name.contains(word, autoescape=True), 2),
            else_=1,
        )
    return total


_ORDERS = {
    order.name: order
    for order in (
        Order("newest", (_A.created_at, _A.id), (datetime, str), True, _BY + "created_at"),
        Order("oldest", (_A.created_at, _A.id), (datetime, str), False, _BY + "created_at"),
        Order("name", (_A.sort_name, _A.id), (str, str), False, _BY + "sort_name"),
        Order("rating", (_A.rating, _A.created_at, _A.id), (int, datetime, str), True, _BY + "rating"),
        Order("size", (_A.size, _A.id), (int, str), True, _BY + "size"),
    )
}


def _parts(cursor: str) -> list[Any]:
    """Name and values of a cursor, as JSON types.

    Raises:
        BadInput: it is no cursor.
    """
    try:
        parts: Any = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except ValueError as error:
        raise _bad() from error
    if not isinstance(parts, list) or not parts:
        raise _bad()
    return cast("list[Any]", parts)


def _value(value: Any, kind: type[Any]) -> Any:
    try:
        if kind is datetime and (time := datetime.fromisoformat(value)).tzinfo is not None:
            return time
    except (TypeError, ValueError) as error:
        raise _bad() from error
    if type(value) is not kind or (kind is int and abs(value) >= _LARGEST):
        raise _bad()
    return value


def _bad() -> BadInput:
    return BadInput("cursor", "does not belong to this search", "begin again at the first page")
