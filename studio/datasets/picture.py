"""One picture's bytes -> what is stored: 8-bit RGB pixels, upright, one frame, without EXIF.

Runs inside the decoding child (`decode_child`); nothing else should feed it foreign bytes. The stored file
decodes to exactly the pixels that `pixel_hash` names: a reader needs no rules of its own.
"""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops, ImageOps

from registry.errors import BadInput
from studio.datasets.signatures import refusal

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
KEPT = {"JPEG", "MPO", "PNG", "WEBP", "AVIF"}  # stored as they came; BMP and TIFF as PNG: smaller
MAX_PIXELS = 64_000_000  # 64 MP: 256 MB as Pillow holds it
MIN_SIDE = 16  # pixels: two latent cells
PNG_LEVEL = 1  # zlib level: a quarter of level 6's time for a tenth to a quarter more bytes
COLOUR = 48  # grey levels between channels; more is no JPEG artefact
PRIVATE = ("exif", "xmp", "XML:com.adobe.xmp", "photoshop", "comment", "Raw profile type exif")
ORIENTATION = 0x0112  # EXIF tag, 1 = upright


@dataclass(frozen=True)
class Picture:
    """A picture as it is stored."""

    data: bytes  # the file
    kept: bool  # whether `data` are the bytes that came in
    pixel_hash: str  # sha256, see `pixel_hash`
    width: int
    height: int
    note: str  # what was converted, "" when nothing a person would want to know
    mask: bytes = b""  # PNG of its alpha, when that was asked for and hides anything


def pixel_hash(image: Image.Image) -> str:
    """Sha256 over mode, size and pixels: the same picture in two files is one picture."""
    head = f"{image.mode} {image.width}x{image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def normalise(data: bytes, name: str, *, alpha: bool = False) -> Picture:
    """Decode `data` in full and say how it is stored.

    Args:
        data: The file.
        name: For messages.
        alpha: Keep transparency as a mask.

    Raises:
        BadInput: not a picture we read, damaged, too large or too small.
    """
    image = _open(data, name)
    _check_size(image, name)
    _check_whole(data, name)
    kind = image.format or ""
    frames, deep = _load(image, name)
    if kind == "MPO":  # a camera's JPEG with a second view behind it; the first is the photo
        frames = 1
    upright = _upright(image)
    rgb, converted = _to_rgb(upright, name)
    mask = _alpha_mask(upright) if alpha else b""
    converted += " and kept as a mask" if mask else ""
    notes = (
        f"first of {frames} frames" if frames > 1 else "",
        "turned upright as its EXIF says" if upright is not image else "",
        converted or ("16-bit to 8-bit" if deep else ""),
    )
    identity, note = pixel_hash(rgb), "; ".join(filter(None, notes))
    stored = None
    if kind in KEPT and rgb is image and frames == 1 and not deep:
        private = kind == "MPO" or any(key in image.info for key in PRIVATE)
        stored = _without_metadata(data, identity) if private else data
    kept = stored is data
    return Picture(_png(rgb) if stored is None else stored, kept, identity, rgb.width, rgb.height, note, mask)


def normalise_mask(data: bytes, name: str) -> Picture:
    """A mask as it is stored: grey PNG, upright.

    Raises:
        BadInput: as `normalise`, or black all over, or a picture in colours.
    """
    picture = normalise(data, name)
    with Image.open(BytesIO(picture.data), formats=FORMATS) as stored:
        grey, red, green, blue = stored.convert("L"), *stored.convert("RGB").split()
    spread = ImageChops.lighter(ImageChops.difference(red, green), ImageChops.difference(green, blue))
    if sum(spread.histogram()[COLOUR:]) > grey.width * grey.height / 100:
        raise BadInput(name, "has colours, so it is no mask", "save the mask in grey, or rename the picture")
    if grey.getextrema()[1] == 0:
        raise BadInput(name, "is black all over: nothing of its picture would count", "paint white what does")
    return Picture(_png(grey), False, pixel_hash(grey), grey.width, grey.height, "")


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise refusal(data, name) from error
    except Exception as error:  # header parsers raise anything on damaged data
        _check_whole(data, name)
        raise _damaged(name, error) from error


def _load(image: Image.Image, name: str) -> tuple[int, bool]:
    """Decode the first frame; returns how many there are, and whether the file has 16 bits a channel."""
    try:
        frames, deep = getattr(image, "n_frames", 1), _is_deep(image)
        image.seek(0)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on damaged data
        raise _damaged(name, error) from error
    return frames, deep


