"""A1111's request as ours."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageOps

from registry.errors import BadInput
from registry.records import Base
from studio.api.pictures import open_picture
from studio.api.queue import base_named
from studio.api.sdapi_models import REFUSED, Img2Img, Txt2Img
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import DEFAULT, scheduler_from_a1111
from studio.workspace import Workspace

FILLS = ("fill", "original", "noise", "nothing")  # inpainting_fill
FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}  # samples_format
JUST_RESIZE, CROP = 0, 1  # resize_mode
CHECKPOINT, CLIP_STOP = "sd_model_checkpoint", "CLIP_stop_at_last_layers"


def to_request(
    ws: Workspace, body: Txt2Img, folder: Path, options: Mapping[str, Any]
) -> tuple[SampleRequest, Base]:
    """The request and its base; pictures become files in `folder`.

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
        "clip_skip": int(settings.get(CLIP_STOP) or 0),
        "format": FORMATS.get(str(settings.get("samples_format", "")).lower(), "png"),
    }
    if body.refiner_checkpoint and body.refiner_checkpoint != "None":
        values["refiner"] = base_titled(ws, body.refiner_checkpoint).id
        values["refiner_at"] = body.refiner_switch_at or 0.8
    if body.enable_hr:
        values["hires"] = _hires(body)
    if isinstance(body, Img2Img):
        values |= _from_picture(body, folder)
    return SampleRequest.model_validate(values), base


def title_of(base: Base) -> str:
    """The base as A1111 names checkpoints: its name, and ten digits of its hash."""
    return f"{base.name} [{base.weight_hash[:10]}]" if base.weight_hash else base.name


def base_titled(ws: Workspace, title: str) -> Base:
    """The base that a title, a name or a hash names; "" = the one used last."""
    named = [base for base in ws.catalog.list(Base, part="") if title in {title_of(base), base.weight_hash}]
    return named[0] if title and named else base_named(ws, title)


def _refuse(body: Txt2Img) -> None:
    more = body.model_extra or {}
    for name in REFUSED:
        value: Any = more.get(name)
        if value and value != "None":
            raise BadInput(name, "is not built in here", "leave it out")
    scripts = cast("dict[str, Any]", more.get("alwayson_scripts") or {})
    for name, script in scripts.items():
        arguments: Any = script.get("args") if isinstance(script, dict) else script
        if arguments and arguments != [False]:
            wrong = "is not built in here"
            raise BadInput(f"script {name}", wrong, "leave it out; ControlNet is in /api/v1/generate")


def _seed(value: int) -> int:
    return secrets.randbelow(2**32) if value < 0 else value


def _scheduler(body: Txt2Img) -> str:
    name = body.sampler_name or body.sampler_index or ""
    found = scheduler_from_a1111(name, (body.scheduler or "Automatic").replace("_", " ")) if name else DEFAULT
    if found == DEFAULT and name.casefold() not in {"", DEFAULT}:
        raise BadInput(f"sampler {name[:60]!r}", "is unknown", "see /sdapi/v1/samplers")
    return found


def _hires(body: Txt2Img) -> dict[str, Any]:
    latent = (body.hr_upscaler or "Latent").startswith("Latent")
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
        "image": _file(body.init_images[0], folder, "init_images.0", stretch),
        "strength": strength,
    }
    if not body.mask:
        return values
    blur = body.mask_blur if body.mask_blur is not None else max(body.mask_blur_x, body.mask_blur_y)
    return values | {
        "mask": _file(body.mask, folder, "mask", stretch, invert=bool(body.inpainting_mask_invert)),
        "mask_blur": blur,
        "mask_content": FILLS[body.inpainting_fill],
        "only_masked": body.inpaint_full_res,
        "mask_padding": body.inpaint_full_res_padding,
    }


def _file(text: str, folder: Path, what: str, size: tuple[int, int] | None, *, invert: bool = False) -> str:
    """The picture as a file, stretched and inverted as asked; a plain one is kept as it came."""
    picture = open_picture(text, what)
    path = folder / what
    try:
        picture = ImageOps.exif_transpose(picture)
        if invert:
            picture = ImageOps.invert(picture.convert("L"))
        if size and picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        picture.save(path, format="PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadInput(what, "cannot be read as a picture", "send a PNG, JPEG or WebP file") from None
    return str(path)
