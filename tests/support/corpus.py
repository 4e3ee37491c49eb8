"""Adapter files of every tool for every family, at the names and shapes of the real models' layers."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from registry.formats.families import FORMATS, FamilyFormat
from registry.formats.original import Place
from studio.base_facts import CONFIGS

Shapes = dict[str, tuple[int, ...]]  # module -> shape of its weight
DENOISERS = {
    "sd15": "sd15/unet", "sd21": "sd21/unet", "sdxl": "sdxl/unet",
    "sd35": "sd35/variants/medium/transformer", "flux1": "flux1/variants/dev/transformer",
}  # fmt: skip
# kohya's networks stay inside a UNet's blocks, and FLUX's has no final layer.
UNET_ENDS = ("conv_in", "conv_out", "time_embedding", "add_embedding")
OUTSIDE = {"sd35": (), "flux1": ("norm_out", "proj_out")}


@cache
def layers(family: str) -> Shapes:
    """Every linear layer and convolution of a family's denoiser and text encoders, as in the real classes."""
    import diffusers
    import torch
    import transformers

    names = FORMATS[family]
    found: Shapes = {}
    for component in names.grammars:
        folder = CONFIGS / (DENOISERS[family] if component == names.denoiser else f"{family}/{component}")
        values = json.loads((folder / "config.json").read_text())
        with torch.device("meta"):
            if component == names.denoiser:
                model = getattr(diffusers, values["_class_name"]).from_config(values)
            else:
                config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
                model = getattr(transformers, values["architectures"][0])(config)
        for path, layer in model.named_modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and path != "text_projection":
                text = component in names.grammars and "encoder.layers" in path
                inside = f"text_model.{path}" if text and not path.startswith("text_model.") else path
                found[f"{component}.{inside}"] = tuple(layer.weight.shape)
    return found


