"""How the weights of the frozen base are kept while an adapter learns: whole, or in 8 or 4 bits.

A part comes from the disk into the main memory, is rounded there layer by layer, and only then goes to the
device: a GPU never has to hold what it has no room for.
"""

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from registry.formats.checkpoints import CHECKPOINT_PARTS, weight_files
from registry.formats.header import read_header
from trainers.stored import ROUNDED, Precision, compress_part

if TYPE_CHECKING:
    from trainers.families.base import Family

ROOM = 0.8  # of a GPU's free memory, for weights that nobody asked to round; the rest is for computing
SHARE: dict[Precision, float] = {"int8": 0.52, "nf4": 0.29}  # of 16 bits; nearly all of a part is blocks


def load_part(family: "Family", name: str, wanted: str) -> Precision:
    """Load a part of the base and put it on the device, its weights kept as `wanted`.

    Args:
        family: The base; a part that it has stays as it is.
        name: Of the part.
        wanted: "whole", "int8", "nf4", or "auto", see `choose`.

    Returns:
        How its weights are kept.
    """
    kept, home = choose(family, name, wanted), family.home
    if kept == "whole" or family.holds(name):
        family.part(name)
        return kept
    family.home = torch.device("cpu")
    try:
        part: Any = family.part(name)
    finally:
        family.home = home
    compress_part(part, kept, family.device)
    part.to(home)
    return kept


def choose(family: "Family", name: str, wanted: str) -> Precision:
    """How a part's weights are kept, before it is loaded; for one base and device always the same.

    "auto" is whole, but on a GPU that it would fill: then as fine as leaves room to compute.
    """
    if wanted != "auto":
        return cast(Precision, wanted)
    if family.device.type != "cuda":
        return "whole"
    size = parameters(family, name) * family.dtype.itemsize
    room = ROOM * torch.cuda.get_device_properties(family.device).total_memory
    if size <= room:
        return "whole"
    return next((kept for kept in ROUNDED if SHARE[kept] * size <= room), ROUNDED[-1])


def parameters(family: "Family", name: str) -> int:
    """How many parameters a part has, from the headers of its files."""
    if family.in_single_file(name):
        starts = CHECKPOINT_PARTS[family.name][name]
        tensors = read_header(Path(family.base.location)).tensors
        return sum(prod(info.shape) for key, info in tensors.items() if key.startswith(starts))
    headers = [read_header(file) for file in weight_files(family.config_folder / name)]
    return sum(prod(info.shape) for header in headers for info in header.tensors.values())
