"""Single-file checkpoints of bases: which components are in one, and which layers these have.

Names as published: sgm (UNet, first_stage_model, cond_stage_model, conditioner), MMDiT and BFL (transformer,
with a prefix or without), and ComfyUI's `text_encoders.`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from registry.formats.families import FORMATS
from registry.formats.header import TensorInfo, read_header
from registry.formats.original import SGM, OriginalNames

_UNET, _VAE = ("model.diffusion_model.",), ("first_stage_model.",)
_CLIP, _T5 = "text_encoders.clip_l.", "text_encoders.t5xxl."
# Family -> component -> how the names of its tensors begin.
CHECKPOINT_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sd15": {"unet": _UNET, "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    "sd21": {"unet": _UNET, "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    "sdxl": {
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": ("conditioner.embedders.0.transformer.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    },
    "sd35": {
        "transformer": (*_UNET, "joint_blocks."),
        "vae": (*_VAE, "vae."),
        "text_encoder": (_CLIP,),
        "text_encoder_2": ("text_encoders.clip_g.",),
        "text_encoder_3": (_T5,),
    },
    "flux1": {
        "transformer": (*_UNET, "double_blocks.", "single_blocks."),
        "vae": (*_VAE, "vae."),
        "text_encoder": (_CLIP,),
        "text_encoder_2": (_T5,),
    },
}
# OpenCLIP's names of layers, where transformers has its own; query, key and value are one there.
_OPEN_CLIP = {"attn.out_proj.weight": "self_attn.out_proj", "mlp.c_fc.weight": "mlp.fc1",
              "mlp.c_proj.weight": "mlp.fc2"}  # fmt: skip
_RESBLOCK = re.compile(r"\.resblocks\.(\d+)\.(.*)$")


def parts_in(family: str, names: Iterable[str]) -> set[str]:
    """Components of `family` that a checkpoint with tensors of these names holds."""
    names = list(names)
    table = CHECKPOINT_PARTS[family]
    return {part for part, starts in table.items() if any(name.startswith(starts) for name in names)}


def parts_of_file(family: str, file: Path) -> set[str]:
    """`parts_in` for a file, of which the header is read."""
    return parts_in(family, read_header(file).tensors)


def has_weights(folder: Path, part: str) -> bool:
    """Whether a diffusers folder brings the weights of a component."""
    return any((folder / part).glob("*.safetensors"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, without its variants (`model.non_ema.safetensors`); those in half
    precision when there are no plain ones."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if "." not in file.stem]
    return plain or [file for file in files if ".fp16" in file.stem] or files


def parameters_of_file(family: str, file: Path, part: str) -> int:
    """How many parameters a component has in a checkpoint."""
    starts = CHECKPOINT_PARTS[family][part]
    return sum(
        prod(info.shape) for name, info in read_header(file).tensors.items() if name.startswith(starts)
    )


def parameters_of_folder(folder: Path) -> int:
    """How many parameters a component has in its folder."""
    return sum(
        prod(info.shape) for file in weight_files(folder) for info in read_header(file).tensors.values()
    )


@dataclass(frozen=True)
class Layer:
    """Where the weight of a layer lies in a checkpoint.

    Args:
        component: Of the pipeline.
        path: In diffusers' class.
        tensor: Name in the checkpoint.
        shape: Of the weight.
        first: Row of the tensor at which it begins; other layers may lie in the same one.
        halves: Its outputs are (shift, scale) there and (scale, shift) in diffusers.
    """

    component: str
    path: str
    tensor: str
    shape: tuple[int, ...]
    first: int = 0
    halves: bool = False


def layers_of(family: str, tensors: Mapping[str, TensorInfo]) -> Iterator[Layer]:
    """The layers of a checkpoint whose names are known."""
    table = CHECKPOINT_PARTS[family]
    denoiser = FORMATS[family].denoiser
    original = FORMATS[family].original or SGM
    for name, info in tensors.items():
        component = next((part for part, starts in table.items() if name.startswith(starts)), "")
        if component == denoiser:
            yield from _denoiser_layers(component, name, info, original)
        elif component.startswith("text_encoder"):
            yield from _text_layers(component, name, tuple(info.shape))


def _denoiser_layers(component: str, name: str, info: TensorInfo, original: OriginalNames) -> Iterator[Layer]:
    path = name.removeprefix(_UNET[0]).removesuffix(".weight")
    place = original.of_path(path) if name.endswith(".weight") else None
    if place is not None and len(info.shape) > 1:  # norms have one side
        unit, first = info.shape[0] // sum(place.shares), 0
        for module, share in zip(place.modules, place.shares, strict=True):
            shape = (unit * share, *info.shape[1:])
            halves = place.halves and len(shape) == 2 and shape[0] == 2 * shape[1]
            yield Layer(component, module, name, shape, first, halves)
            first += unit * share


def _text_layers(component: str, name: str, shape: tuple[int, ...]) -> Iterator[Layer]:
    if (found := _RESBLOCK.search(name)) is not None:
        block = f"text_model.encoder.layers.{found[1]}"
        if found[2] == "attn.in_proj_weight":
            third = shape[0] // 3
            for number, leaf in enumerate(("q_proj", "k_proj", "v_proj")):
                path = f"{block}.self_attn.{leaf}"
                yield Layer(component, path, name, (third, *shape[1:]), number * third)
        elif found[2] in _OPEN_CLIP:
            yield Layer(component, f"{block}.{_OPEN_CLIP[found[2]]}", name, shape)
    elif name.endswith(".weight") and len(shape) > 1:
        yield Layer(component, name.partition(".transformer.")[2].removesuffix(".weight"), name, shape)
