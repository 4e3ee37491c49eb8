"""Whether an adapter's file is still what was registered, and what to do when it is elsewhere."""

import shlex
from contextlib import suppress
from dataclasses import dataclass
from os import stat_result
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, Damaged, NotFound, StudioError
from registry.files import atomic_path
from registry.formats.header import read_header
from registry.hashing import AdapterHashes, hash_adapter
from registry.records import Adapter, FileState, now

if TYPE_CHECKING:
    from studio.workspace import Workspace

FOLDER = "adapters"
TRASHED = "trashed"
# What to say of a file that was not read again: the row keeps the state alone.
_KEPT = {
    FileState.EDITED: ("same weights, other metadata", ""),
    FileState.CHANGED: (
        "its weights are not those that were registered, or not sound",
        "put the original back",
    ),
}


@dataclass(frozen=True)
class FileCheck:
    """Whether an adapter's file is what the catalog says: a `FileState`, or trashed."""

    adapter: Adapter
    path: Path
    state: str
    detail: str
    do: str = ""  # what to do about it
    status: stat_result | None = None  # of the file that was looked at
    hashes: AdapterHashes | None = None  # None when it was not read

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON types."""
        return {
            "id": self.adapter.id,
            "name": self.adapter.name,
            "path": str(self.path),
            "state": self.state,
            "detail": self.detail,
            "do": self.do,
            "tensor_sha256": self.adapter.tensor_sha256,
        }

    def changes(self) -> dict[str, Any]:
        """Fields of the row that say what was seen; {} when it says so already."""
        if self.state in {TRASHED, FileState.NEW}:
            return {}
        seen: dict[str, Any] = {"file_state": FileState(self.state)}
        if self.status is not None:
            seen["mtime_ns"] = self.status.st_mtime_ns
            if self.state != FileState.CHANGED:
                seen["size"] = self.status.st_size
        same = all(getattr(self.adapter, name) == value for name, value in seen.items())
        return {} if same and self.adapter.checked_at is not None else {**seen, "checked_at": now()}


def judge(ws: "Workspace", adapter: Adapter, *, full: bool = True) -> FileCheck:
    """Look at an adapter's file; writes nothing.

    Args:
        ws: The workspace.
        adapter: Whose file.
        full: Read the file; False reads it only when its size or time differ from what they were.
    """
    path = ws.resolve(adapter.path)
    if adapter.trashed_at is not None:
        return FileCheck(
            adapter, path, TRASHED, f"in the trash since {adapter.trashed_at:%Y-%m-%d %H:%M} UTC",
            f"studio adapters restore {adapter.id}",
        )  # fmt: skip
    try:
        if not path.is_file():
            do = f"When it was moved: studio adapters verify {shlex.quote(adapter.name)} FILE"
            return FileCheck(adapter, path, FileState.MISSING, "the file is not there", do)
        status = path.stat()
    except OSError as error:
        return _unreadable(adapter, path, error)
    if not adapter.tensor_sha256:
        return FileCheck(adapter, path, FileState.NEW, "not hashed yet", status=status)
    if not full and _untouched(adapter, status):
        detail, do = _KEPT.get(adapter.file_state, ("", ""))
        return FileCheck(adapter, path, adapter.file_state, detail, do, status)
    try:
        read_header(path)  # the tensors' hash does not cover it
        hashes = hash_adapter(path)
    except StudioError as error:
        return FileCheck(adapter, path, FileState.CHANGED, error.wrong, error.do, status)
    except OSError as error:
        return _unreadable(adapter, path, error)
    state, detail, do = FileState.OK, "", ""
    if hashes.tensor_sha256 != adapter.tensor_sha256:
        state, detail = FileState.CHANGED, "its weights are not those that were registered"
        do = "put the original back"
    elif hashes.sha256 != adapter.file_sha256:
        state, detail = FileState.EDITED, "same weights, other metadata"
    return FileCheck(adapter, path, state, detail, do, status, hashes)


def _unreadable(adapter: Adapter, path: Path, error: OSError) -> FileCheck:
    wrong = f"cannot be read ({error.strerror})"
    return FileCheck(adapter, path, FileState.MISSING, wrong, "check its permissions")


def verify(ws: "Workspace", key: str, found_at: Path | None = None) -> FileCheck:
    """Compare an adapter's file with its hashes, and keep in its row what was found.

    Args:
        ws: The workspace.
        key: Id or name.
        found_at: A file that may be the missing one; taken back when its tensors are the adapter's.

    Raises:
        BadInput: the file at `found_at` is another adapter.
    """
    adapter = ws.catalog.get(Adapter, key)
    if found_at is not None:
        return _relink(ws, adapter, found_at)
    check = judge(ws, adapter)
    changes = check.changes()
    if changes and not ws.catalog.read_only:
        with suppress(StudioError):  # a verdict is worth having where it cannot be written down
            ws.catalog.update(Adapter, adapter.id, **changes)
    return check


def settled(ws: "Workspace", adapter: Adapter) -> Adapter:
    """The adapter with its identity: one that was listed and not hashed yet is hashed now.

    Raises:
        BadInput: its file turns out to be unsound; the row is gone.
    """
    if adapter.tensor_sha256 or adapter.trashed_at is not None or not ws.resolve(adapter.path).is_file():
        return adapter
    from studio.imports.taking import take_now  # it needs this module

    return take_now(ws, adapter)


def require_file(ws: "Workspace", adapter: Adapter) -> Path:
    """The file of an adapter, proven to be the one that was registered; hashed anew only when it was touched.

    Raises:
        NotFound: it is not there.
        Damaged: it is not the one that was registered.
        BadInput: the adapter is in the trash.
    """
    adapter = settled(ws, adapter)
    path = ws.resolve(adapter.path)
    with suppress(OSError):
        if adapter.trashed_at is None and ws.memo.sha256(path) == (adapter.file_sha256 or None):
            return path
    state = verify(ws, adapter.id)
    if state.state == TRASHED:
        raise BadInput(f"adapter {adapter.name}", "is in the trash", f"studio adapters restore {adapter.id}")
    if state.state == FileState.MISSING:
        raise NotFound(
            str(path),
            f"of adapter {adapter.name} {state.detail.removeprefix('the file ')}",
            "put the file back",
        )
    if state.state == FileState.CHANGED:
        wrong = f"of adapter {adapter.name} has changed: {state.detail}"
        raise Damaged(str(path), wrong, state.do or "put the original back")
    return path


def copy_file(source: Path, target: Path) -> None:
    """A durable copy of `source` at `target`."""
    with atomic_path(target) as temporary, source.open("rb") as old, temporary.open("xb") as new:
        while chunk := old.read(1 << 20):
            new.write(chunk)


def _untouched(adapter: Adapter, status: stat_result) -> bool:
    if not adapter.mtime_ns or adapter.mtime_ns != status.st_mtime_ns:
        return False
    if adapter.file_state is FileState.CHANGED:  # its size in the row is the registered one
        return True
    return adapter.size == status.st_size and adapter.file_state in {FileState.OK, FileState.EDITED}


def _relink(ws: "Workspace", adapter: Adapter, file: Path) -> FileCheck:
    read_header(file)
    hashes = hash_adapter(file)
    if hashes.tensor_sha256 != adapter.tensor_sha256:
        raise BadInput(
            str(file), f"is not adapter {adapter.name}: its weights differ", "look for another copy"
        )
    if adapter.trashed_at is not None:
        raise BadInput(f"adapter {adapter.name}", "is in the trash", f"studio adapters restore {adapter.id}")
    path = ws.resolve(f"{FOLDER}/{adapter.id}.safetensors")
    if path.resolve() != file.resolve():
        copy_file(file, path)
    status = path.stat()
    changes = {
        "path": ws.relative(path),
        "file_sha256": hashes.sha256,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "file_state": FileState.OK,
        "checked_at": now(),
    }
    return FileCheck(ws.catalog.update(Adapter, adapter.id, **changes), path, "ok", f"taken from {file}")
