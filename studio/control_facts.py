"""What a network that steers a base is: found out from configs, names and headers, never by loading weights.

These are ControlNets and T2I-Adapters. They stand in the catalog beside the bases, as parts: `Base.part` says
which they are, and nothing that needs a whole base takes them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from registry.errors import BadInput
from registry.formats.header import read_header
from studio.base_facts import PICKLES, refuse_code
from studio.base_kinds import BaseFacts, config_of
from studio.sampling.control.kinds import kind_in_name
from trainers.families import FAMILIES

CONTROLNET, T2I_ADAPTER = "controlnet", "t2i-adapter"
PART_LABELS = {CONTROLNET: "ControlNet", T2I_ADAPTER: "T2I-Adapter"}


@dataclass(frozen=True)
class _Class:
    part: str
    families: tuple[str, ...]  # the usual one first


_UNETS = ("sd15", "sd21", "sdxl")
_CLASSES = {
    "ControlNetModel": _Class(CONTROLNET, _UNETS),
    "ControlNetUnionModel": _Class(CONTROLNET, ("sdxl", "sd15", "sd21")),
    "SD3ControlNetModel": _Class(CONTROLNET, ("sd35",)),
    "FluxControlNetModel": _Class(CONTROLNET, ("flux1",)),
    "T2IAdapter": _Class(T2I_ADAPTER, _UNETS),
}
# A tensor that tells a single file of a ControlNet: original names, and diffusers'.
_MARKS = ("control_model.", "input_hint_block.", "controlnet_cond_embedding.")
_FLOW_MARKS = ("controlnet_x_embedder.", "controlnet_blocks.")  # of FLUX.1 and SD3.5
_TIMES = ("time_embed.0.weight", "time_embedding.linear_1.weight")  # what reads the time: it is whole
_TO_K = re.compile(r"attn2\.to_k\.weight$")


def control_facts(
    path: Path, family: str = "", *, name: str = "", files: Sequence[str] | None = None
) -> BaseFacts | None:
    """Facts of a ControlNet or T2I-Adapter; None when `path` is something else.

    Args:
        path: A folder in diffusers layout, or a .safetensors file.
        family: Overrides what is found where that leaves room (toy models).
        name: What it was published as, which tells the kind of map; default: the path's own name.
        files: Relative names of all files, when the weights are not there yet (a hub id).

    Raises:
        BadInput: it is one, but cannot be used: code or pickles inside, weights missing, another family.
    """
    if path.is_dir():
        return _folder_facts(path, family, name, files)
    return _file_facts(path, family, name) if path.suffix == ".safetensors" else None


def _folder_facts(path: Path, family: str, name: str, files: Sequence[str] | None) -> BaseFacts | None:
    if (path / "model_index.json").is_file() or not (path / "config.json").is_file():
        return None
    config = config_of(path / "config.json")
    cls = _CLASSES.get(str(config.get("_class_name", "")))
    if cls is None:
        return None
    names = files or [file.relative_to(path).as_posix() for file in sorted(path.rglob("*"))]
    refuse_code(path, names)
    top = [PurePosixPath(file) for file in names if "/" not in file]
    if not any(file.suffix == ".safetensors" for file in top):
        pickle = next((file.name for file in top if file.suffix in PICKLES), "")
        wrong = f"has its weights as a pickle only ({pickle})" if pickle else "has no weights (*.safetensors)"
        do = "get the version with safetensors" if pickle else "get the complete folder"
        raise BadInput(str(path), wrong, do)
    if files is None:
        for file in top:
            if file.suffix == ".safetensors":
                read_header(path / file)  # cut off or empty: known now
    found, reason, notes = _family(path, cls, family, _told_by(config))
    return BaseFacts(found, kind_in_name(name or path.name), "folder", reason, notes, cls.part)


def _file_facts(path: Path, family: str, name: str) -> BaseFacts | None:
    tensors = read_header(path).tensors
    if any(mark in tensor for tensor in tensors for mark in _FLOW_MARKS) and not any(
        mark in tensor for tensor in tensors for mark in _MARKS
    ):
        wrong = "is the weights of a ControlNet, without the config.json that says how they are arranged"
        raise BadInput(str(path), wrong, "give its folder")
    marked = any(mark in tensor for tensor in tensors for mark in _MARKS)
    if not marked or not any(tensor.endswith(_TIMES) for tensor in tensors):
        return None
    if any(tensor.startswith("lora_controlnet") for tensor in tensors):
        raise BadInput(str(path), "is a Control-LoRA, which is not supported", "give a whole ControlNet")
    width = next((info.shape[-1] for tensor, info in tensors.items() if _TO_K.search(tensor)), 0)
    added = any("label_emb." in tensor or "add_embedding." in tensor for tensor in tensors)
    told = "sdxl" if added else _of_width(width)
    found, reason, notes = _family(path, _CLASSES["ControlNetModel"], family, (told, f"text width {width}"))
    return BaseFacts(found, kind_in_name(name or path.stem), "file", reason, notes, CONTROLNET)


def _told_by(config: dict[str, Any]) -> tuple[str, str]:
    """(family, what told it) of a network for UNets; family "" when nothing does."""
    adapter = str(config.get("adapter_type", ""))
    if adapter:
        return "sdxl" if adapter.endswith("_xl") else "", f"adapter type {adapter}"
    if config.get("addition_embed_type") == "text_time":
        return "sdxl", "is told the picture's size"
    width = config.get("cross_attention_dim", 0)
    return _of_width(width if isinstance(width, int) else 0), f"text width {width}"


def _family(path: Path, cls: _Class, given: str, told: tuple[str, str]) -> tuple[str, str, tuple[str, ...]]:
    """(family, reason, notes).

    Raises:
        BadInput: the person gave one that cannot be.
    """
    found, reason = told
    if len(cls.families) == 1:
        found, reason = cls.families[0], "by its class"
    if given and given not in FAMILIES:
        raise BadInput(f"family {given!r}", "is not known", f"use one of {', '.join(FAMILIES)}")
    if given and (given not in cls.families or (found and given != found)):
        is_ = FAMILIES[found or cls.families[0]].label
        raise BadInput(str(path), f"is for {is_}, not {FAMILIES[given].label}", "leave the family out")
    if given or found:
        return given or found, reason, ()
    usual = cls.families[0]
    return usual, reason, (f"{reason} names no family: taken as {FAMILIES[usual].label}",)


def _of_width(width: int) -> str:
    return next((name for name in _UNETS if FAMILIES[name].cross_attention_dim == width), "")
