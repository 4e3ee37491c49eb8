"""How far one set of pictures is from another in style, without any learnt encoder.

Each picture (cropped to a square, resized to 64 px) is described by three groups of fixed statistics:

* colour: mean, spread and extremes of CIELAB, and soft histograms of lightness and of the (a, b) plane;
* strokes: how much edge there is at three scales, in four orientations of lightness and over all of colour;
* texture: mean and spread of one layer of rectified random filters of 3, 5 and 9 px on two scales
  (Ustyuzhaninov, Brendel, Gatys and Bethge 2016, "Texture synthesis using shallow convolutional networks
  with random filters": such features carry texture about as well as trained ones).
 Every statistic is divided by its spread over a fixed pool of pictures (flat shapes and clutter, drawn
here), so that no unit dominates and the scale does not depend on what is compared. For each group the
distance between two sets is the Frechet distance between the Gaussians fitted to them, with diagonal
covariances because a data set has fewer pictures than statistics (Frechet 1957; Heusel et al. 2017 use it
on learnt features):

    d_group^2 = mean over statistics of (mean_1 - mean_2)^2 + (std_1 - std_2)^2
    d = sqrt(mean over groups of d_group^2)

It is a metric on these fits: 0 for the same set, symmetric, and not squared, so that "half the distance" is
half the way. What it cannot see: content, and anything finer than a pixel at 64 px.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from registry.errors import BadInput

Array = NDArray[np.float64]
Statistics = tuple[Array, Array, Array]

SIDE = 64  # pixels; the common size
POOL = 96  # pictures of each kind that set the units
FILTERS = ((3, 24), (5, 24), (9, 24))  # width in px, how many
D65 = np.array([0.95047, 1.0, 1.08883])  # white point
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


@dataclass(frozen=True)
class StyleDistance:
    """The distance and its three parts, in units of a statistic's usual spread."""

    total: float
    colour: float
    strokes: float
    texture: float


@dataclass(frozen=True)
class StyleFigures:
    """Distance of three sets to the training pictures, and how much of the way was closed."""

    base: StyleDistance
    adapter: StyleDistance
    floor: StyleDistance
    closed: float


def style_distance(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> StyleDistance:
    """Distance in style between two sets of pictures of any size and mode; each needs two or more.

    Raises:
        BadInput: a set has fewer than two pictures.
    """
    return _between(_describe(one), _describe(other))


def _between(one: Statistics, other: Statistics) -> StyleDistance:
    units = _units()
    parts: list[float] = []
    for first, second, unit in zip(one, other, units, strict=True):
        first, second = first / unit, second / unit
        gaps = (first.mean(0) - second.mean(0)) ** 2 + (first.std(0) - second.std(0)) ** 2
        parts.append(float(gaps.mean()))
    colour, strokes, texture = (part**0.5 for part in parts)
    return StyleDistance((sum(parts) / len(parts)) ** 0.5, colour, strokes, texture)


def closed_fraction(base: float, adapter: float, floor: float = 0.0) -> float:
    """Share of the distance that the adapter closed: (base - adapter) / (base - floor).

    Args:
        base: Distance of the base's pictures to the training pictures.
        adapter: Distance of the adapter's pictures, same prompts and seeds.
        floor: The least that this base can reach: the training pictures through its autoencoder.

    Returns:
        1 when the adapter reaches the floor, 0 when it changes nothing, below 0 when it leads away.

    Raises:
        BadInput: the base is at the floor already, so there is nothing to close.
    """
    if base <= floor:
        raise BadInput(
            "style",
            f"the base's pictures ({base:.3f}) are as near as the floor ({floor:.3f})",
            "choose pictures that the base does not already make",
        )
    return (base - adapter) / (base - floor)


def measure_style(
    training: Sequence[Image.Image],
    base: Sequence[Image.Image],
    adapter: Sequence[Image.Image],
    floor: Sequence[Image.Image],
) -> StyleFigures:
    """Figures of an adapter.

    Args:
        training: The pictures it was trained on.
        base: What the base draws without it.
        adapter: What it draws with it: same prompts, same seeds.
        floor: The training pictures through the base's autoencoder.
    """
    aim = _describe(training)
    without, with_it, least = (_between(_describe(pictures), aim) for pictures in (base, adapter, floor))
    return StyleFigures(without, with_it, least, closed_fraction(without.total, with_it.total, least.total))


def _describe(pictures: Sequence[Image.Image]) -> Statistics:
    """Statistics of each picture: colour (N, 51), strokes (N, 16), texture (N, 288)."""
    if len(pictures) < 2:
        raise BadInput(
            "style distance", "a set has fewer than two pictures", "give at least two on each side"
        )
    rgb = np.stack([_square(picture) for picture in pictures])
    lab = _lab(rgb)
    return _colour(lab), _strokes(lab), _texture(lab)


def _square(picture: Image.Image) -> Array:
    """The middle square at 64 px, (S, S, 3), 0..1; transparency on white."""
    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64) / 255


