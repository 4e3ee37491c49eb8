"""A diffusers folder as one file under the names of the published checkpoints.

Names as in CompVis/stable-diffusion: ldm/modules/diffusionmodules/openaimodel.py (UNet) and model.py (VAE);
Stability-AI/sd3.5 mmditx.py; mlfoundations/open_clip transformer.py.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from registry.formats.original import BFL, MMDIT, OriginalNames
from registry.formats.single_file import unet_name, vae_name


def save_checkpoint(folder: Path, path: Path, layers: int = 1, **metadata: str) -> Path:
    """Write UNet, VAE and text encoder of a diffusers folder into one file.

    Args:
        folder: The diffusers folder; its UNet has `layers` residual blocks a level.
        path: The file.
        layers: `layers_per_block` of the UNet.
        metadata: Of the file.
    """
    tensors = unet_tensors(folder, layers) | vae_tensors(folder)
    for name, value in weights(folder / "text_encoder").items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return save(tensors, path, **metadata)


def save_sdxl(folder: Path, path: Path, layers: int = 2, **metadata: str) -> Path:
    """SDXL in one file; the second text encoder as OpenCLIP names it."""
    tensors = unet_tensors(folder, layers) | vae_tensors(folder)
    for name, value in weights(folder / "text_encoder").items():
        first = f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"
        tensors[first] = value
    tensors |= {
        f"conditioner.embedders.1.model.{n}": v for n, v in open_clip(folder / "text_encoder_2").items()
    }
    return save(tensors, path, **metadata)


def save_sd35(
    folder: Path, path: Path, *, whole: bool = True, prefix: str = "model.diffusion_model."
) -> Path:
    """SD3.5 in one file, with VAE and text encoders or without."""
    tensors = published(folder / "transformer", MMDIT, prefix)
    if whole:
        tensors |= vae_tensors(folder)
        for name, theirs in (
            ("text_encoder", "clip_l"),
            ("text_encoder_2", "clip_g"),
            ("text_encoder_3", "t5xxl"),
        ):
            for key, value in weights(folder / name).items():
                tensors[f"text_encoders.{theirs}.transformer.{key}"] = value
    return save(tensors, path)


def save(tensors: dict[str, Any], path: Path, **metadata: str) -> Path:
    """Write the tensors."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata or None)
    return path


def unet_tensors(folder: Path, layers: int) -> dict[str, Any]:
    """The UNet under its published names."""
    unet = weights(folder / "unet")
    attended = {int(m[1]) for name in unet if (m := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    return {"model.diffusion_model." + unet_name(n, layers, attended): value for n, value in unet.items()}


def vae_tensors(folder: Path) -> dict[str, Any]:
    """The VAE under its published names."""
    vae, tensors = weights(folder / "vae"), {}
    levels = 1 + max(int(m[1]) for n in vae if (m := re.match(r"encoder\.down_blocks\.(\d+)", n)))
    for name, value in vae.items():
        if ".attentions." in name and value.ndim == 2:
            value = value[..., None, None]  # the original has 1 x 1 convolutions there
        tensors["first_stage_model." + vae_name(name, levels)] = value
    return tensors


def open_clip(folder: Path) -> dict[str, Any]:
    """A CLIPTextModelWithProjection as mlfoundations/open_clip names it: query, key and value in one."""
    tensors: dict[str, Any] = {}
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    ends = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    values = {name.removeprefix("text_model."): value for name, value in weights(folder).items()}
    for name, value in values.items():
        if name == "text_projection.weight":
            tensors["text_projection"] = value.T
        elif name in ends:
            tensors[ends[name]] = value
        elif (m := re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)) and m[2] in inner:
            tensors[f"transformer.resblocks.{m[1]}.{inner[m[2]]}.{m[3]}"] = value
        elif m and m[2] == "self_attn.q_proj":
            row = [values[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            tensors[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[3]}"] = torch.cat(row)
    return tensors


NORMS = {
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
}  # fmt: skip
FLUX_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
}  # fmt: skip


def published(folder: Path, names: OriginalNames, prefix: str) -> dict[str, Any]:
    """A diffusion transformer of a diffusers folder under its published names."""
    return renamed(weights(folder), names, prefix)


def renamed(values: dict[str, Any], names: OriginalNames, prefix: str) -> dict[str, Any]:
    """Rows of fused layers stacked, halves exchanged back."""
    tensors: dict[str, Any] = {}
    for name, value in values.items():
        module, _, leaf = name.rpartition(".")
        place = names.of_module(module)
        if place is None or module.endswith(tuple(FLUX_NORMS if names is BFL else NORMS)):
            tensors[prefix + other_name(name, flux=names is BFL)] = value
            continue
        parts = [values[f"{part}.{leaf}"] for part in place.modules]
        whole = torch.cat(parts) if len(parts) > 1 else value
        weight = values[f"{module}.weight"]
        if place.halves and weight.ndim > 1 and len(value) == 2 * weight.shape[1]:
            whole = torch.cat([*reversed(whole.chunk(2))])
        tensors[f"{prefix}{place.path}.{leaf}"] = whole
    return tensors


def other_name(name: str, *, flux: bool) -> str:
    """Norms of queries and keys, and the table of positions."""
    if name == "pos_embed.pos_embed":
        return "pos_embed"
    block, number, rest = name.split(".", 2)
    norm = rest.removesuffix(".weight")
    if block == "single_transformer_blocks":
        return f"single_blocks.{number}.{FLUX_NORMS[norm].removeprefix('img_attn.')}.scale"
    return (
        f"double_blocks.{number}.{FLUX_NORMS[norm]}.scale"
        if flux
        else f"joint_blocks.{number}.{NORMS[norm]}.weight"
    )


def weights(folder: Path) -> dict[str, Any]:
    """All tensors of a component."""
    return load_file(next(folder.glob("*.safetensors")))
