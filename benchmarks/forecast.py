"""Forecasts against what runs then take: seconds of training and peak memory, at several settings.

    python -m benchmarks.forecast [--only NAME] [--steps 40] [--json]
    python -m benchmarks.forecast --raw          what a probe of each shows, without a forecast

Each setting gets a fresh workspace: a forecast from nothing, a probe, a forecast from the probe, the run. The
run is the trainer itself; its seconds are the sum of those of its steps.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from registry.records import Base, Dataset
from studio.datasets.ingest import create_dataset
from studio.pocket.pictures import demo_set
from studio.runs import probe as probing
from studio.runs.forecast import forecast
from studio.runs.probe import probe
from studio.workspace import Workspace
from tests.support.painted import encoded
from trainers.recipe import Recipe, apply_sets, preset

# name -> (base, changes to its style preset)
SETTINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pocket, 4 at 64 px": ("pocket", ()),
    "pocket, 16 at 64 px": ("pocket", ("train.batch_size=16",)),
    "pocket, 4 at 96 px": ("pocket", ("train.resolution=96", "data.upscale=true")),
    "pocket-xl, 4 at 64 px": ("pocket-xl", ()),
}
TUNED: dict[str, tuple[str, tuple[str, ...]]] = {  # factors were found on these
    "pocket, 8 at 64 px": ("pocket", ("train.batch_size=8",)),
    "pocket, 32 at 64 px": ("pocket", ("train.batch_size=32",)),
    "pocket, 4 at 128 px": ("pocket", ("train.resolution=128", "data.upscale=true")),
    "pocket-xl, 8 at 64 px": ("pocket-xl", ("train.batch_size=8",)),
    "pocket-sd35, 4 at 64 px": ("pocket-sd35", ()),
}


def prepared(folder: Path, base_name: str, sets: tuple[str, ...]) -> tuple[Workspace, Recipe, Base, Dataset]:
    """A fresh workspace with the demo's pictures."""
    import random

    ws = Workspace.open(folder)
    rng = random.Random(0)
    files = [(f"{n}.png", encoded(pair[0], rng, 95)) for n, pair in enumerate(demo_set("style", 24, 0))]
    dataset = create_dataset(ws, "neon", files, trigger="neonsign").dataset
    base = ws.catalog.get(Base, base_name)
    return ws, apply_sets(preset(base.family, "style", base.name), list(sets)), base, dataset


def measure(name: str, base_name: str, sets: tuple[str, ...], steps: int, *, raw: bool) -> dict[str, Any]:
    """One setting from nothing to the end of its run."""
    folder = Path(tempfile.mkdtemp())
    try:
        ws, recipe, base, dataset = prepared(folder, base_name, sets)
        recipe = apply_sets(recipe, [f"train.max_steps={steps}"])
        nothing = None if raw else forecast(ws, recipe, base, dataset)
        seen = probe(ws, recipe, base, dataset)
        row: dict[str, Any] = {
            "setting": name,
            "probe_s_per_step": round(seen.seconds, 4),
            "probe_mb": seen.memory / 1e6,
        }
        if raw:
            return row
        after = forecast(ws, recipe, base, dataset)
        probing.STEPS = steps
        ran = probe(ws, recipe, base, dataset)
        probing.STEPS = 6
        assert nothing is not None
        row |= {
            "run_seconds": round(ran.seconds * steps, 1),
            "run_mb": round(ran.memory / 1e6),
            "from_nothing": _off(nothing, ran.seconds * steps, ran.memory),
            "from_probe": _off(after, ran.seconds * steps, ran.memory),
        }
        return row
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _off(cost: Any, seconds: float, memory: int) -> dict[str, Any]:
    """By how much a forecast is off, in percent of what was measured."""
    time, peak = cost.time, cost.peak
    return {
        "time": f"{time.value * 60:.1f} s ({time.kind}, {100 * (time.value * 60 / seconds - 1):+.0f} %)",
        "memory": f"{peak.value / 1e6:.0f} MB ({peak.kind}, {100 * (peak.value / memory - 1):+.0f} %)",
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = SETTINGS | TUNED if options.raw else SETTINGS
    for name, (base, sets) in chosen.items():
        if options.only in name:
            row = measure(name, base, sets, options.steps, raw=options.raw)
            print(json.dumps(row))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
