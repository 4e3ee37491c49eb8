"""Examinations as jobs of the worker: asking for one, how far it is, and the child that does it.

The child (`python -m studio.datasets.examining HOME JOB`) loads no torch, may be killed at any moment and
goes on where it was: what is measured is kept.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import StudioError
from registry.files import write_json
from registry.records import Dataset, Job, JobKind, JobState
from studio.datasets.examine import Examined, examine, known
from studio.datasets.ingest import images_of
from studio.imports.report import progress_file, read_report

if TYPE_CHECKING:
    from studio.workspace import Workspace

LIVE = (JobState.QUEUED, JobState.LEASED)
EVERY = 0.2  # seconds between two notes of progress


def submit(ws: "Workspace", dataset: Dataset) -> Job:
    """Queue a look at the pictures of a data set; the job that is queued for it already, if so."""
    return running(ws, dataset) or ws.catalog.enqueue(Job(kind=JobKind.EXAMINE, subject_id=dataset.id))


def running(ws: "Workspace", dataset: Dataset) -> Job | None:
    """The examination of a data set that is queued or going on."""
    jobs = ws.catalog.list(Job, kind=JobKind.EXAMINE, subject_id=dataset.id, state=LIVE, limit=1)
    return jobs[0] if jobs else None


def failed(ws: "Workspace", dataset: Dataset) -> str:
    """Why the newest examination of a data set ended badly; "" when it did not."""
    jobs = ws.catalog.list(Job, kind=JobKind.EXAMINE, subject_id=dataset.id, limit=1)
    return jobs[0].error if jobs and jobs[0].state is JobState.FAILED else ""


def progress(ws: "Workspace", job: Job) -> tuple[int, int]:
    """Pictures looked at, of how many; (0, 0) before the first."""
    said = read_report(ws, job)
    return int(said.get("done", 0)), int(said.get("total", 0))


def perform(ws: "Workspace", job: Job) -> Examined | None:
    """Do one; None when the data set is gone."""
    dataset = ws.catalog.find(Dataset, job.subject_id)
    if dataset is None:
        return None
    path, told = progress_file(ws, job.id), [0.0]

    def say(done: int, total: int) -> None:
        if time.monotonic() - told[0] >= EVERY or done == total:
            told[0] = time.monotonic()
            with suppress(StudioError):  # progress is worth no failure
                write_json(path, {"done": done, "total": total}, durable=False)

    images = images_of(ws, dataset)
    found = examine(ws, images, say)
    say(len(images), len(images))
    return found


def main() -> int:
    """Entry point of the child."""
    from studio.workspace import Workspace

    home, job_id = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    ws = Workspace.open(Path(home))
    try:
        perform(ws, ws.catalog.get(Job, job_id))
    except StudioError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _end_with_parent() -> None:
    """End when the worker does, as suddenly: nothing is half written at any moment."""
    os.read(0, 1)
    os._exit(70)


__all__ = ["failed", "known", "perform", "progress", "running", "submit"]

if __name__ == "__main__":
    sys.exit(main())
