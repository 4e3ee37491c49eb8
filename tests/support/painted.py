"""Pictures of realistic sizes, painted by chance: photographs, drawings, clutter, series of a figure.

Nothing here is enlarged or blurred unless somebody plants it (`tests.support.planted`).
"""

import math
import random
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from studio.pocket.shapes import SHAPES, outline

KINDS = ("photo", "drawing", "clutter", "series")
Colour = tuple[int, int, int]


def painted(kind: str, rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """An RGB picture of (width, height) pixels; drawn at twice that and averaged, as a lens does."""
    wide, high = 2 * size[0], 2 * size[1]
    picture = {"photo": _photo, "drawing": _drawing, "clutter": _clutter, "series": _figure}[kind](
        rng, wide, high
    )
    picture = picture.resize(size, Image.Resampling.BOX)
    return _grain(picture, rng) if kind == "photo" else picture


def encoded(picture: Image.Image, rng: random.Random, quality: int = 0) -> bytes:
    """As a file: PNG or JPEG by chance, or a JPEG of this quality."""
    buffer = BytesIO()
    if quality or rng.random() < 0.7:
        picture.save(buffer, "JPEG", quality=quality or rng.randint(82, 95))
    else:
        picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _any(rng: random.Random) -> Colour:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _gradient(rng: random.Random, wide: int, high: int) -> Image.Image:
    first, second = (np.array(_any(rng), np.float32) for _ in range(2))
    angle = rng.uniform(0, math.tau)
    y, x = np.mgrid[0:high:8, 0:wide:8].astype(np.float32)
    share = 0.5 + (x / wide - 0.5) * math.cos(angle) + (y / high - 0.5) * math.sin(angle)
    share = np.clip(share, 0, 1)[..., None]
    small = Image.fromarray((first * (1 - share) + second * share).astype(np.uint8))
    return small.resize((wide, high), Image.Resampling.BILINEAR)


def _noise(rng: random.Random, wide: int, high: int, power: float) -> NDArray[np.float32]:
    """Noise with a 1/f^power spectrum, mean 0, deviation 1; (high, wide)."""
    source = np.random.default_rng(rng.randrange(2**32)).standard_normal((high, wide), dtype=np.float32)
    y, x = np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None]
    radius = np.sqrt(y * y + x * x) + 1 / max(wide, high)
    field = np.fft.irfft2(np.fft.rfft2(source) / radius**power, (high, wide)).astype(np.float32)
    return field / (field.std() + 1e-6)


def _photo(rng: random.Random, wide: int, high: int) -> Image.Image:
    """Surfaces with texture, overlapping as things before a camera do, in front of a soft background."""
    ground = np.asarray(_gradient(rng, wide, high), np.float32)
    half = (high // 2, wide // 2)
    layers = [_noise(rng, half[1], half[0], rng.uniform(1.0, 1.6)) for _ in range(2)]
    layers = [np.kron(layer, np.ones((2, 2), np.float32)) for layer in layers]
    soft = Image.fromarray(
        np.clip(ground + layers[0][..., None] * rng.uniform(8, 30), 0, 255).astype(np.uint8)
    )
    picture = soft.filter(ImageFilter.GaussianBlur(rng.uniform(0, 8)))
    for _ in range(rng.randint(3, 9)):
        hull = Image.new("L", (wide, high), 0)
        _shape(ImageDraw.Draw(hull), rng, wide, high, 255)
        tint = np.array(_any(rng), np.float32) + layers[1][..., None] * rng.uniform(6, 26)
        picture.paste(Image.fromarray(np.clip(tint, 0, 255).astype(np.uint8)), mask=hull)
    return picture


def _grain(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The noise of a sensor."""
    noise = np.random.default_rng(rng.randrange(2**32)).standard_normal(
        (picture.height, picture.width, 1), dtype=np.float32
    )
    values = np.asarray(picture, np.float32) + noise * rng.uniform(0.5, 4)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _shape(draw: ImageDraw.ImageDraw, rng: random.Random, wide: int, high: int, fill: Colour | int) -> None:
    center, reach = (rng.uniform(0, wide), rng.uniform(0, high)), min(wide, high) * rng.uniform(0.06, 0.35)
    if rng.random() < 0.5:
        draw.polygon(outline(rng.choice(SHAPES), center, reach), fill=fill)
    else:
        angles = sorted(rng.uniform(0, math.tau) for _ in range(rng.randint(3, 8)))
        corners = [(center[0] + reach * math.cos(a), center[1] + reach * math.sin(a)) for a in angles]
        draw.polygon(corners, fill=fill)


def _drawing(rng: random.Random, wide: int, high: int) -> Image.Image:
    """Flat colours with hard edges and much empty ground."""
    picture = Image.new("RGB", (wide, high), _any(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(1, 4)):
        _shape(draw, rng, wide, high, _any(rng))
    if rng.random() < 0.5:
        for _ in range(rng.randint(2, 8)):
            points = [(rng.uniform(0, wide), rng.uniform(0, high)) for _ in range(3)]
            draw.line(points, fill=_any(rng), width=max(2, wide // 300))
    return picture


def _clutter(rng: random.Random, wide: int, high: int) -> Image.Image:
    """Hatching, polygons, lines."""
    picture = _gradient(rng, wide, high)
    draw = ImageDraw.Draw(picture)
    period, angle, colour = rng.randint(wide // 60, wide // 15), rng.uniform(0, math.pi), _any(rng)
    reach = 2 * max(wide, high)
    along = reach * math.cos(angle), reach * math.sin(angle)
    for offset in range(-reach, reach, period):
        x, y = wide / 2 - math.sin(angle) * offset, high / 2 + math.cos(angle) * offset
        ends = [x - along[0], y - along[1], x + along[0], y + along[1]]
        draw.line(ends, fill=colour, width=max(2, period // 4))
    for _ in range(rng.randint(2, 9)):
        _shape(draw, rng, wide, high, _any(rng))
    return picture


def _figure(rng: random.Random, wide: int, high: int) -> Image.Image:
    """The same figure in every picture, elsewhere and before another ground."""
    picture = Image.new("RGB", (wide, high), _any(rng)) if rng.random() < 0.6 else _gradient(rng, wide, high)
    draw = ImageDraw.Draw(picture)
    side = min(wide, high)
    radius = 0.24 * side * rng.uniform(0.85, 1.15)
    x, y = wide / 2 + side * rng.uniform(-0.2, 0.2), high / 2 + side * rng.uniform(-0.15, 0.15)
    box = [x - radius, y - radius, x + radius, y + radius]
    draw.rounded_rectangle(box, radius=0.3 * radius, fill=(40, 190, 180))
    for turn in (-1, 1):
        eye = x + turn * 0.45 * radius
        draw.rectangle([eye - 0.25 * radius, y - 0.5 * radius, eye + 0.25 * radius, y], (250, 230, 60))
        look = rng.uniform(-0.12, 0.12) * radius
        draw.ellipse(
            [eye + look - 8, y - 0.3 * radius - 8, eye + look + 8, y - 0.3 * radius + 8], (20, 20, 20)
        )
    smile = rng.uniform(0.2, 0.6) * radius
    draw.rectangle([x - smile, y + 0.35 * radius, x + smile, y + 0.5 * radius], (245, 245, 245))
    if rng.random() < 0.6:
        _shape(draw, rng, wide, high, _any(rng))
    return picture
