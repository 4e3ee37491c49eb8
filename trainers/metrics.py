"""What a run tells the world: status, heartbeat, metric lines. Torch-free: it speaks before torch is
imported.

A thread beats every second, also while a step, a download or a compilation takes minutes; the loop itself
only changes a record in memory.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from registry.errors import StudioError
from registry.files import append_line, atomic_write
from trainers.rundir import HEARTBEAT, METRICS, RunDir, Status, read_lines

log = logging.getLogger(__name__)

BEAT = 1.0  # seconds
SMOOTH = 20  # steps


class Reporter:
    """Writes status.json, heartbeat and metrics.jsonl of a run.

    Args:
        rundir: The run.
        writes: False on all processes but the first, which stay silent.
    """

    def __init__(self, rundir: RunDir, *, writes: bool = True) -> None:
        self.rundir, self.writes = rundir, writes
        self.status = Status(state="starting", phase="loading", time=time.time())
        self._recent: deque[float] = deque(maxlen=SMOOTH)
        self._seconds: deque[float] = deque(maxlen=SMOOTH)
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """First word and first beat."""
        if self.writes:
            self._write()
            self._thread.start()

    def phase(self, name: str, total: int = 0) -> None:
        """A new phase, written at once."""
        self._change(phase=name, phase_done=0, phase_total=total)
        self._write()

    def progress(self, done: int, total: int) -> None:
        """How far the phase is."""
        self._change(phase_done=done, phase_total=total)

    def begin(self, step: int, steps: int) -> None:
        """Everything is loaded: `step` of `steps` are done; the run counts as running."""
        self._change(state="running", step=step, steps=steps, begun=step)

    def step(self, line: Mapping[str, Any]) -> None:
        """One optimizer step: a metric line, and the figures of the status."""
        if not self.writes:
            return
        append_line(self.rundir.file(METRICS), line)
        self._recent.append(line["loss"])
        self._seconds.append(line["seconds"])
        # The first step of a process warms up kernels and caches: no basis for a forecast.
        typical = fmean(list(self._seconds)[1:] or self._seconds)
        left = (self.status.steps - line["step"]) * typical
        self._change(
            step=line["step"],
            loss=self.loss,
            seconds_per_step=typical,
            seconds_left=left,
            peak_memory=line["peak_memory"],
        )

    @property
    def loss(self) -> float | None:
        """Mean loss of the last 20 steps."""
        return fmean(self._recent) if self._recent else None

    def best(self, step: int | None) -> None:
        """Which checkpoint is the best so far."""
        self._change(best_step=step)

    def held_out(self, names: list[str]) -> None:
        """Pictures that the run does not train on."""
        if names and self.writes:
            log.info("held out, to judge checkpoints by: %s", ", ".join(names))
        self._change(held_out=names)

    def warn(self, message: str) -> None:
        """Something a person should know; once each, in the log and in the status."""
        if self.writes and message not in self.status.warnings:
            log.warning("%s", message)
            self._change(warnings=[*self.status.warnings, message])

    def end(self, state: Literal["finished", "stopped", "failed"], kind: str = "", reason: str = "") -> None:
        """The last word."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._change(state=state, phase="", kind=kind, reason=" ".join(reason.split()), seconds_left=None)
        self._write()

    def rewind(self, step: int) -> None:
        """Forget metric lines after `step`: the attempt that begins there writes them anew."""
        path = self.rundir.file(METRICS)
        if not self.writes or not path.exists():
            return
        kept = [line for line in read_lines(path) if line["step"] <= step]
        keep_lines(path, kept)
        self._recent.extend(line["loss"] for line in kept[-SMOOTH:])

    def _change(self, **changes: Any) -> None:
        with self._lock:
            self.status = replace(self.status, time=time.time(), **changes)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._write()

    def _write(self) -> None:
        """A full disk must not end the run here: the next checkpoint will say so properly."""
        if not self.writes:
            return
        with suppress(StudioError, OSError):
            self.rundir.file(HEARTBEAT).touch()
            self.rundir.write_status(self.status)


def keep_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Replace a file of JSON lines."""
    import json

    atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def process_rank() -> int:
    """This process's number among those of the run; set by the launcher."""
    return int(os.environ.get("RANK", "0"))
