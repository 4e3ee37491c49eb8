"""The contact sheet of a comparison: all tables below each other in one PNG, rows and columns labelled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

from PIL import Image, ImageDraw, ImageFont

from studio.compare.layout import Table
from studio.compare.spec import Place
from studio.sheets import ACCENT, INK, PAPER, QUIET, Font, broken, cut, enlarge

CELL, LEAST = 256, 48  # pixels of a cell: as large as possible, and no smaller
MOST_PIXELS = 48_000_000  # of the whole sheet
GAP, MARGIN, SIDE = 8, 36, 190


@dataclass(frozen=True)
class _Sizes:
    cell: int
    text: int  # height of letters

    @property
    def head(self) -> int:
        """Height of two lines of words."""
        return self.text * 3

    @property
    def side(self) -> int:
        """Width of the labels of rows."""
        return max(90, min(SIDE, self.cell))


def contact_sheet(
    title: str, tables: Sequence[Table], picture: Callable[[Place], Image.Image | None]
) -> Image.Image:
    """Draw it.

    Args:
        title: In the first line.
        tables: All with the same columns.
        picture: Of a cell; None where none is drawn.
    """
    sizes = _fitting(tables)
    rows = sum(len(table.rows) for table in tables)
    columns = max(len(table.columns) for table in tables)
    above = sizes.head + (sizes.head if len(tables) > 1 else 0)  # column labels and the table's title
    width = 2 * MARGIN + sizes.side + columns * (sizes.cell + GAP)
    height = 2 * MARGIN + 2 * sizes.head + len(tables) * above + rows * (sizes.cell + GAP)
    sheet = Image.new("RGB", (max(width, 420), height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(sizes.text)
    large = ImageFont.load_default(round(sizes.text * 1.5))
    draw.text((MARGIN, MARGIN), cut(title, large, sheet.width - 2 * MARGIN), INK, large)
    y = MARGIN + 2 * sizes.head
    for table in tables:
        if len(tables) > 1:
            draw.text((MARGIN, y), cut(table.title, font, sheet.width - 2 * MARGIN), ACCENT, font)
            y += sizes.head
        for column, label in enumerate(table.columns):
            x = MARGIN + sizes.side + column * (sizes.cell + GAP)
            draw.text((x, y), broken(label, font, sizes.cell, 2), INK, font, spacing=2)
        y += sizes.head
        for label, places in table.rows:
            draw.text((MARGIN, y), broken(label, font, sizes.side - GAP, 6), INK, font, spacing=2)
            for column, place in enumerate(places):
                x = MARGIN + sizes.side + column * (sizes.cell + GAP)
                _put(sheet, draw, (x, y), picture(place), sizes, font)
            y += sizes.cell + GAP
    return sheet


def _put(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    picture: Image.Image | None,
    sizes: _Sizes,
    font: Font,
) -> None:
    if picture is not None:
        sheet.paste(enlarge(picture, sizes.cell), at)
        return
    x, y = at
    draw.rectangle((x, y, x + sizes.cell - 1, y + sizes.cell - 1), outline=QUIET)
    draw.text((x + GAP, y + GAP), "not drawn", QUIET, font)


def _fitting(tables: Sequence[Table]) -> _Sizes:
    """As large as the sheet allows."""
    cells = sum(len(table.rows) for table in tables) * max(len(table.columns) for table in tables)
    cell = max(LEAST, min(CELL, int(sqrt(MOST_PIXELS / max(1, cells))) - GAP))
    return _Sizes(cell, max(11, round(cell / 13)))
