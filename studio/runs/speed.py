"""What this machine has shown: seconds per step and peak memory, per base, resolution and batch.

Kept in cache/speed.json: measured here, by runs and by probes, so a forecast can be honest about where its
figures come from. Where nothing equal has run, something near it is scaled.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from registry.errors import Damaged, StudioError
from registry.files import read_json, write_json
from registry.records import JSON, TRAINING, Job, Run
from trainers.recipe import Recipe
from trainers.rundir import Status

if TYPE_CHECKING:
    from studio.workspace import Workspace

FILE = "speed.json"
MIN_STEPS = 5  # the first steps are slower than the rest
PROBE = "probe"  # in place of a run's id


@dataclass(frozen=True)
class Seen:
    """What one run or probe showed.

    Args:
        seconds: A step.
        memory: Peak in bytes: of the GPU when there is one, else of the process; 0 = not known.
        pixels: Of all pictures that go through the network in one step.
        piece: Of those that go through it at once.
        run: Id of the run, or "probe".
        start: Seconds before the first step and after the last; 0 = not known.
    """

    seconds: float
    memory: int
    pixels: int
    piece: int
    run: str
    start: float = 0.0


def key(base_hash: str, recipe: JSON) -> str:
    """What makes two runs equally fast, as far as we distinguish."""
    train: dict[str, Any] = recipe.get("train", {})
    shape = [train.get(k) for k in ("resolution", "batch_size", "accumulate")] + [_checkpointing(train)]
    shape += train.get("resolutions") or []
    return "-".join(str(part) for part in (base_hash[:16], *shape, *_way(recipe)))


def alike(base_hash: str, recipe: JSON) -> str:
    """What two runs share of which one's figures can be scaled to the other's."""
    checkpointing = _checkpointing(recipe.get("train", {}))
    return "-".join(str(part) for part in (base_hash[:16], checkpointing, *_way(recipe)))


def _checkpointing(train: dict[str, Any]) -> Any:
    """Off, on, or the share of the blocks."""
    on, share = train.get("gradient_checkpointing"), train.get("checkpointed_blocks", 1.0)
    return share if on and share < 1 else on


def _way(recipe: JSON) -> list[str]:
    """What learns, and how."""
    adapter, kept = recipe.get("adapter", {}), recipe.get("preservation", {})
    wanted = {"text": adapter.get("train_text_encoder"), "t5": adapter.get("train_t5")}
    way = [name for name, trained in wanted.items() if trained] or ["unet"]
    if adapter.get("method", "lora") != "lora":
        way.append(adapter["method"])
    train = recipe.get("train", {})
    if (base := train.get("base_weights", "auto")) not in ("auto", "whole"):
        way.append(base)
    if train.get("compile") == "on":
        way.append("compiled")
    if train.get("base_streaming") == "on":
        way.append("streamed")
    if train.get("base_sharding") == "on":
        way.append("shared")
    if kept.get("mode") == "base_prediction":
        way.append(f"base{kept.get('rows')}")
    return way


def pixels_of(recipe: Recipe) -> tuple[int, int]:
    """Pixels through the network in one step, and at once."""
    train = recipe.train
    piece = round(train.batch_size * fmean(size * size for size in train.sizes))
    return piece * train.accumulate, train.batch_size * train.sizes[-1] ** 2


def remember(ws: "Workspace", run: Run, status: Status) -> None:
    """Keep the figures of a run whose last attempt has trained a few steps."""
    steps = status.step - status.begun
    if not status.seconds_per_step or steps < MIN_STEPS:
        return
    begun = run.started_at.timestamp() if run.started_at is not None else 0.0
    trained = steps * status.seconds_per_step
    start = (time.time() - begun - trained) if begun and run.step == status.step else 0.0
    _keep(ws, run.base_hash, Recipe.model_validate(run.recipe), status, run.id, max(0.0, start))


def taken(ws: "Workspace", run: Run) -> float | None:
    """Seconds from start to end, all attempts of the run together; None while it goes on.

    Of attempts older than this count only the last one is known.
    """
    if run.started_at is None or run.ended_at is None:
        return None
    jobs = ws.catalog.list(Job, kind=TRAINING, subject_id=run.id)
    known = [float(job.result["seconds"]) for job in jobs if "seconds" in job.result]
    return sum(known) if known else (run.ended_at - run.started_at).total_seconds()


def remember_probe(ws: "Workspace", base_hash: str, recipe: Recipe, status: Status, took: float) -> Seen:
    """Keep the figures of a few steps that took `took` seconds from start to end."""
    start = max(0.0, took - status.step * (status.seconds_per_step or 0.0))
    _keep(ws, base_hash, recipe, status, PROBE, start)
    return near(ws, base_hash, recipe)[0]


def near(ws: "Workspace", base_hash: str, recipe: Recipe) -> list[Seen]:
    """What was seen of runs that differ in resolution and batch alone, the nearest first."""
    wanted, pixels = alike(base_hash, recipe.model_dump(mode="json")), pixels_of(recipe)[0]
    found = [
        Seen(
            float(one["seconds_per_step"]), int(one["memory"] or 0), int(one["pixels"]), int(one["piece"]),
            str(one["run"]), float(one.get("start", 0.0)),
        )
        for one in _read(ws).values()
        if one.get("alike") == wanted and one.get("pixels")
    ]  # fmt: skip
    return sorted(found, key=lambda one: max(one.pixels, pixels) / min(one.pixels, pixels))


def _keep(ws: "Workspace", base_hash: str, recipe: Recipe, status: Status, run: str, start: float) -> None:
    known, frozen = _read(ws), recipe.model_dump(mode="json")
    pixels, piece = pixels_of(recipe)
    known[key(base_hash, frozen)] = {
        "seconds_per_step": status.seconds_per_step,
        "memory": status.peak_memory,
        "run": run,
        "alike": alike(base_hash, frozen),
        "pixels": pixels,
        "piece": piece,
        "start": round(start, 2),
    }
    with suppress(StudioError):  # a memory aid: a full disk is complained of elsewhere
        write_json(ws.home / "cache" / FILE, known, durable=False)


def _read(ws: "Workspace") -> dict[str, JSON]:
    try:
        return read_json(ws.home / "cache" / FILE)
    except (FileNotFoundError, Damaged):
        return {}
