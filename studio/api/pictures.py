"""Pictures as text: base64, with or without the head of a data URL, in and out."""

import base64
import io
import re
from pathlib import Path

from PIL import Image

from registry.errors import BadInput
from studio.sampling.metadata.reading import MAX_PIXELS

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
MAX_BYTES = 64 * 2**20  # of one picture's file


def picture_bytes(text: str, what: str) -> bytes:
    """The file in `text`.

    Raises:
        BadInput: it is not base64, or too large; names `what`.
    """
    head, comma, body = text.partition(",")
    if comma and not head.startswith("data:"):
        raise BadInput(what, "is not base64", "send the picture's file as base64, not its path")
    body = body if comma else text
    if len(body) > MAX_BYTES // 3 * 4 + 4:
        raise BadInput(what, f"is larger than {MAX_BYTES // 2**20} MB", "send a smaller picture")
    body = "".join(body.split())
    if len(body) % 4 or not _BASE64.fullmatch(body):
        raise BadInput(what, "is not base64", "send the picture's file as base64, not its path")
    return base64.b64decode(body)


def keep(text: str, folder: Path, what: str) -> Path:
    """The picture in `text` as a file of `folder`, to be examined where requests are taken in."""
    path = folder / what
    path.write_bytes(picture_bytes(text, what))
    return path


def open_picture(text: str, what: str) -> Image.Image:
    """The picture in `text`; its pixels are not decoded yet.

    Raises:
        BadInput: it is no picture.
    """
    data = io.BytesIO(picture_bytes(text, what))
    try:
        picture = Image.open(data, formats=("PNG", "JPEG", "WEBP", "BMP"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadInput(what, "cannot be read as a picture", "send a PNG, JPEG or WebP file") from None
    if picture.width * picture.height > MAX_PIXELS:
        wrong = f"has {picture.width}x{picture.height} pixels, the limit is {MAX_PIXELS // 1_000_000} MP"
        raise BadInput(what, wrong, "send a smaller one")
    return picture


def as_text(path: Path) -> str:
    """The file at `path` as base64."""
    return base64.b64encode(path.read_bytes()).decode("ascii")
