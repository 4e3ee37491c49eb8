"""The contact sheet: training pictures, the base's and the adapter's, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL = 256  # pixels; a 64 px picture enlarged four times
COLUMNS = ROWS = 3
GAP, PANEL_GAP, MARGIN = 10, 56, 48
TITLE, WORDS = 104, 58  # heights of the panel title and of two lines of words
PAPER, INK, QUIET, ACCENT = (250, 250, 248), (29, 29, 27), (120, 120, 115), (43, 89, 195)


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


def enlarge(picture: Image.Image, side: int = CELL) -> Image.Image:
    """A picture as it fills a cell: small ones by whole pixels, others smoothly; whole, on paper."""
    picture = picture.convert("RGB")
    if max(picture.size) <= side // 2:
        factor = side // max(picture.size)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        return picture if picture.size == (side, side) else ImageOps.pad(picture, (side, side), color=PAPER)
    return ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, color=PAPER)


def _draw_panel(sheet: Image.Image, panel: Panel, left: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((left, MARGIN - 8), panel.title, ACCENT if panel.accent else INK, ImageFont.load_default(42))
    draw.text((left, MARGIN + 48), panel.subtitle, QUIET, ImageFont.load_default(25))
    small = ImageFont.load_default(21)
    for place, picture in enumerate(panel.pictures[: COLUMNS * ROWS]):
        row, column = divmod(place, COLUMNS)
        x = left + column * (CELL + GAP)
        y = MARGIN + TITLE + row * (CELL + WORDS + GAP)
        sheet.paste(enlarge(picture), (x, y))
        if place < len(panel.words):
            draw.text((x, y + CELL + 6), _two_lines(panel.words[place], small), QUIET, small, spacing=2)


def _two_lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text` broken between words into at most two lines of a cell's width; the rest is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= CELL or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:2]
    shown[-1] += "…" if len(lines) > 2 else ""
    return "\n".join(_cut(line, font) for line in shown)


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A single word may still be wider than a cell."""
    while font.getlength(line) > CELL:
        line = line[:-2] + "…"
    return line
