"""What a run will cost, said before it starts: from file headers and from what this machine has shown.

Nothing is loaded. A figure is measured (an equal run or probe was here), scaled (from one of another size) or
estimated (from shapes, `estimate`); each says which, and why.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from registry.errors import several
from registry.records import Base, Dataset, Run
from studio.runs import estimate, speed
from studio.runs.device import has_gpu
from studio.runs.estimate import Kind
from studio.runs.layers import Weight, rank_of, t5_parts, weights_of
from trainers.families import FAMILIES, FamilyInfo
from trainers.fitting import BITS, CHECKPOINTED, only_denoiser
from trainers.recipe import AdapterSection, Recipe

if TYPE_CHECKING:
    from studio.workspace import Workspace

FP32 = 4  # bytes
STATE_COPIES = 4  # a checkpoint holds the adapter, its running mean and AdamW's two moments
LATENT_BYTES = 2 * FP32 / 64  # per pixel and channel: mean and deviation, 8x8 pixels a cell
CLIP_TOKENS, T5_TOKENS = 77, 512  # that a caption is encoded to, at most
LOG_BYTES = 400  # per step, metrics.jsonl and event file together
MEASURED = "Measured by {} on this machine."  # by the same for time and memory: said once
UNKNOWN_PER_RANK = 2**20  # parameters per rank when no header can be read: more than SDXL's attention needs


@dataclass(frozen=True)
class Forecast:
    """The cost of a run.

    Args:
        steps: Optimizer steps.
        disk_bytes: What it will write, at most.
        time: Minutes of training.
        start: Minutes before the first step and after the last; None while no such run was seen here.
        peak: Bytes on the GPU, or of the process where there is none.
        ram: Bytes of the machine's own memory.
        fit: Which savings of memory the run will need here, and why.
        notes: What else is worth knowing; one sentence each.
    """

    steps: int
    disk_bytes: int
    time: "Figure"
    start: "Figure | None"
    peak: "Figure"
    ram: "Figure"
    fit: str
    notes: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Where time and memory come from, each sentence once."""
        return tuple(dict.fromkeys(figure.reason for figure in (self.time, self.peak, self.ram)))


@dataclass(frozen=True)
class Figure:
    """A figure of a forecast.

    Args:
        value: In the unit of its field.
        kind: "measured", "scaled" or "estimated".
        reason: Where it comes from, one sentence.
    """

    value: float
    kind: Kind
    reason: str


def figure_words(figure: Figure | None, words: "Callable[[Any], str]") -> str:
    """ "about 12 min (scaled)"; "not known yet" for None."""
    if figure is None:
        return "not known yet"
    about = "" if figure.kind == "measured" else "about "
    return f"{about}{words(figure.value)} ({figure.kind})"


def forecast(
    ws: "Workspace", recipe: Recipe, base: Base, dataset: Dataset, regularisation: Dataset | None = None
) -> Forecast:
    """The cost of training `recipe` on `base` with the pictures of `dataset`, and others shown in turn."""
    parameters, source = adapter_parameters(ws, recipe, base)
    train = recipe.train
    shown = train.max_steps * train.batch_size * train.accumulate * train.processes
    others = regularisation.image_count if regularisation else 0
    if others or recipe.preservation.mode == "class_pictures":
        shown //= 2  # every second one is a picture of what is kept
    full = recipe.adapter.method == "full"
    amount = f"{parameters / 1e6:.2f} million" if parameters >= 10_000 else f"{parameters:,}"
    notes = [f"{'What learns' if full else 'The adapter'} has {amount} parameters ({source})."]
    figures = figures_of(ws, recipe, base, parameters)
    notes += _showings(dataset.image_count, shown, others)
    return Forecast(
        steps=train.max_steps,
        disk_bytes=_disk(recipe, dataset.image_count + others, parameters, FAMILIES[base.family])
        + (_frozen(ws, base, parameters) if full else 0),
        notes=tuple(notes),
        **figures,
    )


