"""Ours against the usual way (`plain_lora.py`): whole runs and cost per step, as a ratio in one go.

Contenders alternate (A B B A, repeated) in fresh processes with one thread each, so a machine that is busy
or slow is so for both. CPU seconds are what counts; wall time is shown. Caches are cold: every run of ours
encodes the pictures and captions itself. The long run has the pocket recipe's own 400 steps. The cost of a
step is the slope between a short and a long run.

    python benchmarks/train_vs_plain.py [--rounds 1] [--short 50] [--long 400] [--defaults]
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.runs import draw_pictures, write_run  # noqa: E402 - a script: the path comes first
from trainers.recipe import Recipe, apply_sets, preset_by_name  # noqa: E402

BASE = ROOT / "studio" / "pocket" / "model"
COMMANDS = {"ours": ["-m", "trainers.run"], "plain": [str(ROOT / "benchmarks" / "plain_lora.py")]}


# What diffusers' script trains when nothing else is said: rank 4 on the projections of attention.
DEFAULTS = (
    "adapter.rank=4", "adapter.conv_rank=0", r"adapter.targets=.*attn\d\.(to_[qkv]|to_out\.0)",
)  # fmt: skip


def recipe(steps: int, more: Sequence[str] = ()) -> Recipe:
    """The pocket style recipe without what the yardstick lacks: previews, checkpoints, EMA, probe."""
    sets = [
        f"train.max_steps={steps}", "train.num_threads=1", "train.ema_decay=0", "schedule.min_lr=0",
        "preview.every=0", f"checkpoints.every={steps}", "checkpoints.keep_best=false", "data.trigger=zork",
    ]  # fmt: skip
    return apply_sets(preset_by_name("pocket-style"), [*sets, *more])


def measure(
    contender: str, steps: int, folder: Path, pictures: list, more: Sequence[str]
) -> tuple[float, float]:
    """CPU and wall seconds of one whole process."""
    run = folder / f"{contender}-{steps}"
    for stale in (run, folder / "cache"):
        shutil.rmtree(stale, ignore_errors=True)
    write_run(run, BASE, pictures)
    (run / "recipe.json").write_text(recipe(steps, more).model_dump_json())
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *COMMANDS[contender], str(run)],
        capture_output=True,
        text=True,
        env=variables,
        cwd=ROOT,
    )
    wall, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--short", type=int, default=50)
    parser.add_argument("--long", type=int, default=400)
    parser.add_argument(
        "--defaults", action="store_true", help="what the script trains by default: see DEFAULTS"
    )
    options = parser.parse_args()
    more = DEFAULTS if options.defaults else ()
    results: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = draw_pictures(folder / "pictures", 12, 64)
        for _ in range(options.rounds):
            for contender in ("ours", "plain", "plain", "ours"):
                for steps in (options.short, options.long):
                    figure = measure(contender, steps, folder, pictures, more)
                    results.setdefault((contender, steps), []).append(figure)
                    print(f"{contender:5s} {steps:4d} steps: cpu {figure[0]:6.2f} s, wall {figure[1]:6.2f} s")
    median = {
        key: tuple(statistics.median(column) for column in zip(*values, strict=True))
        for key, values in results.items()
    }
    extra = options.long - options.short
    step = {c: (median[c, options.long][0] - median[c, options.short][0]) / extra for c in COMMANDS}
    cpu, wall = (median["plain", options.long][n] / median["ours", options.long][n] for n in (0, 1))
    print(f"whole run of {options.long} steps: {cpu:.2f}x less CPU, {wall:.2f}x less wall time")
    print(f"a step: {step['plain'] * 1e3:.0f} ms plain, {step['ours'] * 1e3:.0f} ms ours (CPU): "
          f"{step['plain'] / step['ours']:.2f}x")  # fmt: skip
    print(json.dumps({"cpu_ratio": round(cpu, 3), "wall_ratio": round(wall, 3),
                      "step_ratio": round(step["plain"] / step["ours"], 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
