"""What a picture says about how it was made: A1111's `parameters` for other tools, our own JSON for us.

`parameters` is three parts: the prompt with its `<lora:...>` tags, `Negative prompt: ...`, and a last line of
`Key: value` pairs. It cannot say everything, nor be parsed without doubt (a prompt may hold such lines),
so `lora_studio` holds the whole request, ids and hashes as JSON, and counts when we read a picture back.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, cast

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError

from registry.errors import BadInput
from registry.files import atomic_path, file_stem
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import DEFAULT, a1111_names, scheduler_from_a1111

PARAMETERS, OWN = "parameters", "lora_studio"
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000  # by the header; nothing is decoded here
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
# Keys are bounded: an endless word in a foreign picture must not cost quadratic time.
_PAIR = re.compile(r'(\w[\w \-/]{1,40}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_TAG = re.compile(r"<lora:([^:>]+):(-?[\d.]+)(?::(-?[\d.]+))?>")
_NEGATIVE = "Negative prompt:"


class UsedAdapter(Protocol):
    """An adapter that acted on a picture."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def tensor_sha256(self) -> str: ...  # noqa: D102
    @property
    def weight(self) -> float: ...  # noqa: D102
    @property
    def text_weight(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class AdapterMark:
    """An adapter as a picture names it; `id` and the whole hash are there only in our own JSON."""

    name: str
    weight: float = 1.0  # on the denoiser
    text_weight: float | None = None  # on the text encoder; None: same
    tensor_sha256: str = ""  # whole, or its first 12 digits
    id: str = ""


@dataclass(frozen=True)
class PictureMetadata:
    """What a picture says. `source`: "lora_studio", "a1111" or "" (says nothing we read)."""

    source: str = ""
    prompt: str = ""  # without lora tags
    negative: str = ""
    seed: int | None = None
    steps: int | None = None
    cfg: float | None = None
    width: int | None = None
    height: int | None = None
    scheduler: str = DEFAULT  # our name
    base_name: str = ""
    base_hash: str = ""
    adapters: tuple[AdapterMark, ...] = ()
    request: SampleRequest | None = None  # for this one picture; only from our own JSON
    pairs: Mapping[str, str] = field(default_factory=dict[str, str])  # A1111's last line
    texts: Mapping[str, str] = field(default_factory=dict[str, str])  # every text of the file, as it is


def write_png(
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
    """Write picture `index` of `request` with its metadata, atomically.

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
    own = {
        "version": 1,
        "studio": studio_version(),
        "request": one.model_dump(mode="json"),
        "index": index,
        "base": {"id": request.base, "name": base_name, "hash": base_hash, "scheduler": base_scheduler},
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
    }
    parameters = a1111_parameters(
        one, base_name=base_name, base_hash=base_hash, base_scheduler=base_scheduler, adapters=adapters
    )
    texts = PngInfo()
    texts.add_text(PARAMETERS, parameters.replace("\0", " "))
    texts.add_text(OWN, json.dumps(own))  # ASCII: readable by every tool
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=texts)


def picture_request(request: SampleRequest, index: int) -> SampleRequest:
    """The request that makes picture `index` alone."""
    prompt, negative = request.texts(index)
    field = "subseed" if request.subseed_strength else "seed"
    own = (getattr(request, field) + index) % 2**32
    alone = {field: own, "count": 1, "resolved": (), "prompt": prompt, "negative": negative}
    return request.model_copy(update=alone)


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
    pairs = {key: _unquote(value) for key, value in _PAIR.findall(lines[-1])}
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
        text_weight, weight = (_number(first), _number(second)) if second else (None, _number(first))
        if weight is not None:
            adapters.append(AdapterMark(name, weight, text_weight, hashes.get(name, "")))
    width, _, height = pairs.get("Size", "").partition("x")
    return PictureMetadata(
        source="a1111",
        prompt=_TAG.sub("", prompt).strip(),
        negative=negative,
        seed=_whole(pairs.get("Seed", "")),
        steps=_whole(pairs.get("Steps", "")),
        cfg=_number(pairs.get("CFG scale", "")),
        width=_whole(width),
        height=_whole(height),
        scheduler=scheduler_from_a1111(pairs.get("Sampler", ""), pairs.get("Schedule type", "Automatic")),
        base_name=pairs.get("Model", ""),
        base_hash=pairs.get("Model hash", ""),
        adapters=tuple(adapters),
        pairs=pairs,
    )


def read_metadata(path: Path) -> PictureMetadata:
    """What the picture at `path` says about itself; decodes no pixels.

    Raises:
        BadInput: it is no PNG, JPEG or WebP, or is damaged.
    """
    texts = _texts(path)
    found = parse_a1111(texts[PARAMETERS]) if texts.get(PARAMETERS, "").strip() else PictureMetadata()
    own = _own(texts.get(OWN, ""))
    if own is not None:
        request, base, adapters = own
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
            request=request,
            pairs=found.pairs,
            texts=texts,
        )
    return replace(found, texts=texts)


def studio_version() -> str:
    """Installed version of the studio."""
    try:
        return version("lora-studio")
    except PackageNotFoundError:
        return "unknown"


def _texts(path: Path) -> dict[str, str]:
    """Text chunks of a PNG; EXIF's UserComment of the others under `parameters`."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(str(path), f"has {image.width}x{image.height} pixels, the limit is 64 MP", "")
            if image.format == "PNG":
                image.load()  # texts may stand behind the pixels
                return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            comment: Any = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except FileNotFoundError as error:
        raise BadInput(str(path), "does not exist", "check the path") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadInput(
            str(path), "is not a sound PNG, JPEG or WebP picture", "choose another file"
        ) from error
    return {PARAMETERS: _comment_text(comment)} if isinstance(comment, bytes) else {}


def _comment_text(comment: bytes) -> str:
    """EXIF 2.3, UserComment: 8 bytes name the encoding; A1111 writes big-endian UTF-16."""
    code, body = comment[:8], comment[8:]
    if code.startswith(b"UNICODE"):
        return body.decode("utf-16-le" if body[1:2] == b"\0" else "utf-16-be", "replace").strip("\0")
    return body.decode("utf-8", "replace").strip("\0")


def _own(text: str) -> tuple[SampleRequest, dict[str, Any], tuple[AdapterMark, ...]] | None:
    """Our JSON, or None when it is not there or not ours any more."""
    try:
        value: Any = json.loads(text)
        request = SampleRequest.model_validate(value["request"])
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
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        return None
    return request, base, adapters


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
        return str(json.loads(text))
    except ValueError:
        return text


def _hash_pairs(text: str) -> list[tuple[str, str]]:
    pairs = (item.partition(":") for item in text.split(","))
    return [(name.strip(), value.strip()) for name, _, value in pairs if value.strip()]


def _whole(text: str) -> int | None:
    """A whole number of at most 20 digits, else None."""
    return int(text) if re.fullmatch(r"\s*\d{1,20}\s*", text) else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*-?\d{1,20}(\.\d{0,20})?\s*|\s*-?\.\d{1,20}\s*", text) else None
