"""Where database sessions open: the ground on which the catalog stands."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from registry.columns import Row
from registry.errors import NotFound, StudioError
from registry.faults import IdTaken, person_errors
from registry.journal import writing
from registry.queries import NAMES
from registry.tables import ROWS

T = TypeVar("T")
_ID_TRIES = 8  # two processes met on one id; see registry.ids


class Sessions:
    """Short transactions on one database: `_read`, `_write` and `_insert` for the methods of the catalog."""

    def __init__(self, engine: Engine, *, where: str, backups: Path, read_only: bool, reason: str) -> None:
        self.read_only = read_only
        self.reason = reason  # why it is read-only, a line for people; "" otherwise
        self.backups = backups
        self._where = where
        self._engine = engine
        self._writing = writing(engine)

    @property
    def is_file(self) -> bool:
        """Whether the catalog is an SQLite file (not a database server)."""
        return self._engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Close the connections; the catalog opens new ones when it is used again."""
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Generator[Session]:
        with person_errors(self._where, self.backups), Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Generator[Session]:
        if self.read_only:
            raise StudioError(
                "catalog", "is read-only", self.reason or "check the folder and its permissions"
            )
        with person_errors(self._where, self.backups), Session(self._writing) as session, session.begin():
            yield session

    def _insert(self, work: Callable[[Session], T]) -> T:
        """Run `work`, which makes its ids inside, in a write transaction; again when an id was taken."""
        for _ in range(_ID_TRIES - 1):
            with suppress(IdTaken), self._write() as session:
                return work(session)
        with self._write() as session:
            return work(session)

    @staticmethod
    def _row(session: Session, kind: type[Any], id: str) -> Any:
        row = session.get(ROWS[kind], id, with_for_update=True)
        if row is None:
            raise NotFound(f"{NAMES[kind]} {id[:100]!r}", "does not exist", "it may have been removed")
        return row


def as_stored(session: Session, row: Row) -> Any:
    """The record as everyone else will read it: times in UTC, numbers in their column's type."""
    session.flush()
    session.refresh(row)
    return row.to_record()
