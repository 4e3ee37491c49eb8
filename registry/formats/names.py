"""Module names of the denoisers and text encoders, as grammars.

kohya's names (a prefix and the path with "." -> "_") cannot be undone by themselves: `attn1_to_q` hides one
dot and keeps one underscore. A grammar lists the shapes that paths have, with `#` for an index, so the way
back is unique, for any number of blocks and layers.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property
from typing import Generic, TypeVar

T = TypeVar("T")
REMEMBERED = 32_768  # names, with their answer some 10 MB; the largest adapters have 3,000
LONGEST = 250  # characters of a remembered name; no model class has longer ones


class TemplateIndex(Generic[T]):
    """Things by templates in which `#` stands for an index.

    Looked up by what stays of a name when all its numbers are taken out, so that few patterns are tried.
    A pattern is compiled when it is first tried: all of them would cost every process 0.25 s at its start.
    """

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[str, T]]] = {}

    def add(self, template: str, value: T) -> None:
        """Let names of the form `template` find `value`; what was added first counts."""
        self._rows.setdefault(_NUMBERS.sub("#", template), []).append((template, value))

    def find(self, text: str) -> tuple[T, tuple[str, ...]] | None:
        """The value for `text` and its indices."""
        for template, value in self._rows.get(_NUMBERS.sub("#", text), ()):
            if found := _compiled(template).fullmatch(text):
                return value, found.groups()
        return None


class Grammar:
    """The module paths of one model class.

    Args:
        templates: Dotted paths in which `#` stands for an index: `down_blocks.#.resnets.#.conv1`.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self.templates = tuple(templates)

    def knows(self, path: str) -> bool:
        """Whether `path` (dotted) is a module of this model class."""
        return self._dotted.find(path) is not None

    def from_underscores(self, name: str) -> str | None:
        """Dotted path of an underscored name, or None when it is no module of this model class."""
        found = self._underscored.find(name)
        return filled(*found) if found else None

    @cached_property
    def _dotted(self) -> TemplateIndex[str]:
        return _index((template, template) for template in self.templates)

    @cached_property
    def _underscored(self) -> TemplateIndex[str]:
        return _index((template.replace(".", "_"), template) for template in self.templates)


class _Answers(dict[str, T]):
    """Answers of a function of a name; when there are too many, it begins anew."""

    def __init__(self, function: Callable[[str], T]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, name: str) -> T:
        answer = self._function(name)
        if len(name) <= LONGEST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[name] = answer
        return answer


def remembered(function: Callable[[str], T]) -> Callable[[str], T]:
    """`function` of a name, with its answers kept: the files of a tool all have the same thousand names.

    A known one is looked up by the dict itself, without a call in Python.
    """
    return _Answers(function).__getitem__


@cache
def _compiled(template: str) -> re.Pattern[str]:
    return re.compile(index_pattern(template))


def index_pattern(template: str) -> str:
    """Regular expression of a template, with a group for every index."""
    return re.escape(template).replace(r"\#", "(0|[1-9][0-9]{0,3})")


def filled(template: str, indices: Iterable[str]) -> str:
    """`template` with its indices in place."""
    if "#" not in template:
        return template
    pieces = template.split("#")
    for number, index in enumerate(indices):
        pieces[number] += index
    return "".join(pieces)


_NUMBERS = re.compile(r"\d+|#")


def _index(rows: Iterable[tuple[str, str]]) -> TemplateIndex[str]:
    index = TemplateIndex[str]()
    for template, value in rows:
        index.add(template, value)
    return index


