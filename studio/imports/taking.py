"""The second half of an import: each listed file is read once, gets its identity, or its row goes.

Of each file, in this order: read and hashed, copied where that was wished (durable before any row says so),
then one transaction. A kill anywhere leaves a listed row whose file is there.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, StudioError
from registry.files import require_space
from registry.formats.finite import require_finite
from registry.formats.header import read_header
from registry.hashing import AdapterHashes, hash_adapter
from registry.records import Adapter, FileState, now
from studio.adapter_files import FOLDER, copy_file, judge
from studio.imports import strengths
from studio.imports.inbox import INBOX
from studio.imports.journal import Journal
from studio.imports.listing import Pending, Wishes
from studio.imports.previews import Previews
from studio.imports.report import ImportReport
from studio.imports.scan import Found, look
from studio.imports.sidecars import read_sidecars

if TYPE_CHECKING:
    from studio.workspace import Workspace


class _Changing(Exception):
    """The file changed while it was read."""


@dataclass(frozen=True)
class _Read:
    """A file that was read from its first to its last byte."""

    file: Found
    hashes: AdapterHashes


class Taker:
    """Hashes listed files, one after the other.

    Args:
        ws: The workspace.
        wishes: How files are taken in.
        journal: Remembers what gets no row.
        report: Gets counts and lines.
        previews: Makes the small pictures.
    """

    def __init__(
        self, ws: "Workspace", wishes: Wishes, journal: Journal, report: ImportReport, previews: Previews
    ) -> None:
        self._ws, self._wishes, self._journal, self._report = ws, wishes, journal, report
        self._previews = previews

    def take(self, pending: Pending) -> None:
        """Give one listed file its identity; whatever is wrong with it becomes a line of the report.

        Raises:
            StudioError: the workspace cannot be written (the disk is full): the import stops here.
        """
        file = str(pending.file.path)
        self._report.bytes_done += pending.file.size
        if pending.again:
            self._look_again(pending)
            return
        try:
            self._settle(pending, _read(pending.file.path))
        except BadInput as error:
            self._refuse(pending, str(error))
        except _Changing:
            self._report.unsettled += 1
        except OSError as error:
            line = str(BadInput(file, f"cannot be read ({error.strerror})", "check the file"))
            self._report.add("bad", file, line)
            if not pending.file.path.exists():
                self._drop(pending)

    def _settle(self, pending: Pending, read: _Read) -> None:
        tensors, id = read.hashes.tensor_sha256, pending.id
        twins = self._twins(id, tensors)
        if not twins:
            path = self._keep(id, read.file.path)
            changes = self._changes(path, read) | self._preview(id, read.file.path)
            if self._ws.catalog.settle_adapter(id, tensors, **changes) is not None:
                self._report.hashed += 1
                self._settled(read, path)
                return
            twins = self._twins(id, tensors)  # another process was faster, or the row was removed meanwhile
            if path != read.file.path:
                path.unlink(missing_ok=True)
            if preview := str(changes.get("preview", "")):
                self._ws.resolve(preview).unlink(missing_ok=True)
        if twins:
            self._is_known(pending, read, twins)
        else:
            self._uncount(pending)

    def _twins(self, id: str, tensors: str) -> list[Adapter]:
        return [a for a in self._ws.catalog.adapters_with([tensors]).get(tensors, ()) if a.id != id]

    def _is_known(self, pending: Pending, read: _Read, twins: list[Adapter]) -> None:
        """These weights have a row: a duplicate, or the file that it was missing."""
        living = [twin for twin in twins if twin.trashed_at is None]
        for twin in living:
            if judge(self._ws, twin, full=False).state in {FileState.OK, FileState.EDITED}:
                tags = tuple(dict.fromkeys([*twin.tags, *self._wishes.tags]))
                changes = self._strength(pending, read, twin)
                self._drop(pending, twin.id, **changes, **({"tags": tags} if tags != twin.tags else {}))
                self._remember("duplicates", read, twin)
                return
        twin = (living or twins)[0]
        if not living and (self._ws.trash.root / twin.id).exists():
            self._drop(pending)
            do = f"is in the trash; bring it back with: studio adapters restore {twin.id}"
            self._report.add("notes", str(read.file.path), f"{twin.name} {do}")
            self._remember("duplicates", read, twin)
            return
        path = self._keep(twin.id, read.file.path)
        changes = self._changes(path, read) | self._strength(pending, read, twin)
        self._drop(pending, twin.id, **changes, trashed_at=None)
        self._remember("moved", read, twin, emptied=path != read.file.path)

    def _strength(self, pending: Pending, read: _Read, twin: Adapter) -> dict[str, Any]:
        """What the copy's configuration tells of the adapter; another strength is said, as it is not kept."""
        copy = self._ws.catalog.find(Adapter, pending.id)
        changes, line = strengths.from_twin(twin, copy) if copy else ({}, "")
        if line:
            self._report.add("notes", str(read.file.path), line)
        return changes

    def _remember(self, kind: str, read: _Read, twin: Adapter, *, emptied: bool = True) -> None:
        self._report.add(kind, str(read.file.path), twin.name)
        tensors, job = read.hashes.tensor_sha256, self._wishes.job_id
        self._journal.remember(read.file, tensor_sha256=tensors, kind=kind, job=job)
        if emptied:
            self._leave_inbox(read.file)

    def _refuse(self, pending: Pending, line: str) -> None:
        self._drop(pending)
        self._report.add("bad", str(pending.file.path), line)
        self._journal.remember(pending.file, error=line, job=self._wishes.job_id)
        self._leave_inbox(pending.file)

    def _drop(self, pending: Pending, known: str = "", **changes: Any) -> None:
        self._ws.catalog.drop_listed(pending.id, known=known, **changes)
        self._uncount(pending)

    def _uncount(self, pending: Pending) -> None:
        if pending.known:
            self._report.known -= 1
        else:
            self._report.listed -= 1
        if pending.unidentified:
            self._report.take_back("unidentified", str(pending.file.path))

    def _look_again(self, pending: Pending) -> None:
        """A file that was hashed before and touched since."""
        row = self._ws.catalog.find(Adapter, pending.id)
        if row is None:
            return
        check = judge(self._ws, row, full=False)
        if changes := check.changes():
            self._ws.catalog.update_each({row.id: changes})
        if check.state == FileState.CHANGED:
            self._report.add("notes", str(pending.file.path), f"is no longer {row.name}: {check.detail}")

    def _keep(self, id: str, file: Path) -> Path:
        """Where the adapter's file will be: where it is, or a durable copy in the workspace."""
        if not self._wishes.copy or file.is_relative_to(self._ws.home / FOLDER):
            return file
        target = self._ws.resolve(f"{FOLDER}/{id}.safetensors")
        require_space(target.parent, file.stat().st_size, "the adapter")
        copy_file(file, target)
        return target

    def _changes(self, path: Path, read: _Read) -> dict[str, Any]:
        status = path.stat()
        return {
            "path": self._ws.relative(path),
            "file_sha256": read.hashes.sha256,
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "file_state": FileState.OK,
            "checked_at": now(),
        }

    def _preview(self, id: str, file: Path) -> dict[str, Any]:
        try:
            kept = self._previews.keep(id, file, read_sidecars(file).picture)
        except BadInput as error:
            self._report.add("notes", str(file), str(error))
            return {}
        return {"preview": kept} if kept else {}

    def _settled(self, read: _Read, kept: Path) -> None:
        """The row has its identity; of a copy, its source is remembered."""
        if self._leave_inbox(read.file) or kept == read.file.path:
            return
        tensors, job = read.hashes.tensor_sha256, self._wishes.job_id
        self._journal.remember(read.file, tensor_sha256=tensors, kind="copied", job=job)

    def _leave_inbox(self, file: Found) -> bool:
        """Remove a file that came through the inbox and is dealt with; whether it was one."""
        if not file.path.is_relative_to(self._ws.home / INBOX):
            return False
        with suppress(OSError):
            file.path.unlink()
            file.path.parent.rmdir()
        return True