def figures_of(ws: "Workspace", recipe: Recipe, base: Base, learning: int) -> dict[str, Any]:
    """The fields of `Forecast` that say where they come from: time, start, peak, ram, fit."""
    near = speed.near(ws, base.weight_hash, recipe)
    pixels, piece = speed.pixels_of(recipe)
    size, steps, where = estimate.size_of(ws, base), recipe.train.max_steps, f"{base.family} on this machine"
    fit, why = estimate.fits(recipe, base.family, size, learning, piece)
    first = estimate.first_fit(recipe, size)
    taken = fit or first
    guess = estimate.memory(recipe, base.family, size, learning, piece, taken)
    if not near:
        minutes = estimate.seconds(recipe, base.family, size, pixels, taken) * steps / 60
        reason = f"From the size of {where}; a probe of a few steps measures it."
        peak = Figure(guess, "estimated", "From the shapes in the base's files and a table of factors.")
        time, start = Figure(minutes, "estimated", reason), None
    else:
        name = _called(ws, near[0])
        time = _scaled_time(near, name, pixels, steps)
        peak = _scaled_memory(near[0], name, recipe, base, size, learning, pixels)
        known = [one.start for one in near if one.start]
        start = (
            Figure(known[0] / 60, time.kind, "As long as last time; more when pictures are new.")
            if known
            else None
        )
    ram = Figure(
        estimate.LIBRARIES + 4 * size.denoiser, "estimated", "Libraries, and the base as it is loaded."
    )
    return {
        "time": time,
        "start": start,
        "peak": peak,
        "ram": ram if has_gpu() else peak,
        "fit": _fit(fit, why, recipe, first),
    }


def _called(ws: "Workspace", seen: "speed.Seen") -> str:
    """What figures come from, for the reason of a forecast."""
    if seen.run == speed.PROBE:
        return "a probe"
    run = ws.catalog.find(Run, seen.run)
    return f"run {run.name}" if run else "a run since removed"


def _scaled_time(near: "Sequence[speed.Seen]", name: str, pixels: int, steps: int) -> Figure:
    """Minutes from the nearest figures: a line through two sizes, or one size and a part that stays."""
    first = near[0]
    other = next((one for one in near[1:] if one.pixels != first.pixels), None)
    if first.pixels == pixels:
        return Figure(first.seconds * steps / 60, "measured", MEASURED.format(name))
    if other is not None:
        slope = max(0.0, (other.seconds - first.seconds) / (other.pixels - first.pixels))
        each = max(0.2 * first.seconds, first.seconds + slope * (pixels - first.pixels))
        return Figure(each * steps / 60, "scaled", f"From {name} and another of other sizes here.")
    fixed = estimate.FIXED_GPU if has_gpu() else estimate.FIXED_CPU
    stays = min(fixed, 0.8 * first.seconds)
    each = stays + (first.seconds - stays) * pixels / first.pixels
    return Figure(each * steps / 60, "scaled", f"From {name} here, by pixels a step; a probe measures it.")


def _scaled_memory(
    first: "speed.Seen",
    name: str,
    recipe: Recipe,
    base: Base,
    size: "estimate.Size",
    learning: int,
    pixels: int,
) -> Figure:
    """The nearest figure, with what this size needs in place of what that one does, each with the savings
    that a GPU makes it take."""
    piece = speed.pixels_of(recipe)[1]
    if (first.piece, first.pixels) == (piece, pixels) and first.memory:
        return Figure(first.memory, "measured", MEASURED.format(name))

    def need(at: int) -> int:
        fit = estimate.fits(recipe, base.family, size, learning, at)[0] if has_gpu() else None
        taken = fit or estimate.first_fit(recipe, size)
        return estimate.memory(recipe, base.family, size, learning, at, taken)

    value = max(0.5 * first.memory, first.memory + need(piece) - need(first.piece))
    return Figure(value, "scaled", f"The peak of {name} here, with the activations of this size.")


def _fit(fit: "estimate.Fit | None", why: str, recipe: Recipe, first: "estimate.Fit") -> str:
    """Which savings the run will need, in words; `first` are those that it begins with."""
    if fit is None:
        todo = "lower train.resolution or train.batch_size, or choose a smaller base"
        if only_denoiser(recipe) and recipe.train.base_weights not in ("auto", "nf4"):
            todo = f"set train.base_weights=auto, {todo}"
        return f"It will not fit: {why}. {todo[0].upper()}{todo[1:]}."
    savings: list[str] = []
    train = recipe.train
    if fit.checkpointing > (train.checkpointed_blocks if train.gradient_checkpointing else 0.0):
        savings.append(f"gradient checkpointing{CHECKPOINTED[fit.checkpointing]} (steps take longer)")
    if fit.small_state:
        savings.append("an 8-bit optimizer")
    if fit.pieces > 1:
        savings.append(f"batches in {fit.pieces} pieces")
    if fit.sharded:
        savings.append(f"the base's weights shared by the {recipe.train.processes} processes")
    if fit.base != "whole":
        savings.append(f"the base's weights rounded to {BITS[fit.base]} bits")
    if fit.streamed:
        savings.append("the base's weights coming from the main memory (steps take longer)")
    if not savings:
        return f"It fits as it is: {why}."
    by_itself = has_gpu() or train.dry_run == "on" or fit == first  # as `trainers.dry_run` has it
    who = "The trainer sees to it" if by_itself else "Set it in the recipe, without a GPU nothing is tried"
    return f"It fits with {', '.join(savings)}: {why}. {who}."


