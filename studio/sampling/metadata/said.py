"""What a picture says, whoever wrote it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol, cast

from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import DEFAULT

OWN = "lora_studio"
LONGEST = 10_000  # characters of a text in a request


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
    """What a picture says. `source`: lora_studio, a1111, comfyui, invokeai, swarmui, or "" for nothing."""

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
    motion_name: str = ""  # of the motion adapter of a video
    motion_hash: str = ""
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])  # further fields of a request
    request: SampleRequest | None = None  # for this one picture; only from our own JSON
    pairs: Mapping[str, str] = field(default_factory=dict[str, str])  # A1111's last line
    texts: Mapping[str, str] = field(default_factory=dict[str, str])  # every text of the file, as it is


def whole(value: Any) -> int | None:
    """A whole number of at most 20 digits, as number or text; else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if 0 <= value < 10**20 else None
    text = str(value)
    return int(text) if re.fullmatch(r"\s*\d{1,20}\s*", text) else None


def number(value: Any) -> float | None:
    """A plain decimal number, as number or text; else None."""
    if isinstance(value, bool):
        return None
    text = str(value)
    return float(text) if re.fullmatch(r"\s*-?\d{1,20}(\.\d{0,20})?\s*|\s*-?\.\d{1,20}\s*", text) else None


def text(value: Any) -> str:
    """A text that a request can hold; "" for anything else."""
    return sound(value[:LONGEST]) if isinstance(value, str) else ""


def sound(value: str) -> str:
    """Without halves of characters (surrogates), which JSON can name and no file can hold."""
    return value.encode("utf-8", "replace").decode("utf-8")


def entries(value: Any) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """A JSON array; empty for anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def file_name(value: Any) -> str:
    """The name in a path of a model file, as the catalog would call it: no folders, no `.safetensors`."""
    name = PurePosixPath(text(value).replace("\\", "/")).name
    stem, _, suffix = name.rpartition(".")
    return stem if suffix.lower() in {"safetensors", "ckpt", "pt", "gguf"} else name
