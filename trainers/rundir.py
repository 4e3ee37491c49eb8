"""Names and shapes of every file in a run directory; torch-free: the worker and the pages read it too.

    recipe.json     the frozen Recipe                     (launch writes, trainer reads)
    manifest.jsonl  one ManifestItem a line               (launch writes, trainer reads)
    env.json        RunEnv: the world around the run      (launch writes, trainer reads)
    process.json    identity of the trainer process       (worker writes)
    status.json     Status, replaced atomically           (trainer writes)
    metrics.jsonl   one optimizer step a line: step, loss, lr, ...
    memory.json     savings of memory, when it needed any (trainer writes; later attempts and branches read)
    accelerate.json how several processes are started on GPUs   (worker writes)
    heartbeat       touched at least every 2 s while the trainer lives
    log.txt         stdout and stderr of the trainer
    previews/       step-000000-p0.png ... and base-p0.png (without adapter); previews.jsonl names them
    tensorboard/    event files
    checkpoints/    step-000100/ {adapter.safetensors, state.safetensors, state.json, manifest.json};
                    state.json has step, loss (smoothed) and the figures of PROBES
    adapter.safetensors   the result, in diffusers layout with alpha in its metadata
    model/, model.safetensors   the result of a full fine-tune instead: a diffusers folder, and one file

Paths inside env.json and manifest.jsonl are relative to the run directory when they point into the
workspace, so that a workspace can be moved.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from registry.errors import Damaged
from registry.files import read_json, write_json
from registry.hashing import canonical_json, sha256_file

RECIPE = "recipe.json"
MANIFEST = "manifest.jsonl"
ENV = "env.json"
PROCESS = "process.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
MEMORY = "memory.json"
UNTRIED = "untried"  # in it: a failure found more savings, and no attempt was made with them yet
HEARTBEAT = "heartbeat"
LOG = "log.txt"
PREVIEWS = "previews"
PREVIEW_INDEX = "previews/previews.jsonl"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter.safetensors"
MODEL, MODEL_FILE = "model", "model.safetensors"  # of a full fine-tune
CHECKPOINT_MANIFEST = "manifest.json"
# Figures of `trainers.probe` by their names in metrics.jsonl and state.json.
PROBES = {"train": "probe_loss", "held_out": "probe_held_out", "prior": "probe_prior"}

READY, TAKEN = b"ready\n", b"taken\n"  # what a trainer that waits (`trainers.standby`) says to the worker
KEY_VARIABLE = "STUDIO_WORKSPACE_KEY"  # hex; signs checkpoint manifests; never on a command line


@dataclass(frozen=True, kw_only=True)
class ManifestItem:
    """One picture of the frozen data set."""

    image: str  # path, see module docstring
    pixel_hash: str
    width: int
    height: int
    caption: str
    name: str = ""  # as the person knows it, for messages
    mask: str = ""
    weight: float = 1.0  # per-sample loss weight (prior preservation)
    repeats: int = 1
    role: str = ""  # "class" or "regularisation": shows what is to be kept, see `trainers.priors`


@dataclass(frozen=True, kw_only=True)
class RunEnv:
    """Where the run finds what it needs, and what it ran with."""

    run_id: str
    name: str
    family: str
    base_location: str  # path or hub id
    base_kind: str  # "folder" | "file" | "hub"
    base_hash: str
    base_config: str = ""
    base_revision: str = ""
    cache: str = "cache"  # folder for latents and conditioning
    resume: bool = False  # start from the newest checkpoint that verifies
    parent: str = ""  # checkpoint folder to branch from
    versions: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the trainer is doing now. `state`: starting, running, stopped, finished or failed."""

    state: str
    # "class pictures", "loading", "compiling", "caching texts" (captions and prompts), "caching pictures",
    # "preview", "training", "saving"
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    step: int = 0
    steps: int = 0
    begun: int = 0  # steps that were done before this attempt
    loss: float | None = None  # smoothed over the last 20 steps
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    reason: str = ""  # of a failure: one line in the house form
    kind: str = ""  # of a failure: "nan", "oom", "input", "disk", "error"; "killed": another process
    best_step: int | None = None
    held_out: list[str] = field(default_factory=list[str])  # pictures that are never trained on, by name
    peak_memory: int = 0  # bytes: GPU when there is one, else RSS
    time: float = 0.0  # seconds since the epoch
    warnings: list[str] = field(default_factory=list[str])  # one line each, what a person should know


