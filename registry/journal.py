"""Engines: how we talk to SQLite (and, for those who want it, PostgreSQL).

- WAL with synchronous=FULL where SQLite has the fix for its corruption race (3.51.3, 3.50.7, 3.44.6), else
  the rollback journal.
- A write transaction begins with BEGIN IMMEDIATE: it waits for its turn at the start, where nothing is lost
  by waiting, instead of failing at the first write. Readers use plain BEGIN.
- No connection crosses a fork: the child starts with an empty pool.
"""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from registry import answers
from registry.errors import BadInput

BUSY_SECONDS = 5.0  # how long a connection waits for another process's write
_CACHE = 32 * 1024  # KiB of the file that a connection keeps: the indexes of 100,000 adapters, mostly
_TURNS = 6  # busy timeouts that a write waits at its start, where nothing is lost by waiting
_FIXED = ((3, 44, 6), (3, 50, 7), (3, 51, 3))  # first SQLite of each line without the WAL race
_decoder = json.JSONDecoder()
_engines: "WeakSet[Engine]" = WeakSet()


def parse_url(url: str) -> URL:
    """The database URL, with its driver chosen.

    Raises:
        BadInput: it is not a URL, or names a database we do not support.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        do = "write sqlite:////folder/catalog.sqlite or postgresql://user@host/name"
        raise BadInput("database_url", "is not a database URL", do) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    shown = parsed.render_as_string(hide_password=True)
    raise BadInput("database_url", f"{shown} is neither an SQLite file nor PostgreSQL", "use one of the two")


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite has the fix for the WAL corruption race of 3.7.0 to 3.51.2."""
    return version >= _FIXED[-1] or any(version[:2] == fixed[:2] and version >= fixed for fixed in _FIXED)


def open_engine(url: URL, *, read_only: bool = False) -> Engine:
    """An engine whose transactions are plain reads; `writing(engine)` gives the one that writes.

    Raises:
        BadInput: the driver is not installed.
    """
    try:
        if url.get_backend_name() == "sqlite":
            engine = _sqlite(url, read_only, pool_use_lifo=True)  # the one that remembers most
        else:
            engine = create_engine(url, pool_pre_ping=True)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        do = "pip install 'lora-studio[postgres]'"
        raise BadInput("database_url", f"needs a driver that is not installed ({error})", do) from error
    _engines.add(engine)
    return engine


def writing(engine: Engine) -> Engine:
    """The same pool, with transactions that take the write lock at their start."""
    return engine.execution_options(writes=True)


class _WithHints(SQLiteCompiler):
    """SQLAlchemy leaves hints out of what it says to SQLite, which would then choose indexes by guess."""

    def get_from_hint_text(self, table: Any, text: str | None) -> str | None:  # noqa: ARG002
        """INDEXED BY and NOT INDEXED, as they are written."""
        return text


def _read_json(text: str) -> Any:
    """As `json.loads`, in a third of its time: there is no white space around what was written here."""
    return _decoder.raw_decode(text)[0]


def _sqlite(url: URL, read_only: bool, **options: Any) -> Engine:
    path = Path(str(url.database))
    if read_only:
        query = {"mode": "ro", "uri": "true"} | ({"immutable": "1"} if _closed_wal(path) else {})
        url = url.set(database=f"file:{path.absolute()}", query=query)
    connect_args = {"timeout": BUSY_SECONDS}
    engine = create_engine(url, connect_args=connect_args, json_deserializer=_read_json, **options)
    engine.dialect.statement_compiler = _WithHints

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # we say BEGIN ourselves, below
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{_CACHE}")
        connection.execute("PRAGMA temp_store=MEMORY")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        if not connection.get_execution_options().get("writes", False):
            connection.exec_driver_sql("BEGIN")
            answers.begun(connection)
            return
        answers.forget(connection)
        if not _wait_for_turn(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _wait_for_turn(connection: Connection) -> bool:
    """Take the write lock, waiting longer than one busy timeout.

    SQLite does not queue, so one of many writers can be unlucky for seconds. Returns False when the last try
    is left to the caller, who reports its error.
    """
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, sqlite3.Connection)
    for _ in range(_TURNS - 1):
        try:
            raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                break
        else:
            return True
    return False


def _closed_wal(path: Path) -> bool:
    """In WAL mode and opened by nobody: SQLite cannot read that without writing beside it."""
    with path.open("rb") as stream:
        header = stream.read(20)
    return header[18:19] == b"\x02" and not path.with_name(path.name + "-wal").exists()


def migration_engine(url: URL) -> Engine:
    """An engine for one migration: foreign keys off, since SQLite alters a table by rebuilding it."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool)
    engine = _sqlite(url, read_only=False, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def no_foreign_keys(connection: sqlite3.Connection, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.execute("PRAGMA foreign_keys=OFF")

    return engine


def set_journal(path: Path) -> str:
    """Choose the journal for the database at `path`; returns its name ("wal" or "delete").

    Left as it is while another process uses the database: both journals are right for one that is open.
    """
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        wanted = "wal" if wal_is_safe() else "delete"
        (current,) = connection.execute("PRAGMA journal_mode").fetchone()
        if current != wanted:
            try:
                (current,) = connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()
            except sqlite3.OperationalError:  # "database is locked"
                return str(current)
        return str(current)


def _forget_connections() -> None:
    for engine in _engines:
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_connections)
