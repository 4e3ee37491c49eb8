"""A data set with planted faults, and which picture has which: what the doctor has to find.

Everything is drawn from the seed. A picture has one fault at most, so that a finding about another one is a
false alarm.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from registry.records import Dataset
from studio.datasets.ingest import create_dataset, images_of
from studio.workspace import Workspace
from tests.support.painted import KINDS, encoded, painted

TRIGGER = "zibbolino"
WORDS = re.findall(
    r"\w+",
    """shape corner surface window paper table garden street cloud river stone metal cloth glass lamp
    chair wall leaf path bridge tower field shadow light edge round small large quiet broken folded wide
    narrow soft plain""",
)
HUES = {"red": (0, 12), "yellow": (46, 64), "green": (95, 150), "blue": (205, 240), "purple": (262, 292)}
FAULTS = (
    "duplicates", "near-duplicates", "blurred", "upscaled", "watermark", "path-captions",
    "left-over-captions", "trigger-misspelt", "colour-captions", "long-captions",
)  # fmt: skip
LEFT_OVER = (
    "https://example.org/a.png",
    "I'm sorry, I cannot describe this",
    "<p>a wall</p>",
    "IMG_2041",
    "todo",
)
FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)


@dataclass
class Planted:
    """What was made.

    Args:
        files: (name, content, caption).
        faults: Code of a finding -> names of the pictures that have it.
        twins: Copy -> the picture it was made of.
    """

    files: list[tuple[str, bytes, str]] = field(default_factory=list)
    faults: dict[str, set[str]] = field(default_factory=lambda: {code: set() for code in FAULTS})
    twins: dict[str, str] = field(default_factory=dict)


def plant(count: int, seed: int, share: float = 0.06, side: int = 704) -> Planted:
    """`count` different pictures, and copies of some; each fault in `share` of them."""
    rng = random.Random(seed)
    made = Planted()
    each = max(2, round(count * share))
    order = rng.sample(range(count), count)
    fault_of = {order[k * each + i]: code for k, code in enumerate(FAULTS) for i in range(each)}
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")  # each by itself: more pictures change none of them
        size = (round(side * rng.uniform(0.85, 1.25)), round(side * rng.uniform(0.85, 1.25)))
        picture, code = painted(KINDS[number % len(KINDS)], rng, size), fault_of.get(number, "")
        while code == "colour-captions" and not _hues(picture)[1]:
            picture = painted(rng.choice(("drawing", "series")), rng, size)
        _add(made, rng, f"{number:05}.png", picture, code)
    return made


def enter(ws: Workspace, made: Planted, name: str = "planted") -> Dataset:
    """The data set in a workspace; exact copies, which are left out on the way in, are put back."""
    dataset = create_dataset(ws, name, [(n, data) for n, data, _ in made.files], trigger=TRIGGER).dataset
    captions = {n: caption for n, _, caption in made.files}
    images = [replace(image, caption=captions[image.name]) for image in images_of(ws, dataset)]
    by_name = {image.name: image for image in images}
    copies = [n for n in made.faults["duplicates"] if n not in by_name]
    images += [replace(by_name[made.twins[n]], id="", name=n, caption=captions[n]) for n in sorted(copies)]
    return ws.catalog.replace_images(dataset.id, images)


def mirrored_or_so(picture: Image.Image, rng: random.Random) -> tuple[Image.Image, int]:
    """A copy as people make them, and the quality of its JPEG (0 = as usual)."""
    how = rng.choice(("mirror", "smaller", "again", "cropped", "cropped"))
    wide, high = picture.size
    if how == "mirror":
        return ImageOps.mirror(picture), 0
    if how == "smaller":
        part = rng.uniform(0.6, 0.85)
        return picture.resize((int(wide * part), int(high * part)), Image.Resampling.LANCZOS), 0
    if how == "cropped":
        left, top, right, bottom = (rng.uniform(0, 0.06) for _ in range(4))
        box = (int(left * wide), int(top * high), int((1 - right) * wide), int((1 - bottom) * high))
        return picture.crop(box), 0
    return picture, 45


def soft(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Blurred by a lens or a shake: 0.35 to 0.9 % of the side."""
    reach = min(picture.size) * rng.uniform(0.0035, 0.009)
    return picture.filter(rng.choice((ImageFilter.GaussianBlur(reach), ImageFilter.BoxBlur(1.6 * reach))))


