"""A diffusers folder as one file under the names of the original Stable Diffusion checkpoints.

The names are in `registry.formats.single_file`; which part goes where is said by `Family.single_file`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from registry.formats.checkpoints import weight_files
from registry.formats.single_file import (
    open_clip_copies,
    open_clip_name,
    unet_name,
    unet_shape,
    vae_levels,
    vae_name,
)

Tensors = dict[str, Tensor]


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


def component_weights(folder: Path) -> Tensors:
    """All tensors of a component."""
    return {name: value for file in weight_files(folder) for name, value in load_file(file).items()}


def _unet(values: Tensors) -> Tensors:
    layers, attended = unet_shape(values)
    return {unet_name(name, layers, attended): value for name, value in values.items()}


def _vae(values: Tensors) -> Tensors:
    levels = vae_levels(values)
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
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            value = torch.cat([values[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
        theirs = open_clip_name(name)
        found[theirs] = value.T if theirs == "text_projection" else value
    return found | {copy: found[name].clone() for name, copy in open_clip_copies(found)}
