"""Adapters found: a page of them, how many there are, and their ids.

On SQLite a page is one walk along the index of its order, which stops when the page is full. Of many hits it
soon meets enough and compares each row; else it asks whether a row is among the hits, which are found before.
Words of one or two letters are in nearly every text, so the first rows are looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session

from registry import fulltext
from registry.answers import remembered
from registry.paging import Order, Page, order
from registry.records import Adapter
from registry.scope import ROWID, Scope, holds
from registry.search import AdapterQuery
from registry.tables import AdapterRow

Found = Sequence[Any]  # rows of `_shown`

GLANCE = 1000  # rows that are looked at for words of one or two letters
FEW = 300  # hits; so many are sorted sooner than found on a walk past all others
MANY = 2000  # hits; of more a walk soon meets enough. At least `paging.RANKED`
MET = 2000  # rows that such a walk compares before it is given up
DENSE = 10_000  # hits; of more, `GLANCE` are mostly among the next `NEAR` rows
NEAR = 8000  # rows
_NAMES = tuple(field.name for field in fields(Adapter))
_RECORDS = select(*(AdapterRow.__table__.c[name] for name in _NAMES))  # the row's own names are compared anew


def find(session: Session, query: AdapterQuery, sort: str, limit: int, after: str) -> Page:
    """One page of adapters; see `Page`.

    Raises:
        BadInput: no such sort order, or a cursor of another search.
    """
    if query.short and fulltext.present(session):
        page = _glance(session, query, order(sort, query, lambda: 0, after), limit, after)
        if page is not None:
            return page
    scope = Scope.of(session, query)
    total = scope.total(session)
    wanted = order(sort, query, lambda: total, after)
    if total == 0:
        return Page([], 0)
    rows: Found | None = None
    if scope.indexed and not scope.everything:
        soon = total > MANY and wanted.index
        rows = _met(session, query, wanted, limit, after) if soon else None
        scope = scope.brought(session) if rows is None else scope
    if rows is None:
        few = total <= FEW and not scope.everything
        walk = scope.walk(_shown(wanted), wanted, after, few=few)
        rows = _rows(session, walk.limit(limit + 1))
    return _page(rows, wanted, total, limit)


def count(session: Session, query: AdapterQuery) -> int:
    """How many adapters there are in all."""
    return Scope.of(session, query).total(session)


def ids(session: Session, query: AdapterQuery) -> list[str]:
    """The ids of all hits, newest first."""
    scope = Scope.of(session, query)
    conditions = [ROWID.in_(scope.rowids())] if scope.indexed else scope.rows()
    hits = session.execute(select(AdapterRow.id, AdapterRow.created_at).where(*conditions))
    return [row[0] for row in sorted(hits, key=lambda row: (row[1], row[0]), reverse=True)]


def _met(session: Session, query: AdapterQuery, wanted: Order, limit: int, after: str) -> Found | None:
    """The rows of a page when the next `MET` rows hold them, each of which is compared; else None."""

    stretch = _stretch(session, query, wanted, after, MET)
    walk = Scope.plain(query).walk(_shown(wanted), wanted, after)
    walk = walk.where(wanted.until(stretch.last)) if stretch else walk
    rows = _rows(session, walk.limit(limit + 1))
    return rows if len(rows) > limit or not stretch else None


@dataclass(frozen=True)
class _Stretch:
    """The next rows in an order, whether they are hits or not."""

    between: tuple[int, int]  # their least and greatest rowid
    last: Sequence[Any]  # the order's columns of the last one


def _stretch(session: Session, query: AdapterQuery, wanted: Order, after: str, count: int) -> _Stretch | None:
    """The next `count` rows; None when there are fewer."""

    def look() -> _Stretch | None:
        everything = Scope.plain(AdapterQuery(trashed=query.trashed))
        last = everything.walk(select(*wanted.columns), wanted, after).offset(count - 1).limit(1)
        if (values := session.execute(last).first()) is None:
            return None
        rowids = everything.walk(select(ROWID.label("number")), wanted, after).limit(count).subquery()
        least, greatest = session.execute(select(func.min(rowids.c[0]), func.max(rowids.c[0]))).one()
        return _Stretch((least, greatest), values)

    return remembered(session, ("stretch", count, wanted.name, after, query.trashed), look)


def _glance(session: Session, query: AdapterQuery, wanted: Order, limit: int, after: str) -> Page | None:
    """A page from the first rows alone, when they hold enough hits of short words; else None."""
    hits, all_seen = _look(session, query, wanted, after)
    if len(hits) <= limit and not all_seen:
        return None
    shown = _shown(wanted).where(AdapterRow.id.in_(hits[: limit + 1])).order_by(*wanted.by())
    rows = _rows(session, shown)
    if after:
        hits, all_seen = _look(session, query, wanted, "")
    return replace(_page(rows, wanted, len(hits), limit), capped=not all_seen)


def _look(session: Session, query: AdapterQuery, wanted: Order, after: str) -> tuple[list[str], bool]:
    """The ids of the hits among the next rows that all else fits; and whether these are all such rows."""

    def look() -> tuple[list[str], bool]:
        columns = select(AdapterRow.id, and_(*map(holds, query.short))).limit(GLANCE)
        scope, looked = Scope.of(session, query.long), list[Any]()
        dense = not scope.everything and scope.found(session).number > DENSE
        if dense and (stretch := _stretch(session, query, wanted, after, NEAR)):
            walk = scope.brought(session, stretch.between).walk(columns, wanted, after)
            looked = _rows(session, walk.where(wanted.until(stretch.last)))
        if len(looked) < GLANCE:
            looked = _rows(session, scope.brought(session).walk(columns, wanted, after))
        return [id for id, fits in looked if fits], len(looked) < GLANCE

    return remembered(session, ("glance", query.plainly, wanted.name, after), look)


def _rows(session: Session, query: Select[*tuple[Any, ...]]) -> Found:
    """What a query of columns selects; the session itself would take a microsecond more for each row."""
    return session.connection().execute(query).all()


def _shown(wanted: Order) -> Select[*tuple[Any, ...]]:
    """What a page needs of a row: the fields of the record, then its place in the order."""
    return _RECORDS.add_columns(*wanted.columns)


def _page(rows: Found, wanted: Order, total: int, limit: int) -> Page:
    """A page of rows of `_shown`; one more than its limit says that it goes on."""
    records = [Adapter(**dict(zip(_NAMES, row, strict=False))) for row in rows[:limit]]
    next = wanted.cursor(tuple(rows[limit - 1][len(_NAMES) :])) if len(rows) > limit else ""
    return Page(records, total, next)
