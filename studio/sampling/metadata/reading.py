"""Reading what a picture says about itself, whichever program wrote it."""

import json
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from registry.errors import BadInput
from studio.sampling.metadata import comfyui, invokeai
from studio.sampling.metadata.a1111 import parse_a1111
from studio.sampling.metadata.chunks import own_text
from studio.sampling.metadata.comfyui import parse_comfyui
from studio.sampling.metadata.invokeai import parse_invokeai
from studio.sampling.metadata.said import OWN, AdapterMark, PictureMetadata
from studio.sampling.metadata.swarmui import parse_swarmui
from studio.sampling.request import SampleRequest

PARAMETERS = "parameters"
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000  # by the header
MAX_TEXT = 2**20  # characters of a text that is looked at: a longer one is no account of a picture
MAX_OWN, MAX_MEMORY = 2**20, 2**27  # bytes of our own JSON, unpacked, and for unpacking it
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
OWN_HEAD = b"lora_studio\0"  # before our own JSON in EXIF's MakerNote, packed by LZMA
_MAKE, _MODEL = 0x010F, 0x0110  # where ComfyUI writes "workflow:{...}" and "prompt:{...}"


def read_metadata(path: Path) -> PictureMetadata:
    """What the picture, video, sound or mesh at `path` says about itself.

    Our own JSON counts most, then A1111's text, then those of SwarmUI, InvokeAI and ComfyUI.

    Raises:
        BadInput: it is no PNG, JPEG, WebP, WAV or PLY, or is damaged.
    """
    texts = _texts(path)
    found = _others(texts)
    own = _own(texts.get(OWN, ""))
    if own is None:
        return replace(found, texts=texts)
    request, base, adapters, motion = own
    return PictureMetadata(
        source=OWN,
        prompt=request.prompt,
        negative=request.negative,
        seed=request.seed,
        steps=request.steps,
        cfg=request.cfg,
        width=request.width,
        height=request.height,
        scheduler=request.scheduler,
        base_name=str(base.get("name", "")),
        base_hash=str(base.get("hash", "")),
        adapters=adapters,
        motion_name=motion.get("name", ""),
        motion_hash=motion.get("hash", ""),
        request=request,
        pairs=found.pairs,
        texts=texts,
    )


def _others(texts: dict[str, str]) -> PictureMetadata:
    """What other programs' texts say; empty when there are none."""
    texts = {key: text for key, text in texts.items() if len(text) <= MAX_TEXT}
    parameters = texts.get(PARAMETERS, "")
    if found := parse_swarmui(parameters):
        return found
    if parameters.strip():
        return parse_a1111(parameters)
    for key, parse in ((invokeai.KEY, parse_invokeai), (comfyui.KEY, parse_comfyui)):
        if found := parse(texts.get(key, "")):
            return found
    return PictureMetadata()


def _texts(path: Path) -> dict[str, str]:
    """Text chunks of a PNG; of the others what EXIF holds, under the same names; of a sound or mesh ours."""
    if (own := own_text(path)) is not None:
        return {OWN: own} if own else {}
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(str(path), f"has {image.width}x{image.height} pixels, the limit is 64 MP", "")
            if image.format == "PNG":
                image.load()  # texts may stand behind the pixels
                return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            return _exif_texts(image.getexif())
    except FileNotFoundError as error:
        raise BadInput(str(path), "does not exist", "check the path") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(
            str(path), "is not a sound PNG, JPEG or WebP picture", "choose another file"
        ) from error


def _exif_texts(exif: Image.Exif) -> dict[str, str]:
    held: dict[int, Any] = dict(exif.get_ifd(EXIF_IFD))
    comment, note = held.get(USER_COMMENT), held.get(MAKER_NOTE)
    texts = {PARAMETERS: _comment_text(comment)} if isinstance(comment, bytes) else {}
    if isinstance(note, bytes) and note.startswith(OWN_HEAD):
        texts[OWN] = _inflated(note.removeprefix(OWN_HEAD))
    for tag in (_MAKE, _MODEL):
        key, colon, value = str(exif.get(tag, "")).partition(":")
        if colon and key.lower() in {"prompt", "workflow"}:
            texts[key.lower()] = value.strip("\0")
    return texts


def _comment_text(comment: bytes) -> str:
    """EXIF 2.3, UserComment: 8 bytes name the encoding; A1111 writes big-endian UTF-16."""
    code, body = comment[:8], comment[8:]
    if code.startswith(b"UNICODE"):
        # Whichever order: such a text holds ASCII, half of which is zeros.
        little = body[1::2].count(0) > body[::2].count(0)
        return body.decode("utf-16-le" if little else "utf-16-be", "replace").strip("\0")
    return body.decode("utf-8", "replace").strip("\0")


def _inflated(data: bytes) -> str:
    """Our own JSON; "" when it is damaged or far too long for it."""
    try:
        return lzma.LZMADecompressor(memlimit=MAX_MEMORY).decompress(data, MAX_OWN).decode("utf-8")
    except (lzma.LZMAError, EOFError, UnicodeDecodeError):
        return ""


def _own(
    text: str,
) -> tuple[SampleRequest, dict[str, Any], tuple[AdapterMark, ...], dict[str, str]] | None:
    """Our JSON (request, base, adapters, motion adapter), or None: not there, not ours any more."""
    try:
        value: Any = json.loads(text)
        # Whole is what weights were before a request could say otherwise.
        request = SampleRequest.model_validate({"precision": "whole"} | value["request"])
        adapters = tuple(
            AdapterMark(
                name=str(item["name"]),
                weight=float(item["weight"]),
                text_weight=None if item["text_weight"] is None else float(item["text_weight"]),
                tensor_sha256=str(item["tensor_sha256"]),
                id=str(item["id"]),
            )
            for item in value["adapters"]
        )
        base = cast(dict[str, Any], dict(value["base"]))
        motion = {str(key): str(said) for key, said in dict(value.get("motion") or {}).items()}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ValidationError):
        return None
    return request, base, adapters, motion
