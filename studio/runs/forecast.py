"""What a run will cost, said before it starts: from file headers and from what this machine has shown.

Nothing is loaded and nothing is made up: what is not known is None, and `notes` say where figures come from.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.errors import StudioError
from registry.formats.checkpoints import layers_of
from registry.formats.header import read_header
from registry.records import Base, Dataset
from studio.runs import speed
from trainers.families import FAMILIES, FamilyInfo
from trainers.recipe import AdapterSection, Recipe

if TYPE_CHECKING:
    from studio.workspace import Workspace

FP32 = 4  # bytes
STATE_COPIES = 4  # a checkpoint holds the adapter, its running mean and AdamW's two moments
LATENT_BYTES = 2 * FP32 / 64  # per pixel and channel: mean and deviation, 8x8 pixels a cell
CLIP_TOKENS, T5_TOKENS = 77, 512  # that a caption is encoded to, at most
LOG_BYTES = 400  # per step, metrics.jsonl and event file together
UNKNOWN_PER_RANK = 2**20  # parameters per rank when no header can be read: more than SDXL's attention needs

_LINEAR = re.compile(r"transformer_blocks|\.proj_(?:in|out)\.|\.(?:to_[qkv]|to_out\.0)\.")
_CONV = re.compile(r"\.conv[12]?\.|in_layers|out_layers|\.op\.")
_MODULATION = re.compile(r"\.norm[^.]*\.linear\.")  # of transformers; not adapted
_TEXT = re.compile(r"_proj\.|\.fc[12]\.")
_T5 = re.compile(r"SelfAttention\.[qkvo]\.|DenseReluDense\.w")


@dataclass(frozen=True)
class Forecast:
    """The cost of a run.

    Args:
        steps: Optimizer steps.
        minutes: Training time on this machine; None when nothing like it has run here.
        disk_bytes: What it will write, at most.
        memory_bytes: Peak memory of the last such run here; None when there was none.
        notes: How the figures came about, and what else is worth knowing; one sentence each.
    """

    steps: int
    minutes: float | None
    disk_bytes: int
    memory_bytes: int | None
    notes: tuple[str, ...] = ()


def forecast(ws: "Workspace", recipe: Recipe, base: Base, dataset: Dataset) -> Forecast:
    """The cost of training `recipe` on `base` with the pictures of `dataset`."""
    parameters, source = adapter_parameters(ws, recipe, base)
    seen = speed.recall(ws, base.weight_hash, recipe.model_dump(mode="json"))
    minutes = recipe.train.max_steps * float(seen["seconds_per_step"]) / 60 if seen else None
    train = recipe.train
    shown = train.max_steps * train.batch_size * train.accumulate * train.processes
    if recipe.preservation.mode == "class_pictures":
        shown //= 2  # every second one is a class picture
    full = recipe.adapter.method == "full"
    amount = f"{parameters / 1e6:.2f} million" if parameters >= 10_000 else f"{parameters:,}"
    notes = [f"{'What learns' if full else 'The adapter'} has {amount} parameters ({source})."]
    if seen:
        notes.append(f"Time and memory are those of run {seen['run']} on this machine.")
    else:
        notes.append("Time and memory are not known: nothing like it has run on this machine yet.")
    if dataset.image_count:
        notes.append(
            f"Each of the {dataset.image_count} pictures is shown {shown / dataset.image_count:.0f} times."
        )
    return Forecast(
        steps=train.max_steps,
        minutes=minutes,
        disk_bytes=_disk(recipe, dataset.image_count, parameters, FAMILIES[base.family])
        + (_frozen(ws, base, parameters) if full else 0),
        memory_bytes=int(seen["memory"]) if seen and seen["memory"] else None,
        notes=tuple(notes),
    )


def adapter_parameters(ws: "Workspace", recipe: Recipe, base: Base) -> tuple[int, str]:
    """How many parameters the adapter will have, and what that was computed from.

    A linear layer (out, in) gets rank * (in + out), a 3x3 convolution (out, in, 3, 3) rank * (9 in + out);
    other methods than LoRA see `_count`.
    """
    shapes = _shapes(ws, base) if base.kind != "hub" else {}
    adapter = recipe.adapter
    if not shapes:
        count = adapter.rank * UNKNOWN_PER_RANK
        return count, "a generous guess: the base's files cannot be read here"
    if adapter.method == "full":
        return _learning(adapter, shapes), "all weights of the base that learn"
    tokens, source = recipe.tokens, "from the shapes in the base's weight files"
    widths = (shape[1] for name, shape in shapes.items() if name.endswith("token_embedding.weight"))
    total = len(tokens.words) * tokens.vectors * sum(widths)
    if tokens.only:
        return total, source
    chosen = re.compile(adapter.targets) if adapter.targets else None
    for name, shape in shapes.items():
        component, _, path = name.partition(":")
        rank = _rank(recipe, component, path, shape, chosen)
        if rank and component != "text_encoder":
            module, blocks = path.removesuffix(".weight"), adapter.block_ranks.items()
            rank = next((given for pattern, given in blocks if re.fullmatch(pattern, module)), rank)
        total += _count(adapter, rank, shape[0], math.prod(shape[1:]))
    return total, source


def _learning(adapter: AdapterSection, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Values of the parts that a full fine-tune trains."""
    t5 = {name.partition("/")[0] for name in shapes if name.startswith("text_encoder:") and _T5.search(name)}
    total = 0
    for name, shape in shapes.items():
        part = name.partition("/")[0]
        of_text = adapter.train_t5 if part in t5 else adapter.train_text_encoder
        if of_text or not name.startswith("text_encoder:"):
            total += math.prod(shape)
    return total


