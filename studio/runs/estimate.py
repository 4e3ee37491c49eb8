"""Memory and time of a run that nothing like has run here: from shapes, a table of factors, and this machine.

    memory on a GPU = weights + what learns (value, gradient, optimizer, mean) + activations
    memory on a CPU = the libraries + the same at fp32
    seconds a step  = a fixed part (operations are started one by one) + arithmetic / speed

Activations and arithmetic are those of the published sizes, counted on the meta device, in proportion to
latent cells, pictures, and the square root of the denoiser's size (memory) or its size (arithmetic). The
factors for the CPU were measured on the pocket bases (docs/benchmarks.md).
"""

import json
import math
import os
import subprocess
import time
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from registry.records import Base
from studio.runs.device import has_gpu, physical_cores
from studio.runs.layers import weights_of
from trainers.families import FAMILIES
from trainers.fitting import (
    BY_ITSELF,
    CHECKPOINTED,
    WEIGHT_BYTES,
    first_checkpointing,
    first_keeping,
    first_sharing,
    only_denoiser,
    shared_part,
)
from trainers.recipe import Recipe

if TYPE_CHECKING:
    from studio.workspace import Workspace

GIB = 2**30
LIBRARIES = 0.44 * GIB  # torch, diffusers, transformers and peft in memory, before anything is loaded
KEPT_CPU = 3.3  # by how much activations on a CPU, fp32 and not freed at once, are larger than the table's
CELL = 8  # pixels a side of a latent cell of the published bases
FIXED_CPU, FIXED_GPU = 0.10, 0.06  # seconds of a step that do not depend on its size
SMALL_STEP = 8 * 128**2  # pixels of a step below which the trainer takes one thread (trainers.setup)
SLOWEST, FASTEST = 10e9, 150e9  # operations a second of one core that are believed
EFFICIENCY = 0.25  # share of the speed of a large product that a whole step reaches
GPU_FLOPS = 60e12  # a second that a step reaches on a card we know nothing of
USABLE = 0.94  # of a GPU's memory; the rest is its driver's
STATE = {
    "adamw8bit": 0.5,
    "lion8bit": 0.25,
    "paged_adamw8bit": 0.5,
    "lion": 1.0,
    "adafactor": 0.1,
    "sgd": 0.0,
}
STREAMED = 0.15  # of the denoiser's weights are on the GPU: three of its largest blocks, and what has none
PACKED = ("lora", "rslora")  # methods that compute in 16 bits from fp32 values (trainers.packed)
STAND_INS = 6  # bytes of these for each value: itself, its gradient, and that gathered
ADAMW_STATE = 2.0  # values that the optimizer keeps for each that learns

Kind = Literal["measured", "scaled", "estimated"]


@dataclass(frozen=True)
class Shape:
    """One family at its published size; activations and arithmetic of one picture at its native side."""

    parameters: float  # of the denoiser
    side: int  # pixels
    plain: float  # GiB of activations, bf16, by which those of a CPU are scaled
    checkpointed: float  # GiB with gradient checkpointing
    forward: float  # 1e12 operations of one pass
    on_gpu: tuple[float, float]  # the same two under a GPU's autocast (benchmarks.step_operations --kept)


TABLE = {
    "sd15": Shape(0.8595e9, 512, 0.75, 0.14, 0.80, (1.12, 0.17)),
    "sd21": Shape(0.8659e9, 768, 1.9, 0.32, 1.94, (2.52, 0.39)),
    "sdxl": Shape(2.5675e9, 1024, 5.2, 0.45, 6.76, (7.46, 0.60)),
    "sd35": Shape(2.243e9, 1024, 7.0, 0.30, 10.8, (9.67, 0.34)),
    "flux1": Shape(11.901e9, 1024, 21.6, 1.53, 74.4, (31.18, 1.55)),
}
BACKWARD, RECOMPUTED = 2.1, 2.95  # a step's arithmetic in forward passes, plain and with checkpointing


@dataclass(frozen=True)
class Fit:
    """Savings of memory, as the trainer's ladder would take them (trainers.ladder)."""

    checkpointing: float = 0.0  # share of the blocks
    small_state: bool = False
    pieces: int = 1
    base: str = "whole"  # how its weights are kept, where the recipe leaves that open
    streamed: bool = False
    sharded: bool = False  # the processes hold the base together


