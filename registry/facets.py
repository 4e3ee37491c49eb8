"""How the hits of a search divide by family, method, origin and tag.

SQLite brings what is to be counted as two long texts of codes; to sort and count it there takes far longer.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, and_, case, collate, func, literal_column, select, true
from sqlalchemy.orm import Session

from registry.answers import remembered
from registry.fulltext import BETWEEN, FACTS, KINDS, LABELS
from registry.scope import Scope
from registry.search import UNIDENTIFIED, AdapterQuery
from registry.tables import AdapterRow

TAGS_SHOWN = 40

Groups = Mapping[tuple[str, ...], int]  # how many hits there are of each combination of `KINDS`


@dataclass(frozen=True)
class Facets:
    """How many hits each value has; a filter that is set does not narrow its own values (tags do).

    With `rough` the words of one or two letters were left out: there may be fewer.
    """

    family: Mapping[str, int]
    method: Mapping[str, int]
    origin: Mapping[str, int]
    tag: Mapping[str, int]  # folded; the most frequent ones
    rough: bool = False


def facets(session: Session, query: AdapterQuery) -> Facets:
    """How the hits divide."""
    found = remembered(session, ("facets", query.long), lambda: _divided(session, query.long))
    return replace(found, rough=bool(query.short))


def _divided(session: Session, query: AdapterQuery) -> Facets:
    """How the hits divide, for words of three letters or more."""
    chosen = {kind: _stored(getattr(query, kind)) for kind in KINDS if getattr(query, kind)}
    whole = Scope.of(session, replace(query, **dict.fromkeys(KINDS, "")))
    groups, tags = _brought(session, whole, chosen) if whole.indexed else _counted(session, query, whole)

    def of(kind: str) -> dict[str, int]:
        others = [(KINDS.index(name), value) for name, value in chosen.items() if name != kind]
        sums = Counter[str]()
        for values, number in groups.items():
            if all(values[other] == value for other, value in others):
                sums[values[KINDS.index(kind)]] += number
        return _most_first(sums)

    most = dict(list(_most_first(tags).items())[:TAGS_SHOWN])
    return Facets(family=of("family"), method=of("method"), origin=of("origin"), tag=most)


def _brought(session: Session, whole: Scope, chosen: Mapping[str, str]) -> tuple[Groups, Mapping[str, int]]:
    """Kinds of all hits and the most frequent tags of those of the `chosen` kinds, counted here (SQLite)."""
    facts = FACTS.c
    nothing: ColumnElement[str] = literal_column("''")
    fits = and_(true(), *(facts[kind] == value for kind, value in chosen.items()))
    tags = case((fits, facts.tag_codes))
    texts = select(func.group_concat(facts.kind_code, nothing), func.group_concat(tags, nothing))
    kinds_text, tags_text = session.execute(texts.where(*whole.known(session).facts())).one()
    groups = _labelled(session, kinds_text).items()
    return {tuple(label.split(BETWEEN)): n for label, n in groups}, _labelled(session, tags_text, TAGS_SHOWN)


def _labelled(session: Session, codes: str | None, most: int | None = None) -> dict[str, int]:
    """How often each label occurs in a text of codes; of the most frequent ones, and those as frequent."""
    import numpy as np  # only the app asks for facets

    numbers = np.bincount(np.frombuffer(bytes.fromhex(codes or ""), ">u4"))
    least = np.sort(numbers)[-most] if most and len(numbers) > most else 0
    found = np.flatnonzero(numbers >= max(least, 1)).tolist()
    wanted = func.json_each(json.dumps(found)).table_valued("value", name="wanted")
    labels = select(LABELS.c.code, LABELS.c.label).where(LABELS.c.code.in_(select(wanted.c.value)))
    return {label: int(numbers[code]) for code, label in session.execute(labels)}


def _counted(session: Session, query: AdapterQuery, whole: Scope) -> tuple[Groups, Mapping[str, int]]:
    """Kinds of all hits and the most frequent tags of those of the chosen kinds, counted by the database."""
    kinds = [getattr(AdapterRow, kind) for kind in KINDS]
    grouped = select(*kinds, func.count()).where(*whole.rows()).group_by(*kinds)
    groups = {tuple(row[:-1]): row[-1] for row in session.execute(grouped)}
    lines = select(AdapterRow.tag_lines).where(*Scope.plain(query).rows()).subquery()
    split = func.string_to_array(func.btrim(lines.c.tag_lines, "\n"), "\n")
    tags = select(func.unnest(split).label("tag")).select_from(lines).subquery()
    tag: ColumnElement[str] = collate(tags.c.tag, "C")
    top = select(tag, func.count()).where(tags.c.tag != "").group_by(tag)
    top = top.order_by(func.count().desc(), tag).limit(TAGS_SHOWN)
    return groups, {row[0]: row[1] for row in session.execute(top)}


def _stored(value: str) -> str:
    """A filter's value as the column has it."""
    return "" if value == UNIDENTIFIED else value


def _most_first(numbers: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0])))
