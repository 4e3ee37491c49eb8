"""A diffusers folder as one file under the names of the original Stable Diffusion checkpoints.

Names as in CompVis/stable-diffusion: ldm/modules/diffusionmodules/openaimodel.py (UNet) and model.py (VAE);
text encoders as CLIP of transformers or as OpenCLIP (open_clip/transformer.py), whichever the original used.
Which part goes where is said by `Family.single_file`; a prefix that ends in ".model." means OpenCLIP.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]

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


def original_tensors(folder: Path, prefixes: Mapping[str, str]) -> Tensors:
    """All weights of a diffusers folder by their original names.

    Args:
        folder: The diffusers folder.
        prefixes: Component -> what stands before its names in a single file.
    """
    tensors: Tensors = {}
    for component, prefix in prefixes.items():
        values = component_weights(folder / component)
        if component == "unet":
            values = _unet(values)
        elif component == "vae":
            values = _vae(values)
        else:
            values = {name.removeprefix("text_model."): value for name, value in values.items()}
            values = _open_clip(values) if prefix.endswith(".model.") else values
        tensors |= {prefix + name: value.contiguous() for name, value in values.items()}
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component; those in half precision when there are no others."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if ".fp16." not in file.name] or files


def component_weights(folder: Path) -> Tensors:
    """All tensors of a component."""
    return {name: value for file in weight_files(folder) for name, value in load_file(file).items()}


def _unet(values: Tensors) -> Tensors:
    layers = 1 + _highest(values, r"down_blocks\.\d+\.resnets\.(\d+)")
    attended = {int(m[1]) for name in values if (m := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    return {unet_name(name, layers, attended): value for name, value in values.items()}


def _vae(values: Tensors) -> Tensors:
    levels = 1 + _highest(values, r"encoder\.down_blocks\.(\d+)")
    found: Tensors = {}
    for name, value in values.items():
        if ".attentions." in name and value.ndim == 2:
            value = value[..., None, None]  # the original has 1 x 1 convolutions there
        found[vae_name(name, levels)] = value
    return found


def _open_clip(values: Tensors) -> Tensors:
    """Query, key and value lie in one matrix, text_projection the other way round."""
    found: Tensors = {}
    for name, value in values.items():
        if ".q_proj." in name:
            parts = [values[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            name = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
            value = torch.cat(parts)
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        for ours, theirs in OPEN_CLIP:
            name = name.replace(ours, theirs)
        found[name] = value.T if name == "text_projection" else value
    last = _highest(found, r"transformer\.resblocks\.(\d+)")
    if last + 1 == OPEN_CLIP_LAYERS:  # tools build 24 and read the 23rd
        copies = {n: v for n, v in found.items() if n.startswith(f"transformer.resblocks.{last}.")}
        found |= {n.replace(f".{last}.", f".{last + 1}.", 1): v.clone() for n, v in copies.items()}
    return found


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
