"""A request with everything looked up: what the sampler process needs, so that it needs no catalog.

Written to `samples/<id>/request.json`. Paths are those of the catalog; the worker resolves them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from registry.files import read_json, write_json
from studio.sampling.request import SampleRequest
from studio.sampling.strengths import Schedule

REQUEST = "request.json"
PROGRESS = "progress.json"
PREVIEW = "preview.png"
SUFFIXES = {"jpeg": "jpg"}  # where they are not the name of the format


@dataclass(frozen=True, kw_only=True)
class TaskBase:
    """Where the base lies."""

    id: str
    name: str
    family: str
    location: str
    kind: str  # "folder" | "file" | "hub"
    config: str = ""
    revision: str = ""
    weight_hash: str = ""
    part: str = ""  # see `registry.records.Base`


@dataclass(frozen=True, kw_only=True)
class TaskAdapter:
    """An adapter file and its strengths."""

    id: str
    name: str
    path: str
    tensor_sha256: str
    file_sha256: str
    weight: float
    text_weight: float  # resolved: never none
    peft: dict[str, Any] | None = None  # see `registry.formats.peft_config.PeftConfig.to_json`
    blocks: dict[str, float] = field(default_factory=dict[str, float])
    schedule: Schedule = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """From the JSON types of its fields."""
        points: list[list[float]] = value.get("schedule", [])
        values: dict[str, Any] = {**value, "schedule": tuple((at, factor) for at, factor in points)}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TaskEmbedding:
    """An embedding file, and the word that it is in prompts."""

    word: str
    path: str


@dataclass(frozen=True, kw_only=True)
class TaskControl:
    """A network that reads a control picture; how it acts, `request.controls` says in the same order."""

    id: str
    name: str
    location: str
    kind: str  # "folder" | "file" | "hub"
    map_kind: str  # of KINDS
    mode: int | None = None  # of a union network
    revision: str = ""
    weight_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleTask:
    """One request, resolved."""

    id: str
    request: SampleRequest
    base: TaskBase
    adapters: tuple[TaskAdapter, ...] = ()
    embeddings: tuple[TaskEmbedding, ...] = ()
    refiner: TaskBase | None = None
    controls: tuple[TaskControl, ...] = ()
    motion: TaskBase | None = None  # a motion adapter
    files: Mapping[str, str] = field(default_factory=dict[str, str])  # as the request has them -> real paths

    def file(self, name: str) -> Path:
        """The real path of a file of the request."""
        return Path(self.files.get(name, name))

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "id": self.id,
            "request": self.request.model_dump(mode="json"),
            "base": asdict(self.base),
            "adapters": [asdict(adapter) for adapter in self.adapters],
            "embeddings": [asdict(embedding) for embedding in self.embeddings],
            "refiner": asdict(self.refiner) if self.refiner else None,
            "motion": asdict(self.motion) if self.motion else None,
            "files": dict(self.files),
            "controls": [asdict(control) for control in self.controls],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(
            id=value["id"],
            request=SampleRequest.model_validate(value["request"]),
            base=TaskBase(**value["base"]),
            adapters=tuple(TaskAdapter.from_json(adapter) for adapter in value["adapters"]),
            embeddings=tuple(TaskEmbedding(**embedding) for embedding in value.get("embeddings", ())),
            refiner=TaskBase(**value["refiner"]) if value.get("refiner") else None,
            motion=TaskBase(**value["motion"]) if value.get("motion") else None,
            files=value.get("files", {}),
            controls=tuple(TaskControl(**control) for control in value.get("controls", ())),
        )

    def write(self, folder: Path) -> None:
        """Make the task durable as request.json."""
        write_json(folder / REQUEST, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Inverse of `write`."""
        return cls.from_json(read_json(folder / REQUEST))

    def resolved(self, resolve: Callable[[str], Path]) -> Self:
        """The same with real paths instead of the catalog's."""
        adapters = tuple(replace(item, path=str(resolve(item.path))) for item in self.adapters)
        embeddings = tuple(replace(item, path=str(resolve(item.path))) for item in self.embeddings)
        files = {name: str(resolve(name)) for name in files_of(self.request)}
        refiner = _located(self.refiner, resolve) if self.refiner else None
        motion = _located(self.motion, resolve) if self.motion else None
        base = _located(self.base, resolve)
        controls = tuple(
            item if item.kind == "hub" else replace(item, location=str(resolve(item.location)))
            for item in self.controls
        )
        located = replace(self, base=base, refiner=refiner, motion=motion)
        return replace(located, adapters=adapters, embeddings=embeddings, controls=controls, files=files)


def files_of(request: SampleRequest) -> list[str]:
    """Files that a request is drawn from, as it names them."""
    steering = (control.image for control in request.controls)
    return [name for name in (request.image, request.mask, *steering) if name]


def _located(base: TaskBase, resolve: Callable[[str], Path]) -> TaskBase:
    if base.kind == "hub":
        return base
    config = str(resolve(base.config)) if base.config else ""
    return replace(base, location=str(resolve(base.location)), config=config)


def map_name(index: int) -> str:
    """File name of what the network of control `index` reads."""
    return f"control-{index}.png"


def picture_name(index: int, format: str) -> str:
    """File name of picture `index` of a sample."""
    return f"{index:03d}.{SUFFIXES.get(format, format)}"
