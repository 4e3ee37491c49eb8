"""Small versions of pictures, made once and kept in cache/thumbs; safe to delete."""

from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from registry.files import atomic_write
from registry.hashing import hash_json

SIDE = 480  # pixels: a card at twice the density of a common screen
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000
DIM = 0.3  # brightness of what a crop leaves out


def thumbnail(source: Path, cache: Path, *, key: str = "") -> Path:
    """Path of a picture no larger than SIDE: `source` itself when it is small, else a WebP in `cache`.

    Args:
        source: A picture that was decoded once before it was stored.
        cache: Folder for thumbnails.
        key: Content hash of the source, when known; else path, size and time of change stand for it.

    Raises:
        OSError: not a picture.
    """
    stat = source.stat()
    name = key or hash_json([str(source), stat.st_size, stat.st_mtime_ns])
    target = cache / name[:2] / f"{name}-{SIDE}.webp"
    if target.exists():
        return target
    with Image.open(source, formats=FORMATS) as picture:
        width, height = picture.size
        if max(width, height) <= SIDE:
            return source
        if width * height > MAX_PIXELS:
            raise OSError(f"{width}x{height} is over {MAX_PIXELS} pixels")
        picture.draft("RGB", (SIDE * 2, SIDE * 2))  # JPEG: decodes at a fraction of the size
        small = ImageOps.exif_transpose(picture).convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=86, method=4)
    atomic_write(target, buffer.getvalue())
    return target


def dimmed(source: Path, box: tuple[float, float, float, float]) -> bytes:
    """A thumbnail as WebP, dark outside a box and with a line around it.

    Args:
        source: The thumbnail.
        box: Left, top, right, bottom as shares of the sides, 0 to 1.

    Raises:
        OSError: not a picture.
    """
    with Image.open(source, formats=FORMATS) as picture:
        whole = picture.convert("RGB")
    left, right = round(box[0] * whole.width), round(box[2] * whole.width)
    top, bottom = round(box[1] * whole.height), round(box[3] * whole.height)
    dark = whole.point(lambda value: value * DIM)
    if left < right and top < bottom:
        dark.paste(whole.crop((left, top, right, bottom)), (left, top))
        if (left, top, right, bottom) != (0, 0, *whole.size):
            frame = (left, top, right - 1, bottom - 1)
            ImageDraw.Draw(dark).rectangle(frame, outline="white", width=max(1, whole.width // 240))
    buffer = BytesIO()
    dark.save(buffer, "WEBP", quality=86, method=2)
    return buffer.getvalue()
