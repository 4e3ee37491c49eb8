"""What a connection to SQLite answered lately, for as long as nobody has written.

Turning pages asks for the number of hits again, and so does whatever else is changed beside a search. SQLite
tells a connection whether any other has written since (`PRAGMA data_version`), whichever process it is of;
`registry.journal` forgets when the connection itself is about to write. A connection is used by one thread at
a time, and so are its answers.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.orm import Session

T = TypeVar("T")
KEPT = 64  # answers; of many hits, one has some 100 KB
_PLACE = "answers"


@dataclass
class _Answers:
    """Answers to questions about one state of the database, the latest last."""

    version: int  # of the database
    fresh: bool = True  # whether the database was asked in this transaction, in which it stays as it is
    known: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any])


def remembered(session: Session, question: Hashable, find: Callable[[], T]) -> T:
    """What `find` answers, or answered before to the same question about the same state of the database."""
    connection = session.connection()
    if connection.dialect.name != "sqlite" or connection.get_execution_options().get("writes"):
        return find()
    known = _of(connection).known
    answer = known.pop(question) if question in known else find()
    known[question] = answer
    while len(known) > KEPT:
        del known[next(iter(known))]
    return answer


def forget(connection: Connection) -> None:
    """This connection is about to write."""
    connection.info.pop(_PLACE, None)


def begun(connection: Connection) -> None:
    """This connection begins to read: others may have written since it last did."""
    if kept := connection.info.get(_PLACE):
        kept.fresh = False


def _of(connection: Connection) -> _Answers:
    kept: _Answers | None = connection.info.get(_PLACE)
    if kept is not None and kept.fresh:
        return kept
    version = connection.exec_driver_sql("PRAGMA data_version").scalar()
    assert isinstance(version, int)
    if kept is None or kept.version != version:
        kept = connection.info[_PLACE] = _Answers(version)
    kept.fresh = True
    return kept
