"""A workspace with a small data set, runs on the fake trainer, and a worker that is a process of its own."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from PIL import Image as Pixels

from registry.records import Base, Dataset, Image, Run, RunState
from studio.runs.executors import LocalExecutor
from studio.runs.launch import launch
from studio.runs.supervise import Limits
from studio.runs.worker import Worker
from studio.workspace import Workspace
from tests.support.fake_trainer import SCRIPT, STARTS, Script
from tests.support.forked import Forked
from trainers.recipe import apply_sets, preset

ROOT = Path(__file__).parents[2]
QUICK = Limits(tick=0.02, stop_grace=1.0, silence=0.6, first_heartbeat=20.0, sampler_idle=60.0)
ENDED = {RunState.PAUSED, RunState.STOPPED, RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED}


def make_dataset(ws: Workspace, name: str = "shapes", count: int = 3) -> Dataset:
    """`count` pictures of 64x64 pixels, each of another colour."""
    images: list[Image] = []
    for number in range(count):
        file = ws.home / f"picture-{number}.png"
        Pixels.new("RGB", (64, 64), (number * 40, 80, 160)).save(file)
        blob = ws.blobs.put(file)
        file.unlink()
        images.append(
            Image(blob=blob, pixel_hash=blob, name=f"{number}.png", width=64, height=64, caption="a circle")
        )
    return ws.catalog.add_dataset(Dataset(name=name, trigger="inkstyle"), images)


def make_run(
    ws: Workspace, script: Script | None = None, *sets: str, name: str = "ink", place: str = "local"
) -> Run:
    """A queued run of 20 steps with a checkpoint every 5, whose fake trainer follows `script`."""
    base = ws.catalog.get(Base, "pocket")
    dataset = ws.catalog.find(Dataset, "shapes") or make_dataset(ws)
    recipe = apply_sets(
        preset("sd15", "style", "pocket"), ["train.max_steps=20", "checkpoints.every=5", *sets]
    )
    run = launch(ws, recipe, base, dataset, name, place=place)
    (ws.run_dir(run.id).path / SCRIPT).write_text(json.dumps(asdict(script or Script())))
    return run


def make_worker(ws: Workspace, limits: Limits = QUICK, say: Callable[[str], None] | None = None) -> Worker:
    """A worker whose trainers are fake."""
    return Worker(ws, limits=limits, executor=fake_executor(ws), say=say)


def fake_executor(ws: Workspace) -> LocalExecutor:
    """Starts the fake trainer."""
    return LocalExecutor(ws.key.hex(), module="tests.support.fake_trainer", extra={"PYTHONPATH": str(ROOT)})


def state_of(ws: Workspace, run: Run) -> RunState:
    """The state in the catalog."""
    return ws.catalog.get(Run, run.id).state


def until(condition: Callable[[], bool], seconds: float = 20.0, every: float = 0.02) -> None:
    """Wait for `condition`, looked at `every` so many seconds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)


def starts(ws: Workspace, run: Run) -> list[int]:
    """Pids of all trainers ever started for a run."""
    path = ws.run_dir(run.id).path / STARTS
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def trainers_alive(ws: Workspace, run: Run) -> list[int]:
    """Pids of those that still live (zombies do not)."""
    import psutil

    def lives(pid: int) -> bool:
        return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

    return [pid for pid in starts(ws, run) if lives(pid)]


class WorkerProcess:
    """A worker in a process of its own, to be killed."""

    def __init__(self, ws: Workspace, *, once: bool = False) -> None:
        words = [str(ws.home), "--once"] if once else [str(ws.home)]
        self.process = Forked(
            "tests.support.worker_main", words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.communicate()

    def end(self, seconds: float = 20.0) -> tuple[int, str]:
        """Wait for its end; exit code and what it said."""
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.wait(), said


def clean_environment() -> dict[str, str]:
    """Our environment without a workspace of the person who runs the tests."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("STUDIO_")}
    return ours | {"STUDIO_STANDBY": "off"}
