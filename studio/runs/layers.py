"""Which layers of a base a recipe changes, from headers and names alone: nothing is loaded.

Where the files cannot be read, as of a hub id, the families' tables of module names stand in.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from registry.errors import BadInput, StudioError
from registry.formats.checkpoints import layers_of, weight_files
from registry.formats.families import FORMATS, TEXT_ROOT
from registry.formats.header import read_header
from registry.records import Base
from trainers.families import FAMILIES
from trainers.recipe import AdapterSection, Recipe

if TYPE_CHECKING:
    from studio.workspace import Workspace

EXAMPLE = {"unet": "mid_block.attentions.0.proj_in", "transformer": "transformer_blocks.0.attn.to_q"}
BLOCKS, OTHERS = 64, 10  # numbers that are tried for the only index of a path, and for each of several

_LINEAR = re.compile(r"transformer_blocks|\.proj_(?:in|out)\.|\.(?:to_[qkv]|to_out\.0)\.")
_CONV = re.compile(r"\.conv[12]?\.|in_layers|out_layers|\.op\.")
_MODULATION = re.compile(r"\.norm[^.]*\.linear\.")  # of transformers; not adapted
_TEXT = re.compile(r"_proj\.|\.fc[12]\.")
_T5 = re.compile(r"SelfAttention\.[qkvo]\.|DenseReluDense\.w")


@dataclass(frozen=True)
class Weight:
    """One weight of a base.

    Args:
        part: Component: "unet", "text_encoder_2".
        name: In the component, without `text_model.`, which depends on the class: "mid_block.x.weight".
        shape: As in the file.
    """

    part: str
    name: str
    shape: tuple[int, ...]

    @property
    def of_text(self) -> bool:
        """Whether it is a text encoder's."""
        return self.part.startswith("text_encoder")

    @property
    def path(self) -> str:
        """Of its module, as patterns in recipes name it."""
        module = self.name.removesuffix(".weight")
        if not self.of_text:
            return module
        return f"{self.part}.{module if _T5.search(self.name) else TEXT_ROOT + module}"


def weights_of(ws: "Workspace", base: Base) -> list[Weight]:
    """Every weight of denoiser and text encoders, from headers alone; [] where they cannot be read.

    A single file's layers go by the names of diffusers' classes; what it lacks is in its folder of configs.
    """
    if base.kind == "hub":
        return []
    found: dict[tuple[str, str], Weight] = {}
    try:
        place = ws.resolve(base.location)
        if base.kind == "file":
            for layer in layers_of(base.family, read_header(place).tensors):
                _keep(found, layer.component, f"{layer.path}.weight", layer.shape)
            place = ws.resolve(base.config) if base.config else place
        info = FAMILIES[base.family]
        for part in (info.denoiser, *info.text_encoders):
            for file in weight_files(place / part):
                for name, tensor in read_header(file).tensors.items():
                    if name.endswith(".weight"):
                        _keep(found, part, name, tuple(tensor.shape))
    except (StudioError, OSError):
        return []  # the trainer says what is wrong with it; here it is only not known
    return list(found.values())


def t5_parts(weights: Iterable[Weight]) -> set[str]:
    """Components that are a T5."""
    return {weight.part for weight in weights if weight.of_text and _T5.search(weight.name)}


def rank_of(adapter: AdapterSection, weight: Weight) -> int:
    """The rank that a weight's module will get, per-block ranks apart; 0 = none."""
    name, shape = weight.name, weight.shape
    if weight.of_text:
        wanted = (adapter.train_text_encoder and _TEXT.search(name)) or (
            adapter.train_t5 and _T5.search(name)
        )
        return adapter.text_encoder_rank if wanted and len(shape) == 2 else 0
    if adapter.targets:
        wanted = re.fullmatch(adapter.targets, weight.path)
        return adapter.rank if wanted and len(shape) >= 2 else 0
    if len(shape) == 4 and shape[2] > 1:
        return adapter.conv_rank if _CONV.search(name) else 0
    wanted = _LINEAR.search(name) and not _MODULATION.search(name)
    return adapter.rank if len(shape) >= 2 and wanted else 0


def check_patterns(ws: "Workspace", recipe: Recipe, base: Base) -> None:
    """Refuse patterns that decide about no layer, as the trainer would later.

    Raises:
        BadInput: names the field, the pattern, and what paths look like.
    """
    adapter, rates = recipe.adapter, recipe.optimizer.block_lrs
    added = adapter.method != "full" and not recipe.tokens.only
    if not (rates or (added and (adapter.targets or adapter.block_ranks))):
        return
    example = f"paths look like {EXAMPLE[FAMILIES[base.family].denoiser]}"
    weights = weights_of(ws, base)
    if added and adapter.targets:
        paths = {weight.path for weight in weights if not weight.of_text and len(weight.shape) >= 2}
        pattern = re.compile(adapter.targets)
        if not any(pattern.fullmatch(path) for path in paths or _known(base.family, text=False)):
            raise BadInput("adapter.targets", f"{adapter.targets!r} matches no layer of this base", example)
    learning = [w.path for w in weights if (rank_of(adapter, w) if added else adapter.method == "full")]
    learning = learning or list(_known(base.family, text=True))
    if added:
        _all_decide("adapter.block_ranks", adapter.block_ranks, learning, example)
        learning = [path for path in learning if _decided(adapter.block_ranks, path) != 0]
        if not learning:
            raise BadInput("adapter.block_ranks", "leaves no layer", "give some of them a rank")
    _all_decide("optimizer.block_lrs", rates, learning, example)


def _keep(found: dict[tuple[str, str], Weight], part: str, name: str, shape: tuple[int, ...]) -> None:
    if part.startswith("text_encoder"):
        name = name.removeprefix(TEXT_ROOT)
    found.setdefault((part, name), Weight(part, name, shape))


def _decided(patterns: Mapping[str, float], path: str) -> float | None:
    """Value of the first pattern that matches."""
    return next((value for pattern, value in patterns.items() if re.fullmatch(pattern, path)), None)


def _all_decide(field: str, patterns: Mapping[str, float], paths: Iterable[str], example: str) -> None:
    open_ = {pattern: re.compile(pattern) for pattern in patterns}
    used: set[str] = set()
    for path in paths:
        first = next((pattern for pattern, regex in open_.items() if regex.fullmatch(path)), None)
        used |= {first} if first is not None else set()
        if len(used) == len(open_):
            return
    for pattern in open_:
        if pattern not in used:
            raise BadInput(field, f"{pattern!r} decides about no layer of this base", example)


def _known(family: str, *, text: bool) -> Iterator[str]:
    """Paths that a base of the family may have; with the text encoders', as recipes name them."""
    form = FORMATS[family]
    for part, grammar in form.grammars.items():
        if part == form.denoiser:
            yield from _numbered(grammar.templates)
        elif text:
            yield from (f"{part}.{path}" for path in _numbered(grammar.templates))


@cache
def _numbered(templates: tuple[str, ...]) -> tuple[str, ...]:
    paths: list[str] = []
    for template in templates:
        several, grown = template.count("#") > 1, [template]
        for _ in range(template.count("#")):
            numbers = range(OTHERS if several else BLOCKS)
            grown = [path.replace("#", str(number), 1) for path in grown for number in numbers]
        paths += grown
    return tuple(paths)
