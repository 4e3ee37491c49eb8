"""What contact sheets share: colours, pictures that fill a cell, words that fit below it."""

from PIL import Image, ImageFont, ImageOps

PAPER, INK, QUIET, ACCENT = (250, 250, 248), (29, 29, 27), (120, 120, 115), (43, 89, 195)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """A picture as it fills a cell: small ones by whole pixels, others smoothly; whole, on paper."""
    picture = picture.convert("RGB")
    if max(picture.size) <= side // 2:
        factor = side // max(picture.size)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        return picture if picture.size == (side, side) else ImageOps.pad(picture, (side, side), color=PAPER)
    return ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, color=PAPER)


def broken(text: str, font: Font, width: int, most: int) -> str:
    """`text` broken between words into at most `most` lines of `width` pixels; the rest is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:most]
    shown[-1] += "…" if len(lines) > most else ""
    return "\n".join(cut(line, font, width) for line in shown)


def cut(line: str, font: Font, width: int) -> str:
    """As much of a line as is `width` pixels wide; a single word may be wider."""
    while font.getlength(line) > width and len(line) > 1:
        line = line[:-2] + "…"
    return line
