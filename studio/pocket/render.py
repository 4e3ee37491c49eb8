"""Scenes to pictures: 64 x 64 px, drawn at four times the size and averaged down."""

import random

from PIL import Image, ImageDraw

from studio.pocket.grammar import COLOURS, POSITIONS, Colour, Scene
from studio.pocket.shapes import Point, mask

SIDE = 64  # pixels
OVERSAMPLING = 4
CANVAS = SIDE * OVERSAMPLING
RADIUS = {"small": 0.13, "": 0.24, "large": 0.36}  # of the side
CROWDED_RADIUS = {1: 1.0, 2: 0.19, 3: 0.145}  # at most, of the side
APART_RADIUS = CROWDED_RADIUS | {3: 0.115}  # with that of above every second three of a kind touch
TEXTURE_PERIOD = int(0.085 * CANVAS)
OUTLINE_HOLE = 0.72  # of the radius


def jitter(colour: Colour, rng: random.Random, amount: float = 8) -> Colour:
    """`colour` with every channel moved by up to `amount` of 255."""
    red, green, blue = (max(0, min(255, int(c + rng.uniform(-amount, amount)))) for c in colour)
    return red, green, blue


def layout(scene: Scene, rng: random.Random, *, apart: bool = False) -> tuple[list[Point], float]:
    """Centres and common radius of the shapes in pixels of the 64 px picture; `apart`: three do not touch."""
    crowded = APART_RADIUS if apart else CROWDED_RADIUS
    radius = SIDE * min(RADIUS[scene.size], crowded[scene.count]) * rng.uniform(0.9, 1.1)
    middle = SIDE / 2

    def near(amount: float) -> float:
        return middle + rng.uniform(-amount, amount)

    if scene.count == 1:
        room = SIDE / 2 - 1.2 * radius - 2
        if not scene.position:
            slack = max(2.0, min(6.0, room))
            return [(near(slack), near(slack))], radius
        x, y = POSITIONS[scene.position]
        return [
            (near(1.5) + x * room * rng.uniform(0.85, 1), near(1.5) + y * room * rng.uniform(0.85, 1))
        ], radius
    gap, slack = (SIDE * 0.25, 2.0) if scene.count == 2 else (SIDE * 0.32, 1.5)
    offsets = (-gap, gap) if scene.count == 2 else (-gap, 0.0, gap)
    return [(near(slack) + offset, near(2 * slack)) for offset in offsets], radius


def render(scene: Scene, rng: random.Random, *, apart: bool = False) -> Image.Image:
    """The scene as an RGB picture; places, size and colours vary with `rng`; `apart`: see `layout`."""
    colour, ground = jitter(COLOURS[scene.colour], rng), jitter(COLOURS[scene.background], rng)
    picture = Image.new("RGB", (CANVAS, CANVAS), ground)
    centers, radius = layout(scene, rng, apart=apart)
    for x, y in centers:
        center = (x * OVERSAMPLING, y * OVERSAMPLING)
        inside = mask(scene.shape, center, radius * OVERSAMPLING, CANVAS)
        picture.paste(colour, mask=inside)
        if scene.texture == "outlined":
            hole = mask(scene.shape, center, radius * OVERSAMPLING * OUTLINE_HOLE, CANVAS)
            picture.paste(ground, mask=hole)
        elif scene.texture:
            pattern = _stripes() if scene.texture == "striped" else _dots()
            picture.paste(_second_tone(colour), mask=_both(inside, pattern))
    return shrink(picture)


def shrink(picture: Image.Image) -> Image.Image:
    """The oversampled canvas averaged down to 64 x 64 px."""
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _both(one: Image.Image, other: Image.Image) -> Image.Image:
    return Image.composite(one, Image.new("L", one.size, 0), other)


def _second_tone(colour: Colour) -> Colour:
    """A lighter tone, or a darker one for what is light already."""
    dark = sum(colour) < 600
    red, green, blue = (int(c * 0.35 + 255 * 0.65) if dark else int(c * 0.55) for c in colour)
    return red, green, blue


def _stripes() -> Image.Image:
    pattern = Image.new("L", (CANVAS, CANVAS), 0)
    draw = ImageDraw.Draw(pattern)
    for x in range(-CANVAS, 2 * CANVAS, TEXTURE_PERIOD):
        draw.rectangle([x, 0, x + TEXTURE_PERIOD * 0.5, CANVAS], fill=255)
    return pattern


def _dots() -> Image.Image:
    pattern = Image.new("L", (CANVAS, CANVAS), 0)
    draw = ImageDraw.Draw(pattern)
    radius = TEXTURE_PERIOD * 0.28
    for row, y in enumerate(range(0, CANVAS + TEXTURE_PERIOD, TEXTURE_PERIOD)):
        for column in range(0, CANVAS + TEXTURE_PERIOD, TEXTURE_PERIOD):
            x = column + (TEXTURE_PERIOD // 2 if row % 2 else 0)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return pattern
