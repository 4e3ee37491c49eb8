"""The worker: the one process of a workspace that starts trainers and the sampler and tells how they went.

It holds the workspace lock for its life, so there is never a second one. It may be killed at any moment:
trainers live in sessions of their own, go on, and are adopted by the next worker.
"""

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING
from uuid import uuid4

from registry.errors import StudioError
from registry.files import TEMPORARY, sweep_temporaries
from registry.records import PLACES, TRAINING, Job, JobKind, JobState, Run, RunState
from studio.evidence.evaluations import queue_due
from studio.runs.chores import Chores
from studio.runs.device import has_gpu, physical_cores
from studio.runs.executors import Executor
from studio.runs.frozen import fill_run_images
from studio.runs.places import executors
from studio.runs.standby import Standby
from studio.runs.supervise import ACTIVE, Limits, Supervision
from studio.sampling.client import SamplerClient

if TYPE_CHECKING:
    from studio.workspace import Workspace

ALL_KINDS = (*TRAINING, JobKind.SAMPLE, JobKind.IMPORT, JobKind.CHECK, JobKind.EXAMINE, JobKind.EVALUATE)
FRESH = 60.0  # seconds: a folder changed more recently may be one that `launch` is writing
MAX_SAMPLE_TRIES = 3  # by workers that died of it
RECONCILE_EVERY = 10.0  # seconds between looks for runs that lost their job


