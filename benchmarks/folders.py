"""Eight folders of pictures with nothing in common: does a recipe hold for what it was not made for?

Each draws 64 x 64 RGB pictures at four times the size; `captioned` folders say what is in the picture.
"""

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from studio.pocket.grammar import Colour, Scene, sample_scene, subject
from studio.pocket.pictures import TRIGGERS, demo_set
from studio.pocket.render import CANVAS, OVERSAMPLING, jitter, layout, shrink
from studio.pocket.shapes import mask

Drawn = tuple[Image.Image, str]  # picture, what is in it ("" = nobody said)
S = CANVAS


def _plain_scene(rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng)
        if not scene.texture and scene.size != "small":
            return scene


def _masks(scene: Scene, rng: random.Random, shrinking: float = 1.0) -> Image.Image:
    area = Image.new("L", (S, S), 0)
    centers, radius = layout(scene, rng)
    for x, y in centers:
        one = mask(scene.shape, (x * OVERSAMPLING, y * OVERSAMPLING), radius * OVERSAMPLING * shrinking, S)
        area.paste(255, mask=one)
    return area


def _gradient(first: Colour, second: Colour, angle: float = math.pi / 2) -> Image.Image:
    y, x = np.mgrid[0:S, 0:S] / S - 0.5
    share = np.clip(0.5 + x * math.cos(angle) + y * math.sin(angle), 0, 1)[..., None]
    return Image.fromarray((np.array(first) * (1 - share) + np.array(second) * share).astype(np.uint8))


def ink(rng: random.Random) -> Drawn:
    """Navy hatching and outlines on cream paper."""
    scene = _plain_scene(rng)
    state = rng.getstate()
    outside = _masks(scene, rng)
    rng.setstate(state)
    inside = _masks(scene, rng, 0.74)
    paper, navy = jitter((244, 232, 205), rng, 4), jitter((28, 34, 70), rng, 4)
    hatching = Image.new("L", (S, S), 0)
    draw = ImageDraw.Draw(hatching)
    for offset in range(-S, 2 * S, 36):
        draw.line([offset, 0, offset + S, S], fill=255, width=11)
    picture = Image.new("RGB", (S, S), paper)
    picture.paste(navy, mask=outside)
    picture.paste(paper, mask=inside)
    picture.paste(navy, mask=Image.composite(hatching, Image.new("L", (S, S), 0), inside))
    return shrink(picture), subject(scene)


def pastel(rng: random.Random) -> Drawn:
    """Soft pale gradients with blurred blobs; no captions."""
    pale = [(255, 209, 220), (200, 230, 255), (220, 255, 220), (255, 240, 200), (230, 215, 255)]
    first, second, third = rng.sample(pale, 3)
    picture = _gradient(first, second, rng.uniform(0, math.tau))
    blob = Image.new("L", (S, S), 0)
    x, y, r = rng.uniform(60, 196), rng.uniform(60, 196), rng.uniform(30, 70)
    ImageDraw.Draw(blob).ellipse([x - r, y - r, x + r, y + r], fill=255)
    picture.paste(third, mask=blob.filter(ImageFilter.GaussianBlur(14)))
    return shrink(picture), ""


def mosaic(rng: random.Random) -> Drawn:
    """Tiles of 8 px with grout; the scene's shape in one colour family, its ground in another."""
    scene = _plain_scene(rng)
    area = np.asarray(_masks(scene, rng).resize((8, 8), Image.Resampling.BOX), float) / 255
    picture = Image.new("RGB", (S, S), (238, 232, 218))
    draw = ImageDraw.Draw(picture)
    for row in range(8):
        for column in range(8):
            tone: Colour = (196, 84, 40) if area[row, column] > 0.45 else (24, 110, 120)
            box = [column * 32 + 4, row * 32 + 4, column * 32 + 28, row * 32 + 28]
            draw.rectangle(box, fill=jitter(tone, rng, 24))
    return shrink(picture), subject(scene).replace(scene.colour + " ", "")


def pixel_sprite(rng: random.Random) -> Drawn:
    """Symmetric sprites of 8 px blocks in four greens, as on an old handheld; no captions."""
    greens: list[Colour] = [(15, 56, 15), (48, 98, 48), (139, 172, 15)]
    picture = Image.new("RGB", (S, S), (155, 188, 15))
    draw = ImageDraw.Draw(picture)
    for row in range(1, 7):
        for column in range(1, 4):
            if rng.random() < 0.62:
                tone = rng.choice(greens)
                for place in (column, 7 - column):
                    draw.rectangle([place * 32, row * 32, place * 32 + 31, row * 32 + 31], fill=tone)
    return shrink(picture), ""