def adapter_parameters(ws: "Workspace", recipe: Recipe, base: Base) -> tuple[int, str]:
    """How many parameters the adapter will have, and what that was computed from.

    A linear layer (out, in) gets rank * (in + out), a 3x3 convolution (out, in, 3, 3) rank * (9 in + out);
    other methods than LoRA see `_count`.
    """
    weights, adapter = weights_of(ws, base), recipe.adapter
    if not weights:
        count = adapter.rank * UNKNOWN_PER_RANK
        return count, "a generous guess: the base's files cannot be read here"
    if adapter.method == "full":
        return _learning(adapter, weights), "all weights of the base that learn"
    tokens, source = recipe.tokens, "from the shapes in the base's weight files"
    widths = (weight.shape[1] for weight in weights if weight.name.endswith("token_embedding.weight"))
    total = len(tokens.words) * tokens.vectors * sum(widths)
    if tokens.only:
        return total, source
    for weight in weights:
        rank = rank_of(adapter, weight)
        if rank and adapter.block_ranks:
            blocks = adapter.block_ranks.items()
            rank = next((given for pattern, given in blocks if re.fullmatch(pattern, weight.path)), rank)
        total += _count(adapter, rank, weight.shape[0], math.prod(weight.shape[1:]))
    return total, source


def _showings(pictures: int, shown: int, others: int) -> list[str]:
    if not pictures:
        return []
    each = f"Each of the {pictures} pictures" if pictures > 1 else "The picture"
    notes = [f"{each} is shown {several(round(shown / pictures), 'time')}."]
    if shown < pictures:
        notes = [f"It ends before {each[0].lower()}{each[1:]} was shown once."]
    if others:
        one = "the regularisation picture" if others == 1 else f"one of {others} regularisation pictures"
        notes.append(f"Every second showing is {one}.")
    return notes


def _learning(adapter: AdapterSection, weights: Sequence[Weight]) -> int:
    """Values of the parts that a full fine-tune trains."""
    t5 = t5_parts(weights)
    return sum(
        math.prod(weight.shape)
        for weight in weights
        if not weight.of_text or (adapter.train_t5 if weight.part in t5 else adapter.train_text_encoder)
    )


def _frozen(ws: "Workspace", base: Base, parameters: int) -> int:
    """Bytes of what does not learn in the two results of a full fine-tune, a folder and a single file."""
    whole = sum(math.prod(weight.shape) for weight in weights_of(ws, base))
    return 2 * FP32 * max(0, whole - parameters)


def _count(adapter: AdapterSection, rank: int, rows: int, columns: int) -> int:
    """Values that a file holds of one weight (rows, columns); lokr: about, it depends on their divisors."""
    if not rank:
        return 0
    low = rank * (rows + columns)
    if adapter.method == "dora":
        return low + rows
    if adapter.method in ("loha", "pissa"):  # two pairs; PiSSA's start is saved with it
        return 2 * low
    if adapter.method == "oft":
        return columns * (adapter.oft_block - 1) // 2
    if adapter.method == "lokr":
        a, b = (adapter.lokr_factor if adapter.lokr_factor > 0 else math.isqrt(n) for n in (rows, columns))
        return a * b + min(rank * (rows // a + columns // b), rows * columns // (a * b))
    return low


def _disk(recipe: Recipe, pictures: int, parameters: int, info: FamilyInfo) -> int:
    adapter = parameters * FP32
    checkpoints = recipe.checkpoints.keep + int(recipe.checkpoints.keep_best) + 1  # one while it is written
    train, preview = recipe.train, recipe.preview
    classes = recipe.preservation.count if recipe.preservation.mode == "class_pictures" else 0
    text = (CLIP_TOKENS + (T5_TOKENS if info.flow else 0)) * info.cross_attention_dim * FP32
    drawn = (train.max_steps // preview.every + 1) * max(1, len(preview.prompts)) if preview.every else 0
    data = recipe.data
    crops = data.crop_variants if data.crop == "random" else 1
    pixels = sum(size**2 for size in train.sizes) * crops * (1 + data.flip)
    texts = data.caption_variants if data.shuffle_tags or data.tag_dropout else 1
    return int(
        2 * adapter  # in the run directory and among the adapters
        + checkpoints * STATE_COPIES * adapter
        + (pictures + classes) * (pixels * LATENT_BYTES * info.latent_channels + texts * text)
        + (drawn + classes) * train.sizes[-1] ** 2 * 3
        + train.max_steps * LOG_BYTES
    )