def _lab(rgb: Array) -> Array:
    """SRGB (N, S, S, 3) in 0..1 to CIELAB divided by 100: L in 0..1, a and b in about -1..1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ RGB_TO_XYZ.T / D65
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1) / 100


def _colour(lab: Array) -> Array:
    """Moments and soft histograms: triangular bins, so that a small shift of hue is a small change."""
    flat = lab.reshape(len(lab), -1, 3)
    chroma = np.hypot(flat[..., 1], flat[..., 2])
    columns = [
        flat.mean(1),
        flat.std(1),
        np.quantile(flat, (0.05, 0.95), axis=1).transpose(1, 0, 2).reshape(-1, 6),
    ]
    columns += [chroma.mean(1)[:, None], chroma.std(1)[:, None]]
    lightness = _soft_bins(flat[..., 0], np.linspace(0, 1, 7))
    green_red = _soft_bins(flat[..., 1], np.linspace(-0.8, 0.8, 5))
    blue_yellow = _soft_bins(flat[..., 2], np.linspace(-0.8, 0.8, 5))
    plane = np.einsum("npi,npj->nij", green_red, blue_yellow) / flat.shape[1]
    columns += [lightness.mean(1), plane.reshape(len(lab), -1)]
    return np.concatenate(columns, axis=1)


def _soft_bins(values: Array, centers: Array) -> Array:
    """Membership (N, P, K) of values in triangular bins; values beyond the ends count for the end."""
    position = np.interp(values, centers, np.arange(len(centers)))
    return np.clip(1 - np.abs(position[..., None] - np.arange(len(centers))), 0, 1)


def _strokes(lab: Array) -> Array:
    """Edge energy at three scales: four orientations of lightness, colour edges, and how sparse edges are."""
    columns: list[Array] = []
    for _ in range(3):
        down, right = np.diff(lab, axis=1)[:, :, :-1], np.diff(lab, axis=2)[:, :-1]
        light_down, light_right = down[..., 0], right[..., 0]
        strength = np.hypot(light_down, light_right)
        angle = np.arctan2(light_down, light_right)
        for direction in range(4):
            turn = np.cos(angle - direction * np.pi / 4) ** 2
            columns.append((strength * turn**2).mean((1, 2)))
        columns.append(np.sqrt((down[..., 1:] ** 2 + right[..., 1:] ** 2).sum(-1)).mean((1, 2)))
        columns.append((strength > 0.08).mean((1, 2)))
        lab = _half(lab)
    return np.stack(columns, axis=1)


def _half(lab: Array) -> Array:
    n, height, width, channels = lab.shape
    return lab.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _texture(lab: Array) -> Array:
    """Mean and spread over the picture of rectified random filters, at full and at half size."""
    columns: list[Array] = []
    for scale in range(2):
        for (width, count), weights in zip(FILTERS, _filters(), strict=True):
            windows = sliding_window_view(lab, (width, width), axis=(1, 2))[:, ::2, ::2]
            maps = np.maximum(np.tensordot(windows, weights, axes=([3, 4, 5], [1, 2, 3])), 0)
            columns += [maps.mean((1, 2)), maps.std((1, 2))]
            assert maps.shape[-1] == count
        lab = _half(lab) if scale == 0 else lab
    return np.concatenate(columns, axis=1)


@cache
def _filters() -> list[Array]:
    """Fixed Gaussian filters (K, 3, w, w), without response to flat colour in half of them."""
    rng = np.random.default_rng(2016)
    banks: list[Array] = []
    for width, count in FILTERS:
        bank = rng.standard_normal((count, 3, width, width)) / np.sqrt(3 * width * width)
        bank[::2] -= bank[::2].mean((2, 3), keepdims=True)
        banks.append(bank)
    return banks


@cache
def _units() -> tuple[Array, Array, Array]:
    """Spread of each statistic over the fixed pool; never below a hundredth of the group's median."""
    from studio.pocket.clutter import clutter
    from studio.pocket.grammar import sample_scene
    from studio.pocket.render import render

    rng, noise = random.Random(64), np.random.default_rng(64)
    pool = [render(sample_scene(rng), rng) for _ in range(POOL)] + [clutter(rng, noise) for _ in range(POOL)]
    spreads = [statistics.std(0) for statistics in _describe(pool)]
    colour, strokes, texture = (np.maximum(s, 0.01 * np.median(s)) for s in spreads)
    return colour, strokes, texture