def enlarged(picture: Image.Image, rng: random.Random) -> Image.Image:
    """As large as before, with the detail of a picture 2.2 to 4 times smaller."""
    factor = rng.uniform(2.2, 4)
    small = (int(picture.width / factor), int(picture.height / factor))
    down = rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BICUBIC))
    return picture.resize(small, down).resize(picture.size, rng.choice(FILTERS))


def stamped(picture: Image.Image, _rng: random.Random) -> Image.Image:
    """With half-transparent letters at the bottom right."""
    font = ImageFont.load_default(size=min(picture.size) * 0.045)
    layer = Image.new("L", picture.size, 0)
    inset = min(picture.size) * 0.03
    place = (picture.width - inset, picture.height - inset)
    ImageDraw.Draw(layer).text(place, "© studio foto", fill=150, font=font, anchor="rs")
    marked = picture.copy()
    marked.paste((255, 255, 255), mask=layer)
    return marked


_CHANGES: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "blurred": soft,
    "upscaled": enlarged,
    "watermark": stamped,
}


def _add(made: Planted, rng: random.Random, name: str, picture: Image.Image, code: str) -> None:
    picture = _CHANGES[code](picture, rng) if code in _CHANGES else picture
    caption = _caption(picture, rng, code)
    data = encoded(picture, rng)
    made.files.append((name, data, caption))
    if code in ("duplicates", "near-duplicates"):
        twin = f"copy-{name}"
        if code == "near-duplicates":
            changed, quality = mirrored_or_so(picture, rng)
            data = encoded(changed, rng, quality)
        made.files.append((twin, data, caption))
        made.twins[twin] = name
        made.faults[code].add(twin)
    elif code:
        made.faults[code].add(name)


def _caption(picture: Image.Image, rng: random.Random, code: str) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(4, 9))]
    there, absent = _hues(picture)
    if code == "colour-captions":
        words.insert(1, rng.choice(absent))
    elif there and rng.random() < 0.5:
        words.insert(1, rng.choice(there))
    if code == "long-captions":
        words = [rng.choice(WORDS) for _ in range(rng.randint(80, 130))]
    if code == "path-captions":
        return rng.choice((f"/home/me/pictures/{words[0]}.jpg", f"{words[0]}_{words[1]}.png"))
    if code == "left-over-captions":
        return rng.choice(LEFT_OVER)
    trigger = TRIGGER
    if code == "trigger-misspelt":
        at = rng.randint(2, len(TRIGGER) - 2)
        trigger = rng.choice((TRIGGER[:at] + TRIGGER[at + 1 :], TRIGGER[:at] + "x" + TRIGGER[at + 1 :]))
    return f"{trigger}, {' '.join(words)}"


def _hues(picture: Image.Image) -> tuple[list[str], list[str]]:
    """Colours that fill a twentieth of the picture, and those that not a pixel is near to."""
    hue, saturation, value = np.asarray(picture.convert("HSV"), np.float32).reshape(-1, 3)[::7].T
    hue *= 360 / 256
    strong, any_ = (saturation > 110) & (value > 110), (saturation * value > 0.07 * 255 * 255)
    there, absent = [], []
    for name, (low, high) in HUES.items():
        near = (hue >= low) & (hue <= high)
        if (near & strong).mean() > 0.05:
            there.append(name)
        far = ((hue - (low + high) / 2 + 180) % 360 - 180).__abs__() > 75
        if not any_.any() or far[any_].all():
            absent.append(name)
    return there, absent
