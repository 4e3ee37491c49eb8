"""Eight processes at one queue, each with a catalog of its own."""

import multiprocessing
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

from registry.catalog import Catalog
from registry.records import JobKind, JobState
from tests.support.forked import forks

COUNT = 8
PATIENCE = 120.0  # seconds until all are there, and until all are done


def eight_claimers(url: str) -> list[list[str]]:
    """They begin together and do what waits in the queue; the subjects of the jobs that each of them did."""
    context = forks()
    start = context.Barrier(COUNT)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(COUNT)]
    workers = [
        context.Process(target=_claim, args=(url, f"w{number}", start, ours))
        for number, (_, ours) in enumerate(pipes)
    ]
    for worker, (_, ours) in zip(workers, pipes, strict=True):
        worker.start()
        ours.close()
    done = [theirs.recv() for theirs, _ in pipes if theirs.poll(PATIENCE)]
    for worker in workers:
        worker.join(PATIENCE)
    assert [worker.exitcode for worker in workers] == [0] * COUNT
    return done


def _claim(url: str, owner: str, start: Barrier, done: Connection) -> None:
    catalog = Catalog.open(url)
    start.wait(PATIENCE)
    subjects: list[str] = []
    while job := catalog.claim_job([JobKind.SAMPLE], owner=owner, lease=timedelta(seconds=60)):
        subjects.append(job.subject_id)
        catalog.finish_job(job.id, JobState.DONE)
    done.send(subjects)
