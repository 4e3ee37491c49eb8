"""What a file is by its first bytes, for files that are not pictures we read: each gets its own sentence."""

import re

from registry.errors import BadInput

_USE = "use JPEG, PNG, WebP, BMP, TIFF or AVIF"
_HEIF = re.compile(rb"....ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", re.DOTALL)
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_HTML = re.compile(rb"^\s*<(!doctype html|html|head)\b", re.IGNORECASE)

# (what the content starts with, what is said, what to do)
_KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (b"GIF8", "is a GIF", "save the frames you want as PNG"),
    (b"%PDF", "is a PDF", "export its pages as PNG"),
    (b"8BPS", "is a Photoshop file", "export it as PNG"),
    (b"PK\x03\x04", "is a zip archive", "name it .zip, or unpack it"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the picture", "run git lfs pull"),
    (b"\x00\x00\x00\x0cJXL ", "is a JPEG XL picture, which is not read here", _USE),
    (b"\xff\x0a", "is a JPEG XL picture, which is not read here", _USE),
    (b"\x00\x00\x00\x0cjP  ", "is a JPEG 2000 picture, which is not read here", _USE),
    (b"\x1a\x45\xdf\xa3", "is a video", "save the frames you want as PNG"),
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")


def refusal(data: bytes, name: str) -> BadInput:
    """The one line for content that no decoder of ours recognised."""
    head = data[:4096]
    if not data:
        return BadInput(name, "is empty (0 bytes)", "copy or download it again")
    if _HEIF.match(head):
        return BadInput(name, "is a HEIC picture, which is not read here", "export it as JPEG or PNG")
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<") and _SVG.search(head):
        return BadInput(name, "is an SVG drawing, which has no pixels", "export it as PNG")
    if _HTML.match(head):
        return BadInput(name, "is a web page, not a picture", "download the picture itself")
    for start, wrong, do in _KNOWN:
        if head.startswith(start):
            return BadInput(name, wrong, do)
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    if webp or head.startswith(_PICTURES) or head[4:12] == b"ftypavif":
        return BadInput(name, "is damaged or cut off: it begins as a picture, no more", "copy it again")
    if _is_text(head):
        return BadInput(name, "is text, not a picture", _USE)
    return BadInput(name, "is not a picture we read", _USE)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 4096 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t\ufeff" for character in text)
