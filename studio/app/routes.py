"""Pictures and exported files by id: no path in a URL, cache headers, nothing decoded twice.

A URL never carries more than an id, a number or a name that is looked up in a list; what is not found is 404.
Pictures of content hashes never change and are cached for a year; the others carry an ETag and are asked for
again.
"""

import re
from pathlib import Path

from PIL import Image as Pillow
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from registry.errors import StudioError
from registry.files import inside
from registry.records import Adapter, Image, Run, Sample
from studio.app import state
from studio.app.thumbs import FORMATS, dimmed, thumbnail
from studio.sampling.media.kinds import beside_of
from studio.sampling.task import PREVIEW

HASH = re.compile(r"[0-9a-f]{64}")
BOX = re.compile(r"(\d{1,4})-(\d{1,4})-(\d{1,4})-(\d{1,4})")
NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")
FOREVER = "private, max-age=31536000, immutable"
ASK_AGAIN = "private, no-cache"
LIVE = "no-store"
TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
}
FILE_TYPES = {".wav": "audio/wav", ".ply": "application/octet-stream", ".webp": "image/webp"}
MISSING = PlainTextResponse("error: picture: not found.\n", 404, headers={"Cache-Control": LIVE})


def picture_url(kind: str, *parts: str | int, version: str = "") -> str:
    """URL of one of the routes below; parts are ids, hashes and names that need no quoting."""
    path = "/".join(str(part) for part in parts)
    return f"/pictures/{kind}/{path}" + (f"?v={version[:16]}" if version else "")


def file_url(kind: str, *parts: str | int) -> str:
    """URL of a file that is no picture."""
    return "/files/" + "/".join(str(part) for part in (kind, *parts))


def crop_url(image: Image, box: tuple[float, float, float, float]) -> str:
    """URL of a picture of a data set, dark outside a box that is given in its pixels."""
    sides = (image.width, image.height, image.width, image.height)
    shares = (round(1000 * at / side) for at, side in zip(box, sides, strict=True))
    return picture_url("crop", image.blob, "-".join(map(str, shares)))


def blob(request: Request) -> Response:
    """A stored picture as it is."""
    return _blob(request, small=False)


def blob_small(request: Request) -> Response:
    """A stored picture, small."""
    return _blob(request, small=True)


def adapter(request: Request) -> Response:
    """The preview of an adapter."""
    workspace = state.current()
    found = workspace.catalog.find(Adapter, request.path_params["id"])
    if found is None or not found.preview:
        return MISSING
    path = workspace.resolve(found.preview)
    return _picture(request, path, cache=ASK_AGAIN, small="full" not in request.query_params)


def sample(request: Request) -> Response:
    """Picture `index` of a sample."""
    workspace = state.current()
    found = workspace.catalog.find(Sample, request.path_params["id"])
    index = request.path_params["index"]
    if found is None or index >= len(found.files):
        return MISSING
    path = workspace.resolve(found.files[index])
    return _picture(request, path, cache=ASK_AGAIN, small="full" not in request.query_params)


def sample_live(request: Request) -> Response:
    """What a sample in progress looks like now."""
    workspace = state.current()
    found = workspace.catalog.find(Sample, request.path_params["id"])
    if found is None:
        return MISSING
    return _picture(request, workspace.sample_dir(found.id) / PREVIEW, cache=LIVE, small=False)


def run_preview(request: Request) -> Response:
    """A preview drawn while training; its name must stand in the run's index."""
    workspace = state.current()
    found = workspace.catalog.find(Run, request.path_params["id"])
    name = request.path_params["name"]
    if found is None:
        return MISSING
    folder = workspace.run_dir(found.id)
    names = {Path(item["file"]).name for item in folder.previews()}
    if name not in names:
        return MISSING
    path = folder.path / "previews" / name
    return _picture(request, path, cache=ASK_AGAIN, small="full" not in request.query_params)


