"""A small copy of an adapter's picture, made from bytes that a limited child process has decoded first."""

import base64
import binascii
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from PIL import Image, ImageOps

from registry.errors import BadInput
from registry.files import atomic_write
from registry.formats.header import read_header
from studio.adapter_files import FOLDER
from studio.datasets.decode import Decoders, read_file

if TYPE_CHECKING:
    from studio.workspace import Workspace

SIDE = 768  # pixels of the longer side
MAX_BYTES = 32 * 2**20
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")  # what the decoding child hands back


class Previews:
    """Makes previews; its decoding child starts with the first one. Use it in a `with` block."""

    def __init__(self, ws: "Workspace") -> None:
        self._ws = ws
        self._decoders: Decoders | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._decoders is not None:
            self._decoders.__exit__(kind, error, trace)

    def keep(self, adapter_id: str, file: Path, picture: Path | None) -> str:
        """The catalog's path of the preview: of `picture`, else of the thumbnail in the file's metadata.

        Returns:
            "" when there is neither.

        Raises:
            BadInput: there is a picture that cannot be used.
            StudioError: the disk is full.
        """
        name = picture.name if picture else f"thumbnail in {file.name}"
        data = read_file(picture, name, MAX_BYTES) if picture else _thumbnail(file, name)
        if not data:
            return ""
        if self._decoders is None:
            self._decoders = Decoders(1)
        safe = self._decoders.decode(data, name).data
        target = self._ws.resolve(f"{FOLDER}/{adapter_id}.webp")
        atomic_write(target, _small(safe))
        return self._ws.relative(target)


def _small(data: bytes) -> bytes:
    with Image.open(BytesIO(data), formats=_FORMATS) as picture:
        picture.draft("RGB", (SIDE * 2, SIDE * 2))  # JPEG: decodes at a fraction of the size
        small = ImageOps.exif_transpose(picture).convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=86, method=4)
    return buffer.getvalue()


def _thumbnail(file: Path, name: str) -> bytes:
    """ModelSpec's thumbnail, a data URL in the header."""
    value = read_header(file).metadata.get("modelspec.thumbnail", "")
    head, _, encoded = value.partition(";base64,")
    if not encoded or not head.startswith("data:image/"):
        return b""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(name, "is not base64", "it was left out") from error
