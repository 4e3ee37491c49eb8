"""A search on one database: what its indexes answer, and what every row has to be compared with.

On SQLite the tables of `registry.fulltext` answer words, tags and filters, so that only the rows of a page
are read. Elsewhere the database decides how it goes about the same conditions.
"""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, false, func, literal_column, select
from sqlalchemy.orm import Session

from registry import fulltext
from registry.answers import remembered
from registry.fulltext import FACTS
from registry.paging import Order
from registry.search import CONDITIONS, SHORT, AdapterQuery, Columns, line
from registry.tables import AdapterRow, fold_line
from registry.vocabulary import telling

ROWID: ColumnElement[int] = literal_column("adapters.rowid")  # SQLite's own number of a row
Rows = Select[*tuple[Any, ...]]
_BINNED = select(ROWID).where(AdapterRow.trashed_at.is_not(None))


@dataclass(frozen=True)
class Scope:
    """What a row has to meet to be a hit.

    Each of `sets` selects the rowids that meet one part of the query; there are none but on SQLite.
    """

    query: AdapterQuery
    indexed: bool  # by rowids: SQLite
    sets: tuple[Select[int], ...]
    filters: dict[str, Any]  # the other filters, by name
    loose: tuple[str, ...]  # words to compare with every text
    bin_empty: bool = False  # whether it is known that nothing is in the trash

    @classmethod
    def plain(cls, query: AdapterQuery) -> "Scope":
        """The scope that compares every row, on any database."""
        return cls(query, False, (), query.asked(), query.words)

    @classmethod
    def of(cls, session: Session, query: AdapterQuery) -> "Scope":
        """The scope of a query on the database of this session."""
        if session.get_bind().dialect.name != "sqlite":
            return cls.plain(query)
        filters = query.asked()
        sets = [_tagged(tag) for tag in filters.pop("tags", ())]
        if not fulltext.present(session):
            return cls(query, True, tuple(sets), filters, query.words)
        loose: list[str] = []
        trigger = filters.pop("trigger", "")
        wanted = [fulltext.phrase(line(trigger), "trigger_lines")] if trigger else []
        for word in query.words:
            runs = _runs(session, word)
            if not runs:
                sets.append(select(fulltext.FTS.c.rowid).where(false()))
            elif len(runs) <= fulltext.MAX_TERMS:
                wanted.append(fulltext.any_of(runs))
            else:
                loose.append(word)
        if wanted:
            sets.append(select(fulltext.FTS.c.rowid).where(fulltext.having(wanted)))
        return cls(query, True, tuple(sets), filters, tuple(loose), _bin_empty(session))

    @property
    def everything(self) -> bool:
        """Whether all adapters are hits that are not in the trash."""
        return not (self.sets or self.filters or self.loose or self.query.trashed)

    def total(self, session: Session) -> int:
        """How many hits there are."""
        if self.sets:
            return self.found(session).number
        hits = self.rowids() if self.indexed else select(AdapterRow.id).where(*self.rows())
        number = select(func.count()).select_from(hits.subquery())
        return remembered(session, ("total", self.query.plainly), lambda: session.scalar(number) or 0)

    def known(self, session: Session) -> "Scope":
        """The same hits; what `sets` select is looked for once, and then known by its rowids (SQLite)."""
        return replace(self, sets=(self._without_rest().found(session).members(),)) if self.sets else self

    def found(self, session: Session) -> "Found":
        """The hits, which are looked for once (SQLite)."""

        def find() -> Found:
            hits = (self.known(session) if self.filters or self.loose else self).rowids().subquery()
            both = select(func.count(), func.group_concat(hits.c[0])).select_from(hits)
            number, rowids = session.execute(both).one()
            return Found(number, f"[{rowids or ''}]")

        return remembered(session, ("rowids", self.query.plainly), find)

    def brought(self, session: Session, between: tuple[int, int] | None = None) -> "Scope":
        """The same hits by their rowids, or those of them between two rowids, both included (SQLite)."""
        if self.everything:
            return self
        return replace(self, sets=(self.found(session).members(between),), filters={}, loose=())

    def rows(self) -> list[ColumnElement[bool]]:
        """What a row of `adapters` has to meet."""
        return [*self._conditions(AdapterRow, ROWID), *map(holds, self.loose)]

    def facts(self) -> list[ColumnElement[bool]]:
        """What a row of `FACTS` has to meet (SQLite)."""
        facts = FACTS.c
        words = [exists().where(facts.adapter == ROWID, *map(holds, self.loose))] if self.loose else []
        return [*self._conditions(facts, facts.adapter), *words]

    def rowids(self) -> Select[int]:
        """The rowids of all hits, the shortest way (SQLite)."""
        if self.filters or self.loose:
            return select(FACTS.c.adapter).where(*self.facts())
        if not self.sets:
            return select(ROWID.label("number")).where(_in_trash(AdapterRow, self.query))
        first, *others = self.sets
        number = first.selected_columns[0]
        found = first.where(*(number.in_(members) for members in others))
        if self.query.trashed:
            return found.where(number.in_(_BINNED))
        return found if self.bin_empty else found.where(number.not_in(_BINNED))

    def walk(self, columns: Rows, wanted: Order, after: str, *, few: bool = False) -> Rows:
        """These columns of hits in order, after a cursor; of `few` hits, each is looked up."""
        hint = "NOT INDEXED" if few or not wanted.index else f"INDEXED BY {wanted.index}"
        query = columns.where(*self.rows()).order_by(*wanted.by()).with_hint(AdapterRow, hint, "sqlite")
        return query.where(wanted.after(after)) if after else query

    def _without_rest(self) -> "Scope":
        """What `sets` alone select."""
        words = " ".join(word for word in self.query.words if word not in self.loose)
        trigger = "" if "trigger" in self.filters else self.query.trigger
        query = AdapterQuery(query=words, tags=self.query.tags, trigger=trigger, trashed=self.query.trashed)
        return replace(self, query=query, filters={}, loose=())

    def _conditions(self, row: Columns, number: ColumnElement[int]) -> list[ColumnElement[bool]]:
        filters = [CONDITIONS[name](row, value) for name, value in self.filters.items()]
        return [_in_trash(row, self.query), *filters, *(number.in_(members) for members in self.sets)]


def holds(word: str) -> ColumnElement[bool]:
    """The text of a row of `adapters` holds a folded word."""
    return AdapterRow.search.contains(word, autoescape=True)


@dataclass(frozen=True)
class Found:
    """Hits."""

    number: int
    rowids: str  # a list in JSON

    def members(self, between: tuple[int, int] | None = None) -> Select[int]:
        """The rowids, or those between two of them."""
        rowid = func.json_each(self.rowids).table_valued("value", name="hits").c.value
        return select(rowid).where(rowid.between(*between)) if between else select(rowid)


def _runs(session: Session, word: str) -> list[str]:
    """Runs of letters of which a text has one exactly when it has `word`."""
    if len(word) <= SHORT:
        return fulltext.runs_of(session, word)
    part = remembered(session, ("part", word), lambda: telling(session, word))
    return [part] if part else []


def _bin_empty(session: Session) -> bool:
    return remembered(session, "trash", lambda: session.scalar(_BINNED.limit(1)) is None)


def _in_trash(row: Columns, query: AdapterQuery) -> ColumnElement[bool]:
    return row.trashed_at.is_not(None) if query.trashed else row.trashed_at.is_(None)


def _tagged(tag: str) -> Select[int]:
    return select(fulltext.TAGS.c.adapter).where(fulltext.TAGS.c.tag == fold_line(tag))
