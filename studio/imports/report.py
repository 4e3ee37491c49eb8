"""What an import or a check did: counts and names, kept as JSON while it works and when it has ended."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from registry.errors import StudioError, several
from registry.files import read_json
from registry.records import Job

if TYPE_CHECKING:
    from studio.workspace import Workspace

KEPT = 1000  # lines of each kind; the counts go on
Pair = tuple[str, str]  # file, and what there is to say of it


@dataclass
class Report:
    """What both have: the job, and lists of at most `KEPT` lines, named by `KINDS`."""

    KINDS: ClassVar[tuple[str, ...]]

    job_id: str = ""
    state: str = "queued"  # of the job
    phase: str = "waiting"
    error: str = ""  # why the whole job failed

    def add(self, kind: str, name: str, text: str) -> None:
        """One more line of a kind, while there is room."""
        lines: list[Pair] = getattr(self, kind)
        if len(lines) < KEPT:
            lines.append((name, text))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def of(cls, value: dict[str, Any]) -> Self:
        """From `to_dict`; what is unknown or missing is left at its default."""
        known = {f.name for f in fields(cls)}
        values = {key: item for key, item in value.items() if key in known}
        for kind in cls.KINDS:
            values[kind] = [(str(name), str(text)) for name, text in values.get(kind, ())]
        return cls(**values)


@dataclass
class ImportReport(Report):
    """An import: "waiting", "fetching", "listing", "hashing", "done". `counts` has the true numbers."""

    KINDS = ("duplicates", "moved", "bad", "unidentified", "notes")

    files: int = 0  # weights files found so far
    listed: int = 0  # new rows
    known: int = 0  # files that the catalog had already
    hashed: int = 0
    bytes_done: int = 0  # hashed
    bytes_total: int = 0  # to be hashed
    listing_seconds: float = 0.0
    hashing_seconds: float = 0.0
    unsettled: int = 0  # files that were still being written
    counts: dict[str, int] = field(default_factory=dict[str, int])  # lines of each of the lists below
    duplicates: list[Pair] = field(default_factory=list[Pair])  # file, the adapter it is
    moved: list[Pair] = field(default_factory=list[Pair])  # file, the adapter that it was found for
    bad: list[Pair] = field(default_factory=list[Pair])  # file, error line
    unidentified: list[Pair] = field(default_factory=list[Pair])  # file, reason
    notes: list[Pair] = field(default_factory=list[Pair])  # file, what else was noticed

    def add(self, kind: str, name: str, text: str) -> None:
        """One more line of a kind: duplicates, moved, bad, unidentified or notes."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        name = name.encode("utf-8", "replace").decode()  # a file's name may be no text
        super().add(kind, name, text)

    def take_back(self, kind: str, name: str) -> None:
        """One line of a kind less: what was said of this file is not so any more."""
        self.counts[kind] = self.counts.get(kind, 0) - 1
        name = name.encode("utf-8", "replace").decode()
        lines: list[Pair] = getattr(self, kind)
        lines[:] = [line for line in lines if line[0] != name]

    def count(self, kind: str) -> int:
        """How many lines of a kind there were."""
        return self.counts.get(kind, 0)

    @property
    def taken(self) -> int:
        """Files that are in the catalog now, new or before."""
        return self.listed + self.known + self.count("duplicates") + self.count("moved")

    @property
    def past_listing(self) -> bool:
        """Whether all rows are there that can be told from headers."""
        return self.phase in {"hashing", "done"}

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.listed} taken in"]
        if self.known:
            parts.append(f"{self.known} known already")
        for kind, one, many in (
            ("moved", "found again", "found again"), ("duplicates", "duplicate", "duplicates"),
            ("bad", "refused", "refused"), ("unidentified", "unidentified", "unidentified"),
        ):  # fmt: skip
            if self.count(kind):
                parts.append(several(self.count(kind), one, many))
        if self.unsettled:
            parts.append(f"{self.unsettled} still being written")
        return ", ".join(parts) + "."


@dataclass
class CheckReport(Report):
    """What a check has found so far: "waiting", "checking", "searching", "done"."""

    KINDS = ("missing", "changed", "relinked")

    total: int = 0
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict[str, int])  # by file state, and "relinked"
    missing: list[Pair] = field(default_factory=list[Pair])  # adapter, where its file was
    changed: list[Pair] = field(default_factory=list[Pair])  # adapter, what is wrong
    relinked: list[Pair] = field(default_factory=list[Pair])  # adapter, where its file is now

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{count} {state}" for state, count in sorted(self.counts.items()) if count]
        return f"{self.done} looked at: {', '.join(parts) or 'nothing'}."


def progress_file(ws: "Workspace", job_id: str) -> Path:
    """Where a job says how far it is."""
    return ws.home / "cache" / "imports" / f"{job_id}.json"


def read_report(ws: "Workspace", job: Job) -> dict[str, Any]:
    """What a job has said so far; {} when nothing."""
    if job.result:
        return job.result
    try:
        value = read_json(progress_file(ws, job.id))
    except (StudioError, OSError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
