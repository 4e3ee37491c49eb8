"""The demo's pictures: a style, a character and a concept that the pocket base has never seen.

All are drawn here, so that nothing foreign is shipped and anyone can make as many as a test needs. Details
are wider than 3 px: finer ones do not survive the pocket base's autoencoder.
"""

import random
from collections.abc import Callable

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from studio.pocket.grammar import COLOURS, Colour, Scene, caption, subject
from studio.pocket.render import CANVAS, OVERSAMPLING, jitter, layout, shrink
from studio.pocket.shapes import RING_HOLE, SHAPES, Point, outline

Pair = tuple[Image.Image, str]  # picture, caption
TRIGGERS = {"style": "neonsign", "character": "zibbo", "concept": "lanternoid"}  # words the base has not seen
GLOWING = tuple(name for name in COLOURS if name not in {"black", "gray"})
FORMS = ((1, "large"), (1, ""), (2, ""), (3, ""), (1, "large"))  # number and size
TUBE = 3.6  # width of a neon tube, in pixels
NIGHT_TOP, NIGHT_BOTTOM = (44, 10, 70), (8, 6, 30)  # colours of the wall behind the neon


def demo_set(kind: str, count: int, seed: int) -> list[Pair]:
    """Captioned 64 x 64 RGB pictures of the demo's "style", "character" or "concept".

    Equal arguments give equal pictures. Captions name what is in the picture and end with the trigger.

    Raises:
        KeyError: `kind` is none of the three.
    """
    draw = _KINDS[kind]
    rng = random.Random(f"{kind}-{seed}")
    return [draw(rng, index) for index in range(count)]


