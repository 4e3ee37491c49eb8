"""What `/api/v1` takes and gives."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from registry.records import FileState, JobState, RunState
from studio.sampling.request import SampleRequest


class Generate(SampleRequest):
    """A request as it is sent. What is left out is the base's own: its size, its usual guidance.

    Video, sound and 3D take `settings`, and no field that only pictures have.

    Pictures (`image`, `mask`, `image` of `controls`) are files as base64, or data URLs; no paths. Base and
    adapters are named, or given by id.
    """

    base: str = ""
    """Name or id of the base; none = the one used last."""


class _FromRecord(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class BaseInfo(_FromRecord):
    """A base model, or a network that steers one."""

    id: str
    name: str
    family: str
    variant: str
    kind: str
    """folder, file or hub."""
    part: str
    """Empty for a base for pictures; controlnet, t2i-adapter, video, sound, 3d or motion."""
    weight_hash: str
    builtin: bool
    created_at: datetime


class AdapterInfo(_FromRecord):
    """An adapter."""

    id: str
    name: str
    family: str
    method: str
    rank: int
    alpha: float
    trigger_words: tuple[str, ...]
    recommended_weight: float
    tags: tuple[str, ...]
    note: str
    rating: int
    favourite: bool
    licence: str
    origin: str
    run_id: str
    parents: tuple[str, ...]
    tensor_sha256: str
    size: int
    """Bytes of the file."""
    file_state: FileState
    created_at: datetime


class AdapterPage(BaseModel):
    """A page of adapters."""

    adapters: list[AdapterInfo]
    total: int
    """Of all hits, on every page."""
    next: str
    """`after` of the next page; empty on the last."""


class RunInfo(_FromRecord):
    """A training run."""

    id: str
    name: str
    state: RunState
    reason: str
    family: str
    goal: str
    base_id: str
    dataset_id: str
    step: int
    steps: int
    seed: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Status(BaseModel):
    """Where a sample is."""

    id: str
    state: JobState
    """queued, leased (being drawn), done, failed or cancelled."""
    phase: str
    step: int
    steps: int
    picture: int
    """The one being drawn, from 1."""
    pictures: int
    preview: str
    """Address of the picture as it is so far; empty when there is none."""
    files: list[str]
    """Addresses of the finished pictures, videos or sounds, with all their metadata."""
    meshes: list[str]
    """Addresses of the meshes of things."""
    seeds: list[int]
    """Seed of each picture."""
    warnings: list[str]
    error: str