class Worker:
    """Does the queued jobs of one workspace.

    Args:
        ws: The workspace.
        say: Takes one line of news; None = silent.
        limits: Deadlines; tests shorten them.
        executor: What starts trainers on this machine.
        cluster: What hands them to a cluster.
        sampler: The warm sampler's client.
    """

    def __init__(
        self,
        ws: "Workspace",
        *,
        say: Callable[[str], None] | None = None,
        limits: Limits | None = None,
        executor: Executor | None = None,
        cluster: Executor | None = None,
        sampler: SamplerClient | None = None,
    ) -> None:
        self._ws = ws
        self._say: Callable[[str], None] = say or _silent
        self._limits = limits or Limits()
        self._standby = Standby(ws.settings.standby, ws.settings.standby_minutes)
        self._executors = executors(ws, local=executor, ray=cluster, standby=self._standby)
        self._sampler = sampler or SamplerClient(ws, idle=self._limits.sampler_idle)
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._chores = Chores(ws, owner=self._owner, lease=self._limits.lease)
        self._training: list[Supervision] = []  # one here (after a crash there may be more to adopt)
        self._sampling: Job | None = None
        self._signals = 0
        self._complaint = ""
        self._reconciled_at = 0.0
        self._renewed_at = 0.0

    def run(
        self,
        once: bool = False,
        until: Callable[[], bool] | None = None,
        kinds: tuple[JobKind, ...] = ALL_KINDS,
    ) -> None:
        """Work until stopped by a signal, or `once` the queue is empty, or `until()` is true.

        Args:
            once: Return when there is nothing left to do.
            until: Asked before each claim; whoever waits for one job passes it.
            kinds: Which jobs to claim.

        Raises:
            WorkspaceBusy: another worker holds the workspace.
            KeyboardInterrupt: SIGINT arrived; everything is settled.
        """
        with self._ws.hold("worker"), self._catch_signals():
            try:
                sweep_dead_runs(self._ws)
                self._reconcile()
                fill_run_images(self._ws)
                while not self._finished(once=once, until=until):
                    self._tick(kinds if not self._signals and not (until and until()) else ())
                    time.sleep(self._limits.tick)
            finally:
                self._sampler.close()
                self._chores.close()
                self._standby.close()
                for executor in self._executors.values():
                    executor.close()
        if self._interrupted:
            raise KeyboardInterrupt

    # -- the loop

    def _finished(self, *, once: bool, until: Callable[[], bool] | None) -> bool:
        if self._signals:
            return not self._training and self._sampling is None
        if until is not None and until():
            return self._sampling is None
        return once and not self._training and self._sampling is None and not self._waiting()

    def _waiting(self) -> int:
        waits = self._ws.catalog.count(Job, state=(JobState.QUEUED, JobState.LEASED))
        return waits or queue_due(self._ws)  # the last picture of an evidence sheet may be drawn just now

    def _tick(self, kinds: tuple[JobKind, ...]) -> None:
        """One round. A full disk or a locked database is said once and tried again at the next."""
        try:
            if self._signals:
                self._close()
            self._watch_training()
            self._watch_sampling()
            if time.monotonic() - self._reconciled_at > RECONCILE_EVERY:
                self._requeue_lost()
            self._claim(kinds)
            self._chores.tick(kinds)
            self._standby.tick(training=bool(self._here()), idle=self._idle())
            self._complaint = ""
        except StudioError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._say(str(error))

    def _here(self) -> int:
        """How many runs train on this machine."""
        return sum(supervision.here for supervision in self._training)

    def _idle(self) -> bool:
        """Whether nothing suffers when a trainer is prepared; beside a GPU a run leaves processors idle."""
        spare = not self._here() or (has_gpu() and physical_cores() > 2)
        return spare and self._sampling is None and self._chores.pid is None and not self._signals

    def _claim(self, kinds: tuple[JobKind, ...]) -> None:
        lease = timedelta(seconds=self._limits.lease)
        here = self._here()
        away = len(self._training) - here
        free = {
            JobKind.TRAIN: not here and not (self._sampling and has_gpu()),
            JobKind.TRAIN_AWAY: away < self._ws.settings.ray_runs,
        }
        wanted = tuple(kind for kind in TRAINING if kind in kinds and free[kind])
        if wanted:
            job = self._ws.catalog.claim_job(wanted, owner=self._owner, lease=lease)
            if job is not None:
                self._start_training(job)
                here += job.kind is JobKind.TRAIN
        if JobKind.SAMPLE in kinds and self._sampling is None and not (here and has_gpu()):
            job = self._ws.catalog.claim_job((JobKind.SAMPLE,), owner=self._owner, lease=lease)
            if job is not None:
                self._sampling = job
                self._renewed_at = time.monotonic()
                self._sampler.start(job.subject_id)

    def _start_training(self, job: Job) -> None:
        supervision = self._supervise(job)
        if supervision.here and has_gpu():
            self._sampler.unload()  # the trainer needs the memory; samples wait
        if supervision.start():
            self._training.append(supervision)

    def _watch_training(self) -> None:
        for supervision in list(self._training):
            if supervision.tick():
                self._training.remove(supervision)

    def _watch_sampling(self) -> None:
        job = self._sampling
        self._sampler.tick()
        if job is None:
            return
        if self._ws.catalog.get(Job, job.id).cancel:
            self._sampler.cancel()
        ended = self._sampler.result()
        if ended is not None:
            self._sampling = None
            self._ws.catalog.finish_job(job.id, ended.state, error=ended.error, result=ended.result)
        elif time.monotonic() - self._renewed_at > self._limits.lease / 4:
            self._renewed_at = time.monotonic()
            lease = timedelta(seconds=self._limits.lease)
            self._ws.catalog.renew_job(job.id, owner=self._owner, lease=lease)

    # -- ending

    @contextmanager
    def _catch_signals(self) -> Generator[None]:
        """SIGINT and SIGTERM are counted; outside the main thread Python does not let us."""
        self._interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self._interrupted = self._interrupted or number == signal.SIGINT

    def _close(self) -> None:
        """First signal: trainers save and stop. Second: they are killed. Those of a cluster go on."""
        self._sampler.cancel()
        for supervision in list(self._training):
            if not supervision.here:
                supervision.leave()
                self._training.remove(supervision)
            elif self._signals == 1:
                supervision.close()
            else:
                supervision.kill("killed together with the worker")
        if self._signals > 1:
            self._sampler.unload()

    # -- after a crash

    def _supervise(self, job: Job) -> Supervision:
        run = self._ws.catalog.find(Run, job.subject_id)
        executor = self._executors[run.place if run is not None else PLACES[0]]
        return Supervision(self._ws, job, executor, owner=self._owner, limits=self._limits, say=self._say)

    def _reconcile(self) -> None:
        """Make rows true again after the death of an earlier worker, at whatever moment it died."""
        catalog = self._ws.catalog
        jobs = {job.subject_id: job for job in catalog.list(Job, state=JobState.LEASED, order="created_at")}
        for run in catalog.list(Run, state=tuple(ACTIVE), order="created_at"):
            job = jobs.pop(run.id, None) or self._job_of(run)
            job = catalog.update(Job, job.id, state=JobState.LEASED, owner=self._owner)
            supervision = self._supervise(job)
            if supervision.adopt():
                self._training.append(supervision)
        for job in jobs.values():
            if job.kind in TRAINING:
                self._settle_job(job)
            elif job.kind is not JobKind.SAMPLE or job.attempts < MAX_SAMPLE_TRIES:
                catalog.update(Job, job.id, state=JobState.QUEUED, owner="", lease_until=None)
            else:
                error = f"sample {job.subject_id}: {job.attempts} workers died while it was drawn."
                catalog.finish_job(job.id, JobState.FAILED, error=error)
        self._requeue_lost()

    def _settle_job(self, job: Job) -> None:
        """A leased job whose run is not active: not yet begun, or ended without the job being told."""
        run = self._ws.catalog.find(Run, job.subject_id)
        if run is not None and run.state is RunState.QUEUED:
            self._ws.catalog.update(Job, job.id, state=JobState.QUEUED, owner="", lease_until=None)
        else:
            self._ws.catalog.finish_job(
                job.id, JobState.DONE, result={"state": str(run.state) if run else ""}
            )

    def _job_of(self, run: Run) -> Job:
        """The newest job of a run; a new one when it has none."""
        jobs = self._ws.catalog.list(Job, kind=TRAINING, subject_id=run.id, limit=1)
        return jobs[0] if jobs else self._ws.catalog.enqueue(Job(kind=run.job_kind, subject_id=run.id))

    def _requeue_lost(self) -> None:
        """A queued run without a job (resume was cut off between its two writes) gets one."""
        self._reconciled_at = time.monotonic()
        catalog = self._ws.catalog
        for run in catalog.list(Run, state=RunState.QUEUED, order="created_at"):
            live = (JobState.QUEUED, JobState.LEASED)
            if not catalog.count(Job, kind=TRAINING, subject_id=run.id, state=live):
                catalog.enqueue(Job(kind=run.job_kind, subject_id=run.id))


def _silent(_line: str) -> None:
    """Nobody wants to hear it."""


def sweep_dead_runs(ws: "Workspace") -> None:
    """Remove unfinished files of runs, but not of a trainer that lives on, nor what is being written now.

    The other folders are swept by the workspace when the lock is taken.
    """
    living = {run.id for run in ws.catalog.list(Run, state=tuple(ACTIVE))}
    for folder in (ws.home / "runs").iterdir():
        if folder.name in living or time.time() - folder.stat().st_mtime < FRESH:
            continue
        if folder.name.endswith(TEMPORARY):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            sweep_temporaries(folder)
