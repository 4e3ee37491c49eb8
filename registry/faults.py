"""What the database reports, as the one line a person reads."""

import re
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError

from registry.errors import BadInput, Damaged, StudioError
from registry.schema import restore_advice

_KINDS = {"bases": "base", "datasets": "data set", "runs": "run", "adapters": "adapter", "samples": "sample"}


class IdTaken(BadInput):
    """Two records met on one id; the catalog tries again with another."""


@contextmanager
def person_errors(where: str, backups: Path) -> Generator[None]:
    """Turn database errors of the block into one-line errors about the catalog at `where`."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _person_error(error, where, backups) from error
    except UnicodeEncodeError as error:
        wrong = f"has a character that is no Unicode text ({error.object[error.start : error.end]!a})"
        raise BadInput("text", wrong, "rename the file or correct the text") from error


def _person_error(error: SQLAlchemyError, where: str, backups: Path) -> StudioError | SQLAlchemyError:
    if isinstance(error, IntegrityError):
        return _integrity(str(error.orig))
    if not isinstance(error, DBAPIError) or error.orig is None:
        return error
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite(error.orig, where, backups)
    if isinstance(error, OperationalError):
        return StudioError(where, f"does not answer ({error.orig})", "check that the database runs")
    return error


def _sqlite(error: sqlite3.Error, where: str, backups: Path) -> StudioError | SQLAlchemyError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code; the rest is detail
    path = Path(where)
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return Damaged(where, f"is damaged ({error})", restore_advice(path, backups))
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StudioError(where, "is busy: other processes have been writing for too long", "try again")
    if code == sqlite3.SQLITE_FULL:
        return StudioError(where, "cannot be written (the disk is full)", "free some space and try again")
    if code == sqlite3.SQLITE_READONLY:
        return StudioError(where, "cannot be written (read-only)", "check the folder and its permissions")
    if code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}:
        return StudioError(
            where, f"cannot be used ({error})", "check the disk, its free space and the folder"
        )
    return StudioError(where, f"reports an error ({error})", "run `studio doctor`")


def _integrity(message: str) -> BadInput:
    """SQLite: `UNIQUE constraint failed: bases.name`; PostgreSQL: `... constraint "bases_name_key" ...`."""
    unique = re.search(
        r"UNIQUE constraint failed: (\w+)\.(\w+)|unique constraint \"(\w+?)_(\w+?)(?:_key)?\"", message
    )
    if unique:
        table, column = (unique[1] or unique[3]), (unique[2] or unique[4])
        what = _KINDS.get(table, table)
        if column in {"id", "pkey"}:
            return IdTaken(f"id of the {what}", "is taken", "try again")
        return BadInput(f"{column} of the {what}", "is taken", "choose another one")
    if "foreign key" in message.lower():
        return BadInput(
            "record", "refers to one that does not exist, or others refer to it", "remove those first"
        )
    return BadInput("record", f"does not fit the catalog ({message.splitlines()[0]})", "check its values")