def narrowed(shapes: Mapping[str, tuple[int, ...]], by: int = 32) -> Shapes:
    """The same layers with fewer channels, in the same proportions; kernels stay."""
    return {m: (*(max(1, n // by) for n in shape[:2]), *shape[2:]) for m, shape in shapes.items()}


class Grammar:
    """How one tool names modules and halves.

    Args:
        name: (component, place or path in diffusers' class) -> the module's name in the file, "" = has none.
        down: Ending of the first half; the ending of the second is made from it.
        fused: Whether layers that are several of ours are one.
        alpha: Whether there is an `.alpha`.
        families: That it exists for.
        texts: Whether text encoders can be in the file.
    """

    def __init__(
        self,
        name: Callable[[FamilyFormat, str, Place], str],
        down: str,
        *,
        fused: bool = False,
        alpha: bool = False,
        families: str = "sd15 sd21 sdxl sd35 flux1",
        texts: bool = True,
    ) -> None:
        self.name, self.fused, self.alpha, self.texts = name, fused, alpha, texts
        self.down, self.up = down, down.replace("down", "up").replace("lora_A", "lora_B")
        self.families = families.split()

    def places(self, family: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str, Place]]:
        """(name in the file, component, place) of everything that the file of a family holds."""
        names = FORMATS[family]
        seen: set[str] = set()
        for module in shapes:
            component, _, path = module.partition(".")
            if component != names.denoiser and not self.texts:
                continue
            place = Place(path, (path,))
            if self.fused and component == names.denoiser:
                place = names.published.of_module(path) or place
            written = self.name(names, component, place)
            if written and written not in seen:
                seen.add(written)
                yield written, component, place


def _underscored(prefix: Callable[[FamilyFormat, str], str]) -> Callable[[FamilyFormat, str, Place], str]:
    return lambda names, component, place: prefix(names, component) + place.name


def _kohya_prefix(names: FamilyFormat, component: str) -> str:
    return names.prefix_of(component)


def _onetrainer_prefix(names: FamilyFormat, component: str) -> str:
    return "lora_transformer_" if component == "transformer" else names.prefix_of(component)


def _dotted(names: FamilyFormat, component: str, place: Place) -> str:
    return f"{component}.{place.path}"


def _short(names: FamilyFormat, component: str, place: Place) -> str:
    """As transformers 5 has it in memory, without `text_model.`."""
    return f"{component}.{place.path.removeprefix('text_model.')}"


def _peft(names: FamilyFormat, component: str, place: Place) -> str:
    return f"base_model.model.{place.path}"


def _published(names: FamilyFormat, component: str, place: Place) -> str:
    comfy = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", names.t5: "t5xxl"}
    root = f"text_encoders.{comfy.get(component, '')}.transformer."
    return (root if component != names.denoiser else "diffusion_model.") + place.path


def _old(names: FamilyFormat, component: str, place: Place) -> str:
    """diffusers before PEFT: attention behind `processor`, with the half's ending joined by "_"."""
    head, _, leaf = place.path.replace("to_out.0", "to_out").rpartition(".")
    attention = leaf.startswith("to_") and ".attn" in place.path
    return f"{component}.{head}.processor.{leaf}_lora" if attention else ""


def _xlabs(names: FamilyFormat, component: str, place: Place) -> str:
    if component != "transformer":
        return ""
    known = {
        "img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2", "img_attn.proj": "proj_lora1",
        "txt_attn.proj": "proj_lora2",
    }  # fmt: skip
    head, leaf = place.path.rpartition(".img_attn.")[0] or place.path.rpartition(".txt_attn.")[0], place.path
    ending = next((new for old, new in known.items() if leaf.endswith(old)), "")
    return f"{head}.processor.{ending}" if ending else ""


FLOW, UNET = "sd35 flux1", "sd15 sd21 sdxl"
GRAMMARS = {
    "kohya": Grammar(_underscored(_kohya_prefix), "lora_down.weight", fused=True, alpha=True),
    "kohya, diffusers' names": Grammar(
        _underscored(_kohya_prefix), "lora_down.weight", alpha=True, families=UNET
    ),
    "onetrainer": Grammar(_underscored(_onetrainer_prefix), "lora_down.weight", alpha=True, families=FLOW),
    "simpletuner": Grammar(_underscored(lambda *_: "lycoris_"), "lora_down.weight", alpha=True, texts=False),
    "diffusers": Grammar(_dotted, "lora_A.weight"),
    "diffusers, short": Grammar(_short, "lora_A.weight"),
    "diffusers, .lora": Grammar(_dotted, "lora.down.weight"),
    "diffusers, linear": Grammar(_dotted, "lora_linear_layer.down.weight"),
    "diffusers, processor": Grammar(_old, "down.weight", texts=False, families=UNET),
    "peft": Grammar(_peft, "lora_A.weight", texts=False),
    "peft, default": Grammar(_peft, "lora_A.default.weight", texts=False),
    "bfl": Grammar(_published, "lora_A.weight", fused=True),
    "comfyui": Grammar(_published, "lora_down.weight", fused=True, alpha=True),
    "bare": Grammar(lambda *place: place[2].path, "lora_A.weight", fused=True, families=FLOW, texts=False),
    "diffusion_model, diffusers' names": Grammar(
        lambda *place: f"diffusion_model.{place[2].path}", "lora_A.weight", texts=False
    ),
    "xlabs": Grammar(_xlabs, "down.weight", fused=True, families="flux1", texts=False),
}


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: dict[str, str]) -> Path:
    """A file of that header whose weights are a hole in the disk."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + offset)
    return path


def of_kohya(family: str) -> Shapes:
    """The layers that kohya's own network of a family has."""
    names = FORMATS[family]
    found = layers(family)
    return {
        m: s
        for m, s in found.items()
        if m.split(".")[0] != names.denoiser or m.split(".")[1] not in OUTSIDE.get(family, UNET_ENDS)
    }
