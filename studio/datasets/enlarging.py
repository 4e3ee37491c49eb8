"""What enlarging leaves in a picture: its second differences repeat as often as the small pixels did.

Between the pixels of the small picture a filter draws the same curve again and again (Gallagher 2005): how
much the light bends comes back with the factor of the enlargement, along both axes alike. A lens or a blur
bends it anywhere. What is told is how far the strongest such line stands out of the spectrum, and at how
many places there were edges to see it by: a line shows where edges lie at many places, and not in a drawing
of a few straight ones, which proves nothing either way.

A factor of exactly 2 leaves nothing (its pixels lie alike on both sides of each old one), and one of 4 none
that the grid of JPEG does not hide.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HALF = 8  # pixels to each side that a bend is compared with
BEND = 1.0  # grey levels of bend, on average over these, from which it counts; rounding leaves 0.35
MOST = 4.0  # times the average, above which a bend counts no more
SIZE = 2048  # frequencies: a picture that is longer is laid over itself, which changes none of them
LOWEST, HIGHEST = 0.18, 0.49  # a pixel; colour filters of cameras repeat with 2 pixels, content below
NEAR = 3  # bins by which the axes may differ: the small picture had whole pixels
AROUND = 60  # bins to each side of which the median is what there is anyway
GRID = 8  # pixels of a block of JPEG
BLOCKS = 8.0  # how far 1/8 or 3/8 stand out where a picture was a JPEG at this size


def repeats(tiles: Floats, places: Sequence[tuple[int, int]], shape: tuple[int, int]) -> tuple[float, float]:
    """How far the strongest repetition stands out, and at how many places there are edges to see it by.

    Args:
        tiles: (n, side, side) grey levels, side a multiple of 8.
        places: y and x of each in the picture, multiples of 8.
        shape: Height and width of the picture.

    Returns:
        The power over the median around it, the geometric mean of both axes: below 13 it is chance. The
        places along the axis that has fewer of them.
    """
    across = _line(tiles, [x for _, x in places], shape[1])
    down = _line(tiles.transpose(0, 2, 1), [y for y, _ in places], shape[0])
    both = np.sqrt(_widest(across[0]) * _widest(down[0]))
    at = np.arange(len(both)) / SIZE
    return float(both[(at >= LOWEST) & (at <= HIGHEST)].max()), min(across[1], down[1])


def _line(tiles: Floats, starts: Sequence[int], length: int) -> tuple[Floats, float]:
    """Prominence of each frequency along the last axis; the number of places with edges."""
    bends, weights = _bends(tiles, starts, length)
    total = float(weights.sum())
    if not total:
        return np.zeros(SIZE // 2 + 1, np.float32), 0.0
    power = _power(bends)
    usual = _usual(power) + 1e-3 * total
    first, third = SIZE // GRID, 3 * SIZE // GRID
    if max(power[first] / usual[first], power[third] / usual[third]) > BLOCKS:
        phases = bends.reshape(-1, GRID).sum(0) / (weights.reshape(-1, GRID).sum(0) + 1e-6)
        power = _power(bends - weights * np.tile(phases, len(bends) // GRID))
        usual = _usual(power) + 1e-3 * total
    count = total**2 / float(weights @ weights) / (2 * HALF + 1)
    return (power / usual).astype(np.float32, copy=False), count


def _bends(tiles: Floats, starts: Sequence[int], length: int) -> tuple[Floats, Floats]:
    """(L,) sums of bends over their surroundings' mean - 1, and of the weights; L a multiple of SIZE."""
    smooth = (tiles[:, :-2] + 2 * tiles[:, 1:-1] + tiles[:, 2:]) / 4
    bend = np.abs(smooth[..., :-2] - 2 * smooth[..., 1:-1] + smooth[..., 2:])
    sums = np.zeros((*bend.shape[:2], bend.shape[2] + 1), np.float32)
    np.cumsum(bend, axis=2, out=sums[..., 1:])
    mean = (sums[..., 2 * HALF + 1 :] - sums[..., : -2 * HALF - 1]) / np.float32(2 * HALF + 1)
    weight = np.clip(mean / np.float32(BEND) - 1, 0, 1)
    share = np.minimum(bend[..., HALF:-HALF], np.float32(MOST) * mean) / (mean + np.float32(1e-3)) - 1
    columns, weights = (weight * share).sum(1), weight.sum(1)
    along = np.zeros((2, -(-length // SIZE) * SIZE), np.float32)
    for start, column, counted in zip(starts, columns, weights, strict=True):
        inner = slice(start + 1 + HALF, start + 1 + HALF + len(column))
        along[0, inner] += column
        along[1, inner] += counted
    return along[0], along[1]


def _power(along: Floats) -> Floats:
    spectrum = np.fft.rfft(along.reshape(-1, SIZE).sum(0))
    return (np.abs(spectrum) ** 2).astype(np.float32)


def _usual(power: Floats) -> Floats:
    """Median around each frequency; taken at every eighth."""
    wide = np.pad(power, AROUND, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(wide, 2 * AROUND + 1)[::8]
    return np.repeat(np.median(around, axis=1), 8)[: len(power)].astype(np.float32)


def _widest(power: Floats) -> Floats:
    """The largest of the bins near each."""
    wide = np.pad(power, NEAR, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(wide, 2 * NEAR + 1).max(1)
