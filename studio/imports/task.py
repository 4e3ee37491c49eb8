"""The child process that takes files in and looks after them: `python -m studio.imports.task HOME JOB`.

It loads no torch. The worker starts it, reads nothing from it but its exit code, and may kill it at any
moment; the next one goes on where it was. It ends with its worker: its stdin closes then.
"""

import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import StudioError, WorkspaceBusy
from registry.files import write_json
from registry.records import Adapter, Job, JobKind, Watch, now
from studio.imports.check import check_all
from studio.imports.describers import Describers
from studio.imports.fetch import fetch_into_inbox, is_address
from studio.imports.inbox import waiting
from studio.imports.journal import Journal
from studio.imports.listing import Lister, Pending, Wishes
from studio.imports.previews import Previews
from studio.imports.report import CheckReport, ImportReport, progress_file
from studio.imports.scan import absolute, find_files
from studio.imports.taking import Taker, wishes_of
from studio.lock import hold_lock
from studio.runs.chore_child import EVERY, end_with_parent

if TYPE_CHECKING:
    from studio.workspace import Workspace

_PATIENCE = 20.0  # seconds for the child of a worker that was killed to notice it

Report = ImportReport | CheckReport


class _Teller:
    """Writes the report down now and then."""

    def __init__(self, path: Path, report: Report) -> None:
        self._path, self._report, self._at = path, report, 0.0

    def __call__(self) -> None:
        """A step further."""
        if time.monotonic() - self._at >= EVERY:
            self.now()

    def now(self) -> None:
        """At once."""
        self._at = time.monotonic()
        with suppress(StudioError):  # progress is worth no failure
            write_json(self._path, self._report.to_dict(), durable=False)


def run_import(ws: "Workspace", job: Job, tell: Callable[[ImportReport], _Teller]) -> ImportReport:
    """Take in what the job names; see `studio.imports.submit`.

    Raises:
        StudioError: the workspace cannot be written.
    """
    report = ImportReport(job_id=job.id)
    told = tell(report)
    wishes, sources = wishes_of(job.payload, job.id), list(map(str, job.payload.get("sources") or ()))
    started = time.monotonic()
    files, wishes = _fetch(ws, sources, wishes, report, told)
    report.phase = "listing"
    journal = Journal(ws.home / "cache")
    pending: list[Pending] = []
    with Describers(wishes.tags, job.id) as describers:
        lister = Lister(ws, wishes, journal, report, describers)
        for part in lister.list_all(find_files(_present(files, report), without=ws.home)):
            pending += part
            report.bytes_total += sum(item.file.size for item in part)
            told()
    report.phase, report.listing_seconds = "hashing", time.monotonic() - started
    told.now()
    started = time.monotonic()
    with Previews(ws) as previews:
        taker = Taker(ws, wishes, journal, report, previews)
        for item in pending:
            taker.take(item)
            told()
    report.phase, report.hashing_seconds = "done", time.monotonic() - started
    _mark_watched(ws, job)
    return report


def _fetch(
    ws: "Workspace", sources: list[str], wishes: Wishes, report: ImportReport, told: _Teller
) -> tuple[list[Path], Wishes]:
    """The files and folders of the sources; addresses are downloaded into the inbox first."""
    files: list[Path] = []
    origins: list[tuple[Path, str]] = []
    for number, source in enumerate(sources):
        if not is_address(source):
            files.append(Path(source))
            continue
        report.phase = "fetching"
        if _is_fetched(ws, source, report):
            continue
        try:
            folder = f"{report.job_id}-{number}"
            path = waiting(ws, folder) or fetch_into_inbox(ws, source, folder=folder, tell=told)
        except StudioError as error:
            report.add("bad", source, str(error))
            continue
        files.append(path)
        origins.append((path, source))
    return files, replace(wishes, sources=tuple(origins), copy=wishes.copy or bool(origins))


def _is_fetched(ws: "Workspace", source: str, report: ImportReport) -> bool:
    """Whether this import, before it was cut short, has taken the file of an address in."""
    for row in ws.catalog.list(Adapter, source=source):
        if row.tensor_sha256 and row.metadata.get("import", {}).get("job") == report.job_id:
            report.listed, report.hashed = report.listed + 1, report.hashed + 1
            return True
    return False


def _present(sources: list[Path], report: ImportReport) -> list[Path]:
    found: list[Path] = []
    for source in sources:
        try:
            found.append(absolute(source))
        except StudioError as error:
            report.add("bad", str(source), str(error))
    return found


def _mark_watched(ws: "Workspace", job: Job) -> None:
    watch = ws.catalog.find(Watch, str(job.payload.get("watch") or "-"))
    if watch is not None:
        ws.catalog.update(Watch, watch.id, scanned_at=now(), note="")


def run_check(ws: "Workspace", job: Job, tell: Callable[[CheckReport], _Teller]) -> CheckReport:
    """Look after the files of all adapters."""
    report = CheckReport(job_id=job.id)
    folders = [Path(str(folder)) for folder in job.payload.get("folders") or ()]
    folders += [Path(watch.path) for watch in ws.catalog.list(Watch)]
    told = tell(report)
    there = [folder for folder in folders if folder.is_dir()]
    check_all(ws, report, full=bool(job.payload.get("full")), folders=there, tell=told)
    return report


def perform(ws: "Workspace", job: Job) -> Report:
    """Do a job of kind IMPORT or CHECK to its end."""
    path = progress_file(ws, job.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    tell: Any = lambda report: _Teller(path, report)  # noqa: E731
    report = run_check(ws, job, tell) if job.kind is JobKind.CHECK else run_import(ws, job, tell)
    write_json(path, report.to_dict())
    return report


def keep_memory() -> None:
    """A header is thousands of small objects: walking all modules each time would double its cost.

    It is also a megabyte of texts. glibc gives so much back to the system and asks for it again with the next
    file, a page at a time, until it has seen a larger piece come and go.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    bytes(4 * 2**20)


def main() -> int:
    """Entry point of the child."""
    from studio.workspace import Workspace

    home, job_id = sys.argv[1:]
    end_with_parent()
    keep_memory()
    ws = Workspace.open(Path(home))
    try:
        job = ws.catalog.get(Job, job_id)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with hold_lock(ws.home / "cache" / "imports.lock", "import"):
                    perform(ws, job)
                return 0
            except WorkspaceBusy:
                if time.monotonic() > deadline:
                    raise
    except StudioError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