def _read(path: Path) -> _Read:
    """Read all of a file; what is said of it is true of the file as it is now.

    Raises:
        BadInput: it is unsound, or holds a value that is not finite.
        OSError: it cannot be read.
    """
    before = look(path)
    header = read_header(path)
    hashes = hash_adapter(path)
    require_finite(path, header)  # from the page cache: the disk was read once
    if look(path) != before:
        raise _Changing
    return _Read(before, hashes)


def take_now(ws: "Workspace", adapter: Adapter) -> Adapter:
    """Give a listed adapter its identity at once, because it is wanted; another row may be the answer.

    Raises:
        BadInput: its file is unsound; the row is gone.
        StudioError: the file is being written.
    """
    path = ws.resolve(adapter.path)
    report, wishes = ImportReport(), Wishes("", copy=path.is_relative_to(ws.home / INBOX))
    journal, file = Journal(ws.home / "cache"), look(path)
    with Previews(ws) as previews:
        Taker(ws, wishes, journal, report, previews).take(Pending(adapter.id, file))
    found = ws.catalog.find(Adapter, adapter.id)
    if found is not None and found.tensor_sha256:
        return found
    if report.bad:
        raise BadInput(f"adapter {adapter.name}", report.bad[0][1].rstrip("."), "import a sound file")
    entry = journal.find(file)
    for twin in ws.catalog.adapters_with([entry.tensor_sha256]).get(entry.tensor_sha256, ()) if entry else ():
        return twin
    raise StudioError(str(path), "is being written", "try again in a moment")


def wishes_of(payload: dict[str, Any], job_id: str) -> Wishes:
    """How the files of a job are taken in."""
    return Wishes(
        job_id=job_id,
        copy=bool(payload.get("copy")),
        tags=tuple(map(str, payload.get("tags") or ())),
        watched=bool(payload.get("watch")),
    )
