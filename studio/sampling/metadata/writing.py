"""Writing a picture with what made it: A1111's `parameters` for other tools, our own JSON for us.

PNG holds both as texts. JPEG and WebP hold A1111's text where A1111 puts it, in EXIF's UserComment, and our
JSON in EXIF's MakerNote, packed: all of EXIF must fit into 64 KB there.
"""

import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from registry.files import atomic_path
from studio.sampling.metadata.a1111 import a1111_parameters, studio_version
from studio.sampling.metadata.reading import EXIF_IFD, MAKER_NOTE, OWN_HEAD, PARAMETERS, USER_COMMENT
from studio.sampling.metadata.said import OWN, UsedAdapter
from studio.sampling.request import SampleRequest

MAX_EXIF = 65_500  # bytes: a segment of a JPEG holds 65,533
LOSSLESS = 100  # quality of WebP from which on nothing is lost


def write_picture(
    image: Image.Image,
    path: Path,
    request: SampleRequest,
    *,
    index: int = 0,
    base_name: str = "",
    base_hash: str = "",
    base_scheduler: str = "",
    adapters: Sequence[UsedAdapter] = (),
) -> None:
    """Write picture `index` of `request` with its metadata, atomically, in the request's format.

    Args:
        image: The picture.
        path: File to write.
        request: What was asked for.
        index: Which picture of the request.
        base_name: Name of the base in the catalog.
        base_hash: Its weight hash.
        base_scheduler: diffusers class that "default" stood for.
        adapters: What acted on it.
    """
    one = picture_request(request, index)
    base = {"id": request.base, "name": base_name, "hash": base_hash, "scheduler": base_scheduler}
    own = account(one, index, base, adapters=adapters)
    parameters = a1111_parameters(
        one, base_name=base_name, base_hash=base_hash, base_scheduler=base_scheduler, adapters=adapters
    )
    options = _options(request, parameters.replace("\0", " "), own)
    with atomic_path(path) as temporary:
        image.save(temporary, format=request.format, **options)


def account(
    one: SampleRequest,
    index: int,
    base: Mapping[str, str],
    *,
    adapters: Sequence[UsedAdapter] = (),
    motion: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Our own JSON: all that makes one picture, video, sound or thing again.

    Args:
        one: The request that makes it alone.
        index: Which it was of its request.
        base: Its id, name and hash.
        adapters: What acted on it.
        motion: The same as `base` of a motion adapter.
    """
    return {
        "version": 1,
        "studio": studio_version(),
        "request": one.model_dump(mode="json"),
        "index": index,
        "base": dict(base),
        "adapters": [
            {
                "id": item.id,
                "name": item.name,
                "tensor_sha256": item.tensor_sha256,
                "weight": item.weight,
                "text_weight": item.text_weight,
            }
            for item in adapters
        ],
        **({"motion": dict(motion)} if motion else {}),
    }


def picture_request(request: SampleRequest, index: int) -> SampleRequest:
    """The request that makes picture `index` alone."""
    prompt, negative = request.texts(index)
    field = "subseed" if request.subseed_strength else "seed"
    own = (getattr(request, field) + index) % 2**32
    alone = {field: own, "count": 1, "resolved": (), "prompt": prompt, "negative": negative}
    return request.model_copy(update=alone)


def _options(request: SampleRequest, parameters: str, own: dict[str, Any]) -> dict[str, Any]:
    """What Pillow is told."""
    if request.format == "png":
        texts = PngInfo()
        texts.add_text(PARAMETERS, parameters)
        texts.add_text(OWN, json.dumps(own))  # ASCII: readable by every tool
        return {"pnginfo": texts}
    options: dict[str, Any] = {"exif": _exif(parameters, own), "quality": request.quality}
    if request.format == "jpeg":
        return options | {"subsampling": 0}  # colours as sharp as light; costs a fifth in size
    return options | {"lossless": request.quality == LOSSLESS}


def _exif(parameters: str, own: dict[str, Any]) -> bytes:
    """Both texts; where they do not fit, ours, which says everything; else A1111's; else none."""
    comment = {USER_COMMENT: _comment(parameters)}
    note = own_note(own)
    for held in (comment | note, note, comment):
        if len(data := exif_of(held)) <= MAX_EXIF:
            return data
    return b""


def own_note(own: Mapping[str, Any]) -> dict[int, bytes]:
    """Our JSON as a tag of EXIF."""
    plain = json.dumps(own, ensure_ascii=False).encode("utf-8", "replace")
    return {MAKER_NOTE: OWN_HEAD + lzma.compress(plain)}


def exif_of(held: Mapping[int, bytes]) -> bytes:
    """Tags as EXIF."""
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD).update(held)
    return exif.tobytes()


def _comment(text: str) -> bytes:
    """EXIF's UserComment: half the size where ASCII is enough."""
    if text.isascii():
        return b"ASCII\0\0\0" + text.encode("ascii")
    return b"UNICODE\0" + text.encode("utf-16-be", "replace")
