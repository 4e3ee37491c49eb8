"""Putting a request into the queue of the workspace, and looking after it."""

import asyncio
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from registry.errors import NotFound, StudioError
from registry.records import Base, Job, JobKind, JobState, Sample
from studio.app import state
from studio.sampling.request import SampleRequest
from studio.sampling.submit import ENDED, cancel, job_of, submit

if TYPE_CHECKING:
    from studio.workspace import Workspace

POLL = 0.1  # seconds; a look costs less than a millisecond


def put(ws: "Workspace", request: SampleRequest) -> Sample:
    """Queue a request, and see to it that somebody draws it.

    Raises:
        StudioError: it is refused, or nobody can draw it; then it is not in the queue.
    """
    sample = submit(ws, request)
    try:
        state.wake_worker()
    except StudioError:
        cancel(ws, sample)  # else a client that tries again has it drawn several times
        raise
    return sample


async def ended(ws: "Workspace", sample: Sample, request: Request) -> Job:
    """The job of a sample once it has ended, however it did, or its client has gone.

    No thread is held meanwhile: pictures and other answers need them.
    """
    while True:
        job = await run_in_threadpool(job_of, ws, sample)
        if job.state in ENDED or await request.is_disconnected():
            return job
        await asyncio.sleep(POLL)


def drawn(ws: "Workspace", sample: Sample, job: Job) -> Sample:
    """A sample with its pictures, when its job has ended well or was called off.

    Raises:
        StudioError: it failed; says why.
    """
    if job.state is JobState.FAILED:
        raise StudioError(f"sample {sample.id}", job.error.rstrip(".") or "no picture was made")
    return ws.catalog.get(Sample, sample.id)


def in_work(ws: "Workspace") -> list[tuple[Job, Sample]]:
    """Samples being drawn or waiting, in the order of their turns."""
    live = (JobState.LEASED, JobState.QUEUED)
    jobs = ws.catalog.list(Job, kind=JobKind.SAMPLE, state=live, background=False, order="created_at")
    jobs.sort(key=lambda job: live.index(job.state))
    found = ((job, ws.catalog.find(Sample, job.subject_id)) for job in jobs)
    return [(job, sample) for job, sample in found if sample is not None]


def stop_first(ws: "Workspace") -> None:
    """Call off what is being drawn, or else what is next; nothing to do is no fault."""
    for _job, sample in in_work(ws)[:1]:
        cancel(ws, sample)


def base_named(ws: "Workspace", name: str = "") -> Base:
    """The base of that name or id; none named: the one used last, else the first.

    Raises:
        NotFound: there is none.
    """
    if name:
        return ws.catalog.get(Base, name)
    for sample in ws.catalog.list(Sample, purpose="", limit=1):
        base = ws.catalog.find(Base, sample.base_id)
        if base is not None and not base.part:
            return base
    from studio.bases import list_bases

    for base in list_bases(ws):
        return base
    raise NotFound("base", "is not there", "add one: studio bases add NAME LOCATION")
