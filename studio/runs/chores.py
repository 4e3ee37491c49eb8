"""Imports, checks of adapter files, looks at data sets, measuring of evidence: a child does them in turn.

The child (see TASKS) may be killed at any moment and goes on where it was, so there is nothing to adopt after
a crash: the next worker starts another one.
"""

import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from registry.files import storage_error
from registry.records import Job, JobKind, JobState
from studio.evidence.evaluations import queue_due
from studio.imports.report import progress_file, read_report
from studio.imports.watch import Watcher
from studio.runs.outcome import tail

if TYPE_CHECKING:
    from studio.workspace import Workspace

TASKS = {
    JobKind.IMPORT: "studio.imports.task",
    JobKind.CHECK: "studio.imports.task",
    JobKind.EXAMINE: "studio.datasets.examining",
    JobKind.EVALUATE: "studio.evidence.task",
}  # module of the child
KINDS = tuple(TASKS)
LOG = "imports.log"  # in cache/
LOOK_EVERY = 1.0  # seconds
ANEW = {JobKind.EVALUATE}  # begin again when they died: that they get as far in between says nothing
TRIES = 3  # of a child that dies without having got any further


class Chores:
    """The worker's side of them.

    Args:
        ws: The workspace.
        owner: Who holds the leases.
        lease: Seconds.
    """

    def __init__(self, ws: "Workspace", *, owner: str, lease: float) -> None:
        self._ws, self._owner, self._lease = ws, owner, lease
        self._watcher = Watcher(ws)
        self._job: Job | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._renewed_at = self._looked_at = 0.0
        self._died = 0
        self._reached: object = None

    @property
    def pid(self) -> int | None:
        """Of the child."""
        return self._process.pid if self._process is not None else None

    def tick(self, kinds: tuple[JobKind, ...]) -> None:
        """One round: look at the child, then for work of these kinds."""
        if self._job is not None:
            self._watch(self._job)
        else:
            if JobKind.IMPORT in kinds:
                self._watcher.tick()
            if JobKind.EVALUATE in kinds:
                self._look_for_evidence()
        wanted = tuple(kind for kind in KINDS if kind in kinds)
        if self._job is None and wanted:
            lease = timedelta(seconds=self._lease)
            self._job = self._ws.catalog.claim_job(wanted, owner=self._owner, lease=lease)
            if self._job is not None:
                self._died, self._reached, self._renewed_at = 0, None, time.monotonic()
                self._start(self._job)

    def _look_for_evidence(self) -> None:
        """Queue the measuring of evidence sheets whose pictures are drawn by now."""
        if time.monotonic() - self._looked_at > LOOK_EVERY:
            queue_due(self._ws)
            self._looked_at = time.monotonic()

    def close(self) -> None:
        """The worker ends: so does the child, and its job waits for the next worker."""
        self._kill()
        job, self._job = self._job, None
        if job is not None:
            self._ws.catalog.update(Job, job.id, state=JobState.QUEUED, owner="", lease_until=None)

    def _start(self, job: Job) -> None:
        log = self._ws.home / "cache" / LOG
        try:
            with log.open("wb") as stream:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", TASKS[job.kind], str(self._ws.home), job.id],
                    stdin=subprocess.PIPE,  # closes with us: the child ends then
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,  # Ctrl-C is for the worker
                )
        except OSError as error:
            self._finish(job, JobState.FAILED, str(storage_error(log, error)))

    def _watch(self, job: Job) -> None:
        if self._process is None:  # its end could not be written down
            self._start(job)
            return
        code = self._process.poll()
        if code is None:
            self._keep(job)
            return
        self._kill()
        report = read_report(self._ws, job)
        if code == 0:
            self._finish(job, JobState.DONE, "", report)
        elif code in {1, 2}:
            self._finish(job, JobState.FAILED, self._last_line(), report)
        elif self._is_stuck(job, report):
            where = "" if job.kind in ANEW else " at the same place"
            wrong = f"{job.kind} {job.id}: its process died {TRIES} times{where} (exit code {code})."
            self._finish(job, JobState.FAILED, wrong, report)
        else:
            self._start(job)

    def _keep(self, job: Job) -> None:
        if self._ws.catalog.get(Job, job.id).cancel:
            self._kill()
            self._finish(job, JobState.CANCELLED, "cancelled", read_report(self._ws, job))
        elif time.monotonic() - self._renewed_at > self._lease / 4:
            self._renewed_at = time.monotonic()
            self._ws.catalog.renew_job(job.id, owner=self._owner, lease=timedelta(seconds=self._lease))

    def _is_stuck(self, job: Job, report: dict[str, Any]) -> bool:
        """Whether the child died often enough without progress."""
        reached = (report.get("phase"), report.get("files"), report.get("bytes_done"), report.get("done"))
        self._died = self._died + 1 if reached == self._reached or job.kind in ANEW else 1
        self._reached = reached
        return self._died >= TRIES

    def _finish(self, job: Job, state: JobState, error: str, result: dict[str, Any] | None = None) -> None:
        self._ws.catalog.finish_job(job.id, state, error=error, result=result)
        self._job = None
        progress_file(self._ws, job.id).unlink(missing_ok=True)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        if process.stdin is not None:
            process.stdin.close()
        process.wait()

    def _last_line(self) -> str:
        lines = tail(self._ws.home / "cache" / LOG, 4096).strip().splitlines()
        return lines[-1] if lines else "the process said nothing."
