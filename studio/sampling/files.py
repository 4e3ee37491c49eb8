"""Pictures that a request starts from: decoded safely and kept in the sample's own folder.

So a request can be made again when the file it came from is gone. The request names them relative to the
workspace, as the catalog does.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from registry.errors import BadInput, StudioError
from registry.files import atomic_write
from studio.datasets.decode import Decoded, Decoders, read_file
from studio.datasets.picture import FORMATS
from studio.sampling.request import SampleRequest

if TYPE_CHECKING:
    from studio.workspace import Workspace

CONTROL_SOURCE = "control-source"  # files control-source-0.png, ...
ORIENTATION, TURNED = 0x0112, 5  # EXIF: from 5 on the picture lies on its side
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


def take_files(ws: "Workspace", request: SampleRequest, folder: Path) -> SampleRequest:
    """Copy the request's files into `folder` and return the request that names them there.

    Nothing is written unless all of them are sound.

    Raises:
        BadInput: one is missing, damaged, too large, or of another shape; in one line.
    """
    if not (request.image or request.controls):
        return request
    taken: dict[str, tuple[str, bytes]] = {}
    with Decoders(1) as decoders:
        if request.image:
            picture = _decoded(ws, decoders, request.image)
            taken["image"] = (f"image{_suffix(picture.data)}", picture.data)
            if request.mask:
                path = ws.resolve(request.mask)
                data = read_file(path, path.name)
                size = (picture.width, picture.height)
                taken["mask"] = ("mask.png", decoders.decode_mask(data, path.name, size))
        for index, control in enumerate(request.controls):
            data = _decoded(ws, decoders, control.image).data
            taken[f"control {index}"] = (f"{CONTROL_SOURCE}-{index}{_suffix(data)}", data)
    try:
        for name, data in taken.values():
            atomic_write(folder / name, data)
    except StudioError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    kept = {field: ws.relative(folder / name) for field, (name, _) in taken.items()}
    controls = tuple(
        control.model_copy(update={"image": kept.pop(f"control {index}")})
        for index, control in enumerate(request.controls)
    )
    return request.model_copy(update=kept | {"controls": controls})


def _decoded(ws: "Workspace", decoders: Decoders, name: str) -> Decoded:
    path = ws.resolve(name)
    return decoders.decode(read_file(path, path.name), path.name)


def _suffix(data: bytes) -> str:
    if data[4:12] == b"ftypavif":
        return ".avif"
    return next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), ".png")


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture; only its header is read here, `take_files` examines it.

    Raises:
        BadInput: it is no picture.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= TURNED
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(path.name, "cannot be read as a picture", "give a PNG, JPEG or WebP file") from error
    return (height, width) if turned else (width, height)


def picture_size(path: Path, room: int, step: int, added: tuple[int, ...] = (0, 0, 0, 0)) -> tuple[int, int]:
    """`fitting_size` of a file.

    Raises:
        BadInput: it is no picture.
    """
    return fitting_size(upright_size(path), room, step, added)


def fitting_size(
    sides: tuple[int, int], room: int, step: int, added: tuple[int, ...] = (0, 0, 0, 0)
) -> tuple[int, int]:
    """(width, height) to draw a picture at when the person names none: its own shape, at most `room` pixels.

    Args:
        sides: Width and height of the picture.
        room: Area that the base was made for.
        step: Sides are multiples of it.
        added: Pixels that are added to it: left, top, right, bottom.
    """
    width, height = sides[0] + added[0] + added[2], sides[1] + added[1] + added[3]
    scale = min(1.0, (room / (width * height)) ** 0.5)
    return max(step, int(width * scale) // step * step), max(step, int(height * scale) // step * step)
