"""Which colours a picture has, in plain words, from its thumbnail: to hold captions against it."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from studio.datasets.measures import Measures

# Hue in degrees, generously: what some call orange others call red.
HUES = {
    "red": (335, 25), "orange": (8, 55), "yellow": (38, 75), "green": (65, 185), "blue": (170, 265),
    "purple": (245, 335), "pink": (285, 20),
}  # fmt: skip
SAME = {"violet": "purple", "magenta": "pink", "teal": "green", "cyan": "blue", "golden": "yellow"}
SHARE = 0.003  # of the thumbnail that shows a colour: 7 of 2304 cells
VIVID = 0.12  # saturation times brightness, 0 to 1, from which a cell has a hue
GREY = "grey"  # hardly any cell has a hue
GREY_WORDS = re.compile(r"\b(?:black[ -]and[ -]white|monochrome|gr[ae]yscale)\b", re.IGNORECASE)
_WORDS = re.compile(rf"\b({'|'.join((*HUES, *SAME))})\b", re.IGNORECASE)


def colours_of(pictures: Sequence[Measures]) -> list[list[str]]:
    """Names of HUES that each picture shows somewhere, or "grey" alone."""
    return [_colours(picture.thumb) for picture in pictures]


def said_but_absent(caption: str, colours: Sequence[str]) -> str:
    """The first colour that a caption names and the picture does not have; "" when they agree."""
    if GREY_WORDS.search(caption):
        return "" if GREY in colours else "black and white"
    for found in _WORDS.findall(caption):
        name = found.lower()
        if SAME.get(name, name) not in colours:
            return name
    return ""


def _colours(thumb: NDArray[np.uint8]) -> list[str]:
    cells = thumb.reshape(-1, 3).astype(np.float32) / 255
    most, least = cells.max(1), cells.min(1)
    spread = most - least
    vivid = spread > VIVID
    if vivid.mean() < SHARE:
        return [GREY]
    red, green, blue = cells[vivid].T
    high, wide = most[vivid], spread[vivid]
    hue = (
        np.where(
            high == red,
            (green - blue) / wide % 6,
            np.where(high == green, (blue - red) / wide + 2, (red - green) / wide + 4),
        )
        * 60
    )
    found: list[str] = []
    for name, (low, top) in HUES.items():
        inside = (hue >= low) & (hue <= top) if low < top else (hue >= low) | (hue <= top)
        if inside.sum() >= SHARE * len(cells):
            found.append(name)
    return found
