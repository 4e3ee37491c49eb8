"""Edges along the lines of pixels: how wide they are, what rings beside them, and how they rise.

A lens or a blur lets the light rise in a round curve. Bilinear enlarging draws straight pieces from one old
pixel to the next, so the curve breaks, and as those pieces are not all alike steep, it begins and ends
slowly. A blur by the mean of a box breaks as well, but is one straight piece. This needs edges that are
strong: rounding to whole grey levels, and JPEG, bend weak ones by as much, and make them look narrow.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MIN_RISE = 16.0  # grey levels of an edge
STRONG_RISE = 48.0  # of one whose curve can be told
MIN_STRONG = 200  # fewer may be soft shadows in a picture whose texture is sharp
AT_LEAST = 40  # of the steepest of them
STEEPEST = 0.1  # share of the edges whose width counts
STEEP = 12.0  # grey levels a pixel from which a break is none of rounding's
SPREAD = 0.37  # deviation of an edge / its width: a box has 0.29, blurred edges 0.33; a Gaussian 0.40


def edges(tiles: Floats) -> tuple[Floats, Floats, Floats]:
    """Rise, steepest step and overshoot (share of the rise) of every edge along the last axis.

    Args:
        tiles: (n, side, side) grey levels.
    """
    flat, start = _runs(tiles)
    rise, step = np.add.reduceat(flat, start), np.maximum.reduceat(np.abs(flat), start)
    size = np.abs(rise)
    at = np.flatnonzero(size[1:-1] >= MIN_RISE) + 1
    before = np.where(rise[at - 1] * rise[at] < 0, size[at - 1], 0)
    behind = np.where(rise[at + 1] * rise[at] < 0, size[at + 1], 0)
    over = (np.maximum(before, behind) / size[at]).astype(np.float32, copy=False)
    return size[at], step[at], over


def strong(tiles: Floats) -> tuple[float, float]:
    """How wide the steepest strong edges are, and how sharply their curve breaks.

    Args:
        tiles: (n, side, side) grey levels.

    Returns:
        Pixels; 0 = there are too few. The steepest bend * rise / step squared: 1.5 for a Gaussian, with
        JPEG up to 2.3, and 2 to 4 for straight pieces; 0 where it cannot be told, or is that of a box.
    """
    (across, one), (down, other) = _runs(tiles), _runs(tiles.transpose(0, 2, 1))
    flat, start = np.concatenate([across, down]), np.concatenate([one, other + across.size])
    rise = np.abs(np.add.reduceat(flat, start))
    at = np.flatnonzero(rise >= STRONG_RISE)
    if len(at) < MIN_STRONG:
        return 0.0, 0.0
    step = np.maximum.reduceat(np.abs(flat), start)
    count = max(AT_LEAST, int(STEEPEST * len(at)))
    at = at[step[at] >= np.partition(step[at], -count)[-count]]
    rise, step = rise[at], step[at]
    width = rise / step
    bend, spread = _curves(flat, start[at], np.append(start, flat.size)[at + 1], rise)
    told = np.median(step) >= STEEP and np.median(spread / width) >= SPREAD
    breaks = float(np.median(bend * rise / step**2)) if told else 0.0
    return round(float(np.median(width)), 3), round(breaks, 3)


def _curves(
    flat: Floats, start: NDArray[np.intp], stop: NDArray[np.intp], rise: Floats
) -> tuple[Floats, Floats]:
    """Steepest bend, and deviation in pixels, of the edges from `start` to `stop` in a row of slopes."""
    length = stop - start
    begin = np.cumsum(length) - length
    pixel = np.arange(length.sum()) - np.repeat(begin, length)
    slope = np.abs(flat[np.repeat(start, length) + pixel])
    bends = np.abs(np.diff(slope, prepend=slope[:1]))
    bends[begin] = 0  # what lies between two edges is none of theirs
    middle = np.add.reduceat(slope * pixel, begin) / rise
    spread = np.sqrt(np.maximum(np.add.reduceat(slope * pixel**2, begin) / rise - middle**2, 0))
    return np.maximum.reduceat(bends, begin), spread.astype(np.float32)


def _runs(tiles: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Slopes, line after line, and where each stretch begins that only rises or only falls."""
    smooth = (
        tiles[:, :-2] + 2 * tiles[:, 1:-1] + tiles[:, 2:]
    ) / 4  # along the edge: noise goes, width stays
    slope = np.diff(smooth, axis=2).astype(np.float32, copy=False)
    flat = slope.reshape(-1)
    sign = np.sign(flat).astype(np.int8)
    begins = np.empty(flat.size, bool)
    begins[0], begins[1:] = True, sign[1:] != sign[:-1]
    begins[:: slope.shape[2]] = True
    return flat, np.flatnonzero(begins)
