"""The schema of an existing or new database: what is in the file, and bringing it up to date.

Alembic costs a third of a second to import, so it is only imported when there is something to migrate.
"""

import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from registry.errors import BadInput, Damaged, StudioError
from registry.files import atomic_path
from registry.journal import BUSY_SECONDS, migration_engine, writing
from registry.migrations import HEAD
from registry.records import now

_MAGIC = b"SQLite format 3\0"
_CHECKED_AT_OPEN = 32 * 2**20  # bytes
_MIGRATION_LOCK = 0x4C6F5241  # any number, the same for all who migrate
_SCRIPTS = Path(__file__).parent / "migrations"


def check_file(path: Path, backups: Path) -> None:
    """Refuse a file that cannot be the catalog, before SQLite touches it.

    Raises:
        BadInput: something else is at `path`.
        Damaged: the catalog is gone or empty, though backups of it exist: a new one would hide the loss.
    """
    if path.is_dir():
        raise BadInput(str(path), "is a folder, not a catalog", "move it away")
    size = path.stat().st_size if path.exists() else 0
    if size == 0:
        if newest := newest_backup(backups):
            wrong = "is empty" if path.exists() else "is missing"
            do = f"copy {newest} to {path}, or move the folder {backups} away to start anew"
            raise Damaged(str(path), f"{wrong}, though there are backups of it", do)
        return
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise BadInput(str(path), "is not a catalog (no SQLite database)", restore_advice(path, backups))


def restore_advice(path: Path, backups: Path) -> str:
    """What to do about a catalog that is damaged or none at all."""
    newest = newest_backup(backups)
    return f"restore the newest backup: copy {newest} to {path}" if newest else "move it away to start anew"


def damage(path: Path) -> str:
    """What `PRAGMA quick_check` has to say about the file; "" when it is sound."""
    try:
        with closing(sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True)) as connection:
            lines = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, unreadable: not for us to judge
            return ""
        return str(error)
    return "" if lines == ["ok"] else " ".join(lines)


def why_read_only(path: Path, backups: Path) -> str:
    """Why the catalog must not be written, one line; "" when it may.

    Files up to 32 MiB are checked page by page (a millisecond per MiB); damage in a larger one shows when a
    damaged page is read, or in `Catalog.check`.
    """
    if not path.exists():
        return ""
    if path.stat().st_size <= _CHECKED_AT_OPEN and (wrong := damage(path)):
        do = restore_advice(path, backups)
        return str(Damaged(str(path), f"is damaged ({wrong}) and was opened read-only", do))
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        do = "writing needs permission for it and its folder"
        return str(StudioError(str(path), "was opened read-only", do))
    return ""


def require_current(engine: Engine, path: Path) -> None:
    """Refuse to read a schema that is not ours.

    Raises:
        StudioError: the catalog is read-only and needs a migration first.
    """
    with engine.connect() as connection:
        if revision(connection) != HEAD:
            do = "open it once where it can be written"
            raise StudioError(str(path), "has an older schema and is read-only", do)


def integrity(engine: Engine) -> str:
    """ "ok", or what is wrong with an SQLite database: reads every page, index and reference."""
    try:
        with engine.connect() as connection:
            found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(5)")]
            lost = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    except DBAPIError as error:
        return str(error.orig)
    found += [f"{table} row {row} refers to a missing row of {parent}" for table, row, parent, _ in lost[:5]]
    return "; ".join(line for line in found if line != "ok") or "ok"


def revision(connection: Connection) -> str:
    """The schema revision of the database; "" when it is new.

    Raises:
        BadInput: the database has tables and none of ours.
    """
    names = set(inspect(connection).get_table_names())
    if "alembic_version" not in names:
        if names:
            shown = connection.engine.url.render_as_string(hide_password=True)
            raise BadInput(shown, "is the database of another program", "name another one")
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none() or "")


def upgrade(url: URL, backups: Path | None) -> None:
    """Bring the database to `HEAD` in one transaction, after a backup when it has content.

    Of two processes that arrive together the second waits, and then finds nothing left to do.

    Raises:
        BadInput: it was written by a newer version, or is another program's.
        StudioError: it cannot be written.
    """
    if url.get_backend_name() == "sqlite":
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = migration_engine(url)
    try:
        with engine.connect() as connection:
            if revision(connection) == HEAD:  # the usual case takes no write lock
                return
        with writing(engine).begin() as connection:
            if url.get_backend_name() == "postgresql":  # SQLite's BEGIN IMMEDIATE has done this already
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            current = revision(connection)
            if current == HEAD:
                return
            _refuse_newer(url, current)
            if current and backups is not None and url.get_backend_name() == "sqlite":
                backup(Path(str(url.database)), backups / backup_name(f"before-{HEAD}"))
            _run(connection)
            if url.get_backend_name() == "sqlite":
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                assert not broken, f"the migration broke references: {broken[:3]}"
    finally:
        engine.dispose()


def backup(source: Path, to: Path) -> Path:
    """Copy the live database with SQLite's backup API, check the copy, and only then give it its name.

    Raises:
        Damaged: the copy does not pass its check; earlier backups stay as they are.
    """
    with atomic_path(to) as temporary:
        try:
            with (
                closing(sqlite3.connect(source, timeout=BUSY_SECONDS)) as live,
                closing(sqlite3.connect(temporary)) as copy,
            ):
                live.backup(copy)
        except sqlite3.DatabaseError as error:
            raise StudioError(
                str(to), f"could not be made from {source} ({error})", "check the disk"
            ) from error
        if wrong := damage(temporary):
            raise Damaged(
                str(source),
                f"is damaged ({wrong}), no backup was made of it",
                restore_advice(source, to.parent),
            )
    return to


def backup_name(label: str = "") -> str:
    """File name of a backup made now; sorts by time."""
    stamp = now().strftime("%Y%m%dT%H%M%S%fZ")
    return f"catalog-{stamp}{'-' + label if label else ''}.sqlite"


def newest_backup(backups: Path) -> Path | None:
    """The latest backup in the folder."""
    found = sorted(backups.glob("catalog-*.sqlite")) if backups.is_dir() else []
    return found[-1] if found else None


def prune_backups(backups: Path, keep: int) -> None:
    """Keep the newest `keep` regular backups; those made before a migration stay."""
    regular = [p for p in sorted(backups.glob("catalog-*.sqlite")) if "-before-" not in p.name]
    for old in regular[: max(0, len(regular) - keep)]:
        old.unlink(missing_ok=True)


def backup_is_due(backups: Path, every: timedelta) -> bool:
    """Whether the newest backup is older than `every`, or there is none."""
    newest = newest_backup(backups)
    return newest is None or now().timestamp() - newest.stat().st_mtime >= every.total_seconds()


def _refuse_newer(url: URL, current: str) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory(str(_SCRIPTS)).walk_revisions()}
    if current and current not in known:
        where = str(url.database)
        raise BadInput(where, f"was written by a newer version (schema {current})", "update LoRA Studio")


def _run(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
