"""What the pixels of one picture say, measured once: sharpness, ringing, bars, a thumbnail, the corners.

numpy and Pillow only. 10 to 50 ms for a picture of a megapixel, most of it for decoding; the sums are done
in children (`examine`) and kept by the hash of the pixels.

Sharpness is the width of an edge: its rise / its steepest step, in pixels; 1 to 2 in a sharp picture, 2.5
times the deviation of a Gaussian blur. It is read where the steps are steepest, so flat drawings are sharp
and a soft background is no fault. Where they are wide, the strong edges say how wide: rounding makes faint
ones look narrow. An enlarged picture has wide edges, too, so there it is looked at what else enlarging
leaves: what repeats (`enlarging`), breaks in the curve of an edge (`edges`), and the ringing around it,
which bicubic and Lanczos leave, and sharpening before a blur does as well.
"""

import json
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from studio.datasets.edges import STEEPEST, edges, strong
from studio.datasets.enlarging import repeats

VERSION = 3  # of what is measured; raised, everything is measured anew
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")  # what is stored (picture.KEPT)
THUMB = 48  # pixels a side
CORNER, CORNER_SHARE = 30, 0.25  # cells a side, share of the shorter side
TILE, TILES = 128, 10  # pixels a side, how many are looked at for edges
MORE_TILES = 24  # for what repeats
WIDE = 2.2  # pixels; nobody asks whether a picture with narrower edges was enlarged
SMALL = 128  # pixels of the shorter side; below, there is too little for sharpness and marks
MIN_EDGES = 60  # fewer say nothing
FLAT, CHANGE = 10.0, 24.0  # grey levels: a line of a bar varies less; the picture behind it differs by more


@dataclass(frozen=True)
class Measures:
    """One picture.

    Args:
        width: In pixels.
        height: In pixels.
        edge: Width of its sharpest edges in pixels; 0 = too few edges to tell.
        ringing: Lower quartile of the overshoot beside them, as a share of their rise.
        repeats: How far what enlarging leaves stands out (`enlarging`); 0 where the edges are narrow.
        places: At how many places there were edges to see it by.
        breaks: How sharply the curve of strong edges breaks (`edges`); 0 where that cannot be told.
        bars: Share of the side that a bar of one colour takes: left, top, right, bottom.
        thumb: (48, 48, 3) uint8, the whole picture squeezed into a square.
        corners: (4, 2, 30, 30) int8, slopes along x and y at top left, top right, bottom left, bottom right.
    """

    width: int
    height: int
    edge: float
    ringing: float
    repeats: float
    places: float
    breaks: float
    bars: tuple[float, float, float, float]
    thumb: NDArray[np.uint8]
    corners: NDArray[np.int8]

    def to_bytes(self) -> bytes:
        """A line of JSON, then both arrays."""
        head = {name: value for name, value in asdict(self).items() if name not in {"thumb", "corners"}}
        return json.dumps(head).encode() + b"\n" + self.thumb.tobytes() + self.corners.tobytes()

    @classmethod
    def of(cls, data: bytes) -> "Measures":
        """From `to_bytes`.

        Raises:
            ValueError: it is something else, or cut off.
        """
        line, _, rest = data.partition(b"\n")
        head = json.loads(line)
        size = THUMB * THUMB * 3
        thumb = np.frombuffer(rest[:size], np.uint8).reshape(THUMB, THUMB, 3)
        corners = np.frombuffer(rest[size:], np.int8).reshape(4, 2, CORNER, CORNER)
        known = {f.name for f in fields(cls)} - {"thumb", "corners"}
        if set(head) != known:
            raise ValueError("other measures")
        return cls(**head | {"bars": tuple(head["bars"])}, thumb=thumb, corners=corners)


def measure(source: Path | bytes) -> Measures:
    """Measure a stored picture.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be decoded.
    """
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as stored:
        rgb = stored.convert("RGB")
    grey = rgb.convert("L")
    values = np.asarray(grey)
    large = min(rgb.size) >= SMALL
    soft = softness(values) if large else (0.0, 0.0, 0.0, 0.0, 0.0)
    corners = _corners(grey) if large else np.zeros((4, 2, CORNER, CORNER), np.int8)
    thumb = np.asarray(rgb.resize((THUMB, THUMB), Image.Resampling.BOX))
    return Measures(rgb.width, rgb.height, *soft, bars(values), thumb, corners)


