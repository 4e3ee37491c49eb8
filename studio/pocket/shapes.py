"""The eight shapes of the pocket grammar: outlines as polygons, and masks.

Coordinates are pixels, y pointing down; `radius` is about half the shape's height.
"""

import math
from collections.abc import Callable

from PIL import Image, ImageDraw

Point = tuple[float, float]

CURVE_POINTS = 48  # corners of a polygon that passes for a curve
RING_HOLE = 0.55  # inner radius of a ring, in radii


def _regular(corners: int, turn: float, reach: float) -> list[Point]:
    """Corners of a regular polygon in the unit circle, scaled by `reach`; `turn` is the first one's angle."""
    angles = (turn + math.tau * i / corners for i in range(corners))
    return [(reach * math.cos(angle), reach * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    reach = (1.15, 0.5)
    angles = [-math.pi / 2 + math.pi * i / 5 for i in range(10)]
    return [(reach[i % 2] * math.cos(a), reach[i % 2] * math.sin(a)) for i, a in enumerate(angles)]


def _cross() -> list[Point]:
    thin, wide = 0.36, 1.05
    quarter = [(-thin, -wide), (thin, -wide), (thin, -thin)]
    corners: list[Point] = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


def _heart() -> list[Point]:
    """The well-known curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, sized to fit."""
    corners: list[Point] = []
    for i in range(CURVE_POINTS):
        t = math.tau * i / CURVE_POINTS
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((1.08 * x / 16, -1.08 * y / 16))
    return corners


_OUTLINES: dict[str, Callable[[], list[Point]]] = {
    "circle": lambda: _regular(CURVE_POINTS, 0, 1),
    "square": lambda: _regular(4, math.pi / 4, 1.15),
    "triangle": lambda: [(0, -1), (1.05, 0.8), (-1.05, 0.8)],
    "star": _star,
    "heart": _heart,
    "diamond": lambda: [(0, -1.15), (0.75, 0), (0, 1.15), (-0.75, 0)],
    "ring": lambda: _regular(CURVE_POINTS, 0, 1.05),
    "cross": _cross,
}
SHAPES = tuple(_OUTLINES)


def outline(shape: str, center: Point, radius: float) -> list[Point]:
    """Corners of `shape` around `center`; a ring's outline is its outer edge."""
    x, y = center
    return [(x + radius * dx, y + radius * dy) for dx, dy in _OUTLINES[shape]()]


def mask(shape: str, center: Point, radius: float, side: int) -> Image.Image:
    """A `side` x `side` picture of mode L: 255 inside the shape, 0 elsewhere."""
    picture = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(picture)
    draw.polygon(outline(shape, center, radius), fill=255)
    if shape == "ring":
        (x, y), hole = center, RING_HOLE * radius
        draw.ellipse([x - hole, y - hole, x + hole, y + hole], fill=0)
    return picture
