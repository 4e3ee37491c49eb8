"""A diffusers folder as one file under the names of the original Stable Diffusion checkpoints.

Names as in CompVis/stable-diffusion: ldm/modules/diffusionmodules/openaimodel.py (UNet) and model.py (VAE).
"""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_checkpoint(folder: Path, path: Path, layers: int = 1, **metadata: str) -> Path:
    """Write UNet, VAE and text encoder of a diffusers folder into one file.

    Args:
        folder: The diffusers folder; its UNet has `layers` residual blocks a level.
        path: The file.
        layers: `layers_per_block` of the UNet.
        metadata: Of the file.
    """
    tensors: dict[str, Any] = {}
    unet = weights(folder / "unet")
    attended = {int(m[1]) for name in unet if (m := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    for name, value in unet.items():
        tensors["model.diffusion_model." + unet_name(name, layers, attended)] = value
    vae = weights(folder / "vae")
    levels = 1 + max(int(m[1]) for n in vae if (m := re.match(r"encoder\.down_blocks\.(\d+)", n)))
    for name, value in vae.items():
        if ".attentions." in name and value.ndim == 2:
            value = value[..., None, None]  # the original has 1 x 1 convolutions there
        tensors["first_stage_model." + vae_name(name, levels)] = value
    for name, value in weights(folder / "text_encoder").items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata or None)
    return path


def weights(folder: Path) -> dict[str, Any]:
    """All tensors of a component."""
    return load_file(next(folder.glob("*.safetensors")))


def unet_name(name: str, layers: int, attended: set[int]) -> str:
    """`down_blocks.0.resnets.0.conv1.weight` -> `input_blocks.1.0.in_layers.2.weight`.

    `attended`: the up blocks with attention, where the upsampler comes third instead of second.
    """
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    side, _, rest = name.partition(".")
    if side == "mid_block":
        part, index, inner = rest.split(".", 2)
        position = 1 if part == "attentions" else 2 * int(index)
        return f"middle_block.{position}.{inside(part, inner)}"
    level, part, index, inner = rest.split(".", 3)
    block, step = int(level), layers + 1
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * step}.0.{inner.replace('conv', 'op')}"
    if part == "upsamplers":
        return f"output_blocks.{block * step + layers}.{2 if block in attended else 1}.{inner}"
    number = block * step + int(index) + (side == "down_blocks")
    blocks = "input_blocks" if side == "down_blocks" else "output_blocks"
    return f"{blocks}.{number}.{1 if part == 'attentions' else 0}.{inside(part, inner)}"


def inside(part: str, inner: str) -> str:
    """Names within a residual or attention block."""
    if part == "attentions":
        return inner
    head, _, tail = inner.partition(".")
    return f"{RESNET[head]}.{tail}"


def vae_name(name: str, levels: int) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.2.block.1.conv1.weight` (3 levels)."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if ".attn_1." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    return re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
