"""Where a mask has its center, for crops; and how masks are opened. No torch: pages show crops, too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from registry.errors import BadInput
from trainers.placing import Point
from trainers.rundir import ManifestItem


def focus_of(source: ManifestItem, resolve: Callable[[str], Path]) -> Point | None:
    """Center of mass of a picture's mask; None without a mask, or when it is black.

    Raises:
        BadInput: the mask cannot be read.
    """
    if not source.mask:
        return None
    weight = np.asarray(open_mask(resolve(source.mask), source.name or source.image), dtype=np.float64)
    total = weight.sum()
    if total == 0:
        return None
    rows, columns = (np.arange(length) + 0.5 for length in weight.shape)
    x = float(weight.sum(0) @ columns / total / weight.shape[1])
    y = float(weight.sum(1) @ rows / total / weight.shape[0])
    return x, y


def open_mask(path: Path, label: str) -> Image.Image:
    """The grey levels of a stored mask.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return picture.convert("L")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise unreadable(label, error) from error


def unreadable(label: str, error: Exception) -> BadInput:
    """What is said of a mask that cannot be read."""
    wrong = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    return BadInput(f"mask of {label}", wrong, "restore it, or start a new run without data.masks")
