"""Maps of edges, drawn by numpy and scipy alone: they work offline and cost milliseconds.

All are RGB pictures, white on black, as networks for ControlNet were trained to read.
"""

from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

LOW, HIGH = 100, 200  # thresholds of published networks' training, on |dx| + |dy| of Sobel over 0..255
WIDE, NARROW = 6.0, 0.7  # pixels (standard deviations): surroundings and line of a drawing
FLOOR = 16.0  # least darkness that may become white: an even picture has no lines, only noise
_SMOOTH, _DIFFERENCE = (1, 2, 1), (-1, 0, 1)  # Sobel's two factors
_TAN_22 = 0.41421356  # tan 22.5 degrees
_ALL_AROUND = np.ones((3, 3), dtype=bool)


def canny(picture: Image.Image, *, low: float = LOW, high: float = HIGH, sigma: float = 0.0) -> Image.Image:
    """Canny's edges (Canny 1986, IEEE PAMI-8): thin lines along the steepest places.

    Gradients by Sobel in each colour, of which the steepest counts; only ridges stay, one pixel wide; of
    these, those above `high`, and those above `low` that touch them.

    Args:
        picture: RGB.
        low: Lower threshold on |dx| + |dy|, of values 0 to 255.
        high: Upper threshold.
        sigma: Gaussian before it, in pixels. None by default: the maps that published networks were trained
            with had none.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    if sigma:
        pixels = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
    dx, dy = _steepest(pixels)
    ridges = _ridges(dx, dy, low)
    strength = np.abs(dx) + np.abs(dy)
    labelled: Any = ndimage.label(ridges, structure=_ALL_AROUND)
    pieces = labelled[0]
    kept = np.unique(pieces[ridges & (strength > high)])
    return _map(np.isin(pieces, kept[kept > 0]) * 255.0)


def lineart(picture: Image.Image) -> Image.Image:
    """Lines of a drawing: how much darker a place is than its surroundings (difference of Gaussians)."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    around = ndimage.gaussian_filter(pixels, (WIDE, WIDE, 0), mode="nearest")
    here = ndimage.gaussian_filter(pixels, (NARROW, NARROW, 0), mode="nearest")
    darker = (around - here).max(axis=2).clip(0)
    return _map(darker * 255 / _bright(darker))


def softedge(picture: Image.Image) -> Image.Image:
    """Soft edges: the steepness of the blurred picture. Stands in for learned ones (HED, PiDiNet)."""
    steep = _steepness(picture, 1.5)
    return _map(steep * 255 / _bright(steep))


def scribble(picture: Image.Image) -> Image.Image:
    """Few thick strokes: edges of the strongly blurred picture, drawn with a pen about 1/128 of its side."""
    edges = np.asarray(canny(picture, low=LOW / 4, high=HIGH / 4, sigma=min(picture.size) / 170))[..., 0] > 0
    radius = max(1, round(min(picture.size) / 256))
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return _map(ndimage.binary_dilation(edges, rows**2 + columns**2 <= radius**2) * 255.0)


def _steepest(pixels: Any) -> tuple[Any, Any]:
    """(dx, dy), each (H, W): of the colour whose gradient is longest at each pixel of (H, W, 3)."""
    dx = _sobel(pixels, along=1)
    dy = _sobel(pixels, along=0)
    colour = np.argmax(np.abs(dx) + np.abs(dy), axis=2)[..., None]
    return np.take_along_axis(dx, colour, 2)[..., 0], np.take_along_axis(dy, colour, 2)[..., 0]


def _sobel(pixels: Any, *, along: int) -> Any:
    smooth = ndimage.correlate1d(pixels, _SMOOTH, axis=1 - along, mode="nearest")
    return ndimage.correlate1d(smooth, _DIFFERENCE, axis=along, mode="nearest")


def _ridges(dx: Any, dy: Any, low: float) -> Any:
    """Where the gradient is above `low` and longer than on both sides of the edge (H, W) bool.

    Of two equal neighbours the first counts; beyond the border there is nothing.
    """
    length = np.abs(dx) + np.abs(dy)
    padded = np.pad(length, 1)
    rows, columns = length.shape

    def beside(row: int, column: int) -> Any:
        return padded[1 + row : 1 + row + rows, 1 + column : 1 + column + columns]

    flat = np.abs(dy) < np.abs(dx) * _TAN_22
    upright = np.abs(dy) > np.abs(dx) * (2 + _TAN_22)  # tan 67.5 degrees
    falling = dx * dy >= 0  # towards the lower right
    across = (length > beside(0, -1)) & (length >= beside(0, 1))
    along = (length > beside(-1, 0)) & (length >= beside(1, 0))
    down = (length > beside(-1, -1)) & (length > beside(1, 1))
    up = (length > beside(-1, 1)) & (length > beside(1, -1))
    ridge = np.where(flat, across, np.where(upright, along, np.where(falling, down, up)))
    return ridge & (length > low)


def _steepness(picture: Image.Image, sigma: float) -> Any:
    """(H, W): length of the luminance's gradient after a Gaussian of `sigma` pixels."""
    luminance = np.asarray(picture.convert("L"), dtype=np.float32)
    return ndimage.gaussian_gradient_magnitude(luminance, sigma, mode="nearest")


def _bright(values: Any) -> float:
    """What becomes white: nearly the largest value, so that one speck does not darken the rest."""
    return max(FLOOR, float(np.quantile(values, 0.995)))


def _map(values: Any) -> Image.Image:
    """(H, W) of 0 to 255 -> RGB."""
    bytes_ = values.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(bytes_).convert("RGB")
