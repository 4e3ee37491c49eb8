"""A diffusers folder as one file: the names of the original Stable Diffusion checkpoints.

Names as in CompVis/stable-diffusion: ldm/modules/diffusionmodules/openaimodel.py (UNet) and model.py (VAE);
text encoders as CLIP of transformers or as OpenCLIP (open_clip/transformer.py), whichever the original used.
A prefix that ends in ".model." means OpenCLIP, where query, key and value lie in one matrix and
text_projection the other way round.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from registry.formats.checkpoints import weight_files
from registry.formats.header import TensorInfo, read_header

_SD = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
# Family -> component -> what stands before its names in a single file.
PREFIXES: dict[str, dict[str, str]] = {
    "sd15": {**_SD, "text_encoder": "cond_stage_model.transformer.text_model."},
    "sd21": {**_SD, "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        **_SD,
        "text_encoder": "conditioner.embedders.0.transformer.text_model.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
OPEN_CLIP_LAYERS = 23  # SD2 reads the last layer but one; transformers' model has no last one
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = (
    ("text_projection.weight", "text_projection"),
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
)


@dataclass(frozen=True)
class Piece:
    """A tensor of the single file and what it is made of.

    Args:
        name: In the single file.
        parts: (file, name there, what it is) of each, rows stacked.
        shape: Of the whole.
        transposed: The only part lies there the other way round.
    """

    name: str
    parts: tuple[tuple[Path, str, TensorInfo], ...]
    shape: tuple[int, ...]
    transposed: bool = False


def pieces_of(folder: Path, family: str) -> Iterator[Piece]:
    """The single file of a diffusers folder, tensor by tensor, from the headers of its files."""
    for component, prefix in PREFIXES[family].items():
        found = {
            name: Piece(name, ((file, name, info),), tuple(info.shape))
            for file in weight_files(folder / component)
            for name, info in read_header(file).tensors.items()
        }
        rename = _RENAMED.get(component, _text)
        for name, piece in rename(found, prefix).items():
            yield replace(piece, name=prefix + name)


def _unet(found: Mapping[str, Piece], _prefix: str) -> dict[str, Piece]:
    layers, attended = unet_shape(found)
    return {unet_name(name, layers, attended): piece for name, piece in found.items()}


def _vae(found: Mapping[str, Piece], _prefix: str) -> dict[str, Piece]:
    levels = vae_levels(found)
    made: dict[str, Piece] = {}
    for name, piece in found.items():
        flat = ".attentions." in name and len(piece.shape) == 2  # the original has 1 x 1 convolutions there
        made[vae_name(name, levels)] = replace(piece, shape=(*piece.shape, 1, 1)) if flat else piece
    return made


def _text(found: Mapping[str, Piece], prefix: str) -> dict[str, Piece]:
    plain = {name.removeprefix("text_model."): piece for name, piece in found.items()}
    if not prefix.endswith(".model."):
        return plain
    made: dict[str, Piece] = {}
    for name, piece in plain.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            three = [plain[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            parts = tuple(part for one in three for part in one.parts)
            rows = sum(one.shape[0] for one in three)
            piece = replace(piece, parts=parts, shape=(rows, *piece.shape[1:]))
        theirs = open_clip_name(name)
        turned = theirs == "text_projection"
        made[theirs] = replace(piece, shape=piece.shape[::-1], transposed=True) if turned else piece
    for name, copy in open_clip_copies(made):
        made[copy] = made[name]
    return made


_RENAMED = {"unet": _unet, "vae": _vae}


def unet_shape(names: Iterable[str]) -> tuple[int, set[int]]:
    """Residual blocks of a level, and the up blocks with attention, of a UNet with these names."""
    names = list(names)
    layers = 1 + _highest(names, r"down_blocks\.\d+\.resnets\.(\d+)")
    return layers, {int(m[1]) for name in names if (m := re.match(r"up_blocks\.(\d+)\.attentions", name))}


def vae_levels(names: Iterable[str]) -> int:
    """Levels of a VAE with these names."""
    return 1 + _highest(names, r"encoder\.down_blocks\.(\d+)")


def open_clip_name(name: str) -> str:
    """`encoder.layers.0.self_attn.q_proj.weight` -> `transformer.resblocks.0.attn.in_proj_weight`."""
    name = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
    for ours, theirs in OPEN_CLIP:
        name = name.replace(ours, theirs)
    return name


def open_clip_copies(names: Iterable[str]) -> list[tuple[str, str]]:
    """(name, name of its copy) of the layer that tools build and never read, see OPEN_CLIP_LAYERS."""
    names = list(names)
    last = _highest(names, r"transformer\.resblocks\.(\d+)")
    if last + 1 != OPEN_CLIP_LAYERS:
        return []
    layer = [name for name in names if name.startswith(f"transformer.resblocks.{last}.")]
    return [(name, name.replace(f".{last}.", f".{last + 1}.", 1)) for name in layer]


def unet_name(name: str, layers: int, attended: set[int]) -> str:
    """`down_blocks.0.resnets.0.conv1.weight` -> `input_blocks.1.0.in_layers.2.weight`.

    Args:
        name: In diffusers.
        layers: Residual blocks of a level on the way down.
        attended: Up blocks with attention, where the upsampler comes third instead of second.
    """
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    side, _, rest = name.partition(".")
    if side == "mid_block":
        part, index, inner = rest.split(".", 2)
        position = 1 if part == "attentions" else 2 * int(index)
        return f"middle_block.{position}.{_inside(part, inner)}"
    level, part, index, inner = rest.split(".", 3)
    block, step = int(level), layers + 1
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * step}.0.{inner.replace('conv', 'op')}"
    if part == "upsamplers":
        return f"output_blocks.{block * step + layers}.{2 if block in attended else 1}.{inner}"
    number = block * step + int(index) + (side == "down_blocks")
    blocks = "input_blocks" if side == "down_blocks" else "output_blocks"
    return f"{blocks}.{number}.{1 if part == 'attentions' else 0}.{_inside(part, inner)}"


def vae_name(name: str, levels: int) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.2.block.1.conv1.weight` (3 levels)."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    for ours, theirs in VAE_ATTENTION.items():
        name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    return re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)


def _inside(part: str, inner: str) -> str:
    """Names within a residual or attention block."""
    if part == "attentions":
        return inner
    head, _, tail = inner.partition(".")
    return f"{RESNET[head]}.{tail}"


def _highest(names: Iterable[str], pattern: str) -> int:
    """Largest number that the pattern finds."""
    return max(int(m[1]) for name in names if (m := re.match(pattern, name)))
