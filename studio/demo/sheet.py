"""The contact sheet: training pictures, the base's and the adapter's, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from studio.sheets import ACCENT, INK, PAPER, QUIET, broken, enlarge

CELL = 256  # pixels; a 64 px picture enlarged four times
COLUMNS = ROWS = 3
GAP, PANEL_GAP, MARGIN = 10, 56, 48
TITLE, WORDS = 104, 58  # heights of the panel title and of two lines of words


@dataclass(frozen=True)
class Panel:
    """Up to nine pictures under a title; `words` are written below each picture, "" = none."""

    title: str
    subtitle: str
    pictures: Sequence[Image.Image]
    words: Sequence[str] = ()
    accent: bool = False


def contact_sheet(panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side, each three pictures wide and high."""
    panel_width = COLUMNS * CELL + (COLUMNS - 1) * GAP
    width = 2 * MARGIN + len(panels) * panel_width + (len(panels) - 1) * PANEL_GAP
    height = 2 * MARGIN + TITLE + ROWS * (CELL + WORDS) + (ROWS - 1) * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    for index, panel in enumerate(panels):
        _draw_panel(sheet, panel, MARGIN + index * (panel_width + PANEL_GAP))
    return sheet


def _draw_panel(sheet: Image.Image, panel: Panel, left: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((left, MARGIN - 8), panel.title, ACCENT if panel.accent else INK, ImageFont.load_default(42))
    draw.text((left, MARGIN + 48), panel.subtitle, QUIET, ImageFont.load_default(25))
    small = ImageFont.load_default(21)
    for place, picture in enumerate(panel.pictures[: COLUMNS * ROWS]):
        row, column = divmod(place, COLUMNS)
        x = left + column * (CELL + GAP)
        y = MARGIN + TITLE + row * (CELL + WORDS + GAP)
        sheet.paste(enlarge(picture, CELL), (x, y))
        if place < len(panel.words):
            words = broken(panel.words[place], small, CELL, 2)
            draw.text((x, y + CELL + 6), words, QUIET, small, spacing=2)
