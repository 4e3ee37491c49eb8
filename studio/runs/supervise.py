"""One trainer under watch: its files become rows, its owner's wishes become signals, its end becomes a state.

Every step here may be the last one of this worker. So files come before rows, rows are compare-and-set, and
what is done twice (registering an adapter, settling a run) has the effect of doing it once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from registry.errors import BadInput, Damaged, NotFound, StudioError
from registry.files import read_json
from registry.records import JSON, Adapter, Checkpoint, Job, JobState, Run, RunState, now
from studio.adapters import register_run_adapter, step_name
from studio.runs import speed
from studio.runs.checkpoints import Verified, verified_checkpoints
from studio.runs.executors import Executor, Trainer
from studio.runs.full_results import is_full, register_run_base
from studio.runs.keep import pick_by_probe
from studio.runs.outcome import Outcome, judge, log_tail
from trainers.recipe import Recipe
from trainers.rundir import HEARTBEAT, MEMORY, PROCESS, STATUS, UNTRIED, RunDir, Status

if TYPE_CHECKING:
    from studio.workspace import Workspace

ACTIVE = frozenset(state for state in RunState if state.active)
WISHES = {RunState.STOPPING: RunState.STOPPED, RunState.PAUSING: RunState.PAUSED}
MAX_STARTS = 2


@dataclass(frozen=True)
class Limits:
    """How long the worker waits for what; seconds."""

    tick: float = 0.3
    stop_grace: float = 60.0  # from SIGTERM to SIGKILL
    silence: float = 60.0  # without a heartbeat: hung
    first_heartbeat: float = 300.0  # importing the libraries from a cold, slow disk
    lease: float = 60.0
    sampler_idle: float = 600.0  # then the sampler's memory is given back


class Supervision:
    """Watches one trainer from its start, or its adoption, to its end.

    Args:
        ws: The workspace.
        job: The leased TRAIN job.
        executor: What starts trainers.
        limits: Deadlines.
        owner: Who holds the lease.
        say: Takes one line of news.
    """

    def __init__(
        self,
        ws: "Workspace",
        job: Job,
        executor: Executor,
        *,
        owner: str,
        limits: Limits,
        say: Callable[[str], None],
    ) -> None:
        self.job, self.run_id = job, job.subject_id
        self.rundir: RunDir = ws.run_dir(job.subject_id)
        self._ws, self._executor, self._limits, self._owner, self._say = ws, executor, limits, owner, say
        self.here = executor.here  # its trainer uses this machine, and ends with us
        self._trainer: Trainer | None = None
        self._known: dict[int, Verified] = {}
        self._last: Status | None = None
        self._asked_at: float | None = None
        self._killed_for = ""
        self._closing = False
        self._savings = self._read_savings()
        self._beat: tuple[int, float] = (-1, time.monotonic())  # (mtime in ns, when we saw it change)
        self._renewed_at = time.monotonic()

    # -- beginning

    def start(self) -> bool:
        """Start the trainer; False when the run is not to be started any more (then the job is finished)."""
        run = self._run()
        if run.state is not RunState.QUEUED:
            self._finish_job(run)
            return False
        # While it is queued it has no trainer; from the next line on, process.json is about the new one.
        self.rundir.file(PROCESS).unlink(missing_ok=True)
        try:
            self._ws.catalog.move_run(
                run.id,
                RunState.STARTING,
                expect={RunState.QUEUED},
                started_at=now(),
                ended_at=None,
                reason="",
            )
        except StudioError:
            return self.start()  # cancelled in between
        for stale in (STATUS, HEARTBEAT):
            self.rundir.file(stale).unlink(missing_ok=True)
        try:
            trainer = self._executor.start(self.rundir, Recipe.model_validate(run.recipe).train.processes)
        except StudioError as error:
            self._settle(Outcome(RunState.FAILED, str(error), "error"))
            return False
        self._watch(trainer)
        self._say(f"{run.name}: started ({trainer.called})")
        return True

    def adopt(self) -> bool:
        """Take over from a worker that died: watch the living trainer, or settle the run.

        Returns:
            Whether there is a living trainer to watch.
        """
        trainer = self._executor.find(self.rundir)
        if trainer is not None:
            self._watch(trainer)
            self._say(f"{self._run().name}: adopted ({trainer.called})")
            return True
        self._mirror(self._run())
        status = self._status()
        if status is None and self._run().state is RunState.STARTING:
            self._settle(Outcome(RunState.FAILED, "its worker died twice while starting it", retry=True))
        else:
            self._settle(self._outcome(None))
        return False

    # -- every tick

    def tick(self) -> bool:
        """Look once; returns True when the run has ended and is settled."""
        trainer = self._trainer
        assert trainer is not None
        alive = trainer.alive()  # before the last reading of its files
        run = self._run()
        self._mirror(run)
        if not alive:
            trainer.kill()  # ranks that outlived their launcher
            self._settle(self._outcome(trainer))
            return True
        self._obey(run)
        self._listen(run, trainer)
        if time.monotonic() - self._renewed_at > self._limits.lease / 4:
            self._renewed_at = time.monotonic()
            lease = timedelta(seconds=self._limits.lease)
            self._ws.catalog.renew_job(self.job.id, owner=self._owner, lease=lease)
        return False

    def close(self) -> None:
        """The worker is asked to end: so is the trainer, after a checkpoint."""
        self._closing = True
        self._ask()

    def leave(self) -> None:
        """The worker is asked to end, and this trainer does not need it: the next worker takes over."""
        self._say(f"{self._run().name}: goes on by itself; the next worker takes it up")

    def kill(self, reason: str) -> None:
        """End the trainer now."""
        self._killed_for = self._killed_for or reason
        if self._trainer is not None:
            self._trainer.kill()

    # -- parts

    def _run(self) -> Run:
        return self._ws.catalog.get(Run, self.run_id)

    def _watch(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._ws.catalog.update(Run, self.run_id, process=trainer.to_json())

    def _status(self) -> Status | None:
        try:
            self._last = self.rundir.read_status() or self._last
        except (Damaged, TypeError) as error:
            self._say(f"run {self.run_id}: status.json cannot be read ({error})")
        return self._last

    def _mirror(self, run: Run) -> None:
        """Bring the rows up to what the files say."""
        status = self._status()
        catalog = self._ws.catalog
        if status is not None:
            if run.state is RunState.STARTING and status.state != "starting":
                try:
                    run = catalog.move_run(run.id, RunState.RUNNING, expect={RunState.STARTING})
                except StudioError:
                    run = self._run()  # somebody wished for a stop in between
            steps = status.steps or run.steps
            if (status.step, steps) != (run.step, run.steps):
                catalog.update(Run, run.id, step=status.step, steps=steps)
        found = verified_checkpoints(self.rundir, self._ws.key, self._known)
        if found.keys() != self._known.keys():
            self._record(found)

    def _record(self, found: dict[int, Verified]) -> None:
        """Checkpoint rows for what is there; none for what was pruned."""
        catalog = self._ws.catalog
        rows = {row.step: row for row in catalog.list(Checkpoint, run_id=self.run_id)}
        for step in found.keys() - rows.keys():
            item = found[step]
            path = self._ws.relative(item.folder)
            row = Checkpoint(run_id=self.run_id, step=step, path=path, loss=item.numbers.get("loss"))
            catalog.add(replace(row, metrics=dict(item.numbers)))
        for step in rows.keys() - found.keys():
            catalog.delete(Checkpoint, rows[step].id)
        self._known = found

    def _obey(self, run: Run) -> None:
        """Wishes: SIGTERM for the first, SIGKILL for the second or after the grace."""
        if run.state in WISHES:
            self._ask()
        if self._ws.catalog.get(Job, self.job.id).cancel:
            self.kill("killed on a second request")
        elif self._asked_at and time.monotonic() - self._asked_at > self._limits.stop_grace:
            self.kill(f"did not stop within {self._limits.stop_grace:.0f} s and was killed")

    def _ask(self) -> None:
        if self._asked_at is None and self._trainer is not None:
            self._asked_at = time.monotonic()
            self._trainer.ask_to_stop()

    def _listen(self, run: Run, trainer: Trainer) -> None:
        """A heartbeat that stands still is a hung trainer. Its age is counted on our own steady clock."""
        waits = trainer.waits()
        if waits != run.reason:
            self._ws.catalog.update(Run, run.id, reason=waits)
            if waits:
                self._say(f"{run.name}: {waits}")
        if waits:
            self._beat = (self._beat[0], time.monotonic())
            return
        try:
            beat = self.rundir.file(HEARTBEAT).stat().st_mtime_ns
        except FileNotFoundError:
            beat = -1
        seen, at = self._beat
        if beat != seen:
            self._beat = (beat, time.monotonic())
            return
        allowed = self._limits.first_heartbeat if beat == -1 else self._limits.silence
        if time.monotonic() - at > allowed and not self._killed_for:
            self.kill(f"hung: no sign of life for {allowed:.0f} s")

    def _outcome(self, trainer: Trainer | None) -> Outcome:
        """What to call the end of this trainer, or of one that nobody has seen, given who asked for it."""
        status, wish = self._status(), self._run().state
        started = status is not None and (status.step > 0 or status.phase == "training")
        outcome = judge(
            status,
            self._executor.exit_code(trainer) if trainer is not None else None,
            log=log_tail(self.rundir),
            memory_killed=trainer is not None and self._executor.memory_killed(trainer),
            started=started,
        )
        asked = wish in WISHES or self._closing or bool(self._killed_for)
        if outcome.kind == "oom" and not (started or asked) and self._took_a_rung():
            return replace(outcome, retry=True)
        said = status is not None and status.state == "failed" and status.kind != "killed"
        if outcome.state is RunState.FINISHED or said:
            return outcome
        if self._killed_for.startswith("hung"):
            return Outcome(RunState.FAILED, f"the trainer {self._killed_for}", "hung")
        if wish in WISHES:
            return Outcome(WISHES[wish], self._killed_for)
        if self._closing:
            return Outcome(RunState.INTERRUPTED, "the worker was stopped", "killed")
        return outcome

    def _took_a_rung(self) -> bool:
        """Whether several processes have found out how to need less memory: those that share a base cannot do
        it on the spot. Each such start has more savings than the last one."""
        several = Recipe.model_validate(self._run().recipe).train.processes > 1
        found = self._read_savings()
        return several and found != self._savings and UNTRIED in found

    def _read_savings(self) -> JSON:
        try:
            return read_json(self.rundir.file(MEMORY))
        except (FileNotFoundError, Damaged):
            return {}

    def _settle(self, outcome: Outcome) -> None:
        """Write the end of the run: adapter, then run, then job."""
        job = self._ws.catalog.get(Job, self.job.id)
        if outcome.retry and (outcome.kind == "oom" or job.attempts < MAX_STARTS):
            self._say(f"run {self.run_id}: {outcome.reason}; starting it once more")
            self._ws.catalog.move_run(self.run_id, RunState.QUEUED, expect=ACTIVE, process=None)
            counted = job.attempts - (outcome.kind == "oom")  # a start that found savings was not in vain
            queued = {"state": JobState.QUEUED, "owner": "", "lease_until": None, "attempts": counted}
            self._ws.catalog.update(Job, job.id, **queued)
            return
        if outcome.retry:
            outcome = replace(outcome, reason=f"{outcome.reason} (started {job.attempts} times)")
        outcome = self._keep_result(outcome)
        if outcome.state in {RunState.FINISHED, RunState.STOPPED}:
            pick_by_probe(self._ws, self._run())
        run = self._ws.catalog.move_run(
            self.run_id,
            outcome.state,
            expect=ACTIVE,
            reason=self._explain(outcome),
            process=None,
            ended_at=now(),
        )
        took = (run.ended_at - run.started_at).total_seconds() if run.started_at and run.ended_at else None
        self._finish_job(run, took)
        self._say(ending(run))
        if self._last is not None and self.here:  # forecasts are about this machine
            speed.remember(self._ws, run, self._last)

    def _explain(self, outcome: Outcome) -> str:
        """The reason, with the way on for a run that can be resumed."""
        if outcome.state is RunState.FINISHED or not outcome.reason:
            return outcome.reason
        reason = outcome.reason.rstrip(".")
        if outcome.state is RunState.INTERRUPTED:
            where = f"goes on from step {max(self._known)}" if self._known else "starts it again"
            return f"{reason}; `studio runs resume {self.run_id}` {where}"
        return reason

    def _keep_result(self, outcome: Outcome) -> Outcome:
        """Register the adapter that this end leaves behind: the finished one, or the last verified one, which
        is named after its step."""
        newest = max(self._known, default=None)
        run, step = self._run(), self._last.step if self._last else 0
        try:
            if is_full(run):
                if outcome.state is RunState.FINISHED:
                    register_run_base(self._ws, run, self.rundir)
                elif outcome.state is RunState.STOPPED and not outcome.reason:
                    return replace(outcome, reason="the new base is written at the last step; resume the run")
            elif outcome.state is RunState.FINISHED:
                if not self.rundir.adapter.exists():
                    return Outcome(
                        RunState.FAILED, "the trainer finished without writing an adapter", "error"
                    )
                register_run_adapter(self._ws, run, self.rundir.adapter, step)
            elif newest is not None and (outcome.state is RunState.STOPPED or outcome.kind == "nan"):
                file, name = self._known[newest].adapter, step_name(run, newest)
                adapter = register_run_adapter(self._ws, run, file, newest, name)
                if outcome.kind == "nan" and not adapter.note:
                    note = f"From step {newest}, the last checkpoint before the loss stopped being finite."
                    self._ws.catalog.update(Adapter, adapter.id, note=note)
        except (BadInput, Damaged, NotFound) as error:
            if outcome.state is RunState.FINISHED:
                return Outcome(RunState.FAILED, f"the result was not registered: {error}", "error")
            self._say(f"run {self.run_id}: its last checkpoint was not registered: {error}")
        return outcome

    def _finish_job(self, run: Run, took: float | None = None) -> None:
        """End the job; it remembers the seconds of its attempt, for the run knows only the last one's."""
        failed = run.state in {RunState.FAILED, RunState.INTERRUPTED}
        state = JobState.FAILED if failed else JobState.DONE
        result: JSON = {"state": str(run.state), "step": run.step}
        if took is not None:
            result["seconds"] = round(took, 2)
        self._ws.catalog.finish_job(self.job.id, state, error=run.reason if failed else "", result=result)


def ending(run: Run) -> str:
    """The line that says how a run ended, and why if it did not finish."""
    why = f" ({run.reason})" if run.reason else ""
    return f"{run.name}: {run.state} at step {run.step} of {run.steps}{why}"
