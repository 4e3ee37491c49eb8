"""What the catalog hands out: frozen values, safe to keep after the session is closed.

Times are UTC and aware. `path` fields are relative to the workspace when the file lives inside it, absolute
otherwise; `Workspace.resolve` turns either into a real path. Ids are 10 characters of Crockford base32,
sortable by creation time.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

JSON = dict[str, Any]
PLACES = ("local", "ray")  # where a run trains: on the machine of its worker, on a Ray cluster
PICKERS = ("probe", "evidence", "you")  # who may pick a checkpoint; the later count for more


class RunState(StrEnum):
    """Where a run is. `interrupted`: its process died; it can be resumed from its last checkpoint."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def active(self) -> bool:
        """Whether a trainer process exists or is being started."""
        return self in {self.STARTING, self.RUNNING, self.PAUSING, self.STOPPING}

    @property
    def resumable(self) -> bool:
        """Whether `studio runs resume` makes sense."""
        return self in {self.PAUSED, self.STOPPED, self.FAILED, self.INTERRUPTED}


class JobKind(StrEnum):
    """What the worker can do."""

    TRAIN = "train"
    TRAIN_AWAY = "train-away"  # on a cluster: needs nothing of this machine
    SAMPLE = "sample"
    IMPORT = "import"  # take adapter files in, then hash them
    CHECK = "check"  # look after the files of registered adapters
    EXAMINE = "examine"  # look at the pixels of a data set
    EVALUATE = "evaluate"  # measure the pictures of an evidence sheet


class FileState(StrEnum):
    """What was last seen of an adapter's file."""

    NEW = "new"  # listed by its header, not hashed yet
    OK = "ok"
    EDITED = "edited"  # same weights, other metadata
    CHANGED = "changed"  # other weights, or no longer sound
    MISSING = "missing"


class JobState(StrEnum):
    """Life of a job in the queue."""

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


def now() -> datetime:
    """The current time, UTC and aware."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model: a diffusers folder, a single file or a hub id; or a network that steers one (`part`)."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    name: str
    family: str  # a key of trainers.families.FAMILIES
    variant: str = ""  # "eps", "v", "inpaint" ...: what differs within a family
    location: str  # path (see module docstring) or hub id
    kind: str  # "folder" | "file" | "hub"
    revision: str = ""  # commit of a hub id
    config: str = ""  # folder with the configs of a single file
    weight_hash: str = ""  # registry.hashing.hash_folder / sha256_file
    builtin: bool = False  # shipped with the package: always listed, cannot be removed
    made: JSON = field(default_factory=dict[str, Any])  # of a baked one: operation, settings, parents
    part: str = ""  # "" = a whole base; "controlnet" | "t2i-adapter": `variant` is the kind of map it reads


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture of a data set; the pixels are a blob."""

    id: str = ""
    dataset_id: str = ""
    position: int = 0
    blob: str  # sha256 of the stored file, key in blobs/
    pixel_hash: str  # sha256 of mode, size and decoded pixels: the same picture in two files is one picture
    name: str  # the file name it came with
    width: int
    height: int
    caption: str = ""
    mask: str = ""  # blob
    tags: tuple[str, ...] = ()
    note: str = ""  # what was converted on the way in
    repeats: int = 1  # showings an epoch
    weight: float = 1.0  # of its loss


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named, ordered set of pictures with captions."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    name: str
    trigger: str = ""
    source: str = ""  # folder, zip, upload, hub id it came from, as text
    content_hash: str = ""  # over pixel_hash, caption, mask (repeats, weight) in order
    image_count: int = 0
    licence: str = ""  # of the pictures; adapters trained on them inherit it
    consent: str = ""  # who is shown, and whether they agreed; inherited as well


