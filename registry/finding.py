"""Adapters found: a page of them, how many there are, and how they divide by family, method, origin and tag.

On SQLite a page is one walk along the index of its order. Which rows count is decided before, from indexes
alone (`registry.fulltext` for words, `registry.tables.FACTS` for filters), so that only the rows of the page
are read. Elsewhere the database decides how it goes about the same conditions.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    case,
    collate,
    delete,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.orm import Session, aliased

from registry import fulltext
from registry.journal import HITS
from registry.paging import SHORT, Order, Page, order
from registry.search import CONDITIONS, UNIDENTIFIED, AdapterQuery, Entity, line
from registry.tables import FACTS, AdapterRow, fold_line

GLANCE = 1000  # rows that are looked at for words of one or two letters, which nearly every text holds
FEW = 300  # hits; so many are sorted sooner than found on a walk past all others
TAGS_SHOWN = 40
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
class _Group:
    """The hits of one combination of family, method and origin."""

    values: dict[str, str]  # of `_KINDS`
    number: int
    lines: str | None  # their tags, when these were asked for (SQLite)


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

    @property
    def everything(self) -> bool:
        """Whether all adapters are hits that are not in the trash."""
        return not (self.sets or self.filters or self.loose or self.query.trashed)

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

    def walk(self, wanted: Order, after: str, *columns: Any, few: bool = False) -> Select[*tuple[Any, ...]]:
        """A query of hits in order, loose words aside, after a cursor; of `few` hits, each is looked up."""
        conditions = self.conditions(AdapterRow)
        if self.sqlite and self.filters:
            conditions = [conditions[0], _rowid(AdapterRow).in_(replace(self, loose=()).hits("rowid"))]
        query = select(*columns, *wanted.columns).where(*conditions).order_by(*wanted.by())
        if few or wanted.index:
            hint = "NOT INDEXED" if few else f"INDEXED BY {wanted.index}"
            query = query.with_hint(AdapterRow, hint, "sqlite")
        return query.where(wanted.after(after)) if after else query


def find(session: Session, query: AdapterQuery, sort: str, limit: int, after: str) -> Page:
    """One page of adapters; see `Page`.

    Raises:
        BadInput: no such sort order, or a cursor of another search.
    """
    scope = Scope.of(session, query)
    if scope.loose and scope.sqlite and fulltext.present(session):
        wanted = order(sort, query, lambda: count(session, query), after)
        page = _glance(session, scope, wanted, limit, after)
        if page is not None:
            return page
    scope, total = _counted(session, Scope.of(session, query, exact=True))
    wanted = order(sort, query, lambda: total, after)
    if total == 0:
        return Page([], 0)
    few = total <= FEW and not scope.everything
    rows = scope.walk(wanted, after, AdapterRow, few=few).where(*scope.compared(AdapterRow)).limit(limit + 1)
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
    chosen = {kind: _stored(getattr(query, kind)) for kind in _KINDS if getattr(query, kind)}
    whole = Scope.of(session, replace(query, **dict.fromkeys(_KINDS, "")), exact=True)
    groups = _groups(session, whole, chosen)
    found: dict[str, dict[str, int]] = {}
    for kind in _KINDS:
        others = {name: value for name, value in chosen.items() if name != kind}
        sums = Counter[str]()
        for group in groups:
            if all(group.values[name] == value for name, value in others.items()):
                sums[group.values[kind]] += group.number
        found[kind] = dict(sorted(sums.items(), key=_most_first))
    return Facets(**found, tag=_tags(session, query, groups), rough=bool(short))


def _total(session: Session, scope: Scope) -> int:
    hits = scope.rowids() if scope.sqlite else scope.hits("id")
    return session.scalar(select(func.count()).select_from(hits.subquery())) or 0


def _counted(session: Session, scope: Scope) -> tuple[Scope, int]:
    """A scope of the same hits, and their number: on SQLite they are put down, and so looked for once."""
    if not scope.sqlite or scope.everything:
        return scope, _total(session, scope)
    session.execute(delete(HITS))
    added = session.execute(insert(HITS).from_select(["number"], scope.rowids()))
    kept = replace(scope, sets=(select(HITS.c.number),), filters={}, loose=())
    return kept, cast(Any, added).rowcount


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


def _groups(session: Session, scope: Scope, chosen: Mapping[str, str]) -> list[_Group]:
    """Each combination of `_KINDS` among the hits of `scope`, which asks for none of them."""
    hits = scope.hits(*_KINDS)
    columns = [hits.selected_columns[kind] for kind in _KINDS]
    lines: ColumnElement[Any] = literal("")
    if scope.sqlite and (chosen or not scope.everything):
        wanted = and_(true(), *(hits.selected_columns[kind] == value for kind, value in chosen.items()))
        lines = func.group_concat(case((wanted, _FACTS.tag_lines)), literal_column("''"))
    rows = session.execute(hits.add_columns(func.count(), lines).group_by(*columns)).all()
    return [_Group(dict(zip(_KINDS, row, strict=False)), *row[len(_KINDS) :]) for row in rows]


def _stored(value: str) -> str:
    """A filter's value as the column has it."""
    return "" if value == UNIDENTIFIED else value


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _tags(session: Session, query: AdapterQuery, groups: list[_Group]) -> dict[str, int]:
    scope = Scope.of(session, query, exact=True)
    if scope.sqlite and not scope.everything:
        counts = Counter[str]()
        for group in groups:
            counts.update((group.lines or "").split("\n"))
        del counts[""]
        return dict(sorted(counts.items(), key=_most_first)[:TAGS_SHOWN])
    counted = _all_tags() if scope.sqlite else _other_tags(scope)
    tag = counted.selected_columns[0]
    top = counted.group_by(tag).order_by(func.count().desc(), tag).limit(TAGS_SHOWN)
    return {row[0]: row[1] for row in session.execute(top)}


def _all_tags() -> Select[str, int]:
    binned = select(_rowid(AdapterRow)).where(AdapterRow.trashed_at.is_not(None))
    return select(fulltext.TAGS.c.tag, func.count()).where(fulltext.TAGS.c.adapter.not_in(binned))


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