@dataclass(frozen=True)
class Size:
    """What the figures of a base are made of."""

    denoiser: int  # parameters
    text: int  # of the text encoders
    cell: int  # pixels a side of a latent cell


def size_of(ws: "Workspace", base: Base) -> Size:
    """From the headers of its files; the published size where they cannot be read."""
    info, shape = FAMILIES[base.family], TABLE[base.family]
    weights = weights_of(ws, base)
    denoiser = sum(math.prod(weight.shape) for weight in weights if weight.part == info.denoiser)
    text = sum(math.prod(weight.shape) for weight in weights if weight.of_text)
    return Size(denoiser or int(shape.parameters), text, _cell(ws, base))


def memory(recipe: Recipe, family: str, size: Size, learning: int, piece: int, fit: Fit) -> int:
    """Peak in bytes: of the GPU's memory, or of the process without one.

    Args:
        recipe: The recipe.
        family: Of the base.
        size: Of the base.
        learning: Values that learn.
        piece: Pixels that go through the network at once.
        fit: Savings in force.
    """
    gpu = has_gpu()
    width = 4 if not gpu or recipe.train.precision == "fp32" else 2
    trained_text = recipe.adapter.train_text_encoder or recipe.adapter.train_t5
    weights = size.denoiser * WEIGHT_BYTES.get(_kept(recipe, fit), width)
    if gpu and (fit.streamed or recipe.train.base_streaming == "on"):
        weights *= STREAMED
    elif fit.sharded or recipe.train.shares == "on":
        weights *= shared_part(recipe.train.processes)
    weights += size.text * width if trained_text else 0
    state = 0.5 if fit.small_state else STATE.get(recipe.optimizer.name, ADAMW_STATE)
    if not gpu and (recipe.optimizer.name == "auto" or recipe.optimizer.name.endswith("8bit")):
        state = ADAMW_STATE  # there are none on a CPU
    mean = 1 if recipe.train.ema_decay else 0
    learned = learning * 4 * (2 + state + mean)
    if width == 2 and recipe.adapter.method in PACKED:
        learned += learning * STAND_INS
    activations = activations_of(recipe, family, size, piece / fit.pieces, fit)
    return int((0 if gpu else LIBRARIES) + weights + learned + activations)


def _kept(recipe: Recipe, fit: Fit) -> str:
    """How the base's weights are kept."""
    wanted = recipe.train.base_weights
    return fit.base if wanted == "auto" else wanted


def activations_of(recipe: Recipe, family: str, size: Size, piece: float, fit: Fit) -> float:
    """Bytes that a pass keeps for the way back, of `piece` pixels."""
    shape = TABLE[family]
    plain, checkpointed = shape.on_gpu if has_gpu() else (shape.plain, shape.checkpointed)
    whole = plain + _checkpointed(recipe, fit) * (checkpointed - plain)
    cells = piece / size.cell**2 / (shape.side / CELL) ** 2
    width = math.sqrt(size.denoiser / shape.parameters)
    return whole * GIB * cells * width * (1.0 if has_gpu() else KEPT_CPU)


def _checkpointed(recipe: Recipe, fit: Fit) -> float:
    """Share of the blocks that are computed again."""
    train = recipe.train
    return max(fit.checkpointing, train.checkpointed_blocks if train.gradient_checkpointing else 0.0)


def seconds(recipe: Recipe, family: str, size: Size, pixels: int, fit: Fit = Fit()) -> float:
    """Seconds a step takes, of `pixels` in all."""
    shape = TABLE[family]
    passes = BACKWARD + _checkpointed(recipe, fit) * (RECOMPUTED - BACKWARD)
    cells = pixels / size.cell**2 / (shape.side / CELL) ** 2
    work = shape.forward * 1e12 * passes * cells * size.denoiser / shape.parameters
    if has_gpu():
        return FIXED_GPU * recipe.train.accumulate + work / GPU_FLOPS
    piece = recipe.train.batch_size * recipe.train.sizes[-1] ** 2
    threads = recipe.train.num_threads or (1 if piece < SMALL_STEP else physical_cores())
    return FIXED_CPU * recipe.train.accumulate + work / (core_speed() * EFFICIENCY * threads)