TRAINING = (JobKind.TRAIN, JobKind.TRAIN_AWAY)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; its files are in `runs/<id>/`."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    name: str
    state: RunState = RunState.QUEUED
    reason: str = ""  # why it failed, was interrupted, or waits while it is active; one line
    family: str
    goal: str = ""
    base_id: str
    dataset_id: str
    recipe: JSON
    recipe_hash: str
    dataset_hash: str
    base_hash: str
    seed: int
    step: int = 0
    steps: int
    parent_run_id: str = ""  # branched from
    parent_step: int = 0
    versions: JSON = field(default_factory=dict[str, Any])
    place: str = "local"  # where it trains: one of PLACES
    process: JSON | None = None  # of the trainer: pid, start time, boot id; or the job of a cluster
    started_at: datetime | None = None
    ended_at: datetime | None = None
    pick_step: int = 0  # of the checkpoint to use; 0 = none was picked
    pick_reason: str = ""  # one sentence
    pick_by: str = ""  # one of PICKERS

    @property
    def job_kind(self) -> JobKind:
        """What kind of job trains it."""
        return JobKind.TRAIN if self.place == PLACES[0] else JobKind.TRAIN_AWAY


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint folder of a run."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    run_id: str
    step: int
    path: str
    loss: float | None = None
    metrics: JSON = field(default_factory=dict[str, Any])  # `loss` and the figures of trainers.rundir.PROBES


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter file. Its identity is the hash of its tensors, not its path or name.

    An imported file is listed by its header first; until it is hashed, `tensor_sha256` is "".
    """

    id: str = ""
    created_at: datetime = field(default_factory=now)
    name: str
    tensor_sha256: str
    file_sha256: str
    path: str
    size: int = 0  # bytes
    family: str = ""  # "" while unidentified
    method: str = "lora"
    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = ()  # components: "unet", "text_encoder"
    trigger_words: tuple[str, ...] = ()
    recommended_weight: float = 1.0
    tags: tuple[str, ...] = ()
    note: str = ""
    rating: int = 0  # 0 = not rated, 1 to 5
    favourite: bool = False
    licence: str = ""
    consent: str = ""  # who is shown, and whether they agreed
    keywords: str = ""  # more words to be found by: tags of captions, words of prompts
    origin: str = "run"  # "run" | "import" | "merge" | "resize" | "extract" | "edit"
    source: str = ""  # where an imported file came from: path or address
    file_state: FileState = FileState.OK
    checked_at: datetime | None = None  # when `file_state` was found
    mtime_ns: int = 0  # of the file when it was hashed last
    run_id: str = ""
    step: int = 0
    base_id: str = ""
    parents: tuple[str, ...] = ()
    preview: str = ""  # path of a picture
    metadata: JSON = field(default_factory=dict[str, Any])
    trashed_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class RunImage:
    """A picture that a run was given; outlives changes of its data set."""

    run_id: str
    position: int
    pixel_hash: str
    blob: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A file that was written from an adapter, with its proof."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    adapter_id: str
    path: str
    layout: str
    dtype: str
    publish: bool = False
    sha256: str = ""
    report: JSON = field(default_factory=dict[str, Any])  # `registry.formats.export.ExportReport`


@dataclass(frozen=True, kw_only=True)
class SavedFilter:
    """A search of adapters under a name."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    name: str
    query: JSON  # fields of `registry.search.AdapterQuery`


@dataclass(frozen=True, kw_only=True)
class Watch:
    """A folder whose new adapter files are taken in."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    path: str
    scanned_at: datetime | None = None
    note: str = ""  # what was wrong at the last look, one line


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """An adapter within a sample."""

    adapter_id: str
    weight: float = 1.0
    text_weight: float | None = None  # None: same as weight
    tensor_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Pictures made by one request."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    base_id: str
    request: JSON
    files: tuple[str, ...] = ()
    adapters: tuple[AdapterUse, ...] = ()
    key: str = ""  # of a single picture: what it is drawn from, by content (`studio.sampling.keys`)
    purpose: str = ""  # "" = asked for by a person; "compare" = a cell of a comparison


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A grid: a base request and the values that differ from cell to cell."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    name: str
    base_id: str
    spec: JSON  # `studio.compare.spec.Spec`


@dataclass(frozen=True, kw_only=True)
class ComparisonCell:
    """One cell of a comparison. Cells that are drawn from the same have the same sample."""

    comparison_id: str
    place: str  # index of its value on each axis: "2/0/1"
    key: str
    sample_id: str


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Which of two pictures a person liked better, without knowing what made them."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    comparison_id: str
    axis: str  # whose values were compared
    left: str  # value on the left
    right: str
    outcome: str  # "left" | "right" | "tie"
    prompt: str = ""  # of both pictures: the group
    context: str = ""  # all other values of both, canonical JSON


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evidence sheet: what was drawn to judge a run or an adapter, and what was found."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    run_id: str = ""  # whose checkpoints are judged; "" = a single adapter is
    adapter_id: str = ""
    comparison_id: str  # the grid that is measured
    plan: JSON  # `studio.evidence.plan.Plan`
    plan_hash: str
    result: JSON = field(default_factory=dict[str, Any])  # `studio.evidence.result.Evidence`; {} = not yet
    measured_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A unit of work in the queue. A lease that is not renewed expires and the job is claimed again."""

    id: str = ""
    created_at: datetime = field(default_factory=now)
    kind: JobKind
    state: JobState = JobState.QUEUED
    subject_id: str  # of the run, sample or data set
    payload: JSON = field(default_factory=dict[str, Any])
    attempts: int = 0
    owner: str = ""
    lease_until: datetime | None = None
    cancel: bool = False  # asked to stop
    background: bool = False  # has its turn when nothing else of its kind waits
    error: str = ""
    result: JSON = field(default_factory=dict[str, Any])