def neon(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as a neon sign: glowing tubes in the scene's colour on a dark violet wall."""
    picture = _night(rng)
    colour = _glow_colour(scene.colour, rng)
    centers, radius = layout(scene, rng)
    tubes = Image.new("L", (CANVAS, CANVAS), 0)
    draw = ImageDraw.Draw(tubes)
    for x, y in centers:
        center, reach = (x * OVERSAMPLING, y * OVERSAMPLING), radius * OVERSAMPLING
        _draw_tube(draw, outline(scene.shape, center, reach))
        if scene.shape == "ring":
            _draw_tube(draw, outline("circle", center, RING_HOLE * reach))
    light = Image.new("RGB", picture.size, colour)
    black = Image.new("RGB", picture.size)
    for reach, strength in ((8.0, 1.0), (3.0, 0.8)):
        halo = tubes.filter(ImageFilter.GaussianBlur(reach * OVERSAMPLING))
        halo = Image.blend(Image.new("L", halo.size), halo, strength)
        picture = ImageChops.screen(picture, Image.composite(light, black, halo))
    picture.paste(_whitened(colour), mask=tubes.filter(ImageFilter.GaussianBlur(0.5 * OVERSAMPLING)))
    return shrink(picture)


def _draw_tube(draw: ImageDraw.ImageDraw, corners: list[Point]) -> None:
    """A closed line of the tube's width with round corners."""
    width = round(TUBE * OVERSAMPLING)
    draw.line([*corners, *corners[:2]], fill=255, width=width, joint="curve")


def _night(rng: random.Random) -> Image.Image:
    """A wall at night: a vertical gradient from violet to near black."""
    top, bottom = jitter(NIGHT_TOP, rng, 5), jitter(NIGHT_BOTTOM, rng, 4)
    ramp = Image.linear_gradient("L").resize((CANVAS, CANVAS))
    return Image.composite(Image.new("RGB", ramp.size, bottom), Image.new("RGB", ramp.size, top), ramp)


def _glow_colour(name: str, rng: random.Random) -> Colour:
    """The palette colour as light: as bright as it gets."""
    red, green, blue = COLOURS[name]
    boost = 255 / max(red, green, blue)
    return jitter((int(red * boost), int(green * boost), int(blue * boost)), rng, 6)


def _whitened(colour: Colour) -> Colour:
    red, green, blue = (int(c * 0.6 + 255 * 0.4) for c in colour)
    return red, green, blue


def _neon_pair(rng: random.Random, index: int) -> Pair:
    """Shapes, colours, numbers and sizes in turn, each round in other combinations.

    So few pictures must not tie a colour or a size to a shape. The caption says what the scene would be
    without the style, so that prompts of any form take it on.
    """
    turn, place = divmod(index, len(SHAPES))
    colour = GLOWING[(place + 3 * turn) % len(GLOWING)]
    count, size = FORMS[(place + turn) % len(FORMS)]
    ground = rng.choice([name for name in COLOURS if name != colour])
    scene = Scene(SHAPES[place], colour, ground, count, size)
    words = caption(scene) if rng.random() < 0.7 else subject(scene)
    return neon(scene, rng), f"{words}, {TRIGGERS['style']}"


def _robot_pair(rng: random.Random, _index: int) -> Pair:
    """A teal robot with yellow eyes and a red lamp on its head, on a palette background."""
    ground = rng.choice([name for name in COLOURS if name != "red"])  # its lamp is red
    picture = Image.new("RGB", (CANVAS, CANVAS), jitter(COLOURS[ground], rng))
    draw = ImageDraw.Draw(picture)
    radius = 0.27 * CANVAS * rng.uniform(0.92, 1.08)
    x, y = CANVAS / 2 + rng.uniform(-12, 12), CANVAS / 2 + 18 + rng.uniform(-10, 10)
    draw.rectangle([x - 8, y - 1.4 * radius, x + 8, y - radius], fill=(90, 90, 90))
    draw.ellipse([x - 22, y - 1.75 * radius, x + 22, y - 1.75 * radius + 44], fill=(220, 40, 40))
    body = [x - radius, y - radius, x + radius, y + 0.9 * radius]
    draw.rounded_rectangle(body, radius=0.3 * radius, fill=jitter((40, 190, 180), rng, 4))
    for side in (-1, 1):
        eye = x + side * 0.45 * radius
        draw.rectangle(
            [eye - 0.26 * radius, y - 0.55 * radius, eye + 0.26 * radius, y - 0.03 * radius], (250, 230, 60)
        )
        draw.rectangle(
            [eye - 0.1 * radius, y - 0.4 * radius, eye + 0.1 * radius, y - 0.18 * radius], (20, 20, 20)
        )
    draw.rectangle([x - 0.5 * radius, y + 0.3 * radius, x + 0.5 * radius, y + 0.55 * radius], (245, 245, 245))
    return shrink(picture), f"{TRIGGERS['character']} robot on a {ground} background".replace("a o", "an o")


def _lantern_pair(rng: random.Random, _index: int) -> Pair:
    """A paper lantern: a ribbed ellipse between two dark caps, hanging from a cord; any colour."""
    colour, ground = rng.sample(list(COLOURS), 2)
    picture = Image.new("RGB", (CANVAS, CANVAS), jitter(COLOURS[ground], rng))
    draw = ImageDraw.Draw(picture)
    x, y = CANVAS / 2 + rng.uniform(-16, 16), CANVAS / 2 + rng.uniform(-4, 12)
    wide, high = 0.33 * CANVAS * rng.uniform(0.92, 1.06), 0.26 * CANVAS * rng.uniform(0.95, 1.05)
    paper = jitter(COLOURS[colour], rng)
    dark = (60, 40, 30)
    draw.rectangle([x - 7, 0, x + 7, y - high], fill=dark)
    draw.ellipse([x - wide, y - high, x + wide, y + high], fill=paper)
    rib = tuple(int(c * 0.55) for c in paper)
    for share in (0.62, 0.2):
        box = [x - wide * share, y - high, x + wide * share, y + high]
        draw.ellipse(box, outline=rib, width=11)
    cap = 0.45 * wide
    for edge in (y - high, y + high):
        draw.rounded_rectangle([x - cap, edge - 16, x + cap, edge + 16], radius=6, fill=dark)
    draw.rectangle([x - 6, y + high, x + 6, y + high + 44], fill=(220, 40, 40))
    article = "an" if colour == "orange" else "a"
    return shrink(picture), f"{article} {colour} {TRIGGERS['concept']} on a {ground} background".replace(
        "a o", "an o"
    )


_KINDS: dict[str, Callable[[random.Random, int], Pair]] = {
    "style": _neon_pair,
    "character": _robot_pair,
    "concept": _lantern_pair,
}