def _unet() -> Iterator[str]:
    """`diffusers.UNet2DConditionModel` as SD1.5 and SD2.1 use it: every linear and convolution."""
    yield from ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
    attention = (f"attn{i}.to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out.0"))
    block = (*attention, "ff.net.0.proj", "ff.net.2")
    inner = (
        *(f"attentions.#.transformer_blocks.#.{leaf}" for leaf in block),
        *(f"attentions.#.{leaf}" for leaf in ("proj_in", "proj_out")),
        *(f"resnets.#.{leaf}" for leaf in ("conv1", "conv2", "conv_shortcut", "time_emb_proj")),
    )
    norms = (
        *(f"attentions.#.transformer_blocks.#.norm{i}" for i in (1, 2, 3)),
        *(
            f"{part}.#.{leaf}"
            for part, leaf in (("attentions", "norm"), ("resnets", "norm1"), ("resnets", "norm2"))
        ),
    )
    for name, extra in (("down_blocks.#", "downsamplers.#.conv"), ("up_blocks.#", "upsamplers.#.conv")):
        yield from (f"{name}.{leaf}" for leaf in (*inner, extra, *norms))
    yield from (f"mid_block.{leaf}" for leaf in (*inner, *norms))
    yield "conv_norm_out"


def _clip() -> Iterator[str]:
    """`transformers.CLIPTextModel`, with the `text_model.` of files (newer versions drop it in memory)."""
    for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield f"text_model.encoder.layers.#.self_attn.{leaf}"
    for leaf in ("mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"):
        yield f"text_model.encoder.layers.#.{leaf}"
    yield "text_model.final_layer_norm"


def _t5() -> Iterator[str]:
    """`transformers.T5EncoderModel`."""
    yield from (f"encoder.block.#.layer.0.SelfAttention.{leaf}" for leaf in "qkvo")
    yield from (f"encoder.block.#.layer.1.DenseReluDense.{leaf}" for leaf in ("wi", "wi_0", "wi_1", "wo"))
    yield from (f"encoder.block.#.layer.{i}.layer_norm" for i in (0, 1))
    yield "encoder.final_layer_norm"


def _ends(*embedders: str) -> Iterator[str]:
    """What lies outside the blocks of a diffusion transformer."""
    yield from ("context_embedder", "norm_out.linear", "proj_out")
    yield from (f"time_text_embed.{name}_embedder.linear_{i}" for name in embedders for i in (1, 2))


def _joint_block() -> Iterator[str]:
    """A block in which text and picture attend to each other, as SD3 and FLUX have it."""
    block = "transformer_blocks.#"
    yield from (f"{block}.attn.to_{leaf}" for leaf in ("q", "k", "v", "out.0", "add_out"))
    yield from (f"{block}.attn.add_{leaf}_proj" for leaf in "qkv")
    yield from (f"{block}.{norm}.linear" for norm in ("norm1", "norm1_context"))
    yield from (f"{block}.{ff}.net.{leaf}" for ff in ("ff", "ff_context") for leaf in ("0.proj", "2"))
    yield from (f"{block}.attn.norm_{leaf}" for leaf in ("q", "k", "added_q", "added_k"))


def _sd3() -> Iterator[str]:
    """`diffusers.SD3Transformer2DModel`; `attn2` is in the first blocks of SD3.5 medium."""
    yield "pos_embed.proj"
    yield from _ends("timestep", "text")
    yield from _joint_block()
    yield from (
        f"transformer_blocks.#.attn2.{leaf}"
        for leaf in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
    )


def _flux() -> Iterator[str]:
    """`diffusers.FluxTransformer2DModel`; `guidance_embedder` is in FLUX.1-dev."""
    yield "x_embedder"
    yield from _ends("timestep", "text", "guidance")
    yield from _joint_block()
    single = ("to_q", "to_k", "to_v", "norm_q", "norm_k")
    yield from (f"single_transformer_blocks.#.attn.{leaf}" for leaf in single)
    yield from (f"single_transformer_blocks.#.{leaf}" for leaf in ("norm.linear", "proj_mlp", "proj_out"))


SD_UNET = Grammar(_unet())
SDXL_UNET = Grammar([*_unet(), "add_embedding.linear_1", "add_embedding.linear_2"])
SD3_TRANSFORMER = Grammar(_sd3())
FLUX_TRANSFORMER = Grammar(_flux())
CLIP_TEXT = Grammar(_clip())
T5_TEXT = Grammar(_t5())
