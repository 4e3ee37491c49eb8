"""From `the worker starts the trainer` to `the first optimizer step is done`: cold, and from a standby.

    python -m benchmarks.start [--rounds 5] [--json] [--set preview.every=0 ...]

The pocket style recipe on the pocket base, its caches filled by a run before. Contenders alternate (cold,
warm, warm, cold, ...), each in a process and a run directory of its own, with one thread. CPU seconds are the
trainer's own: those that a standby spent before it got the run do not count for the start, and are shown.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.train_vs_plain import BASE
from studio.runs.executors import LocalExecutor
from studio.runs.standby import Standby
from tests.support.runs import draw_pictures, write_run
from trainers.recipe import Recipe, apply_sets, preset_by_name
from trainers.rundir import ManifestItem, RunDir

KEY = "5c" * 32
PATIENCE = 600.0  # seconds


def recipe(sets: list[str]) -> Recipe:
    """The pocket style recipe; it ends with its first step, and so the figures of that come at once."""
    own = ["train.max_steps=1", "train.num_threads=1", "checkpoints.keep_best=false", "data.trigger=zork"]
    return apply_sets(preset_by_name("pocket-style"), [*own, *sets])


def cpu_seconds(pid: int) -> float:
    """Of a living process."""
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system


def prepare(standby: Standby) -> dict[str, float]:
    """Wait for the trainer that is ready before there is a run for it."""
    began = time.monotonic()
    while not standby.ready:
        standby.tick(training=False, idle=True)
        time.sleep(0.05)
        if time.monotonic() - began > PATIENCE:
            raise SystemExit("error: the standby: does not come up.")
    assert standby.pid is not None
    memory = psutil.Process(standby.pid).memory_info().rss / 2**20
    return {"cpu": cpu_seconds(standby.pid), "memory": memory}


def start(executor: LocalExecutor, rundir: RunDir, before: float) -> dict[str, float]:
    """Wall and CPU seconds from the start of the trainer to its first step; `before`: CPU seconds so far."""
    began = time.perf_counter()
    identity = executor.start(rundir)
    while not rundir.read_metrics():
        if executor.exit_code(identity) is not None:
            raise SystemExit(f"error: the trainer: has ended. See {rundir.path}.")
        time.sleep(0.005)
    figures = {"wall": time.perf_counter() - began, "cpu": cpu_seconds(identity.pid) - before}
    while executor.exit_code(identity) is None:
        time.sleep(0.02)
    return figures


def measure(folder: Path, rounds: int, sets: list[str]) -> dict[str, Any]:
    """Medians of wall and CPU seconds of both ways, and their ratio."""
    pictures = draw_pictures(folder / "pictures", 12, 64)
    standby = Standby("on", 600)
    executors = {"cold": LocalExecutor(KEY), "warm": LocalExecutor(KEY, standby=standby)}

    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    # Fills the caches, and lets the standby know what comes.
    start(executors["warm"], make_run(folder / "first", pictures, sets), 0.0)
    ready = prepare(standby)
    for turn in range(rounds):
        for place, name in enumerate(("cold", "warm") if turn % 2 == 0 else ("warm", "cold")):
            rundir = make_run(folder / f"run-{turn}-{place}", pictures, sets)
            before = prepare(standby)["cpu"] if name == "warm" else 0.0
            found[name].append(start(executors[name], rundir, before))
    standby.close()
    result: dict[str, Any] = {"rounds": rounds, "standby_cpu": ready["cpu"], "standby_mib": ready["memory"]}
    for unit in ("wall", "cpu"):
        for name, figures in found.items():
            result[f"{name}_{unit}"] = statistics.median(figure[unit] for figure in figures)
        result[f"ratio_{unit}"] = result[f"cold_{unit}"] / result[f"warm_{unit}"]
    return result


def make_run(place: Path, pictures: list[ManifestItem], sets: list[str]) -> RunDir:
    """A run directory beside the cache that all share."""
    shutil.rmtree(place, ignore_errors=True)
    rundir = write_run(place, BASE, pictures)
    (place / "recipe.json").write_text(recipe(sets).model_dump_json())
    return rundir


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="of the recipe: KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.rounds, options.set)
    figures["load"] = os.getloadavg()[0]
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:14} {value:8.2f}")


if __name__ == "__main__":
    main()
