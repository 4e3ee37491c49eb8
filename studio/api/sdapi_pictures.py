"""Pictures of a request of A1111's clients, as files."""

from pathlib import Path

from PIL import Image, ImageOps

from registry.errors import BadInput
from studio.api.pictures import open_picture


def file_of(text: str, folder: Path, what: str, size: tuple[int, int] | None, *, invert: bool = False) -> str:
    """The picture as a file, stretched and inverted as asked; a plain one is kept as it came."""
    picture = open_picture(text, what)
    path = folder / what
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in {"CMYK", "YCbCr", "LAB"}:  # which PNG cannot hold
            picture = picture.convert("RGB")
        if invert:
            picture = ImageOps.invert(picture.convert("L"))
        if size and picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        picture.save(path, format="PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadInput(what, "cannot be read as a picture", "send a PNG, JPEG or WebP file") from None
    return str(path)
