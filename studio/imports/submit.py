"""Asking for files to be taken in, and hearing how it went. The worker does it; see `studio.imports.task`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.files import atomic_path, check_name
from registry.ids import new_id
from registry.records import Job, JobKind, JobState
from studio.imports import text
from studio.imports.fetch import check_address, is_address
from studio.imports.inbox import INBOX, inbox_path
from studio.imports.report import CheckReport, ImportReport, read_report
from studio.imports.scan import absolute

if TYPE_CHECKING:
    from studio.workspace import Workspace

ENDED = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}
MAX_UPLOAD = 16 * 2**30  # bytes


def submit(
    ws: "Workspace",
    sources: Sequence[str | Path],
    *,
    copy: bool = False,
    tags: Sequence[str] = (),
    watch: str = "",
) -> Job:
    """Queue an import.

    Args:
        ws: The workspace.
        sources: Files, folders and addresses (https).
        copy: Copy the files into the workspace, as downloads and uploads always are; else they stay in place.
        tags: Put on every adapter of them.
        watch: Id of the watched folder for whose sake this is done.

    Raises:
        BadInput: a source is not there, an address is not allowed, a tag is no name.
    """
    if not sources:
        raise BadInput("import", "has nothing to take in", "name files, folders or addresses")
    named: list[str] = []
    for source in sources:
        if is_address(str(source)):
            check_address(str(source))
            named.append(str(source))
        else:
            path = absolute(source)
            copy = copy or path.is_relative_to(ws.home / INBOX)
            named.append(str(path))
    payload = {
        "sources": named,
        "copy": copy,
        "tags": [check_name(tag, "tag") for tag in tags],
        "watch": watch,
    }
    return ws.catalog.enqueue(Job(kind=JobKind.IMPORT, subject_id=new_id(), payload=payload))


def report(ws: "Workspace", job: Job | str) -> ImportReport:
    """How an import goes, or went; cheap enough to ask for twice a second."""
    return ImportReport.of(_said(ws, job))


def submit_check(ws: "Workspace", *, full: bool = False, folders: Sequence[str | Path] = ()) -> Job:
    """Queue a look at the files of all adapters.

    Args:
        ws: The workspace.
        full: Read every file, not only those that were touched.
        folders: Where missing files may be, beside the watched folders.

    Raises:
        BadInput: a folder is not there.
    """
    payload = {"full": full, "folders": [str(absolute(folder)) for folder in folders]}
    return ws.catalog.enqueue(Job(kind=JobKind.CHECK, subject_id=new_id(), payload=payload))


def check_report(ws: "Workspace", job: Job | str) -> CheckReport:
    """How a check goes, or went."""
    return CheckReport.of(_said(ws, job))


def cancel(ws: "Workspace", job: Job) -> Job:
    """Stop an import; what has been listed stays and is hashed when it is wanted."""
    return ws.catalog.cancel_job(job.id)


def upload(ws: "Workspace", name: str, content: IO[bytes]) -> Path:
    """Keep uploaded bytes in the workspace's inbox, under their own name, for `submit`.

    Raises:
        BadInput: it is larger than 16 GiB.
        StudioError: the disk is full.
    """
    path = inbox_path(ws, new_id(), name)
    size = 0
    with atomic_path(path) as temporary, temporary.open("xb") as stream:
        while chunk := content.read(1 << 20):
            size += len(chunk)
            if size > MAX_UPLOAD:
                raise BadInput(text.line(name), f"is larger than {MAX_UPLOAD >> 30} GiB", "copy it by hand")
            stream.write(chunk)
    return path


def _said(ws: "Workspace", job: Job | str) -> dict[str, Any]:
    record = ws.catalog.get(Job, job if isinstance(job, str) else job.id)
    facts = {"job_id": record.id, "state": str(record.state), "error": record.error}
    return read_report(ws, record) | facts


def wait(
    ws: "Workspace", job: Job, ended: Callable[[Job], bool], say: Callable[[str], None] | None = None
) -> Job:
    """Stay until `ended`, or until the job has ended; does the work when no worker holds the workspace.

    Raises:
        KeyboardInterrupt: Ctrl-C; the import goes on with the next worker.
    """
    from studio.runs.follow import attend

    def over() -> bool:
        current = ws.catalog.get(Job, job.id)
        return current.state in ENDED or ended(current)

    attend(ws, over, say, kinds=(JobKind.IMPORT, JobKind.CHECK))
    return ws.catalog.get(Job, job.id)
