"""Examinations as jobs of the worker: asking for one, how far it is, and the child that does it.

The child (`python -m studio.datasets.examining HOME JOB`) loads no torch, may be killed at any moment and
goes on where it was: what is measured is kept.
"""

import sys
from typing import TYPE_CHECKING

from registry.records import Dataset, Job, JobKind, JobState
from studio.datasets.examine import Examined, examine, known
from studio.datasets.ingest import images_of
from studio.imports.report import read_report
from studio.runs.chore_child import run_child, teller

if TYPE_CHECKING:
    from studio.workspace import Workspace

LIVE = (JobState.QUEUED, JobState.LEASED)


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
    images, say = images_of(ws, dataset), teller(ws, job)
    found = examine(ws, images, say)
    say(len(images), len(images))
    return found


__all__ = ["failed", "known", "perform", "progress", "running", "submit"]

if __name__ == "__main__":
    sys.exit(run_child(perform))
