"""A1111's request as ours."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from registry.errors import BadInput
from registry.formats.header import shown
from registry.records import Base
from studio.api.queue import base_named
from studio.api.sdapi_control import controls_of
from studio.api.sdapi_models import REFUSED, Img2Img, Txt2Img
from studio.api.sdapi_pictures import file_of
from studio.sampling.metadata.said import entries, items, whole
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import DEFAULT, SCHEDULERS, scheduler_from_a1111
from studio.workspace import Workspace

FILLS = ("fill", "original", "noise", "nothing")  # inpainting_fill
FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}  # samples_format
JUST_RESIZE, CROP = 0, 1  # resize_mode
UPSCALERS = ("None", "Lanczos")
MOST_SKIPPED = 24  # as a request allows
CONTROLNET = "controlnet"  # the one script that is built in
CHECKPOINT, CLIP_STOP = "sd_model_checkpoint", "CLIP_stop_at_last_layers"


def to_request(ws: Workspace, body: Txt2Img, folder: Path, options: Mapping[str, Any]) -> SampleRequest:
    """The request; pictures become files in `folder`.

    Raises:
        BadInput: it asks for something that has no counterpart here.
    """
    _refuse(body)
    settings = {**options, **(body.override_settings or {})}
    base = base_titled(ws, str(settings.get(CHECKPOINT) or ""))
    values: dict[str, Any] = {
        "base": base.id,
        "prompt": body.prompt,
        "negative": body.negative_prompt,
        "seed": _seed(body.seed),
        "subseed": _seed(body.subseed) if body.subseed_strength else 0,
        "subseed_strength": body.subseed_strength,
        "count": body.batch_size * body.n_iter,
        "steps": body.steps,
        "cfg": body.cfg_scale,
        "width": body.width,
        "height": body.height,
        "scheduler": _scheduler(body),
        "clip_skip": clip_stop(settings.get(CLIP_STOP)),
        "format": FORMATS.get(str(settings.get("samples_format", "")).lower(), "png"),
    }
    if body.refiner_checkpoint and body.refiner_checkpoint != "None":
        values["refiner"] = base_titled(ws, body.refiner_checkpoint).id
        values["refiner_at"] = body.refiner_switch_at or 0.8
    if body.enable_hr:
        values["hires"] = _hires(body)
    if isinstance(body, Img2Img):
        values |= _from_picture(body, folder)
    for name, arguments in _scripts(body).items():
        if name.casefold() == CONTROLNET:
            values["controls"] = values.get("controls", []) + controls_of(ws, body, arguments, folder)
    return SampleRequest.model_validate(values)


def clip_stop(value: Any) -> int:
    """CLIP_stop_at_last_layers.

    Raises:
        BadInput: not a whole number of 0 to 24.
    """
    if value is None:
        return 0
    known = whole(value)
    if known is None or known > MOST_SKIPPED:
        raise BadInput(CLIP_STOP, f"is not a whole number of 0 to {MOST_SKIPPED}", "1 leaves nothing out")
    return known


def title_of(base: Base) -> str:
    """The base as A1111 names checkpoints: its name, and ten digits of its hash."""
    return f"{base.name} [{base.weight_hash[:10]}]" if base.weight_hash else base.name


def base_titled(ws: Workspace, title: str) -> Base:
    """The base that a title, a name or a hash names; "" = the one used last."""
    for base in ws.catalog.list(Base, part="") if title else []:
        if title in {title_of(base), base.weight_hash, base.weight_hash[:10]}:
            return base
    found = base_named(ws, title)
    if found.part:
        raise BadInput(
            f"checkpoint {title[:80]!r}", f"is a {found.part}", "choose one of /sdapi/v1/sd-models"
        )
    return found


def _refuse(body: Txt2Img) -> None:
    more = body.model_extra or {}
    for name in REFUSED:
        value: Any = more.get(name)
        if value and value not in ("None", "Automatic", "Use same sampler", "Use same scheduler", -1):
            raise BadInput(name, "is not built in here", "leave it out")
    vae: Any = (body.override_settings or {}).get("sd_vae")
    if vae and vae not in ("Automatic", "None"):
        raise BadInput("override_settings.sd_vae", "is not built in here", "leave it out")
    for name, arguments in _scripts(body).items():
        used = any(one and entries(one).get("enabled", True) for one in items(arguments) or [arguments])
        if used and name.casefold() != CONTROLNET:
            raise BadInput(f"script {shown(name)}", "is not built in here", "leave it out")


def _scripts(body: Txt2Img) -> dict[str, Any]:
    """Arguments of the scripts that are always on, by name."""
    scripts: Any = (body.model_extra or {}).get("alwayson_scripts") or {}
    if not isinstance(scripts, dict):
        raise BadInput("alwayson_scripts", "is no object", "send {} or leave it out")
    return {
        name: entries(script).get("args") if isinstance(script, dict) else script
        for name, script in cast("dict[str, Any]", scripts).items()
    }


def _seed(value: int) -> int:
    return secrets.randbelow(2**32) if value < 0 else value


def _scheduler(body: Txt2Img) -> str:
    name = body.sampler_name or body.sampler_index or ""
    schedule = (body.scheduler or "Automatic").replace("_", " ")
    found = scheduler_from_a1111(name, schedule) if name else DEFAULT
    if found == DEFAULT and name.casefold() not in {"", DEFAULT}:
        raise BadInput(f"sampler {name[:60]!r}", "is unknown", "see /sdapi/v1/samplers")
    taken = SCHEDULERS[found].schedule if found in SCHEDULERS else ""
    if schedule.casefold() not in {"automatic", taken.casefold()}:
        wrong = f"does not go with {name}" if name else "is given without a sampler"
        raise BadInput(f"scheduler {schedule[:60]!r}", wrong, "see /sdapi/v1/schedulers, or leave it out")
    return found


def _hires(body: Txt2Img) -> dict[str, Any]:
    name = body.hr_upscaler or "Latent"
    latent = name.startswith("Latent")
    if not latent and name not in UPSCALERS:
        raise BadInput(f"hr_upscaler {name[:60]!r}", "is not built in here", f"use Latent or {UPSCALERS[1]}")
    return {
        "scale": body.hr_scale,
        "steps": body.hr_second_pass_steps,
        "strength": 0.75 if body.denoising_strength is None else body.denoising_strength,
        "upscaler": "latent" if latent else "lanczos",
    }


def _from_picture(body: Img2Img, folder: Path) -> dict[str, Any]:
    if not body.init_images:
        raise BadInput("init_images", "is empty", "send one picture as base64")
    if len(body.init_images) > 1:
        raise BadInput("init_images", "holds several pictures", "send one")
    if body.resize_mode not in {JUST_RESIZE, CROP}:
        raise BadInput("resize_mode", "is not built in here", "use 0 (just resize) or 1 (crop and resize)")
    size = (body.width, body.height)
    stretch = size if body.resize_mode == JUST_RESIZE else None
    strength = 0.75 if body.denoising_strength is None else body.denoising_strength
    values: dict[str, Any] = {
        "image": file_of(body.init_images[0], folder, "init_images.0", stretch),
        "strength": strength,
    }
    if not body.mask:
        return values
    blur = body.mask_blur if body.mask_blur is not None else max(body.mask_blur_x, body.mask_blur_y)
    return values | {
        "mask": file_of(body.mask, folder, "mask", stretch, invert=bool(body.inpainting_mask_invert)),
        "mask_blur": blur,
        "mask_content": FILLS[body.inpainting_fill],
        "only_masked": body.inpaint_full_res,
        "mask_padding": body.inpaint_full_res_padding,
    }
