"""Run directories for tests: generated pictures, a manifest, a recipe, an environment."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from studio.runs.executors import MODULE
from tests.support.forked import Forked
from trainers.families import FAMILIES
from trainers.recipe import Recipe
from trainers.rundir import KEY_VARIABLE, ManifestItem, RunDir, RunEnv

ROOT = Path(__file__).parents[2]
KEY = "5c" * 32
COLOURS = ("red", "green", "blue", "orange", "purple", "teal", "black", "pink")

TOY = {
    "adapter": {"rank": 4, "alpha": 2.0},
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "objective": {"snr_gamma": 5.0},
    "data": {"bucket_step": 8, "caption_dropout": 0.25},
    "train": {"max_steps": 6, "batch_size": 2, "resolution": 32, "num_threads": 1, "seed": 7},
    "checkpoints": {"every": 2, "keep": 2},
    "preview": {"every": 0, "steps": 2},
    "log": {"tensorboard": False},
}


def draw_pictures(folder: Path, count: int = 5, size: int = 40) -> list[ManifestItem]:
    """`count` pictures of one shape each, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    items: list[ManifestItem] = []
    for index in range(count):
        picture = Image.new("RGB", (size, size), "white")
        left = 4 + 2 * index
        ImageDraw.Draw(picture).ellipse((left, 6, left + 16, 30), fill=COLOURS[index % len(COLOURS)])
        path = folder / f"picture-{index}.png"
        picture.save(path)
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        caption = f"a {COLOURS[index % len(COLOURS)]} disc"
        items.append(
            ManifestItem(
                image=str(path), pixel_hash=digest, width=size, height=size, caption=caption, name=path.name
            )
        )
    return items


def recipe(changes: Mapping[str, object] | None = None, family: str = "sd15") -> Recipe:
    """The toy recipe with dotted overrides."""
    table = {"family": family, "goal": "style", **{name: dict(section) for name, section in TOY.items()}}
    for section in ("schedule", "preservation", "tokens"):
        table.setdefault(section, {})
    table.setdefault("schedule", {})
    if FAMILIES[family].flow:
        del table["objective"]["snr_gamma"]
    for key, value in (changes or {}).items():
        section, _, name = key.partition(".")
        table[section][name] = value
    return Recipe.model_validate(table)


def write_run(
    folder: Path,
    base: Path,
    items: list[ManifestItem],
    changes: Mapping[str, object] | None = None,
    *,
    family: str = "sd15",
    **env: object,
) -> RunDir:
    """A run directory that `trainers.run` can train; the cache lies beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    rundir = RunDir(folder)
    (folder / "recipe.json").write_text(recipe(changes, family).model_dump_json())
    lines = [json.dumps(item.__dict__) for item in items]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    facts = {"run_id": folder.name, "name": folder.name, "family": family, "base_location": str(base)}
    facts |= {"base_kind": "folder", "base_hash": "", "cache": str(folder.parent / "cache")}
    rundir.write_env(RunEnv(**(facts | env)))
    return rundir


def resume(rundir: RunDir) -> None:
    """Let the next start go on from the newest checkpoint."""
    rundir.write_env(replace(rundir.read_env(), resume=True))


def environment(**more: str) -> dict[str, str]:
    """Of a trainer process: one thread, no network, the test's key."""
    return {
        KEY_VARIABLE: KEY,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        **more,
    }


class Trainer(Forked):
    """`python -m trainers.run DIR` in a session of its own; output goes to its log.txt."""

    def __init__(self, rundir: RunDir, **more: str) -> None:
        with rundir.file("log.txt").open("ab") as log:
            super().__init__(
                MODULE, [str(rundir.path)], env=os.environ | environment(**more), stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self, timeout: float | None = 120) -> int:
        """Exit code."""
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait_for_step(self, rundir: RunDir, step: int) -> None:
        """Until the step is in the metrics, or the trainer is gone."""
        while self.poll() is None:
            if any(line["step"] >= step for line in rundir.read_metrics()):
                return
            time.sleep(0.005)


def start_trainer(rundir: RunDir, **more: str) -> Trainer:
    """Start the trainer of `rundir`; output goes to its log.txt."""
    return Trainer(rundir, **more)


def train(rundir: RunDir, **more: str) -> int:
    """Start the trainer and wait for its exit code."""
    return Trainer(rundir, **more).wait()
