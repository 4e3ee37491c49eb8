"""A1111's `parameters`: written for other tools, and read.

Three parts: the prompt with its `<lora:...>` tags, `Negative prompt: ...`, a last line of `Key: value` pairs.
It cannot say everything, nor be parsed without doubt: a prompt may hold such lines.
"""

import json
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from registry.files import file_stem
from studio.sampling.metadata.said import AdapterMark, PictureMetadata, UsedAdapter, number, sound, whole
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import a1111_names, scheduler_from_a1111

CONTENTS = ("fill", "original", "latent noise", "latent nothing")  # A1111's "Masked content"
_OURS = ("fill", "original", "noise", "nothing")
# Keys are bounded: an endless word in a foreign picture must not cost quadratic time.
_PAIR = re.compile(r'(\w[\w \-/]{1,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_TAG = re.compile(r"<lora:([^:>]+):(-?[\d.]+)(?::(-?[\d.]+))?>")
_NEGATIVE = "Negative prompt:"
_PRECISION, ROUNDED = "Base precision", ("int8", "fp8", "nf4")  # ours: weights that were not kept whole
MAX_LINE = 20_000  # characters of pairs: a longer line is prompt


def a1111_parameters(
    request: SampleRequest,
    *,
    base_name: str = "",
    base_hash: str = "",
    base_scheduler: str = "",
    adapters: Sequence[UsedAdapter] = (),
) -> str:
    """A1111's text for one picture."""
    sampler, schedule = a1111_names(request.scheduler, base_scheduler)
    pairs: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{request.cfg:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": base_hash[:10],
        "Model": base_name,
        **_of_modes(request),
        _PRECISION: request.precision if request.precision in ROUNDED else "",
        "Clip skip": request.clip_skip if request.clip_skip > 1 else "",
        "Lora hashes": ", ".join(f"{file_stem(a.name)}: {a.tensor_sha256[:12]}" for a in adapters),
        "TI hashes": ", ".join(f"{file_stem(e.name)}: {e.sha256[:12]}" for e in request.embeddings),
        "Version": f"LoRA Studio {studio_version()}",
    }
    tags = "".join(f" {_tag(adapter)}" for adapter in adapters)
    lines = [request.prompt + tags]
    if request.negative:
        lines.append(f"{_NEGATIVE} {request.negative}")
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in pairs.items() if str(value)))
    return "\n".join(lines)


def parse_a1111(text: str) -> PictureMetadata:
    """What A1111's text says; a last line with fewer than three pairs is prompt."""
    lines = text.strip().split("\n")
    last = lines[-1] if len(lines[-1]) <= MAX_LINE else ""
    pairs = {key: _unquote(value) for key, value in _PAIR.findall(last)}
    if len(pairs) < 3:
        pairs = {}
    else:
        lines.pop()
    start = next((i for i, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    prompt = "\n".join(lines[:start]).strip()
    negative = "\n".join(lines[start:]).strip().removeprefix(_NEGATIVE).strip()
    hashes = dict(_hash_pairs(pairs.get("Lora hashes", "")))
    adapters: list[AdapterMark] = []
    for name, first, second in _TAG.findall(prompt):
        text_weight, weight = (number(first), number(second)) if second else (None, number(first))
        if weight is not None:
            adapters.append(AdapterMark(name, weight, text_weight, hashes.get(name, "")))
    width, _, height = pairs.get("Size", "").partition("x")
    return PictureMetadata(
        source="a1111",
        prompt=_TAG.sub("", prompt).strip(),
        negative=negative,
        seed=whole(pairs.get("Seed", "")),
        steps=whole(pairs.get("Steps", "")),
        cfg=number(pairs.get("CFG scale", "")),
        width=whole(width),
        height=whole(height),
        scheduler=scheduler_from_a1111(pairs.get("Sampler", ""), pairs.get("Schedule type", "Automatic")),
        base_name=pairs.get("Model", ""),
        base_hash=pairs.get("Model hash", ""),
        adapters=tuple(adapters),
        more=_more(pairs),
        pairs=pairs,
    )


def studio_version() -> str:
    """Installed version of the studio."""
    try:
        return version("lora-studio")
    except PackageNotFoundError:
        return "unknown"


def _of_modes(request: SampleRequest) -> dict[str, Any]:
    """Pairs about pictures that the request starts from, second passes and variations."""
    pairs: dict[str, Any] = {}
    if request.image and not request.upscale:
        pairs["Denoising strength"] = f"{request.strength:g}"
    if request.mask:
        pairs["Mask blur"] = request.mask_blur
        pairs["Masked content"] = CONTENTS[_OURS.index(request.mask_content)]
        if request.only_masked:
            pairs |= {"Inpaint area": "Only masked", "Masked area padding": request.mask_padding}
    if request.subseed_strength:
        pairs["Variation seed"] = request.subseed
        pairs["Variation seed strength"] = f"{request.subseed_strength:g}"
    if request.hires:
        pairs["Denoising strength"] = f"{request.hires.strength:g}"
        pairs["Hires upscale"] = f"{request.hires.scale:g}"
        pairs["Hires steps"] = request.hires.steps or ""
        pairs["Hires upscaler"] = "Latent" if request.hires.upscaler == "latent" else "Lanczos"
    for index, control in enumerate(request.controls):
        module = control.kind if control.preprocess else "none"
        pairs[f"ControlNet {index}"] = (
            f"Module: {module}, Weight: {control.weight:g}, "
            f"Guidance Start: {control.start:g}, Guidance End: {control.end:g}"
        )
    return pairs


def _more(pairs: dict[str, str]) -> dict[str, Any]:
    """Further fields of a request, of those that need no other picture."""
    more: dict[str, Any] = {}
    if (skip := whole(pairs.get("Clip skip", ""))) is not None:
        more["clip_skip"] = skip
    if (scale := number(pairs.get("Hires upscale", ""))) is not None:
        latent = pairs.get("Hires upscaler", "Latent").startswith("Latent")
        strength = number(pairs.get("Denoising strength", ""))
        more["hires"] = {
            "scale": scale,
            "steps": whole(pairs.get("Hires steps", "")) or 0,
            "upscaler": "latent" if latent else "lanczos",
            "strength": 0.7 if strength is None else strength,
        }
    if (precision := pairs.get(_PRECISION)) in ROUNDED:
        more["precision"] = precision
    subseed = whole(pairs.get("Variation seed", ""))
    if subseed is not None:
        strength = number(pairs.get("Variation seed strength", "")) or 0.0
        more |= {"subseed": subseed % 2**32, "subseed_strength": strength}
    return more


def _tag(adapter: UsedAdapter) -> str:
    """`<lora:name:weight>`, or `<lora:name:text:denoiser>` when they differ."""
    name = file_stem(adapter.name)
    if adapter.text_weight is None or adapter.text_weight == adapter.weight:
        return f"<lora:{name}:{adapter.weight:g}>"
    return f"<lora:{name}:{adapter.text_weight:g}:{adapter.weight:g}>"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ',:\n"') else text


def _unquote(text: str) -> str:
    if text[:1] != '"':
        return text.strip()
    try:
        return sound(str(json.loads(text)))
    except ValueError:
        return text


def _hash_pairs(text: str) -> list[tuple[str, str]]:
    pairs = (item.partition(":") for item in text.split(","))
    return [(name.strip(), value.strip()) for name, _, value in pairs if value.strip()]
