"""Trainers as jobs of a Ray cluster, on storage that its nodes mount too.

The cluster is asked by a thread of its own, every few seconds; the worker reads what was found and waits for
nothing. What counts is what lies in the run directory: a job that the cluster has forgotten goes on as long
as its heartbeat does, and no second one is submitted before the first is known to be over and silent.
"""

import shlex
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from registry.errors import Damaged, StudioError, several
from registry.files import read_json, write_json
from registry.records import now
from studio.runs.attempts import Attempt, Wish
from studio.runs.clusters import Cluster, Jobs, NoAnswer
from studio.runs.executors import MODULE
from studio.runs.outcome import ATTEMPT
from trainers.rundir import LOG, PROCESS, RunDir

POLL = 2.0  # seconds between looks at the cluster
QUIET = 15.0  # seconds without a heartbeat, due every 2, after which a job that is over writes no more
JOIN = 5.0  # seconds that a worker which ends waits for an answer; one that comes later does no harm
LOG_BYTES = 4096  # of what Ray has printed, where the trainer could not say it itself
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}  # as long as a worker waits before it kills
TIMED_OUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"  # no room for 15 minutes; Ray gives up, we do not


class RayJob:
    """A run on the cluster, from its submission to its end. `look` is called by the thread, the rest by us.

    Args:
        attempt: Its files.
        processes: How many train.
        module: What `python -m` runs on the node.
        quiet: See QUIET.
    """

    def __init__(self, attempt: Attempt, processes: int, module: str, quiet: float) -> None:
        self.attempt, self._processes, self._module, self._quiet = attempt, processes, module, quiet
        self._wish: Wish = attempt.wish()
        self._seen = False  # running, or more
        self._over = False
        self._trouble = ""
        self._code: int | None = None
        self._sign: tuple[int, float] = (-1, 0.0)  # last sign of the trainer, and when we saw it change
        self.settled = False  # nobody asks about it any more

    # -- what a supervisor knows

    @property
    def called(self) -> str:
        """Its name on the cluster."""
        return f"job {self.attempt.job}"

    def to_json(self) -> dict[str, Any]:
        """For process.json and the run's row."""
        return {"job": self.attempt.job, "attempt": self.attempt.number, "processes": self._processes}

    def alive(self) -> bool:
        """Whether it may still write: until the node has said how it ended, or all is over and silent."""
        if self.attempt.ended() is not None:
            self.settled = True
        elif self._over or self._wish == "kill":
            self.settled = self._silent()
        return not self.settled

    def waits(self) -> str:
        """What stands between it and its trainer."""
        begun = self._seen or self.attempt.begun
        if self._trouble:
            return f"{self._trouble}; the run {'goes on by itself' if begun else 'waits'}"
        if self._wish or begun:
            return ""
        return f"waits for room on the cluster ({several(self._processes, 'process', 'processes')})"

    def ask_to_stop(self) -> None:
        """The node asks the trainer; a job that has not begun is cancelled."""
        self._want("stop")

    def kill(self) -> None:
        """The node kills the trainer, and the cluster the job."""
        if not self.settled and self._wish != "kill":
            self._want("kill")

    def exit_code(self) -> int | None:
        """The trainer's; of a job that failed before it came to that, the job's."""
        ended = self.attempt.ended()
        if ended is not None:
            return int(ended["exit_code"])
        return None if self.attempt.begun else self._code

    def memory_killed(self) -> bool:
        """Whether its node killed a process for memory meanwhile."""
        return bool((self.attempt.ended() or {}).get("memory_killed"))

    def _want(self, wish: Wish) -> None:
        self._wish = wish
        self.attempt.ask(wish)

    def _silent(self) -> bool:
        """Whether its heartbeat stands still, on our own steady clock."""
        sign = self.attempt.last_sign()
        if sign == -1:
            return True  # nothing of it ever ran, and what starts now finds the wish, or no cluster
        if sign != self._sign[0]:
            self._sign = (sign, time.monotonic())
        return time.monotonic() - self._sign[1] > self._quiet

    # -- what the cluster knows

    def look(self, connect: Callable[[], Jobs]) -> None:
        """Ask the cluster, and tell it what is wanted; `waits` says what is in the way of it."""
        try:
            self._look(connect())
            self._trouble = ""
        except StudioError as error:
            self._trouble = str(error).rstrip(".")
            # Unwanted, not begun: what the cluster has taken without our hearing of it finds the wish.
            self._over = self._over or (bool(self._wish) and not self._seen and not self.attempt.begun)
        except Exception as error:  # noqa: BLE001  a thread that ended would leave its runs alone without a word
            self._trouble = f"{self.called}: cannot be looked after ({error})"

    def _look(self, jobs: Jobs) -> None:
        name, known = self.attempt.job, self.attempt.submitted or self.attempt.begun
        seen = jobs.look(name)
        if seen is None and not known and not self._wish:
            jobs.submit(name, self._entrypoint(jobs.cluster), self._run, self._processes, STOP_WAIT)
            self.attempt.mark_submitted()
            return
        if seen is not None and not known:  # an earlier try got through
            self.attempt.mark_submitted()
        if seen is None or seen.over:
            if seen is not None and seen.error == TIMED_OUT and not self._wish and not self.attempt.begun:
                self._submit_anew()
                return
            if seen is not None or known:
                self._keep_words(jobs, seen.message if seen else "the cluster does not know the job any more")
            self._code = seen.exit_code if seen else None
            self._over = True
        elif seen.status == "PENDING":
            self._cancel(jobs)
        else:
            self._seen = True
            if self._wish == "kill":
                jobs.stop(name)

    @property
    def _run(self) -> str:
        return self.attempt.rundir.path.name

    def _entrypoint(self, cluster: Cluster) -> str:
        """A shell's command. Nothing secret: the cluster shows it to everybody who may look at it."""
        folder = f"{cluster.home}/runs/{self._run}"
        words = [folder, str(self.attempt.number), str(self._processes), self._module]
        return f"exec {cluster.python} -m studio.runs.node {shlex.join(words)}"

    def _cancel(self, jobs: Jobs) -> None:
        """Of a job that waits, and is not wanted. Ray takes it back only when there is room for it; but the
        wish was written before we ask again, and a node reads it after it has written that it began.
        """
        if not self._wish:
            return
        jobs.stop(self.attempt.job)
        again = jobs.look(self.attempt.job)
        if (again is None or again.status == "PENDING") and not self.attempt.begun:
            self._over = True

    def _submit_anew(self) -> None:
        """There was no room for so long that Ray gave up: get in line again, under the next number."""
        self.attempt.ask("stop")
        self.attempt = Attempt.new(self.attempt.rundir)
        write_json(self.attempt.rundir.file(PROCESS), self.to_json())

    def _keep_words(self, jobs: Jobs, message: str) -> None:
        """What the cluster says goes into the log, where the trainer has not said how it ended."""
        if self.attempt.ended() is not None:
            return
        text = message
        with suppress(NoAnswer):
            text = (
                f"{jobs.log(self.attempt.job)[-LOG_BYTES:].strip()}\n{message if self.attempt.begun else ''}"
            )
        head = "" if self.attempt.begun else f"{ATTEMPT}{now().isoformat(timespec='seconds')} ---\n"
        with self.attempt.rundir.file(LOG).open("a", encoding="utf-8") as log:
            log.write(f"{head}{text.strip() or message}\n")


