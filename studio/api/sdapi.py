"""`/sdapi/v1`: the part of A1111's interface that clients use, answered by our own queue and catalog.

What a client sees of A1111's single process is kept: one picture in work, one chosen checkpoint, one
interrupt. The chosen checkpoint lives as long as the app.
"""

import json
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.concurrency import run_in_threadpool

from registry.errors import BadInput
from registry.records import Adapter, Job, JobState, Sample
from studio.api.pictures import as_text, keep
from studio.api.queue import drawn, ended, in_work, put, stop_first
from studio.api.sdapi_models import Img2Img, Pictures, PngInfo, Txt2Img
from studio.api.sdapi_request import (
    CHECKPOINT,
    CLIP_STOP,
    CONTROLNET,
    UPSCALERS,
    base_titled,
    clip_stop,
    title_of,
    to_request,
)
from studio.app import state
from studio.bases import list_bases
from studio.sampling.metadata.reading import PARAMETERS, read_metadata
from studio.sampling.metadata.said import PictureMetadata
from studio.sampling.schedulers import SCHEDULERS, SCHEDULES
from studio.sampling.submit import files_of, progress, share_done
from studio.sampling.task import PREVIEW
from studio.workspace import Workspace

PREFIX = "/sdapi/v1"
AT_ONCE = 1000  # adapters of one page
LATENT_MODES = ("Latent",)
router = APIRouter()
_options: dict[str, Any] = {}  # chosen by a client; one dictionary operation at a time
_looked: dict[str, tuple[float, float]] = {}  # sample -> when it was first looked at, how much was done then


@router.post("/txt2img")
async def txt2img(body: Txt2Img, request: Request) -> Pictures:
    """Draw, and answer when it is done."""
    return await _draw(body, request)


@router.post("/img2img")
async def img2img(body: Img2Img, request: Request) -> Pictures:
    """Draw from a picture, with or without a mask, and answer when it is done."""
    return await _draw(body, request)


@router.get("/loras")
def loras() -> list[dict[str, Any]]:
    """All adapters that are not in the trash."""
    catalog, found, after = state.current().catalog, list[Adapter](), ""
    while True:
        page = catalog.search_adapters(sort="name", limit=AT_ONCE, after=after)
        found += page.adapters
        after = page.next
        if not after:
            return [_lora(adapter) for adapter in found]


@router.get("/sd-models")
def sd_models() -> list[dict[str, Any]]:
    """All bases."""
    return [
        {
            "title": title_of(base),
            "model_name": base.name,
            "hash": base.weight_hash[:10] or None,
            "sha256": base.weight_hash or None,
            "filename": base.name,
            "config": None,
        }
        for base in list_bases(state.current())
    ]


@router.get("/samplers")
def samplers() -> list[dict[str, Any]]:
    """The samplers; their schedules are apart."""
    names = dict.fromkeys(row.sampler for row in SCHEDULERS.values())
    return [{"name": name, "aliases": [], "options": {}} for name in names]


