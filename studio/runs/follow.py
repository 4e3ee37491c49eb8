"""Waiting for a job from a terminal: watch whoever works, or be the worker when nobody is."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from registry.errors import WorkspaceBusy
from registry.records import JobKind, Run, RunState
from studio.runs.ranking import ranking_of
from studio.runs.supervise import WISHES, ending
from studio.runs.worker import ALL_KINDS, Worker

if TYPE_CHECKING:
    from studio.workspace import Workspace

POLL = 0.5  # seconds
PAUSES = {RunState.PAUSED, RunState.STOPPED, RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED}


def attend(
    ws: "Workspace",
    ended: Callable[[], bool],
    say: Callable[[str], None] | None = None,
    kinds: tuple[JobKind, ...] = ALL_KINDS,
) -> None:
    """Return once `ended()`; do the queued jobs of these kinds meanwhile if no worker holds the workspace.

    `ended` is asked twice a second or more, so it may also report progress. A worker that dies meanwhile
    is replaced by us. Who waits for a sample leaves training runs in the queue: it would start one and go.

    Raises:
        KeyboardInterrupt: Ctrl-C; a job of our own worker was stopped after a checkpoint, another's goes on.
    """
    while not ended():
        if ws.holder() is not None:
            time.sleep(POLL)
            continue
        try:
            Worker(ws, say=say).run(until=ended, kinds=kinds)
        except WorkspaceBusy:
            time.sleep(POLL)  # another one was quicker


def follow(ws: "Workspace", run: Run, say: Callable[[str], None] | None = None) -> Run:
    """Wait for the end of a run, saying a line every few seconds; returns the run as it ended.

    Raises:
        KeyboardInterrupt: as `attend`.
    """
    progress = _Progress(ws, run.id, say)
    attend(ws, progress.ended, progress.say)
    return ws.catalog.get(Run, run.id)


def obeyed(ws: "Workspace", run: Run, say: Callable[[str], None] | None = None) -> Run:
    """See to it that a stop or pause that was wished for happens; returns the run as it is then.

    A worker that is there does it without us. Where none is, the trainer may live on all the same: we are the
    worker until it has ended, and begin nothing else.

    Raises:
        KeyboardInterrupt: as `attend`.
    """
    if run.state in WISHES and ws.holder() is None:
        if say is not None:
            say(f"No worker is running: waiting here until {run.name} has saved where it is.")
        attend(ws, lambda: ws.catalog.get(Run, run.id).state in PAUSES, say, kinds=())
    return ws.catalog.get(Run, run.id)


class _Progress:
    """Says phase, step, loss and time left when they change, at most every `EVERY` seconds."""

    EVERY = 5.0

    def __init__(self, ws: "Workspace", run_id: str, say: Callable[[str], None] | None) -> None:
        self._ws, self._run_id, self._out = ws, run_id, say
        self._line: str = ""
        self._said_at = 0.0
        self._advised = False

    def say(self, line: str) -> None:
        """A line of ours or of our own worker's; what was just said is not said again."""
        if self._out is not None and line != self._line:
            self._out(line)
            self._line, self._said_at = line, time.monotonic()

    def ended(self) -> bool:
        """Whether the run has ended; says what is new on the way."""
        run = self._ws.catalog.get(Run, self._run_id)
        if run.state in PAUSES:
            self.say(ending(run))
            return True
        if time.monotonic() - self._said_at > self.EVERY:
            self.say(self._describe(run))
            self._advise(run)
        return False

    def _advise(self, run: Run) -> None:
        """Once: going on makes it worse."""
        if not self._advised and (advice := ranking_of(self._ws, run).advice):
            self._advised = True
            self.say(f"{run.name}: {advice}")

    def _describe(self, run: Run) -> str:
        status = self._ws.run_dir(run.id).read_status()
        if status is None or not status.phase or run.state is RunState.QUEUED:  # an earlier attempt's word
            return f"{run.name}: {run.state}"
        if status.phase != "training":
            part = f" {status.phase_done}/{status.phase_total}" if status.phase_total else ""
            return f"{run.name}: {status.phase or status.state}{part}"
        words = [f"{run.name}: step {status.step} of {status.steps}"]
        if status.loss is not None:
            words.append(f"loss {status.loss:.4f}")
        if status.seconds_left is not None:
            minutes, seconds = divmod(round(status.seconds_left), 60)
            words.append(f"{minutes}:{seconds:02} left")
        return ", ".join(words)