class RayExecutor:
    """Hands trainers to the cluster that is set for a workspace.

    Args:
        home: The workspace.
        module: What `python -m` runs; tests put a trainer without a model here.
        poll: Seconds between looks.
        quiet: See QUIET.
        connect: Makes the client; called again when the settings have changed.
    """

    here = False

    def __init__(
        self,
        home: Path,
        *,
        module: str = MODULE,
        poll: float = POLL,
        quiet: float = QUIET,
        connect: Callable[[Cluster], Jobs] = Jobs,
    ) -> None:
        self._home, self._module, self._poll, self._quiet, self._connect = home, module, poll, quiet, connect
        self._watched: list[RayJob] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._jobs: Jobs | None = None
        self._ended = threading.Event()

    def start(self, rundir: RunDir, processes: int = 1) -> RayJob:
        """Put the run into the cluster's queue; an unreachable cluster is waited for.

        Raises:
            StudioError: no cluster is set, or Ray is missing.
        """
        Cluster.of(self._home)
        job = RayJob(Attempt.new(rundir), processes, self._module, self._quiet)
        write_json(rundir.file(PROCESS), job.to_json())
        self._watch(job)
        return job

    def find(self, rundir: RunDir) -> RayJob | None:
        """The job of `rundir`, in whatever state the last worker left it; also one not submitted yet."""
        try:
            known = read_json(rundir.file(PROCESS))
            job = RayJob(
                Attempt(rundir, int(known["attempt"])), int(known["processes"]), self._module, self._quiet
            )
        except (FileNotFoundError, Damaged, KeyError, TypeError, ValueError):
            return None
        self._watch(job)
        return job

    def exit_code(self, trainer: RayJob) -> int | None:
        """As the node has written it down."""
        return trainer.exit_code()

    def memory_killed(self, trainer: RayJob) -> bool:
        """As the node has written it down."""
        return trainer.memory_killed()

    def close(self) -> None:
        """Ask the cluster nothing any more; jobs go on."""
        self._ended.set()
        with self._lock:
            thread, self._thread, self._watched = self._thread, None, []
        if thread is not None:
            thread.join(JOIN)

    def _watch(self, job: RayJob) -> None:
        with self._lock:
            self._watched.append(job)
            if self._thread is None:
                self._ended = threading.Event()
                self._thread = threading.Thread(
                    target=self._ask, args=(self._ended,), name="ray", daemon=True
                )
                self._thread.start()

    def _ask(self, ended: threading.Event) -> None:
        """The thread: look at every job in turn, until none is left."""
        while not ended.is_set():
            with self._lock:
                self._watched = [job for job in self._watched if not job.settled]
                if not self._watched:
                    self._thread = None
                    return
                jobs = list(self._watched)
            for job in jobs:
                job.look(self._client)
            ended.wait(self._poll)

    def _client(self) -> Jobs:
        """For the cluster as it is set now: a new token or address needs no new worker."""
        cluster = Cluster.of(self._home)
        if self._jobs is None or self._jobs.cluster != cluster:
            self._jobs = self._connect(cluster)
        return self._jobs
