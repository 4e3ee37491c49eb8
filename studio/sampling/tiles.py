"""A large picture in overlapping tiles: where they lie, and how what was drawn becomes one picture again."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from studio.sampling.canvas import Box


def tiles(size: tuple[int, int], tile: tuple[int, int], overlap: int, step: int) -> list[Box]:
    """Boxes of the size of `tile` that cover a picture, neighbours sharing at least `overlap` pixels.

    Args:
        size: (width, height) of the picture, multiples of `step`.
        tile: (width, height), multiples of `step`; a picture that is smaller gets smaller tiles.
        overlap: Pixels, less than half a tile.
        step: Boxes begin at multiples of it.
    """
    width, height = min(tile[0], size[0]), min(tile[1], size[1])
    return [
        (left, top, left + width, top + height)
        for top in _starts(size[1], height, overlap, step)
        for left in _starts(size[0], width, overlap, step)
    ]


def _starts(whole: int, tile: int, overlap: int, step: int) -> list[int]:
    if tile >= whole:
        return [0]
    count = math.ceil((whole - overlap) / (tile - overlap))
    # Rounding down may cost overlap at one side of a tile, never coverage: the last one ends at the edge.
    places = [round(number * (whole - tile) / (count - 1)) // step * step for number in range(count - 1)]
    return [*places, whole - tile]


@dataclass
class Quilt:
    """Puts tiles together; where several lie, the one whose edge is further away counts more.

    Args:
        size: (width, height) of the picture.
        overlap: Pixels over which a tile's weight rises from its edge.
    """

    size: tuple[int, int]
    overlap: int
    _sum: Any = field(init=False)
    _weight: Any = field(init=False)

    def __post_init__(self) -> None:
        width, height = self.size
        self._sum = np.zeros((height, width, 3), dtype=np.float32)
        self._weight = np.zeros((height, width, 1), dtype=np.float32)

    def lay(self, drawn: Image.Image, box: Box) -> None:
        """Add one tile."""
        left, top, right, bottom = box
        across, down = self._ramp(right - left), self._ramp(bottom - top)
        weight = np.minimum(down[:, None], across[None, :])[..., None]
        self._sum[top:bottom, left:right] += weight * np.asarray(drawn, dtype=np.float32)
        self._weight[top:bottom, left:right] += weight

    def picture(self) -> Image.Image:
        """The whole; every pixel lies in a tile."""
        return Image.fromarray((self._sum / self._weight).round().clip(0, 255).astype(np.uint8))

    def _ramp(self, length: int) -> Any:
        """(length,) weights: 1 in the middle, falling linearly towards both ends, never 0."""
        distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
        return np.minimum(1, distance / (self.overlap + 1)).astype(np.float32)