@router.get("/schedulers")
def schedulers() -> list[dict[str, Any]]:
    """The schedules that a sampler's noise levels follow."""
    return [
        {
            "name": name.lower().replace(" ", "_"),
            "label": name,
            "aliases": [],
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        for name in SCHEDULES
    ]


@router.get("/progress")
def progress_of(skip_current_image: bool = False) -> dict[str, Any]:
    """What is being drawn, or next in turn."""
    ws = state.current()
    work = in_work(ws)
    if not work:
        return _progress(0.0, 0.0, {})
    job, sample = work[0]
    news, count = progress(ws, sample), int(sample.request["count"])
    fraction = share_done(news, count)
    left = _left(sample.id, fraction) if job.state is JobState.LEASED else 0.0
    preview = ws.sample_dir(sample.id) / PREVIEW
    image = as_text(preview) if news["preview"] and preview.is_file() and not skip_current_image else None
    seen = {
        "interrupted": job.cancel,
        "job": sample.id,
        "job_count": len(work),
        "job_timestamp": f"{job.created_at:%Y%m%d%H%M%S}",
        "job_no": max(0, int(news["picture"]) - 1),
        "sampling_step": int(news["step"]),
        "sampling_steps": int(news["steps"]),
    }
    return _progress(fraction, left, seen, image)


@router.post("/interrupt")
@router.post("/skip")
def interrupt() -> dict[str, Any]:
    """Call off what is being drawn."""
    stop_first(state.current())
    return {}


@router.post("/png-info")
def png_info(body: PngInfo) -> dict[str, Any]:
    """What a picture says about how it was made."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            said = read_metadata(keep(body.image, Path(folder), "image"))
        except BadInput as error:  # without the folder's name
            raise BadInput("image", error.wrong, error.do) from error
    items = {name: text for name, text in said.texts.items() if name != PARAMETERS}
    return {"info": said.texts.get(PARAMETERS, ""), "items": items, "parameters": _spoken(said)}


@router.get("/options")
def options() -> dict[str, Any]:
    """What is chosen: checkpoint and clip skip."""
    base = base_titled(state.current(), str(_options.get(CHECKPOINT, "")))
    return {
        CHECKPOINT: title_of(base),
        "sd_checkpoint_hash": base.weight_hash,
        CLIP_STOP: _options.get(CLIP_STOP, 1),
        "samples_format": "png",
    }


@router.post("/options")
def set_options(chosen: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    """Choose checkpoint or clip skip; others are not ours."""
    wanted: dict[str, Any] = {}
    if title := chosen.get(CHECKPOINT):
        wanted[CHECKPOINT] = title_of(base_titled(state.current(), str(title)))
    if CLIP_STOP in chosen:
        wanted[CLIP_STOP] = clip_stop(chosen[CLIP_STOP])
    if CHECKPOINT in chosen and not title:
        _options.pop(CHECKPOINT, None)
    _options.update(wanted)
    return {}


@router.get("/scripts")
def scripts() -> dict[str, list[str]]:
    """ControlNet, by which clients tell that it is there."""
    return {"txt2img": [CONTROLNET], "img2img": [CONTROLNET]}


@router.get("/upscalers")
def upscalers() -> list[dict[str, Any]]:
    """What enlarges a picture before the second pass."""
    blank = {"model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
    return [{"name": name, **blank} for name in UPSCALERS]


@router.get("/latent-upscale-modes")
def latent_upscale_modes() -> list[dict[str, str]]:
    """What enlarges latents before the second pass."""
    return [{"name": name} for name in LATENT_MODES]


@router.post("/refresh-loras")
@router.post("/refresh-checkpoints")
def refresh() -> dict[str, Any]:
    """Nothing to do: lists are read from the catalog each time."""
    return {}


async def _draw(body: Txt2Img, request: Request) -> Pictures:
    ws = state.current()
    sample = await run_in_threadpool(_put, ws, body)
    job = await ended(ws, sample, request)
    return await run_in_threadpool(_answer, ws, body, sample, job)


def _put(ws: Workspace, body: Txt2Img) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        return put(ws, to_request(ws, body, Path(folder), dict(_options)))


def _answer(ws: Workspace, body: Txt2Img, sample: Sample, job: Job) -> Pictures:
    sample = drawn(ws, sample, job)
    files = files_of(ws, sample)
    images = [as_text(file) for file in files] if body.send_images else []
    # Unknown fields are not sent back: they may hold what JSON cannot say.
    sent = body.model_dump(include=set(type(body).model_fields) - {"init_images", "mask"})
    return Pictures(images=images, parameters=sent, info=json.dumps(_info(sample, files)))


def _info(sample: Sample, files: list[Path]) -> dict[str, Any]:
    """A1111's account of a request."""
    said = [read_metadata(file) for file in files]
    request = [one.request for one in said if one.request is not None]
    first = sample.request
    return {
        "prompt": first["prompt"],
        "all_prompts": [one.prompt for one in request],
        "negative_prompt": first["negative"],
        "all_negative_prompts": [one.negative for one in request],
        "seed": first["seed"],
        "all_seeds": [one.seed for one in request],
        "subseed": first["subseed"],
        "all_subseeds": [one.subseed for one in request],
        "subseed_strength": first["subseed_strength"],
        "width": first["width"],
        "height": first["height"],
        "sampler_name": said[0].pairs.get("Sampler", "") if said else "",
        "cfg_scale": first["cfg"],
        "steps": first["steps"],
        "batch_size": 1,
        "denoising_strength": first["strength"] if first["image"] else None,
        "sd_model_name": said[0].base_name if said else "",
        "sd_model_hash": said[0].base_hash[:10] if said else "",
        "clip_skip": max(1, int(first["clip_skip"])),
        "infotexts": [one.texts.get(PARAMETERS, "") for one in said],
        "index_of_first_image": 0,
        "job_timestamp": f"{sample.created_at:%Y%m%d%H%M%S}",
        "sample": sample.id,
    }


def _lora(adapter: Adapter) -> dict[str, Any]:
    metadata = {
        "family": adapter.family,
        "method": adapter.method,
        "rank": adapter.rank,
        "trigger_words": list(adapter.trigger_words),
        "recommended_weight": adapter.recommended_weight,
        "sshs_model_hash": adapter.tensor_sha256,
    }
    return {"name": adapter.name, "alias": adapter.name, "path": adapter.path, "metadata": metadata}


def _left(sample_id: str, fraction: float) -> float:
    """Seconds that are left, by what was done since a client first looked; 0 = not known yet."""
    if sample_id not in _looked:
        _looked.clear()  # one thing is drawn at a time
        _looked[sample_id] = (time.monotonic(), fraction)
    since, before = _looked.get(sample_id, (time.monotonic(), fraction))
    done = fraction - before
    return (1 - fraction) * (time.monotonic() - since) / done if done > 0 else 0.0


def _progress(fraction: float, eta: float, seen: dict[str, Any], image: str | None = None) -> dict[str, Any]:
    now = datetime.now().astimezone()
    idle = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": f"{now:%Y%m%d%H%M%S}",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    return {
        "progress": fraction,
        "eta_relative": eta,
        "state": idle | seen,
        "current_image": image,
        "textinfo": None,
    }


def _spoken(said: PictureMetadata) -> dict[str, Any]:
    if not said.source:
        return {}
    return {"Prompt": said.prompt, "Negative prompt": said.negative, **said.pairs}