def _damaged(name: str, error: Exception) -> BadInput:
    said = " ".join(str(error).split())
    if "truncated" in said or "broken" in said.lower() or "EOF" in said or isinstance(error, EOFError):
        return BadInput(name, "is cut off: the end of the picture is missing", "copy or download it again")
    return BadInput(name, f"is damaged ({said[:120] or type(error).__name__})", "open and save it again")


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        megapixels = f"{width}x{height} pixels ({width * height / 1e6:.0f} MP)"
        raise BadInput(name, f"has {megapixels}, more than {MAX_PIXELS // 10**6} MP", "scale it down")
    if min(width, height) < MIN_SIDE:
        wrong = f"is {width}x{height} pixels, too small to learn from"
        raise BadInput(name, wrong, f"use pictures of at least {MIN_SIDE} pixels a side, better 512")


def _check_whole(data: bytes, name: str) -> None:
    """Find a cut that decoders forgive, or do not call by its name."""
    cut_png = data.startswith(b"\x89PNG") and b"IEND\xaeB`\x82" not in data
    webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    if cut_png or (webp and int.from_bytes(data[4:8], "little") + 8 > len(data)):
        raise _damaged(name, EOFError())


def _is_deep(image: Image.Image) -> bool:
    """Whether the file holds 16 bits a channel; Pillow silently keeps the upper 8 of colour."""
    if image.mode.startswith("I"):
        return True
    tiles: list[Any] = getattr(image, "tile", [])
    return any(";16" in str(tile[3]) for tile in tiles if len(tile) > 3)


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says; the same object when it is upright or its EXIF is unreadable."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF must not cost the picture; it is stripped anyway
        return image
    if orientation not in range(2, 9):
        return image
    return ImageOps.exif_transpose(image) or image


def _to_rgb(image: Image.Image, name: str) -> tuple[Image.Image, str]:
    """RGB pixels and what was converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, ""
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "F":
        raise BadInput(name, "has floating-point pixels", "save it as 8-bit RGB")
    if image.mode.startswith("I"):
        return _deep_grey(image, name), "16-bit grey to 8-bit RGB"
    convert: dict[str, str] = {"1": "black and white to RGB", "L": "grey to RGB", "P": "", "RGBX": ""}
    try:
        return image.convert("RGB"), convert.get(image.mode, f"{image.mode} to RGB")
    except ValueError as error:
        raise BadInput(name, f"has {image.mode} colours", "save it as 8-bit RGB") from error


def _on_white(image: Image.Image) -> tuple[Image.Image, str]:
    rgba = image.convert("RGBA")
    lowest = rgba.getchannel("A").getextrema()[0]
    if lowest == 255:
        return rgba.convert("RGB"), ""
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB"), "transparency laid on white"


def _alpha_mask(image: Image.Image) -> bytes:
    """Opacity as a grey PNG; nothing when the picture is opaque, or transparent all over."""
    if not image.has_transparency_data:
        return b""
    alpha = image.convert("RGBA").getchannel("A")
    low, high = alpha.getextrema()
    return _png(alpha) if low != 255 and high != 0 else b""


def _deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey -> RGB by the upper 8 bits, as Pillow does for 16-bit colour."""
    wide = image.convert("I")
    low, high = wide.getextrema()
    if not isinstance(low, int | float) or not isinstance(high, int | float) or low < 0 or high > 65535:
        raise BadInput(name, "has 32-bit pixels", "save it as 8-bit RGB")
    return wide.point(_upper_byte).convert("L").convert("RGB")


def _upper_byte(value: Any) -> Any:
    # Pillow calls this once with a symbol and reads scale and offset from what comes back; it rounds down.
    return value * (1 / 256) + 0


def _without_metadata(data: bytes, identity: str) -> bytes | None:
    """The same JPEG without EXIF, XMP, IPTC and comments; None when it must be re-encoded."""
    if not data.startswith(b"\xff\xd8"):
        return None
    stripped = strip_jpeg(data)
    if stripped is None:
        return None
    with Image.open(BytesIO(stripped), formats=("JPEG",)) as again:
        same = again.format == "JPEG" and again.mode == "RGB" and pixel_hash(again) == identity
        return stripped if same and not any(key in again.info for key in PRIVATE) else None


def strip_jpeg(data: bytes) -> bytes | None:
    """`data` without the segments APP1 (EXIF, XMP), APP13 (IPTC), MPF and COM; None when it is no JPEG.

    Segments are `FF marker length(2, big endian, counts itself) payload` until SOS (ITU T.81, B.1.1.4); the
    compressed pixels are not touched.
    """
    dropped = {0xE1, 0xED, 0xFE}
    out, at = bytearray(data[:2]), 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return bytes(out) + data[at:]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data):
            return None
        index = marker == 0xE2 and data[at + 4 : at + 8] == b"MPF\0"  # of the views in a camera's MPO
        if marker not in dropped and not index:
            out += data[at:end]
        at = end
    return None


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    clean = image.copy()
    clean.info = {}
    clean.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()