def fits(recipe: Recipe, family: str, size: Size, learning: int, piece: int) -> tuple[Fit | None, str]:
    """The first savings with which the run fits into this machine, and why; None when none does."""
    room, what = room_here(recipe.train.processes)
    pieces = [2**k for k in range(1, 9) if 2**k <= recipe.train.batch_size]
    first = first_fit(recipe, size)
    small = replace(first, checkpointing=1.0, small_state=True)
    shares = [share for share in CHECKPOINTED if share > _checkpointed(recipe, first)]
    ladder = [first, *(replace(first, checkpointing=share) for share in shares), small]
    ladder += [replace(small, pieces=count) for count in pieces]
    if only_denoiser(recipe):
        if recipe.train.shares == "auto" and has_gpu() and first == Fit():
            ladder.append(replace(ladder[-1], sharded=True))
        if recipe.train.base_weights == "auto":
            kinds = ("whole", *BY_ITSELF)
            ladder += [
                replace(ladder[-1], base=kept, sharded=False) for kept in kinds[kinds.index(first.base) + 1 :]
            ]
        if recipe.train.base_streaming == "auto" and has_gpu():
            ladder.append(replace(ladder[-1], streamed=True, sharded=False))
    for fit in ladder:
        need = memory(recipe, family, size, learning, piece, fit)
        if need <= room:
            return fit, f"{need / GIB:.1f} GiB of {room / GIB:.1f} GiB {what}"
    least = memory(recipe, family, size, learning, piece, ladder[-1])
    return None, f"it needs {least / GIB:.1f} GiB at least, and there are {room / GIB:.1f} GiB {what}"


def first_fit(recipe: Recipe, size: Size) -> Fit:
    """How the trainer begins: a base that would fill a GPU is loaded as finely as leaves room."""
    train, room = recipe.train, room_here(recipe.train.processes)[0]
    if not has_gpu():
        return Fit(first_checkpointing(train, size.denoiser, gpu=False))
    if recipe.adapter.method == "full":
        return Fit()
    width = 4 if train.precision == "fp32" else 2
    if first_sharing(train, size.denoiser, width, int(room / USABLE)):
        return Fit(train.shares == "auto", sharded=train.shares == "auto")
    kept, streamed = first_keeping(train, size.denoiser, width, int(room / USABLE))
    base = kept if train.base_weights == "auto" else "whole"
    return Fit(base=base, streamed=streamed and train.base_streaming == "auto")


@cache
def room_here(processes: int) -> tuple[int, str]:
    """Bytes that each of a trainer's processes may have, and of what."""
    if has_gpu() and (total := _gpu_memory(processes)):
        return int(total * USABLE), "on the GPU"
    import psutil

    return int(psutil.virtual_memory().total * 0.9), "of memory"


@cache
def core_speed() -> float:
    """Operations a second of one core in a large product of fp32 matrices; measured once a process, 0.1 s."""
    import numpy as np

    from studio.blas import one_thread

    one_thread()
    matrix = np.ones((384, 384), np.float32)
    best = math.inf
    for _ in range(6):
        started = time.thread_time()  # of this thread alone: other work takes turns with it
        np.matmul(matrix, matrix)
        best = min(best, time.thread_time() - started)
    return min(max(2 * 384**3 / max(best, 1e-9), SLOWEST), FASTEST)


def _gpu_memory(processes: int) -> int:
    """Bytes of the smallest GPU that so many processes use, as its driver says; 0 = it does not."""
    command = ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, timeout=5, check=True, text=True).stdout
        sizes = {uuid: int(size) * 2**20 for uuid, size in (line.split(", ") for line in said.splitlines())}
        return min(_visible(sizes)[:processes])
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def _visible(sizes: dict[str, int]) -> list[int]:
    """Sizes of the GPUs by uuid, as far as CUDA_VISIBLE_DEVICES shows them, in its order."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")
    found = [
        size
        for name in filter(None, chosen)
        for place, (uuid, size) in enumerate(sizes.items())
        if name == str(place) or (name.startswith("GPU-") and uuid.startswith(name))
    ]
    return found or [*sizes.values()]


def _cell(ws: "Workspace", base: Base) -> int:
    """Pixels a side of a latent cell: two for each halving of the autoencoder."""
    if base.kind == "hub":
        return CELL
    return _halvings(str(ws.resolve(base.config or base.location) / "vae" / "config.json"))


@lru_cache(maxsize=32)
def _halvings(config: str) -> int:
    try:
        with open(config, encoding="utf-8") as stream:  # noqa: PTH123 - the argument is text for the cache
            said: dict[str, Any] = json.load(stream)
        return 2 ** (len(said["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return CELL
