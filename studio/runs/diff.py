"""What tells two runs apart: choices, pictures, base, versions, and how they ended."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from registry.records import Base, Dataset, Run
from studio.runs import speed
from studio.runs.frozen import manifest_of
from trainers.recipe import differences, recipe_fields, thaw
from trainers.rundir import ManifestItem

if TYPE_CHECKING:
    from studio.workspace import Workspace

PARTS = ("recipe", "pictures", "base", "versions", "results")


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same; None where a run has no such thing."""

    part: str  # one of PARTS
    key: str  # recipe key, "added", "removed", "caption", library, "loss" ...
    what: str  # in plain words: the field's meaning, the picture's name
    a: Any
    b: Any

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON types."""
        return asdict(self)


def diff_runs(ws: "Workspace", a: Run, b: Run) -> list[Difference]:
    """Everything in which two runs differ, in the order of PARTS; pictures as the runs were given them."""
    return [
        *_recipes(a, b),
        *_pictures(ws, a, b),
        *_bases(ws, a, b),
        *_versions(a, b),
        *_results(ws, a, b),
    ]


def compare_pictures(a: Sequence[ManifestItem], b: Sequence[ManifestItem]) -> list[Difference]:
    """Pictures that only `b` has, those that only `a` has, and those with another caption or weight."""
    then, now = {item.pixel_hash: item for item in a}, {item.pixel_hash: item for item in b}
    found = [
        Difference("pictures", "added", i.name, None, i.caption) for k, i in now.items() if k not in then
    ]
    found += [
        Difference("pictures", "removed", i.name, i.caption, None) for k, i in then.items() if k not in now
    ]
    for key, item in now.items():
        if key in then:
            found += _changes(then[key], item)
    return found


def _changes(a: ManifestItem, b: ManifestItem) -> Iterator[Difference]:
    """Of one picture; masks are compared by file name, which is their hash."""
    pairs = {
        "caption": (a.caption, b.caption),
        "mask": (a.mask.rpartition("/")[2], b.mask.rpartition("/")[2]),
        "weight": (a.weight, b.weight),
        "repeats": (a.repeats, b.repeats),
        "role": (a.role, b.role),
    }
    for key, (one, other) in pairs.items():
        if one != other:
            yield Difference("pictures", key, b.name or a.name, one, other)


def _recipes(a: Run, b: Run) -> Iterator[Difference]:
    fields = recipe_fields()
    for change in differences(thaw(b.recipe), thaw(a.recipe)):
        meaning = fields[change.key].doc.partition(". ")[0].rstrip(".")
        yield Difference("recipe", change.key, meaning, change.preset, change.value)


def _pictures(ws: "Workspace", a: Run, b: Run) -> list[Difference]:
    names = [_name(ws.catalog.find(Dataset, run.dataset_id)) for run in (a, b)]
    found = [Difference("pictures", "dataset", "data set", *names)] if a.dataset_id != b.dataset_id else []
    one, other = manifest_of(ws, a), manifest_of(ws, b)
    if one is not None and other is not None:
        return [*found, *compare_pictures(one, other)]
    if a.dataset_hash != b.dataset_hash:
        what = "content of the data set; a list of pictures is gone"
        found.append(Difference("pictures", "content", what, a.dataset_hash, b.dataset_hash))
    return found


def _bases(ws: "Workspace", a: Run, b: Run) -> Iterator[Difference]:
    if a.base_id != b.base_id:
        names = [_name(ws.catalog.find(Base, run.base_id)) for run in (a, b)]
        yield Difference("base", "base", "base model", *names)
    if a.base_hash != b.base_hash:
        yield Difference("base", "weights", "weights of the base", a.base_hash, b.base_hash)


def _versions(a: Run, b: Run) -> Iterator[Difference]:
    for library in sorted({*a.versions, *b.versions}):
        one, other = a.versions.get(library), b.versions.get(library)
        if one != other:
            yield Difference("versions", library, f"version of {library}", one, other)


def _results(ws: "Workspace", a: Run, b: Run) -> Iterator[Difference]:
    words = {
        "state": "how it ended",
        "step": "steps trained",
        "loss": "loss over the last steps",
        "seconds_per_step": "seconds a step",
        "seconds": "seconds from start to end, all attempts together",
        "peak_memory": "most memory, bytes",
    }
    one, other = _result(ws, a), _result(ws, b)
    for key, what in words.items():
        if one[key] != other[key]:
            yield Difference("results", key, what, one[key], other[key])


def _result(ws: "Workspace", run: Run) -> dict[str, Any]:
    status = ws.run_dir(run.id).read_status()
    took = speed.taken(ws, run)
    return {
        "state": str(run.state),
        "step": run.step,
        "loss": status.loss if status else None,
        "seconds_per_step": status.seconds_per_step if status else None,
        "seconds": round(took, 1) if took is not None else None,
        "peak_memory": (status.peak_memory or None) if status else None,
    }


def _name(record: Base | Dataset | None) -> str:
    return record.name if record else "since removed"
