"""How the weights of the frozen base are kept while an adapter learns, and where.

Whole, or in 8 or 4 bits (`stored`); on the device, or in the main memory, from where they come in time
(`streaming`). A part comes from the disk into the main memory, is rounded there layer by layer, and only then
goes to the device: a GPU never has to hold what it has no room for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from registry.formats.checkpoints import parameters_of_file, parameters_of_folder
from trainers.fitting import first_keeping
from trainers.stored import Precision, compress_part
from trainers.streaming import stream_part

if TYPE_CHECKING:
    from trainers.families.base import Family
    from trainers.recipe_fields import TrainSection


@dataclass(frozen=True)
class Keeping:
    """How a part's weights are kept, and whether its blocks rest in the main memory."""

    precision: Precision = "whole"
    streamed: bool = False


def load_part(family: "Family", name: str, keeping: Keeping) -> None:
    """Load a part of the base and put it on the device; one that is loaded stays as it is.

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
    compress_part(part, keeping.precision, family.device)
    if keeping.streamed:
        stream_part(part, home)
    else:
        part.to(home)


def choose(family: "Family", name: str, train: "TrainSection") -> Keeping:
    """How a part is kept, before it is loaded; for one base, recipe and device always the same.

    See `fitting.first_keeping`; without a GPU nothing has to be rounded to begin with.

    Args:
        family: The base.
        name: Of the part.
        train: The section of the recipe.
    """
    count = memory = 0
    if family.device.type == "cuda" and train.base_weights == "auto":
        count = parameters(family, name)
        memory = torch.cuda.get_device_properties(family.device).total_memory
    precision, streamed = first_keeping(train, count, family.dtype.itemsize, memory)
    return Keeping(cast("Precision", precision), streamed)


def parameters(family: "Family", name: str) -> int:
    """How many parameters a part has, from the headers of its files."""
    if family.in_single_file(name):
        return parameters_of_file(family.name, Path(family.base.location), name)
    return parameters_of_folder(family.config_folder / name)