@dataclass(frozen=True)
class RunDir:
    """A run directory; every reader tolerates files that are not there yet."""

    path: Path

    def file(self, name: str) -> Path:
        """Path of one of the names above."""
        return self.path / name

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        return self.path / ADAPTER

    def read_env(self) -> RunEnv:
        """Env written at launch."""
        return RunEnv(**read_json(self.path / ENV))

    def write_env(self, env: RunEnv) -> None:
        """Replace env.json."""
        write_json(self.path / ENV, asdict(env))

    def read_status(self) -> Status | None:
        """Latest status, or None before the trainer's first word."""
        path = self.path / STATUS
        return Status(**read_json(path)) if path.exists() else None

    def write_status(self, status: Status) -> None:
        """Replace status.json atomically (without fsync: it is news, not a promise)."""
        write_json(self.path / STATUS, asdict(status), durable=False)

    def read_manifest(self, most: int | None = None) -> list[ManifestItem]:
        """The frozen pictures; the first `most`."""
        with (self.path / MANIFEST).open(encoding="utf-8") as lines:
            return [ManifestItem(**json.loads(line)) for line in islice(lines, most) if line.strip()]

    def resolve(self, path: str) -> Path:
        """Path from env or manifest -> real path."""
        return (self.path / path).resolve()

    def read_metrics(self, after_step: int = 0) -> list[dict[str, Any]]:
        """Metric lines with step > after_step; a torn last line is left out."""
        return list(read_lines(self.path / METRICS, after_step))

    def checkpoints(self) -> list[Path]:
        """Complete checkpoint folders, oldest first (not verified here)."""
        return sorted(p for p in (self.path / CHECKPOINTS).glob("step-*") if p.suffix != ".partial")

    def previews(self) -> list[dict[str, Any]]:
        """Index of preview pictures: {"step", "prompt", "file", "base"}."""
        return list(read_lines(self.path / PREVIEW_INDEX, after_step=-1))


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint at `step`."""
    return f"step-{step:06d}"


def checkpoint_step(folder: Path) -> int:
    """Inverse of `checkpoint_name`."""
    return int(folder.name.removeprefix("step-").removesuffix(".partial"))


def workspace_key() -> bytes:
    """Key that signs checkpoint manifests, from the environment; empty when a run is started by hand."""
    return bytes.fromhex(os.environ.get(KEY_VARIABLE, ""))


def write_manifest(folder: Path, step: int, key: bytes) -> None:
    """Write a checkpoint's manifest.json, as the last of its files.

    {"step", "files": {name: {"size", "sha256"}}, "hmac"}; the HMAC-SHA256 over the rest says that this
    workspace wrote the files, so that nothing foreign is resumed.
    """
    files = {
        file.name: {"size": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(folder.iterdir())
        if file.name != CHECKPOINT_MANIFEST
    }
    body = {"step": step, "files": files}
    write_json(folder / CHECKPOINT_MANIFEST, body | {"hmac": _sign(body, key)})


def verify_checkpoint(folder: Path, key: bytes, sha256: Callable[[Path], str] = sha256_file) -> bool:
    """Whether a checkpoint is complete, unchanged, and written by the workspace that has `key`.

    Args:
        folder: The checkpoint.
        key: Of the workspace.
        sha256: Hex digest of a file. Training goes on only from one whose files were read: the default.
    """
    try:
        body = read_json(folder / CHECKPOINT_MANIFEST)
        signature = body.pop("hmac")
        if body["step"] != checkpoint_step(folder) or not hmac.compare_digest(signature, _sign(body, key)):
            return False
        names = {file.name for file in folder.iterdir()} - {CHECKPOINT_MANIFEST}
        return names == set(body["files"]) and all(
            (folder / name).stat().st_size == facts["size"] and sha256(folder / name) == facts["sha256"]
            for name, facts in body["files"].items()
        )
    except (OSError, Damaged, KeyError, TypeError, AttributeError, ValueError):
        return False


def _sign(body: dict[str, Any], key: bytes) -> str:
    return hmac.new(key, canonical_json(body).encode(), hashlib.sha256).hexdigest()


def read_lines(path: Path, after_step: int = 0) -> Iterator[dict[str, Any]]:
    """JSON lines of `path` with step > after_step (or without a step); a torn line ends the reading."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            item = json.loads(line)
            if item.get("step", after_step + 1) > after_step:
                yield item