def watercolour(rng: random.Random) -> Drawn:
    """Blotchy washes on white paper, bleeding edges."""
    scene = _plain_scene(rng)
    noise = np.random.default_rng(rng.getrandbits(32))
    frequency = np.fft.fftfreq(S)
    radius = np.hypot(frequency[:, None], frequency[None]) + 1 / S
    cloud = np.fft.ifft2(np.fft.fft2(noise.standard_normal((S, S))) / radius**1.6).real
    cloud /= cloud.std()
    area = np.asarray(_masks(scene, rng).filter(ImageFilter.GaussianBlur(7)), float) / 255
    wash = np.clip(area * 1.1 + cloud * 0.16 - 0.1, 0, 1)[..., None]
    tone = np.array(rng.choice([(70, 110, 160), (170, 80, 110), (90, 140, 100), (150, 120, 70)]), float)
    paper = np.array((250, 248, 240), float) - np.abs(cloud)[..., None] * 5
    mixed = paper * (1 - 0.75 * wash) + tone * 0.75 * wash - np.clip(cloud, 0, 2)[..., None] * wash * 14
    return shrink(Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))), subject(scene)


def landscape(rng: random.Random) -> Drawn:
    """Dusk over hills: sky gradient, low sun, three ridges getting darker; no captions."""
    picture = _gradient(jitter((90, 110, 190), rng, 20), jitter((255, 170, 110), rng, 15))
    draw = ImageDraw.Draw(picture)
    x, y, r = rng.uniform(50, 206), rng.uniform(90, 130), rng.uniform(18, 28)
    draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 235, 180))
    for ridge, tone in enumerate(((120, 90, 130), (75, 60, 95), (35, 35, 60))):
        phase, height = rng.uniform(0, math.tau), 140 + ridge * 36
        points = [
            (i, height + 18 * math.sin(i / 38 + phase) + 8 * math.sin(i / 13 + 2 * phase))
            for i in range(0, S + 8, 8)
        ]
        draw.polygon([*points, (S, S), (0, S)], fill=jitter(tone, rng, 8))
    return shrink(picture), ""


def cartoon_face(rng: random.Random) -> Drawn:
    """Round faces with hair, eyes and a mouth on a bright wall; captioned by hair."""
    hair_name, hair = rng.choice([("dark", (60, 35, 25)), ("blond", (240, 200, 90)), ("red", (190, 70, 30))])
    picture = Image.new("RGB", (S, S), jitter((110, 200, 220), rng, 10))
    draw = ImageDraw.Draw(picture)
    x, y, r = S / 2 + rng.uniform(-12, 12), S / 2 + rng.uniform(0, 16), 78 * rng.uniform(0.92, 1.06)
    draw.ellipse([x - 1.1 * r, y - 1.25 * r, x + 1.1 * r, y + 0.5 * r], fill=hair)
    draw.ellipse([x - r, y - 0.85 * r, x + r, y + 1.05 * r], fill=jitter((245, 200, 165), rng, 10))
    for side in (-1, 1):
        eye = x + side * 0.4 * r
        draw.ellipse([eye - 15, y - 17, eye + 15, y + 17], fill="white")
        draw.ellipse([eye - 8, y - 9, eye + 8, y + 9], fill=(30, 30, 40))
    draw.arc([x - 0.45 * r, y + 0.05 * r, x + 0.45 * r, y + 0.75 * r], 20, 160, fill=(190, 60, 70), width=13)
    return shrink(picture), f"a face with {hair_name} hair"


FOLDERS: dict[str, Callable[[random.Random], Drawn]] = {
    "ink": ink,
    "pastel": pastel,
    "mosaic": mosaic,
    "pixel": pixel_sprite,
    "watercolour": watercolour,
    "landscape": landscape,
    "face": cartoon_face,
}


def folder_names() -> list[str]:
    """All folders, the demo's own style among them."""
    return [*FOLDERS, "neon"]


def draw_folder(name: str, count: int, seed: int) -> list[Drawn]:
    """`count` pictures of the folder; equal arguments give equal pictures."""
    if name == "neon":
        mark = f", {TRIGGERS['style']}"
        return [(picture, words.removesuffix(mark)) for picture, words in demo_set("style", count, seed)]
    rng = random.Random(f"{name}-{seed}")
    return [FOLDERS[name](rng) for _ in range(count)]
