"""Looking after the files of all adapters: what is missing, changed or edited, and where moved ones went."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, StudioError
from registry.hashing import hash_adapter
from registry.records import Adapter, FileState, now
from studio.adapter_files import FileCheck, judge
from studio.imports.report import CheckReport
from studio.imports.scan import ADAPTERS, Found, find_files
from studio.imports.taking import take_now

if TYPE_CHECKING:
    from studio.workspace import Workspace

PAGE = 200  # adapters looked at before what was seen is written, in one transaction


def check_all(
    ws: "Workspace",
    report: CheckReport,
    *,
    full: bool = False,
    folders: Sequence[Path] = (),
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Look at every adapter that is not in the trash and keep in its row what was seen.

    Args:
        ws: The workspace.
        report: Filled in.
        full: Read every file; else only those that were touched since they were hashed.
        folders: Where to look for missing files, beside the workspace.
        tell: Called after each adapter.
    """
    report.phase, report.total = "checking", ws.catalog.count(Adapter, trashed_at=None)
    lost: list[Adapter] = []
    for page in _pages(ws):
        changes: dict[str, dict[str, Any]] = {}
        for adapter in page:
            check = _look(ws, adapter, full, report)
            report.done += 1
            report.counts[check.state] = report.counts.get(check.state, 0) + 1
            if seen := check.changes():
                changes[adapter.id] = seen
            if check.state == FileState.MISSING:
                lost.append(adapter)
            if check.state == FileState.CHANGED:
                report.add("changed", adapter.name, f"{check.detail}. {check.do}".rstrip(". "))
            tell()
        if changes:
            ws.catalog.update_each(changes)
    if lost:
        report.phase = "searching"
        _search(ws, report, lost, folders, tell)
    report.phase = "done"


def _pages(ws: "Workspace") -> Iterator[list[Adapter]]:
    seen = 0
    while page := ws.catalog.list(Adapter, trashed_at=None, order="created_at", limit=PAGE, offset=seen):
        yield page
        # A listed one that turned out to be unsound or a duplicate has lost its row: the rest moved up.
        listed = [adapter.id for adapter in page if not adapter.tensor_sha256]
        seen += len(page) - sum(ws.catalog.find(Adapter, id) is None for id in listed)


def _look(ws: "Workspace", adapter: Adapter, full: bool, report: CheckReport) -> FileCheck:
    check = judge(ws, adapter, full=full)
    if check.state != FileState.NEW:
        return check
    try:
        return judge(ws, take_now(ws, adapter), full=False)
    except BadInput as error:  # its row is gone
        report.add(
            "changed", adapter.name, f"taken out of the catalog: {error.wrong}. {error.do}".rstrip(". ")
        )
        return FileCheck(adapter, check.path, FileState.NEW, error.wrong)
    except StudioError:
        return check


def _search(
    ws: "Workspace",
    report: CheckReport,
    lost: list[Adapter],
    folders: Sequence[Path],
    tell: Callable[[], None],
) -> None:
    """Find moved files by their hash; only files of the right size are read."""
    wanted: dict[int, dict[str, Adapter]] = {}
    for adapter in lost:
        if adapter.tensor_sha256:
            wanted.setdefault(adapter.size, {})[adapter.tensor_sha256] = adapter
    found: dict[str, str] = {}
    for file in find_files([*folders, ws.home / "adapters"]):
        candidates = wanted.get(file.size)
        if not candidates or file.error or file.path.suffix.lower() not in ADAPTERS:
            continue
        if (adapter := _recognise(file, candidates)) is not None:
            _relink(ws, adapter, file)
            del candidates[adapter.tensor_sha256]
            found[adapter.id] = str(file.path)
            report.add("relinked", adapter.name, str(file.path))
        tell()
    report.counts["relinked"] = len(found)
    report.counts[FileState.MISSING] -= len(found)
    for adapter in lost:
        if adapter.id not in found:
            report.add("missing", adapter.name, str(ws.resolve(adapter.path)))


def _recognise(file: Found, candidates: dict[str, Adapter]) -> Adapter | None:
    try:
        return candidates.get(hash_adapter(file.path).tensor_sha256)
    except (StudioError, OSError):
        return None


def _relink(ws: "Workspace", adapter: Adapter, file: Found) -> None:
    state = FileState.OK if adapter.file_state is not FileState.EDITED else FileState.EDITED
    changes = {
        "path": ws.relative(file.path),
        "mtime_ns": file.mtime_ns,
        "file_state": state,
        "checked_at": now(),
    }
    ws.catalog.update_each({adapter.id: changes})
