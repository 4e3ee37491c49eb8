"""Fixed features of pictures: nothing learnt but, where a base is given, its own autoencoder.

A picture is looked at in three ways:

* its look, without places: what stays when things move. Of pixels (64 x 64, Oklab: Ottosson 2020, "A
  perceptual color space for image processing") the quantiles along seven fixed directions of colour, so
  that the distance of two sets of them is a sliced Wasserstein distance (Rabin, Peyre, Delon and Bernot
  2011, "Wasserstein barycenter and its application to texture mixing"); and how much there is of each level
  of a Laplacian pyramid (Burt and Adelson 1983), and how sparse it is. Of latents mean, spread and a Gram
  matrix of the channels (Gatys, Ecker and Bethge 2016, "Image style transfer using convolutional neural
  networks") and the energy of their slopes, at two scales.
* its layout, with places: Oklab colours and edges in 16 x 16 cells, and the latents in at most as many.
* its scene: what is where, as far as that can be had whatever the style: where the edges are and where a
  picture differs from its own ground (both in 8 x 8 cells, whatever the contrast), the colour of what
  stands out there, and the colours of all cells.

Nothing here is shared with `studio.compare.style`, which stays a judge from outside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Floats = NDArray[np.float64]

SIDE = 64  # pixels that the look is read at
CELLS = 16  # of a layout, a side
COARSE = 8  # cells of a scene, a side: things may move a little
FRAME = 3  # pixels of the border that show the ground
LEVELS = 4  # of the pyramid
QUANTILES = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
DIRECTIONS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]], dtype=np.float64
)
LITTLE = 1e-3  # below which an edge is none; keeps logarithms finite
TO_LMS = np.array(  # linear sRGB -> cone responses, Ottosson 2020
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@dataclass(frozen=True)
class View:
    """N pictures seen in one way.

    Args:
        name: "pixels", "latents" or "encoder".
        look: (N, D) statistics without places.
        groups: Sizes of the groups of statistics, in order; their sum is D. Each counts the same.
        layout: (N, places, channels) values with places.
        scene: Several descriptions (N, K) of what is where; each counts the same.
    """

    name: str
    look: Floats
    groups: tuple[int, ...]
    layout: Floats
    scene: tuple[Floats, ...]

    @staticmethod
    def joined(parts: Sequence["View"]) -> "View":
        """Views of one kind of several lists of pictures as that of all."""
        look = np.concatenate([part.look for part in parts])
        layout = np.concatenate([part.layout for part in parts])
        scene = tuple(np.concatenate(same) for same in zip(*(part.scene for part in parts), strict=True))
        return View(parts[0].name, look, parts[0].groups, layout, scene)

    def rows(self, rows: Sequence[int]) -> "View":
        """The view of some of the pictures."""
        scene = tuple(part[rows] for part in self.scene)
        return View(self.name, self.look[rows], self.groups, self.layout[rows], scene)


def cut(pictures: Sequence[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """RGB pictures of `size` (width, height): covered, then cut in the middle; transparency on white."""
    return [ImageOps.fit(_plain(picture), size, Image.Resampling.LANCZOS) for picture in pictures]


def pixel_view(pictures: Sequence[Image.Image]) -> View:
    """What the pixels of RGB pictures say."""
    lab = oklab(pictures, SIDE)
    colour, edges = _colour(lab), _edges(lab)
    layout = _cells(lab, CELLS)
    return View(
        "pixels",
        np.concatenate([colour, edges], 1),
        (colour.shape[1], edges.shape[1]),
        layout.reshape(len(layout), -1, layout.shape[-1]),
        _scene(lab),
    )


def latent_view(latents: NDArray[Any]) -> View:
    """What the latents (N, C, h, w) of pictures say."""
    values = np.asarray(latents, dtype=np.float64)
    fine, coarse = _latent_look(values), _latent_look(_pooled(values, 2))
    n, channels, high, wide = values.shape
    step = max(1, max(high, wide) // CELLS)
    small = _pooled(values, step)
    return View(
        "latents",
        np.concatenate([fine, coarse], 1),
        (fine.shape[1], coarse.shape[1]),
        small.reshape(n, channels, -1).transpose(0, 2, 1),
        (small.reshape(n, -1),),
    )


def oklab(pictures: Sequence[Image.Image], side: int) -> Floats:
    """(N, side, side, 3) Oklab: lightness in 0..1, the two colour axes in about -0.4..0.4."""
    small = [picture.convert("RGB").resize((side, side), Image.Resampling.BOX) for picture in pictures]
    rgb = np.stack([np.asarray(picture, dtype=np.float64) for picture in small]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")


def _colour(lab: Floats) -> Floats:
    """(N, 49) quantiles along each direction of colour, of length 1."""
    directions = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
    every_other = lab[:, ::2, ::2].reshape(len(lab), -1, 3)  # sorting is what costs time here
    along = every_other @ directions.T  # (N, pixels, 7)
    return np.quantile(along, QUANTILES, axis=1).transpose(1, 0, 2).reshape(len(lab), -1)


def _edges(lab: Floats) -> Floats:
    """(N, 24) of each level and channel: logarithm of the mean size, and how unevenly it is spread."""
    columns: list[Floats] = []
    for _ in range(LEVELS):
        coarse = _half(lab)
        detail = np.abs(lab - np.repeat(np.repeat(coarse, 2, 1), 2, 2))
        mean, spread = detail.mean((1, 2)), detail.std((1, 2))
        columns += [np.log(LITTLE + mean), spread / (LITTLE + mean)]
        lab = coarse
    return np.concatenate(columns, 1)


def _half(lab: Floats) -> Floats:
    n, high, wide, channels = lab.shape
    return lab.reshape(n, high // 2, 2, wide // 2, 2, channels).mean((2, 4))


def _cells(lab: Floats, cells: int) -> Floats:
    """(N, cells, cells, 4) mean colour of each cell, and how much edge it has."""
    wide = np.pad(lab, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    down, right = np.diff(wide, axis=1)[:, :, :-1], np.diff(wide, axis=2)[:, :-1]
    strength = np.sqrt((down**2 + right**2).sum(-1, keepdims=True))
    return _means(np.concatenate([lab, strength], -1), cells)


def _means(values: Floats, cells: int) -> Floats:
    """(N, cells, cells, K) means of (N, S, S, K)."""
    n, side, _, channels = values.shape
    step = side // cells
    return values.reshape(n, cells, step, cells, step, channels).mean((2, 4))


def _scene(lab: Floats) -> tuple[Floats, ...]:
    """Edges (N, 64), what stands out (N, 64), its colour (N, 2), colours of all cells (N, 768)."""
    n = len(lab)
    frame = np.concatenate(
        [
            lab[:, :FRAME],
            lab[:, -FRAME:],
            lab[:, :, :FRAME].swapaxes(1, 2),
            lab[:, :, -FRAME:].swapaxes(1, 2),
        ],
        1,
    )
    ground = np.median(frame.reshape(n, -1, 3), axis=1)[:, None, None]
    apart = np.sqrt(((lab - ground) ** 2).sum(-1, keepdims=True))
    weight = apart**2 / np.maximum((apart**2).sum((1, 2), keepdims=True), LITTLE)
    colour = (lab[..., 1:] * weight).sum((1, 2))
    edges = _cells(lab, COARSE)[..., 3].reshape(n, -1)
    shown = _means(apart, COARSE).reshape(n, -1)
    return _unit(edges), _unit(shown), colour, _means(lab, CELLS).reshape(n, -1)


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), LITTLE)


def _latent_look(values: Floats) -> Floats:
    """(N, C + C (C + 1) / 2 + 2 C) mean, Gram matrix of what is left, energy of slopes along both sides."""
    n, channels = values.shape[:2]
    flat = values.reshape(n, channels, -1)
    mean = flat.mean(2)
    rest = flat - mean[..., None]
    gram = rest @ rest.transpose(0, 2, 1) / flat.shape[2]
    gram = np.sign(gram) * np.sqrt(np.abs(gram))  # in the units of the latents
    upper = gram[:, *np.triu_indices(channels)]
    slopes = [np.sqrt((np.diff(values, axis=axis) ** 2).mean((2, 3))) for axis in (2, 3)]
    return np.concatenate([mean, upper, *slopes], 1)


def _pooled(values: Floats, step: int) -> Floats:
    """Means of step x step cells; what is left over at the far edges is cut."""
    n, channels, high, wide = values.shape
    step = min(step, high, wide)
    rows, columns = high // step, wide // step
    kept = values[:, :, : rows * step, : columns * step]
    return kept.reshape(n, channels, rows, step, columns, step).mean((3, 5))


def encoder_view(rows: NDArray[Any]) -> View:
    """What an encoder makes of pictures: unit rows (N, D)."""
    values = np.asarray(rows, dtype=np.float64)
    return View("encoder", values, (values.shape[1],), values[..., None], (values,))