def sample_file(request: Request) -> Response:
    """File `index` of a sample as it is, to be heard or saved; or what lies beside it, by its suffix."""
    workspace = state.current()
    found = workspace.catalog.find(Sample, request.path_params["id"])
    index, suffix = request.path_params["index"], request.path_params.get("suffix", "")
    if found is None or index >= len(found.files):
        return MISSING
    path = workspace.resolve(found.files[index])
    if suffix:
        path = next((one for one in beside_of(workspace, found, index) if one.suffix == f".{suffix}"), None)
    kind = FILE_TYPES.get(path.suffix) if path is not None else None
    if path is None or kind is None:
        return MISSING
    try:
        path = inside(workspace.home, path)
        path.stat()
    except (OSError, StudioError):
        return MISSING
    name = None if kind.startswith("audio/") else f"{found.id}-{path.name}"
    return FileResponse(path, media_type=kind, headers={"Cache-Control": ASK_AGAIN}, filename=name)


def exported(request: Request) -> Response:
    """A file in exports/, to be saved."""
    workspace = state.current()
    name = request.path_params["name"]
    path = workspace.home / "exports" / name
    if not NAME.fullmatch(name) or name.startswith(".") or not path.is_file():
        return MISSING
    return FileResponse(path, filename=name, media_type="application/octet-stream")


def crop(request: Request) -> Response:
    """A blob, small, and dark where a crop leaves something out; the box is in thousandths of the sides."""
    key, sides = request.path_params["hash"], BOX.fullmatch(request.path_params["box"])
    blobs = state.current().blobs
    if not HASH.fullmatch(key) or sides is None or not blobs.has(key):
        return MISSING
    tag = f'"{key}-{sides[0]}"'
    headers = {"Cache-Control": FOREVER, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    try:
        small = thumbnail(blobs.path(key), state.current().home / "cache" / "thumbs", key=key)
        left, top, right, bottom = (min(1000, int(side)) for side in sides.groups())
        data = dimmed(small, (left / 1000, top / 1000, right / 1000, bottom / 1000))
    except (OSError, StudioError, Pillow.DecompressionBombError):
        return MISSING
    return Response(data, media_type="image/webp", headers=headers)


ROUTES = [
    Route("/pictures/blob/{hash}", blob),
    Route("/pictures/thumb/{hash}", blob_small),
    Route("/pictures/crop/{hash}/{box}", crop),
    Route("/pictures/adapter/{id}", adapter),
    Route("/pictures/sample/{id}/live", sample_live),
    Route("/pictures/sample/{id}/{index:int}", sample),
    Route("/pictures/run/{id}/{name}", run_preview),
    Route("/pictures/{rest:path}", lambda _request: MISSING),
    Route("/files/export/{name}", exported),
    Route("/files/sample/{id}/{index:int}", sample_file),
    Route("/files/sample/{id}/{index:int}/{suffix}", sample_file),
    Route("/files/{rest:path}", lambda _request: MISSING),
]


def _blob(request: Request, *, small: bool) -> Response:
    key = request.path_params["hash"]
    blobs = state.current().blobs
    if not HASH.fullmatch(key) or not blobs.has(key):
        return MISSING
    return _picture(request, blobs.path(key), cache=FOREVER, small=small, key=key)


def _picture(request: Request, path: Path, *, cache: str, small: bool, key: str = "") -> Response:
    """`path` if it is a picture inside the workspace; 304 when the browser has it already."""
    workspace = state.current()
    try:
        path = inside(workspace.home, path)
        if small:
            path = thumbnail(path, workspace.home / "cache" / "thumbs", key=key)
        stat = path.stat()
        tag = f'"{key or f"{stat.st_mtime_ns:x}-{stat.st_size:x}"}{"-s" if small else ""}"'
        headers = {"Cache-Control": cache, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        with Pillow.open(path, formats=FORMATS) as picture:  # reads the header only
            kind = TYPES[picture.format or ""]
    except (OSError, KeyError, StudioError, Pillow.DecompressionBombError):
        return MISSING
    return FileResponse(path, media_type=kind, headers=headers)
