"""What this machine has shown: seconds per step and peak memory, per base, resolution and batch.

Kept in cache/speed.json: measured here, so a forecast can be honest about where its figure comes from.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from registry.errors import Damaged, StudioError
from registry.files import read_json, write_json
from registry.records import JSON, Run
from trainers.rundir import Status

if TYPE_CHECKING:
    from studio.workspace import Workspace

FILE = "speed.json"
MIN_STEPS = 5  # the first steps are slower than the rest


def key(base_hash: str, recipe: JSON) -> str:
    """What makes two runs equally fast, as far as we distinguish."""
    train: dict[str, Any] = recipe.get("train", {})
    shape = [train.get(k) for k in ("resolution", "batch_size", "accumulate", "gradient_checkpointing")]
    shape += train.get("resolutions") or []
    adapter, kept = recipe.get("adapter", {}), recipe.get("preservation", {})
    wanted = {"text": adapter.get("train_text_encoder"), "t5": adapter.get("train_t5")}
    shape += [name for name, trained in wanted.items() if trained] or ["unet"]
    if adapter.get("method", "lora") != "lora":
        shape.append(adapter["method"])
    if kept.get("mode") == "base_prediction":
        shape.append(f"base{kept.get('rows')}")
    return "-".join(str(part) for part in (base_hash[:16], *shape))


def remember(ws: "Workspace", run: Run, status: Status) -> None:
    """Keep the figures of a run that has trained a few steps."""
    if not status.seconds_per_step or status.step < MIN_STEPS:
        return
    known = _read(ws)
    known[key(run.base_hash, run.recipe)] = {
        "seconds_per_step": status.seconds_per_step,
        "memory": status.peak_memory,
        "run": run.id,
    }
    with suppress(StudioError):  # a memory aid: a full disk is complained of elsewhere
        write_json(ws.home / "cache" / FILE, known, durable=False)


def recall(ws: "Workspace", base_hash: str, recipe: JSON) -> JSON | None:
    """{"seconds_per_step", "memory", "run"} of the last such run here; None = never seen."""
    return _read(ws).get(key(base_hash, recipe))


def _read(ws: "Workspace") -> dict[str, JSON]:
    try:
        return read_json(ws.home / "cache" / FILE)
    except (FileNotFoundError, Damaged):
        return {}
