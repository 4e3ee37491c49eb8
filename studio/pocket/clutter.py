"""Pictures of nothing in particular, for the autoencoder: gradients, noise, hatching, polygons, lines.

Styles that people train are made of such stuff; an autoencoder that saw only flat shapes would blur it.
"""

import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from studio.pocket.grammar import Colour
from studio.pocket.render import SIDE
from studio.pocket.shapes import SHAPES, mask

CANVAS = 2 * SIDE


def clutter(rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """A 64 x 64 RGB picture of a kind drawn by chance."""
    kind = rng.choice(("noise", "polygons", "hatching", "hatching and lines", "polygons and lines"))
    ground = _gradient(rng)
    if kind == "noise" or rng.random() < 0.2:
        ground += _coloured_noise(rng, noise)
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    if "polygons" in kind:
        _draw_polygons(picture, rng)
    if "hatching" in kind:
        _draw_hatching(picture, rng)
    if "lines" in kind:
        draw = ImageDraw.Draw(picture)
        for _ in range(rng.randint(2, 10)):
            corners = [(rng.uniform(0, CANVAS), rng.uniform(0, CANVAS)) for _ in range(rng.randint(2, 4))]
            draw.line(corners, fill=_any_colour(rng), width=rng.choice((1, 2, 3, 4)))
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _any_colour(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _gradient(rng: random.Random) -> NDArray[np.float64]:
    """Half the time a linear gradient between two colours, else one colour; (S, S, 3), 0..255."""
    first, second = np.array(_any_colour(rng), float), np.array(_any_colour(rng), float)
    if rng.random() < 0.5:
        return np.tile(first, (CANVAS, CANVAS, 1))
    angle, steepness = rng.uniform(0, math.tau), rng.uniform(0.3, 2)
    y, x = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS - 0.5
    share = np.clip(0.5 + (x * math.cos(angle) + y * math.sin(angle)) * steepness, 0, 1)[..., None]
    return first * (1 - share) + second * share


def _coloured_noise(rng: random.Random, noise: np.random.Generator) -> NDArray[np.float64]:
    """Noise with a 1/f^a spectrum, a in 1..2, grey or coloured; standard deviation 10 to 60."""
    frequency = np.fft.fftfreq(CANVAS)
    radius = np.sqrt(frequency[:, None] ** 2 + frequency[None] ** 2) + 1 / CANVAS
    power = rng.uniform(1, 2)
    layers = [
        np.fft.ifft2(np.fft.fft2(noise.standard_normal((CANVAS, CANVAS))) / radius**power).real
        for _ in range(rng.choice((1, 3)))
    ]
    stacked = np.stack(layers, -1)
    return stacked / (stacked.std() + 1e-6) * rng.uniform(10, 60)


def _draw_polygons(picture: Image.Image, rng: random.Random) -> None:
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(2, 9)):
        corners, x, y = rng.randint(3, 7), rng.uniform(0, CANVAS), rng.uniform(0, CANVAS)
        radius = rng.uniform(5, 45)
        if rng.random() < 0.5:
            angles = (math.tau * i / corners for i in range(corners))
            reaches = [radius * rng.uniform(0.5, 1) for _ in range(corners)]
            polygon = [
                (x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles, reaches, strict=True)
            ]
            border = _any_colour(rng) if rng.random() < 0.4 else None
            draw.polygon(polygon, fill=_any_colour(rng), outline=border)
        else:
            box = [x - radius, y - radius * 0.8, x + radius, y + radius * 0.8]
            draw.ellipse(box, fill=_any_colour(rng), outline=_any_colour(rng), width=rng.choice((1, 2, 3)))


def _draw_hatching(picture: Image.Image, rng: random.Random) -> None:
    """Parallel lines, and more often than not a shape (or its surroundings) painted over them."""
    draw = ImageDraw.Draw(picture)
    period, angle, colour = rng.randint(5, 14), rng.uniform(0, math.pi), _any_colour(rng)
    width = rng.choice((1, 2, 2, 3))
    along_x, along_y = 2 * CANVAS * math.cos(angle), 2 * CANVAS * math.sin(angle)
    for offset in range(-2 * CANVAS, 2 * CANVAS, period):
        x, y = CANVAS / 2 - math.sin(angle) * offset, CANVAS / 2 + math.cos(angle) * offset
        draw.line([x - along_x, y - along_y, x + along_x, y + along_y], fill=colour, width=width)
    if rng.random() < 0.6:
        center = (rng.uniform(30, CANVAS - 30), rng.uniform(30, CANVAS - 30))
        area = mask(rng.choice(SHAPES), center, rng.uniform(12, 40), CANVAS)
        if rng.random() < 0.5:
            area = area.point(lambda value: 255 - value)
        picture.paste(_any_colour(rng), mask=area)
