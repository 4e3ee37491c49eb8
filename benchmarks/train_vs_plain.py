"""Ours against the usual way: whole runs, cost per step, start and loss, as ratios in one go.

    python -m benchmarks.train_vs_plain [--rounds 1] [--short 50] [--long 400] [--defaults] [--json]
    python -m benchmarks.train_vs_plain --script .../examples/dreambooth/train_dreambooth_lora.py

The usual way is `plain_lora.py`; with --script it is diffusers' own file, in somebody's copy of diffusers.
Then both train what that can (`SCRIPT`). Contenders alternate (A B B A, repeated) in fresh processes with one
thread each, so a machine that is busy or slow is so for all. CPU seconds are what counts; wall time is shown.
Caches are cold: every run of ours encodes the pictures and captions itself. The cost of a step is the slope
between a short and a long run; what the slope leaves of the short one is the start.
"""

import argparse
import json
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.diffusers_script import OUT
from tests.support.runs import draw_pictures, write_run
from trainers.recipe import Recipe, apply_sets, preset_by_name
from trainers.rundir import ManifestItem, RunDir

ROOT = Path(__file__).parents[1]
BASE = ROOT / "studio" / "pocket" / "model"
PICTURES, SIDE, CAPTION = 12, 64, "a disc, zork drawing"
SETTLED = 100  # steps; then the loss hardly falls any more

# The pocket style recipe without what the yardsticks lack: previews, checkpoints, EMA, probe, offset.
PLAIN = (
    "train.num_threads=1", "train.ema_decay=0", "schedule.min_lr=0", "preview.every=0",
    "checkpoints.keep_best=false", "data.trigger=zork", "objective.noise_offset=0",
)  # fmt: skip
# What diffusers' script trains when nothing else is said: rank 4 on the projections of attention.
DEFAULTS = (
    "adapter.rank=4", "adapter.conv_rank=0", r"adapter.targets=.*attn\d\.(to_[qkv]|to_out\.0)",
)  # fmt: skip
# And what it cannot: weigh the loss, drop captions, add a trigger word, scale by alpha.
SCRIPT = (*DEFAULTS, "objective.snr_gamma=none", "data.caption_dropout=0", "data.trigger=", "adapter.alpha=4")


@dataclass(frozen=True)
class Figure:
    """Of one whole process."""

    cpu: float  # seconds
    wall: float  # seconds
    losses: list[float]  # of every step


@dataclass(frozen=True)
class Race:
    """What is run.

    Args:
        commands: What `python` is called with, by contender; the run directory comes last.
        sets: Changes of the recipe.
        short, long: Steps.
    """

    commands: dict[str, list[str]]
    sets: Sequence[str]
    short: int
    long: int

    def recipe(self, steps: int) -> Recipe:
        """Of a run of so many steps."""
        sets = [*PLAIN, f"train.max_steps={steps}", f"checkpoints.every={steps}", *self.sets]
        return apply_sets(preset_by_name("pocket-style"), sets)

    def run(self, contender: str, steps: int, folder: Path, pictures: list[ManifestItem]) -> Figure:
        """One whole process with cold caches."""
        run = folder / f"{contender}-{steps}"
        for stale in (run, folder / "cache"):
            shutil.rmtree(stale, ignore_errors=True)
        rundir = write_run(run, BASE, pictures)
        rundir.file("recipe.json").write_text(self.recipe(steps).model_dump_json())
        variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, *self.commands[contender], str(run)]
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT, check=False)
        wall, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{contender} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Figure(cpu, wall, losses_of(rundir))


def losses_of(rundir: RunDir) -> list[float]:
    """Of every step: from our metric lines, else from what TensorBoard was told."""
    if lines := rundir.read_metrics():
        return [line["loss"] for line in lines]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = next(p for p in (rundir.file(OUT) / "logs", rundir.file("logs")) if p.is_dir())
    for file in place.rglob("events.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        if "loss" in events.Tags()["scalars"]:
            return [event.value for event in events.Scalars("loss")]
    raise AssertionError(f"no loss in {place}")


def compare(race: Race, figures: dict[tuple[str, int], list[Figure]]) -> dict[str, Any]:
    """Medians, and ours as a ratio to each other contender's."""

    def median(contender: str, steps: int, what: str) -> float:
        return statistics.median(getattr(figure, what) for figure in figures[contender, steps])

    out: dict[str, Any] = {}
    for contender in race.commands:
        whole, extra = median(contender, race.long, "cpu"), race.long - race.short
        step = (whole - median(contender, race.short, "cpu")) / extra
        settled = [loss for one in figures[contender, race.long] for loss in one.losses[SETTLED:]]
        out[contender] = {
            "run_cpu_s": round(whole, 2), "run_wall_s": round(median(contender, race.long, "wall"), 2),
            "step_cpu_ms": round(step * 1e3, 1),
            "start_cpu_s": round(median(contender, race.short, "cpu") - race.short * step, 2),
            "loss": round(statistics.fmean(settled), 5),
            "loss_error": round(statistics.stdev(settled) / math.sqrt(len(settled)), 5),
        }  # fmt: skip
    ours = out["ours"]
    for contender, theirs in out.items():
        if contender != "ours":
            names = ("run_cpu_s", "run_wall_s", "step_cpu_ms", "start_cpu_s")
            ratios = {name.rsplit("_", 1)[0]: round(theirs[name] / ours[name], 3) for name in names}
            apart = (ours["loss"] - theirs["loss"]) / math.hypot(ours["loss_error"], theirs["loss_error"])
            out[contender] = theirs | {"ratios": ratios, "loss_apart_in_errors": round(apart, 2)}
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--short", type=int, default=50)
    parser.add_argument("--long", type=int, default=400)
    parser.add_argument("--defaults", action="store_true", help="rank 4 on attention alone: see DEFAULTS")
    parser.add_argument("--script", type=Path, help="diffusers' train_dreambooth_lora.py, run beside ours")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    options = parser.parse_args()
    commands, sets = {"ours": ["-m", "trainers.run"]}, DEFAULTS if options.defaults else ()
    if options.script:
        commands["script"] = ["-m", "benchmarks.diffusers_script", str(options.script.resolve())]
        sets = SCRIPT
    else:
        commands["plain"] = ["-m", "benchmarks.plain_lora"]
    race = Race(commands, sets, options.short, options.long)
    figures: dict[tuple[str, int], list[Figure]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = draw_pictures(folder / "pictures", PICTURES, SIDE)
        if options.script:
            pictures = [replace(item, caption=CAPTION) for item in pictures]
        for _ in range(options.rounds):
            for contender in (*commands, *reversed(commands)):
                for steps in (race.short, race.long):
                    figure = race.run(contender, steps, folder, pictures)
                    figures.setdefault((contender, steps), []).append(figure)
                    if not options.json:
                        spent = f"cpu {figure.cpu:6.2f} s, wall {figure.wall:6.2f} s"
                        print(f"{contender:6} {steps:4d} steps: {spent}", flush=True)
    show(options, compare(race, figures))


def show(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print the outcome."""
    if options.json:
        conditions = {"rounds": options.rounds, "steps": [options.short, options.long],
                      "script": bool(options.script), "defaults": options.defaults,
                      "machine": platform.machine(), "cores": os.cpu_count()}  # fmt: skip
        print(json.dumps({"conditions": conditions, "contenders": found}, indent=1))
        return
    for contender, row in found.items():
        print(f"{contender}: {json.dumps(row)}")


if __name__ == "__main__":
    main()
