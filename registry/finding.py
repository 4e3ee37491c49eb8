"""Adapters found: a page of them, how many there are, and how they divide by family, method, origin and tag.

On SQLite a page is one walk along the index of its order. Which rows count is decided before, from indexes
alone (`registry.fulltext` for words, `registry.tables.FACTS` for filters), so that only the rows of the page
are read. Elsewhere the database decides how it goes about the same conditions.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, collate, func, inspect, literal_column, select
from sqlalchemy.orm import Session, aliased

from registry import fulltext
from registry.paging import SHORT, Order, Page, order
from registry.search import CONDITIONS, UNIDENTIFIED, AdapterQuery, Entity, line
from registry.tables import FACTS, AdapterRow, fold_line

GLANCE = 2000  # rows that are looked at for words of one or two letters, which nearly every text holds
TAGS_SHOWN = 40
FEW = 8000  # hits; up to here the tags of each are looked up, beyond all tags are counted
_FACTS = aliased(AdapterRow, name="facts")  # made once: SQLAlchemy takes 2 ms for it
_KINDS = ("family", "method", "origin")


@dataclass(frozen=True)
class Facets:
    """How many hits each value has; a filter that is set does not narrow its own values (tags do).

    With `rough` the words of one or two letters were left out: there may be fewer.
    """

    family: dict[str, int]
    method: dict[str, int]
    origin: dict[str, int]
    tag: dict[str, int]  # folded; the most frequent ones
    rough: bool = False


@dataclass(frozen=True)
class Scope:
    """A query on one database: what its indexes answer, and what has to be compared.

    Each of `sets` selects the rowids that meet one part of the query; there are none but on SQLite.
    """

    query: AdapterQuery
    sqlite: bool
    sets: tuple[Select[int], ...]
    filters: dict[str, Any]  # the other filters, by name
    loose: tuple[str, ...]  # words to compare with every text

    @classmethod
    def of(cls, session: Session, query: AdapterQuery, *, exact: bool = False) -> "Scope":
        """The scope of a query; short words stay loose unless it has to be `exact`."""
        filters = query.asked()
        if session.get_bind().dialect.name != "sqlite":
            return cls(query, False, (), filters, query.words)
        sets = [_tagged(tag) for tag in filters.pop("tags", ())]
        if not fulltext.present(session):
            return cls(query, True, tuple(sets), filters, query.words)
        loose: list[str] = []
        trigger = filters.pop("trigger", "")
        wanted = [fulltext.phrase(line(trigger), "trigger_lines")] if trigger else []
        for word in query.words:
            runs = fulltext.runs_of(session, word) if exact and len(word) <= SHORT else []
            if len(word) > SHORT:
                wanted.append(fulltext.phrase(word, "search"))
            elif runs and len(runs) <= fulltext.MAX_TERMS:
                wanted.append(fulltext.any_of(runs))
            else:
                loose.append(word)
        if wanted:
            sets.append(select(fulltext.FTS.c.rowid).where(fulltext.having(wanted)))
        return cls(query, True, tuple(sets), filters, tuple(loose))

    def conditions(self, entity: Entity) -> list[ColumnElement[bool]]:
        """What a row of `entity` has to meet, loose words aside."""
        in_trash = entity.trashed_at.is_not(None) if self.query.trashed else entity.trashed_at.is_(None)
        filters = [CONDITIONS[name](entity, value) for name, value in self.filters.items()]
        return [in_trash, *filters, *(_rowid(entity).in_(members) for members in self.sets)]

    def compared(self, entity: Entity) -> list[ColumnElement[bool]]:
        """The loose words."""
        return [entity.search.contains(word, autoescape=True) for word in self.loose]

    def hits(self, *columns: str) -> Select[*tuple[Any, ...]]:
        """These columns of all hits, from the index of filters."""
        facts = _FACTS
        number = _rowid(facts).label("number")
        chosen = [number if column == "rowid" else getattr(facts, column) for column in columns]
        query = select(*chosen).select_from(facts).where(*self.conditions(facts), *self.compared(facts))
        return query.with_hint(facts, f"INDEXED BY {FACTS}", "sqlite")

    def rowids(self) -> Select[*tuple[Any, ...]]:
        """The rowids of all hits, the shortest way (SQLite)."""
        if not self.sets or self.filters or self.loose:
            return self.hits("rowid")
        first, *others = self.sets
        rowid = first.selected_columns[0]
        binned = select(_rowid(AdapterRow)).where(AdapterRow.trashed_at.is_not(None))
        in_trash = rowid.in_(binned) if self.query.trashed else rowid.not_in(binned)
        return first.where(in_trash, *(rowid.in_(members) for members in others))

    def walk(self, wanted: Order, after: str, *columns: Any) -> Select[*tuple[Any, ...]]:
        """A query of hits in order, loose words aside, after a cursor."""
        conditions = self.conditions(AdapterRow)
        if self.sqlite and self.filters:
            conditions = [conditions[0], _rowid(AdapterRow).in_(replace(self, loose=()).hits("rowid"))]
        query = select(*columns, *wanted.columns).where(*conditions).order_by(*wanted.by())
        if wanted.index:
            query = query.with_hint(AdapterRow, f"INDEXED BY {wanted.index}", "sqlite")
        return query.where(wanted.after(after)) if after else query


def find(session: Session, query: AdapterQuery, sort: str, limit: int, after: str) -> Page:
    """One page of adapters; see `Page`.

    Raises:
        BadInput: no such sort order, or a cursor of another search.
    """
    wanted = order(sort, query, lambda: count(session, query), after)
    scope = Scope.of(session, query)
    if scope.loose and scope.sqlite and fulltext.present(session):
        page = _glance(session, scope, wanted, limit, after)
        if page is not None:
            return page
        scope = Scope.of(session, query, exact=True)
    total = _total(session, scope)
    if total == 0:
        return Page([], 0)
    rows = scope.walk(wanted, after, AdapterRow).where(*scope.compared(AdapterRow)).limit(limit + 1)
    found = [(row[0], tuple(row[1:])) for row in session.execute(rows)]
    next = wanted.cursor(found[limit - 1][1]) if len(found) > limit else ""
    return Page([row.to_record() for row, _ in found[:limit]], total, next)


def count(session: Session, query: AdapterQuery) -> int:
    """How many adapters there are in all."""
    return _total(session, Scope.of(session, query, exact=True))


def ids(session: Session, query: AdapterQuery) -> list[str]:
    """The ids of all hits, newest first."""
    hits = Scope.of(session, query, exact=True).hits("id", "created_at")
    return [row[0] for row in sorted(session.execute(hits), key=lambda row: (row[1], row[0]), reverse=True)]


def facets(session: Session, query: AdapterQuery) -> Facets:
    """How the hits divide."""
    short = [word for word in query.words if len(word) <= SHORT]
    query = replace(query, query=" ".join(word for word in query.words if word not in short))
    groups = _groups(session, query)
    chosen = {kind: _stored(getattr(query, kind)) for kind in _KINDS if getattr(query, kind)}
    found: dict[str, dict[str, int]] = {}
    for kind in _KINDS:
        others = {name: value for name, value in chosen.items() if name != kind}
        sums = Counter[str]()
        for values, number in groups:
            if all(values[name] == value for name, value in others.items()):
                sums[values[kind]] += number
        found[kind] = dict(sorted(sums.items(), key=_most_first))
    total = sum(number for values, number in groups if values | chosen == values)
    return Facets(**found, tag=_tags(session, query, total), rough=bool(short))


def _total(session: Session, scope: Scope) -> int:
    hits = scope.rowids() if scope.sqlite else scope.hits("id")
    return session.scalar(select(func.count()).select_from(hits.subquery())) or 0


def _glance(session: Session, scope: Scope, wanted: Order, limit: int, after: str) -> Page | None:
    """A page from the first rows alone, when they hold enough hits; else None."""
    hits, all_seen = _look(session, scope, wanted, after)
    if len(hits) <= limit and not all_seen:
        return None
    shown = hits[:limit]
    rows = session.scalars(select(AdapterRow).where(AdapterRow.id.in_([row[0] for row in shown])))
    records = {row.id: row.to_record() for row in rows}
    next = wanted.cursor(tuple(shown[-1][2:])) if len(hits) > limit else ""
    if after:
        hits, all_seen = _look(session, scope, wanted, "")
    return Page([records[row[0]] for row in shown], len(hits), next, capped=not all_seen)


def _look(session: Session, scope: Scope, wanted: Order, after: str) -> tuple[list[Any], bool]:
    """Id, text and place in the order of the hits among the next rows; and whether these are all."""
    walk = scope.walk(wanted, after, AdapterRow.id, AdapterRow.search)
    looked = session.execute(walk.limit(GLANCE)).all()
    return [row for row in looked if all(word in row[1] for word in scope.loose)], len(looked) < GLANCE


def _groups(session: Session, query: AdapterQuery) -> list[tuple[dict[str, str], int]]:
    """Each combination of `_KINDS` with its number of hits, as if none of them was asked for."""
    hits = Scope.of(session, replace(query, **dict.fromkeys(_KINDS, "")), exact=True).hits(*_KINDS)
    columns = [hits.selected_columns[kind] for kind in _KINDS]
    rows = session.execute(hits.add_columns(func.count()).group_by(*columns)).all()
    return [(dict(zip(_KINDS, row, strict=False)), row[len(_KINDS)]) for row in rows]


def _stored(value: str) -> str:
    """A filter's value as the column has it."""
    return "" if value == UNIDENTIFIED else value


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _tags(session: Session, query: AdapterQuery, total: int) -> dict[str, int]:
    scope = Scope.of(session, query, exact=True)
    counted = _sqlite_tags(scope, total) if scope.sqlite else _other_tags(scope)
    tag = counted.selected_columns[0]
    top = counted.group_by(tag).order_by(func.count().desc(), tag).limit(TAGS_SHOWN)
    return {row[0]: row[1] for row in session.execute(top)}


