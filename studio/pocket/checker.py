"""Does a picture show what its prompt asked for? Colours, number and shape, read from the pixels alone.

Background: the palette colour that most border pixels are nearest to. Foreground: likewise among the pixels
that differ from the background. Count: connected components of at least 30 % of the largest one's area.
Shape: the template with the greatest overlap with the largest component. On true renders of the grammar the
checker agrees with the whole scene in about 91 of 100 (three of a kind sometimes touch): that is its ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from studio.pocket.grammar import COLOURS, Scene
from studio.pocket.shapes import SHAPES, mask

Mask = NDArray[np.bool_]
Pixels = NDArray[np.int_]  # (N, 2): row, column

FRAME = 2  # pixels of border that show the background
DIFFERENT = 55.0  # RGB distance from which a pixel belongs to the foreground
SPECKLE = 14  # components with fewer pixels are noise
SAME_SIZE = 0.3  # of the largest component's area
TEMPLATE = 24  # side of a template in cells
ASPECT_PENALTY = 0.25  # per unit of |log(width / height) difference|


@dataclass(frozen=True)
class Reading:
    """What the checker sees in a picture; "" where there is nothing."""

    background: str
    colour: str
    count: int
    shape: str


@dataclass(frozen=True)
class Fidelity:
    """Share of pictures, 0 to 1, that agree with their scene."""

    background: float
    foreground: float
    both: float
    count: float
    shape: float
    all: float


def read_picture(picture: Image.Image) -> Reading:
    """Read background, foreground colour, count and shape from a picture of any size."""
    pixels = np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.BOX), dtype=float)
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], dtype=float)
    nearest = ((pixels[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
    frame = np.concatenate(
        [
            nearest[:FRAME].ravel(),
            nearest[-FRAME:].ravel(),
            nearest[:, :FRAME].ravel(),
            nearest[:, -FRAME:].ravel(),
        ]
    )
    background = int(np.bincount(frame).argmax())
    ground = np.median(pixels[nearest == background], axis=0)
    different = np.sqrt(((pixels - ground) ** 2).sum(-1)) > DIFFERENT
    parts = [part for part in components(different) if len(part) >= SPECKLE]
    if not parts:
        return Reading(names[background], "", 0, "")
    everything = np.concatenate(parts)
    votes = np.bincount(nearest[everything[:, 0], everything[:, 1]], minlength=len(names))
    votes[background] = 0
    alike = [part for part in parts if len(part) >= SAME_SIZE * len(parts[0])]
    return Reading(names[background], names[int(votes.argmax())], len(alike), nearest_shape(parts[0]))


def agreement(picture: Image.Image, scene: Scene) -> tuple[bool, bool, bool, bool]:
    """Whether background, foreground colour, count and shape agree."""
    seen = read_picture(picture)
    return (
        seen.background == scene.background,
        seen.colour == scene.colour,
        seen.count == scene.count,
        seen.shape == scene.shape,
    )


def fidelity(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> Fidelity:
    """Mean agreement of pictures with their scenes, pair by pair."""
    table = np.array([agreement(p, s) for p, s in zip(pictures, scenes, strict=True)], dtype=float)
    background, foreground, count, shape = (float(value) for value in table.mean(0))
    both = float(table[:, :2].all(1).mean())
    return Fidelity(background, foreground, both, count, shape, float(table.all(1).mean()))


def components(area: Mask) -> list[Pixels]:
    """Four-connected components of `area`, largest first."""
    left = area.copy()
    height, width = left.shape
    found: list[Pixels] = []
    for start in np.argwhere(area):
        row, column = int(start[0]), int(start[1])
        if not left[row, column]:
            continue
        left[row, column] = False
        part, edge = [(row, column)], [(row, column)]
        while edge:
            y, x = edge.pop()
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= near[0] < height and 0 <= near[1] < width and left[near]:
                    left[near] = False
                    part.append(near)
                    edge.append(near)
        found.append(np.array(part))
    return sorted(found, key=len, reverse=True)


def nearest_shape(part: Pixels) -> str:
    """The shape whose template overlaps most (intersection over union, less a penalty for another aspect)."""
    seen, aspect = _normalised(part)

    def score(shape: str) -> float:
        template, its_aspect = _templates()[shape]
        overlap = (seen & template).sum() / max(1, (seen | template).sum())
        return float(overlap) - ASPECT_PENALTY * abs(float(np.log(aspect / its_aspect)))

    return max(SHAPES, key=score)


def _normalised(part: Pixels) -> tuple[Mask, float]:
    """The component stretched to the template grid, and its width / height."""
    top, left = part.min(0)
    height, width = part.max(0) - (top, left) + 1
    cut = np.zeros((height, width), np.uint8)
    cut[part[:, 0] - top, part[:, 1] - left] = 255
    grid = Image.fromarray(cut).resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR)
    return np.asarray(grid) > 127, float(width / height)


@cache
def _templates() -> dict[str, tuple[Mask, float]]:
    drawn = {shape: np.asarray(mask(shape, (128, 128), 80, 256)) > 127 for shape in SHAPES}
    return {shape: _normalised(np.argwhere(area)) for shape, area in drawn.items()}
