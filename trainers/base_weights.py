"""How the weights of the frozen base are kept while an adapter learns, and where.

Whole, or in 8 or 4 bits (`stored`); on the device, in the main memory, from where they come in time
(`streaming`), or on the devices of a machine together (`sharing`). A part comes from the disk into the main
memory, is rounded or cut there layer by layer, and only then goes to the device: a GPU never has to hold
what it has no room for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from registry.formats.checkpoints import parameters_of_file, parameters_of_folder
from trainers.fitting import first_keeping, first_sharing
from trainers.stored import Precision, compress_part
from trainers.streaming import stream_part

if TYPE_CHECKING:
    from trainers.families.base import Family
    from trainers.recipe_fields import TrainSection


@dataclass(frozen=True)
class Keeping:
    """How a part's weights are kept, whether its blocks rest in the main memory, and whether the processes of
    the run hold them together; whole and resident ones only."""

    precision: Precision = "whole"
    streamed: bool = False
    sharded: bool = False


def load_part(family: "Family", name: str, keeping: Keeping) -> None:
    """Load a part of the base and put it on the device; one that is loaded stays as it is.

    One that will be shared stays in the main memory, for `sharing.share_part`.

    Args:
        family: The base.
        name: Of the part.
        keeping: How its weights are kept.
    """
    if keeping == Keeping() or family.holds(name):
        family.part(name)
        return
    home, family.home = family.home, torch.device("cpu")
    try:
        part: Any = family.part(name)
    finally:
        family.home = home
    if keeping.sharded:
        return
    compress_part(part, keeping.precision, family.device)
    if keeping.streamed:
        stream_part(part, home)
    else:
        part.to(home)


def choose(family: "Family", name: str, train: "TrainSection") -> Keeping:
    """How a part is kept, before it is loaded; for one base, recipe and device always the same.

    See `fitting.first_keeping` and `first_sharing`; without a GPU nothing has to be saved to begin with.

    Args:
        family: The base.
        name: Of the part.
        train: The section of the recipe.
    """
    count = memory = 0
    denoiser = name == family.denoiser_name
    if family.device.type == "cuda":
        count = parameters(family, name)
        memory = _smallest_memory(family.device, train.processes)
    if denoiser and first_sharing(train, count, family.dtype.itemsize, memory):
        return Keeping(sharded=True)
    precision, streamed = first_keeping(train, count, family.dtype.itemsize, memory)
    return Keeping(cast("Precision", precision), streamed)


def parameters(family: "Family", name: str) -> int:
    """How many parameters a part has, from the headers of its files."""
    if family.in_single_file(name):
        return parameters_of_file(family.name, Path(family.base.location), name)
    return parameters_of_folder(family.config_folder / name)


def _smallest_memory(device: torch.device, processes: int) -> int:
    """Bytes of the smallest GPU of the run: all processes have to choose alike."""
    several: list[Any] = list(range(min(processes, torch.cuda.device_count()))) if processes > 1 else []
    return min(torch.cuda.get_device_properties(each).total_memory for each in several or [device])