def _sqlite_tags(scope: Scope, total: int) -> Select[str, int]:
    tags, counted = fulltext.TAGS, select(fulltext.TAGS.c.tag, func.count())
    if not (scope.sets or scope.filters or scope.loose or scope.query.trashed):
        binned = select(_rowid(AdapterRow)).where(AdapterRow.trashed_at.is_not(None))
        return counted.where(tags.c.adapter.not_in(binned))
    hits = scope.rowids()
    if total > FEW:
        return counted.where(tags.c.adapter.in_(hits))
    few = hits.subquery("hits")
    joined = counted.join_from(few, tags, tags.c.adapter == few.c[0])
    return joined.with_hint(tags, f"INDEXED BY {fulltext.BY_ADAPTER}", "sqlite")


def _other_tags(scope: Scope) -> Select[str, int]:
    lines = scope.hits("tag_lines").subquery()
    split = func.string_to_array(func.btrim(lines.c.tag_lines, "\n"), "\n")
    tags = select(func.unnest(split).label("tag")).select_from(lines).subquery()
    tag = collate(tags.c.tag, "C")
    return select(tag, func.count()).where(tags.c.tag != "")


def _tagged(tag: str) -> Select[int]:
    return select(fulltext.TAGS.c.adapter).where(fulltext.TAGS.c.tag == fold_line(tag))


def _rowid(entity: Entity) -> ColumnElement[int]:
    """SQLite's own number of a row."""
    name = cast(Any, inspect(entity)).selectable.name
    return literal_column(f"{name}.rowid")
