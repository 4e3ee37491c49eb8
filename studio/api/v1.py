"""`/api/v1`: bases, adapters, runs; asking for pictures, progress, calling them off."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from registry.errors import BadInput, NotFound
from registry.records import Adapter, Base, Run, Sample
from studio.api.pictures import keep
from studio.api.queue import base_named, ended, put
from studio.api.v1_models import AdapterInfo, AdapterPage, BaseInfo, Generate, RunInfo, Status
from studio.app import state
from studio.bases import list_bases, list_media, list_motions, list_parts
from studio.sampling.defaults import default_guidance, size_for
from studio.sampling.media.kinds import beside_of, kind_name
from studio.sampling.media.requests import media_values, motion_of
from studio.sampling.request import SampleRequest
from studio.sampling.submit import cancel, files_of, job_of, progress
from studio.sampling.task import PREVIEW
from studio.workspace import Workspace

PREFIX = "/api/v1"
router = APIRouter()


@router.get("/bases")
def bases() -> list[BaseInfo]:
    """All bases, also those for video, sound and 3D, and what steers or moves them (`part`)."""
    ws = state.current()
    listings = (list_bases, list_media, list_parts, list_motions)
    return [BaseInfo.model_validate(base) for listing in listings for base in listing(ws)]


@router.get("/bases/{key}")
def base(key: str) -> BaseInfo:
    """A base by name or id."""
    return BaseInfo.model_validate(state.current().catalog.get(Base, key))


@router.get("/adapters")
def adapters(
    q: Annotated[str, Query(description="Words in name, tags, trigger words, note or keywords.")] = "",
    family: str = "",
    tag: Annotated[list[str] | None, Query(description="A whole tag; may be repeated.")] = None,
    sort: Annotated[str, Query(description="newest, oldest, name, rating, size or best.")] = "newest",
    limit: Annotated[int, Query(ge=1, le=1000)] = 60,
    after: Annotated[str, Query(description="`next` of the page before.")] = "",
) -> AdapterPage:
    """A page of the adapters that fit."""
    page = state.current().catalog.search_adapters(
        q, sort=sort, limit=limit, after=after, family=family, tags=tuple(tag or ())
    )
    found = [AdapterInfo.model_validate(adapter) for adapter in page.adapters]
    return AdapterPage(adapters=found, total=page.total, next=page.next)


@router.get("/adapters/{key}")
def adapter(key: str) -> AdapterInfo:
    """An adapter by name or id."""
    return AdapterInfo.model_validate(state.current().catalog.get(Adapter, key))


@router.get("/runs")
def runs(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[RunInfo]:
    """Training runs, newest first."""
    return [RunInfo.model_validate(run) for run in state.current().catalog.list(Run, limit=limit)]


@router.get("/runs/{key}")
def run(key: str) -> RunInfo:
    """A run by name or id."""
    return RunInfo.model_validate(state.current().catalog.get(Run, key))


@router.post("/generate", status_code=202)
async def generate(
    body: Generate,
    request: Request,
    wait: Annotated[bool, Query(description="Answer only when the pictures are there.")] = False,
) -> Status:
    """Ask for pictures."""
    ws = state.current()
    sample = await run_in_threadpool(_put, ws, body)
    if wait:
        await ended(ws, sample, request)
    return await run_in_threadpool(_status, ws, sample.id)


@router.get("/progress/{sample_id}")
def progress_of(sample_id: str) -> Status:
    """Where a request is; its pictures when they are there."""
    return _status(state.current(), sample_id)


@router.post("/cancel/{sample_id}")
def cancel_it(sample_id: str) -> Status:
    """Call a request off: at once while it waits, within one step while it is drawn."""
    ws = state.current()
    cancel(ws, ws.catalog.get(Sample, sample_id))
    return _status(ws, sample_id)


@router.get("/samples/{sample_id}/pictures/{index}", response_class=FileResponse)
def picture(sample_id: str, index: int) -> FileResponse:
    """A finished picture, video or sound, as it was written; of a thing, how it looks from all sides."""
    ws = state.current()
    files = files_of(ws, ws.catalog.get(Sample, sample_id))
    if not 0 <= index < len(files) or not files[index].is_file():
        raise NotFound(f"picture {index} of sample {sample_id}", "is not there", "see its progress")
    return FileResponse(files[index])


@router.get("/samples/{sample_id}/pictures/{index}/mesh", response_class=FileResponse)
def mesh(sample_id: str, index: int) -> FileResponse:
    """The mesh of a thing (PLY)."""
    ws = state.current()
    sample = ws.catalog.get(Sample, sample_id)
    found = beside_of(ws, sample, index) if 0 <= index < len(sample.files) else []
    if not found:
        raise NotFound(f"mesh {index} of sample {sample_id}", "is not there", "see its progress")
    return FileResponse(found[0], media_type="application/octet-stream", filename=found[0].name)


@router.get("/samples/{sample_id}/preview", response_class=FileResponse)
def preview(sample_id: str) -> FileResponse:
    """The picture being drawn, as it is so far."""
    ws = state.current()
    path = ws.sample_dir(ws.catalog.get(Sample, sample_id).id) / PREVIEW
    if not path.is_file():
        raise NotFound(f"sample {sample_id}", "has no preview now", "see its progress")
    return FileResponse(path, headers={"Cache-Control": "no-store"})


def _put(ws: Workspace, body: Generate) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        return put(ws, _request(ws, body, Path(folder)))


def _request(ws: Workspace, body: Generate, folder: Path) -> SampleRequest:
    """The request with its pictures as files, and with the base's own values where none were given."""
    values: dict[str, Any] = body.model_dump(exclude_unset=True)
    base = base_named(ws, body.base)
    values["base"] = base.id
    for name in ("image", "mask"):
        if text := values.get(name):
            values[name] = str(keep(text, folder, name))
    for index, control in enumerate(values.get("controls", ())):
        control["image"] = str(keep(control["image"], folder, f"controls.{index}.image"))
        if control.get("preprocessor"):  # a folder of this machine, or a download
            raise BadInput(f"controls.{index}.preprocessor", "may not be chosen here", "leave it out")
    if values.get("motion"):
        values["motion"] = motion_of(ws, values["motion"], base).id
    if kind_name(base, values.get("motion", "")):
        return SampleRequest.model_validate(media_values(ws, base, values))
    if ("width" in values) != ("height" in values):
        raise BadInput("size", "has one side only", "give width and height, or neither")
    if "width" not in values:
        start = Path(values["image"]) if values.get("image") and not body.upscale else None
        values["width"], values["height"] = size_for(ws, base, start, body.outpaint)
    values.setdefault("cfg", default_guidance(base))
    return SampleRequest.model_validate(values)


def _status(ws: Workspace, sample_id: str) -> Status:
    sample = ws.catalog.get(Sample, sample_id)
    job, news = job_of(ws, sample), progress(ws, sample)
    count, varied = int(sample.request["count"]), bool(sample.request["subseed_strength"])
    own = f"{PREFIX}/samples/{sample.id}"
    return Status(
        id=sample.id,
        state=job.state,
        phase=str(news["phase"]),
        step=int(news["step"]),
        steps=int(news["steps"]),
        picture=int(news["picture"]),
        pictures=count,
        preview=f"{own}/preview" if news["preview"] else "",
        files=[f"{own}/pictures/{index}" for index in range(len(sample.files))],
        meshes=[
            f"{own}/pictures/{index}/mesh"
            for index in range(len(sample.files))
            if beside_of(ws, sample, index)
        ],
        seeds=[(int(sample.request["seed"]) + (0 if varied else i)) % 2**32 for i in range(count)],
        warnings=[str(warning) for warning in job.result.get("warnings", ())],
        error=job.error,
    )
