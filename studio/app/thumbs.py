"""Small versions of pictures, made once and kept in cache/thumbs; safe to delete."""

from pathlib import Path

from PIL import Image, ImageOps

from registry.files import atomic_write
from registry.hashing import hash_json

SIDE = 480  # pixels: a card at twice the density of a common screen
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000


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
    from io import BytesIO

    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=86, method=4)
    atomic_write(target, buffer.getvalue())
    return target
