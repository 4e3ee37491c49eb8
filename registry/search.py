"""The adapter search, as one query built from what a person typed."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, UnaryExpression, func, select
from sqlalchemy.orm import Session

from registry.errors import BadInput
from registry.records import Adapter
from registry.tables import AdapterRow, fold

SORTS: dict[str, tuple[UnaryExpression[Any], ...]] = {
    "newest": (AdapterRow.created_at.desc(), AdapterRow.id.desc()),
    "oldest": (AdapterRow.created_at.asc(), AdapterRow.id.asc()),
    "name": (AdapterRow.sort_name.asc(), AdapterRow.id.asc()),
    "rating": (AdapterRow.rating.desc(), AdapterRow.created_at.desc(), AdapterRow.id.desc()),
    "size": (AdapterRow.size.desc(), AdapterRow.id.desc()),
}


@dataclass(frozen=True, kw_only=True)
class AdapterQuery:
    """What to look for; fields left at their default do not filter."""

    query: str = ""  # words, all of which must occur in name, tags, trigger words or note
    family: str = ""
    tag: str = ""  # a whole tag, whatever its case
    origin: str = ""
    min_rating: int = 0
    trashed: bool = False  # True: only the trash, False: only what is not in it
    sort: str = "newest"
    limit: int = 60
    offset: int = 0

    def conditions(self) -> list[ColumnElement[bool]]:
        """The WHERE clause, AND-ed."""
        in_trash = AdapterRow.trashed_at.is_not(None)
        found: list[ColumnElement[bool]] = [in_trash if self.trashed else AdapterRow.trashed_at.is_(None)]
        found += [AdapterRow.search.contains(word, autoescape=True) for word in fold(self.query).split()]
        if self.family:
            found.append(AdapterRow.family == self.family)
        if self.origin:
            found.append(AdapterRow.origin == self.origin)
        if self.tag:
            found.append(AdapterRow.tag_lines.contains(f"\n{fold(self.tag)}\n", autoescape=True))
        if self.min_rating > 0:
            found.append(AdapterRow.rating >= self.min_rating)
        return found


def search(session: Session, query: AdapterQuery) -> tuple[list[Adapter], int]:
    """One page of adapters, and how many there are in all.

    Raises:
        BadInput: no such sort order.
    """
    if query.sort not in SORTS:
        raise BadInput(f"sort {query.sort!r}", "is no sort order", f"use one of {', '.join(SORTS)}")
    conditions = query.conditions()
    total = session.scalar(select(func.count()).select_from(AdapterRow).where(*conditions)) or 0
    page = select(AdapterRow).where(*conditions).order_by(*SORTS[query.sort])
    rows = session.scalars(page.limit(query.limit).offset(query.offset))
    return [row.to_record() for row in rows], total