def _frozen(ws: "Workspace", base: Base, parameters: int) -> int:
    """Bytes of what does not learn in the two results of a full fine-tune, a folder and a single file."""
    whole = sum(math.prod(shape) for shape in _shapes(ws, base).values())
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


def _rank(
    recipe: Recipe, component: str, path: str, shape: tuple[int, ...], chosen: re.Pattern[str] | None
) -> int:
    """The rank that a weight's module will get; 0 = none."""
    adapter = recipe.adapter
    if component == "text_encoder":
        wanted = (adapter.train_text_encoder and _TEXT.search(path)) or (
            adapter.train_t5 and _T5.search(path)
        )
        return adapter.text_encoder_rank if wanted and len(shape) == 2 else 0
    if chosen is not None:
        wanted = chosen.fullmatch(path.removesuffix(".weight"))
        return adapter.rank if wanted and len(shape) >= 2 else 0
    if len(shape) == 4 and shape[2] > 1:
        return adapter.conv_rank if _CONV.search(path) else 0
    wanted = _LINEAR.search(path) and not _MODULATION.search(path)
    return adapter.rank if len(shape) >= 2 and wanted else 0


def _shapes(ws: "Workspace", base: Base) -> dict[str, tuple[int, ...]]:
    """`component:path` -> shape of every weight of denoiser and text encoders, from headers alone.

    A single file's layers go by the names of diffusers' classes; what it lacks is in its folder of configs.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        place = ws.resolve(base.location)
        if base.kind == "file":
            for part, path, shape in layers_of(base.family, read_header(place).tensors):
                shapes[_key(part, f"{path}.weight")] = shape
            place = ws.resolve(base.config) if base.config else place
        info = FAMILIES[base.family]
        for part in (info.denoiser, *info.text_encoders):
            for file in place.glob(f"{part}/*.safetensors"):
                for name, tensor in read_header(file).tensors.items():
                    if name.endswith(".weight"):
                        shapes.setdefault(_key(part, name), tuple(tensor.shape))
    except (StudioError, OSError):
        return {}  # the trainer says what is wrong with it; a forecast only says it does not know
    return shapes


def _key(part: str, name: str) -> str:
    """Several text encoders may have layers of one name; their `text_model.` depends on the class."""
    if part.startswith("text_encoder"):
        return f"text_encoder:{part}/{name.removeprefix('text_model.')}"
    return f"unet:{name}"


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