def softness(grey: NDArray[np.uint8]) -> tuple[float, float, float, float, float]:
    """`Measures.edge`, `ringing`, `repeats`, `places` and `breaks` of (H, W) grey levels."""
    places, tiles = _steepest(grey)
    edge, ringing = _sharpness(tiles[:TILES])
    if edge < WIDE or tiles.shape[1] < TILE:
        return edge, ringing, 0.0, 0.0, 0.0
    width, breaks = strong(tiles[:TILES])
    peak, count = repeats(tiles, places, grey.shape)
    return max(edge, width), ringing, round(peak, 2), round(count, 1), breaks


def _sharpness(tiles: NDArray[np.float32]) -> tuple[float, float]:
    found = [edges(tiles), edges(tiles.transpose(0, 2, 1))]
    rise, step, over = (np.concatenate(part) for part in zip(*found, strict=True))
    if len(rise) < MIN_EDGES:
        return 0.0, 0.0
    count = max(MIN_EDGES * 2 // 3, int(STEEPEST * len(rise)))
    near = step >= np.partition(step, -count)[-count]
    alone = over[near & (over < 0.5)]  # more is a line, whose other edge it is
    ringing = float(np.percentile(alone, 25)) if len(alone) >= 10 else 0.0
    return round(float(np.median((rise / step)[near])), 3), round(ringing, 4)


def bars(grey: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Share of the side that a bar takes at each edge: lines of one colour, then suddenly a picture.

    The ground of a drawing is none: there only a part of the line changes.
    """
    found: list[float] = []
    for turned in (grey.T, grey, grey.T[::-1], grey[::-1]):
        lines = turned[: max(2, turned.shape[0] // 3) : 1, :: max(1, turned.shape[1] // 200)].astype(
            np.float32
        )
        first = float(np.median(lines[0]))
        same = np.abs(lines - first).max(1) <= FLAT
        height = int(np.argmin(same)) if not same.all() else 0
        after = lines[min(height + 2, len(lines) - 1)]
        sudden = height and float((np.abs(after - first) > CHANGE).mean()) > 0.6
        found.append(round(height / turned.shape[0], 4) if sudden else 0.0)
    return found[0], found[1], found[2], found[3]


def _steepest(grey: NDArray[np.uint8]) -> tuple[list[tuple[int, int]], NDArray[np.float32]]:
    """The tiles (n, side, side) with the steepest steps, steepest first, and y, x of each."""
    high, wide = grey.shape
    side = min(TILE, high, wide)
    rows, columns = high // side, wide // side
    whole = grey[: rows * side, : columns * side].astype(np.int16)
    across = np.abs(np.diff(whole, axis=1, prepend=whole[:, :1]))
    down = np.abs(np.diff(whole, axis=0, prepend=whole[:1]))
    steps = np.maximum(across, down).reshape(rows, side, columns, side)
    score = steps.max(axis=3).mean(axis=1).ravel()
    best = np.argsort(score)[::-1][:MORE_TILES]
    places = [(int(k) // columns * side, int(k) % columns * side) for k in best]
    return places, np.stack([whole[y : y + side, x : x + side] for y, x in places]).astype(np.float32)


def _corners(grey: Image.Image) -> NDArray[np.int8]:
    side = max(CORNER + 2, int(CORNER_SHARE * min(grey.size)))
    right, low = max(0, grey.width - side), max(0, grey.height - side)
    slopes: list[NDArray[np.float32]] = []
    for x, y in ((0, 0), (right, 0), (0, low), (right, low)):
        small = grey.resize(
            (CORNER + 2, CORNER + 2),
            Image.Resampling.BOX,
            box=(x, y, min(x + side, grey.width), min(y + side, grey.height)),
        )
        cells = np.asarray(small, np.float32)
        slopes.append(np.stack([cells[1:-1, 2:] - cells[1:-1, :-2], cells[2:, 1:-1] - cells[:-2, 1:-1]]))
    return np.clip(np.stack(slopes), -127, 127).astype(np.int8)
