"""Module names of the denoisers and text encoders, as grammars.

kohya's names (a prefix and the path with "." -> "_") cannot be undone by themselves: `attn1_to_q` hides one
dot and keeps one underscore. A grammar lists the shapes that paths have, with `#` for an index, so the way
back is unique, for any number of blocks and layers.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property


class Grammar:
    """The module paths of one model class.

    Args:
        templates: Dotted paths in which `#` stands for an index: `down_blocks.#.resnets.#.conv1`.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self.templates = tuple(templates)

    def knows(self, path: str) -> bool:
        """Whether `path` (dotted) is a module of this model class."""
        return self._dotted.fullmatch(path) is not None

    def from_underscores(self, name: str) -> str | None:
        """Dotted path of an underscored name, or None when it is no module of this model class."""
        for template, pattern in self._underscored:
            found = pattern.fullmatch(name)
            if found:
                indices = iter(found.groups())
                return re.sub("#", lambda _, i=indices: next(i), template)
        return None

    @cached_property
    def _dotted(self) -> re.Pattern[str]:
        return re.compile("|".join(index_pattern(template) for template in self.templates))

    @cached_property
    def _underscored(self) -> list[tuple[str, re.Pattern[str]]]:
        return [(t, re.compile(index_pattern(t.replace(".", "_")))) for t in self.templates]


def index_pattern(template: str) -> str:
    """Regular expression of a template, with a group for every index."""
    return re.escape(template).replace(r"\#", "(0|[1-9][0-9]{0,3})")


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
    for name, extra in (("down_blocks.#", "downsamplers.#.conv"), ("up_blocks.#", "upsamplers.#.conv")):
        yield from (f"{name}.{leaf}" for leaf in (*inner, extra))
    yield from (f"mid_block.{leaf}" for leaf in inner)


def _clip() -> Iterator[str]:
    """`transformers.CLIPTextModel`, with the `text_model.` of files (newer versions drop it in memory)."""
    for leaf in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield f"text_model.encoder.layers.#.self_attn.{leaf}"
    for leaf in ("fc1", "fc2"):
        yield f"text_model.encoder.layers.#.mlp.{leaf}"


def _t5() -> Iterator[str]:
    """`transformers.T5EncoderModel`."""
    yield from (f"encoder.block.#.layer.0.SelfAttention.{leaf}" for leaf in "qkvo")
    yield from (f"encoder.block.#.layer.1.DenseReluDense.{leaf}" for leaf in ("wi", "wi_0", "wi_1", "wo"))


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


def _sd3() -> Iterator[str]:
    """`diffusers.SD3Transformer2DModel`; `attn2` is in the first blocks of SD3.5 medium."""
    yield "pos_embed.proj"
    yield from _ends("timestep", "text")
    yield from _joint_block()
    yield from (f"transformer_blocks.#.attn2.to_{leaf}" for leaf in ("q", "k", "v", "out.0"))


def _flux() -> Iterator[str]:
    """`diffusers.FluxTransformer2DModel`; `guidance_embedder` is in FLUX.1-dev."""
    yield "x_embedder"
    yield from _ends("timestep", "text", "guidance")
    yield from _joint_block()
    single = ("attn.to_q", "attn.to_k", "attn.to_v", "norm.linear", "proj_mlp", "proj_out")
    yield from (f"single_transformer_blocks.#.{leaf}" for leaf in single)


SD_UNET = Grammar(_unet())
SDXL_UNET = Grammar([*_unet(), "add_embedding.linear_1", "add_embedding.linear_2"])
SD3_TRANSFORMER = Grammar(_sd3())
FLUX_TRANSFORMER = Grammar(_flux())
CLIP_TEXT = Grammar(_clip())
T5_TEXT = Grammar(_t5())
