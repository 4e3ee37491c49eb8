"""A bin: what a person deletes can be taken back until the bin is emptied."""

import errno
import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from registry.errors import BadInput, NotFound, StudioError
from registry.files import TEMPORARY, read_json, storage_error, sync_folder, temporary_beside, write_json
from registry.records import now

_SLIP = "trashed.json"  # says what the entry is and since when


class Trash:
    """A folder with one entry per record: `<root>/<record id>/{trashed.json, <file or folder>}`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: Path, record_id: str) -> Path:
        """Move a file or folder into the bin, in place of an earlier entry; returns where it now is.

        Raises:
            NotFound: there is nothing at `path`.
            StudioError: the disk is full or a folder cannot be written; the file stays where it was.
        """
        if not path.exists():
            raise NotFound(str(path), "is not there", "nothing was moved to the trash")
        entry = self._entry(record_id)
        if entry.exists():
            _discard(entry)
        try:
            write_json(entry / _SLIP, {"name": path.name, "time": now().isoformat()})
            _move(path, entry / path.name)
        except StudioError:
            shutil.rmtree(entry, ignore_errors=True)
            raise
        return entry / path.name

    def restore(self, record_id: str, to: Path) -> Path:
        """Move the entry's content to `to`.

        Raises:
            NotFound: the bin has no such entry.
            BadInput: something else is at `to` already.
        """
        entry = self._entry(record_id)
        content = self._content(entry)
        if content is None:
            raise NotFound(f"trash entry {record_id}", "is not there", "it may have been emptied")
        if os.path.lexists(to):
            raise BadInput(str(to), "exists already", "move it away first")
        to.parent.mkdir(parents=True, exist_ok=True)
        _move(content, to)
        _discard(entry)
        return to

    def holds(self, record_id: str) -> bool:
        """Whether there is something to restore."""
        return self._content(self._entry(record_id)) is not None

    def empty(self, older_than: timedelta = timedelta(0)) -> int:
        """Delete the entries that are at least `older_than` old, for good; returns how many."""
        limit = now() - older_than
        doomed = [entry for entry in self._entries() if _since(entry) <= limit]
        for entry in doomed:
            _discard(entry)
        return len(doomed)

    def _entries(self) -> list[Path]:
        found = self.root.iterdir() if self.root.is_dir() else iter(())
        return sorted(p for p in found if p.is_dir() and not p.name.endswith(TEMPORARY))

    def _content(self, entry: Path) -> Path | None:
        """What lies in an entry. A relative link leads nowhere from here, and is whole again at its place."""
        if not (entry / _SLIP).exists():
            return None
        content = entry / str(read_json(entry / _SLIP)["name"])
        return content if os.path.lexists(content) else None

    def _entry(self, record_id: str) -> Path:
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", record_id):
            raise BadInput(f"trash entry {record_id[:80]!r}", "is no record id", "use an id from the catalog")
        return self.root / record_id


def _since(entry: Path) -> datetime:
    """When the entry was made; an entry without a readable slip counts from its folder's time."""
    slip = entry / _SLIP
    if slip.exists():
        return datetime.fromisoformat(str(read_json(slip)["time"]))
    return datetime.fromtimestamp(entry.stat().st_mtime, UTC)


def _move(source: Path, target: Path) -> None:
    """Rename; across disks, copy completely and durably before the original goes."""
    try:
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_then_remove(source, target)
        sync_folder(target.parent)
        sync_folder(source.parent)
    except OSError as error:
        raise storage_error(target, error) from error


def _copy_then_remove(source: Path, target: Path) -> None:
    temporary = temporary_beside(target)
    try:
        if source.is_dir():
            shutil.copytree(source, temporary, symlinks=True)
        else:
            shutil.copy2(source, temporary)
        for file in (temporary, *temporary.rglob("*")):
            sync_folder(file)  # fsync works on files and folders alike
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
        raise
    _discard(source)


def _discard(path: Path) -> None:
    """Delete a file or folder so that a kill in between leaves a temporary, not half an entry."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    doomed = temporary_beside(path)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
