"""Comparisons: make one, let it grow, go on with it, stop it, remove it; how far it is.

Every cell is a sample of one picture with a key of what it is drawn from. A cell whose key is drawn already,
or waits to be, takes that sample; so a comparison that grows draws new cells only, and cells that are the
same (strength 0 and no adapter) are drawn once. Jobs are in the catalog's queue: whoever dies, the rest goes
on.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

from registry.errors import BadInput
from registry.grids import LIVE, CellState
from registry.records import Base, Comparison, ComparisonCell, Job, JobKind, JobState, Sample, now
from studio.compare.axes import Value
from studio.compare.spec import Place, Spec, grown, in_order, place_of, place_text
from studio.sampling.prepare import Prepared, Seen, prepare, write
from studio.sampling.request import SampleRequest
from studio.sampling.task import files_of

if TYPE_CHECKING:
    from studio.workspace import Workspace

PURPOSE = "compare"
_RECENT = 200  # finished samples that tell the speed
_LONGEST = 100  # characters of a name


@dataclass(frozen=True)
class Cell:
    """A cell and how far it is."""

    place: Place
    sample_id: str
    key: str
    state: str  # "drawn" | "waiting" | "drawing" | "failed" | "missing" (stopped, or its picture is gone)
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How far a comparison is; cells that are the same count once."""

    total: int
    drawn: int
    live: int
    failed: int
    missing: int  # stopped, or the picture is gone
    seconds_left: float | None  # None = nothing is under way, or nobody knows

    @property
    def share(self) -> float:
        """Drawn part, 0 to 1."""
        return self.drawn / self.total if self.total else 1.0


def create(ws: "Workspace", spec: Spec, name: str = "") -> Comparison:
    """Make a comparison and queue the cells that are not drawn yet.

    Args:
        ws: Where.
        spec: What to compare.
        name: "" = one is made up.

    Raises:
        BadInput: the name is taken, or a cell cannot be drawn as it is; nothing is queued then.
    """
    name = _checked_name(name) if name else _made_up_name(ws, spec)
    if ws.catalog.find(Comparison, name) is not None:
        raise BadInput(f"comparison {name!r}", "is there already", "choose another name, or let it grow")
    spec = spec.model_copy(update={"base": _kept_files(ws, spec.base)})
    base = ws.catalog.get(Base, spec.base.base)
    return _put(ws, Comparison(name=name, base_id=base.id, spec={}), spec)


def undrawn(ws: "Workspace", spec: Spec) -> int:
    """How many pictures a spec would draw; what is drawn or waits already is not counted.

    Raises:
        BadInput: a cell cannot be drawn as it is.
    """
    keys = {one.key for one in _prepared(ws, spec).values()}
    return len(keys) - len(_there(ws, sorted(keys)))


def spec_of(comparison: Comparison) -> Spec:
    """Its spec."""
    return Spec.model_validate(comparison.spec)


def grow(
    ws: "Workspace",
    comparison: Comparison,
    more: Mapping[str, Sequence[Value]],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Put further values on axes; only the new cells are drawn.

    Raises:
        BadInput: a value does not fit, or there would be too many cells.
    """
    return _put(ws, comparison, grown(spec_of(comparison), more, labels or {}))


def grow_to(ws: "Workspace", comparison: Comparison, spec: Spec) -> Comparison:
    """Put the values of another spec of the same base beside those that are there.

    Raises:
        BadInput: its base request is another one; names the first difference.
    """
    old, new = spec_of(comparison), spec.model_copy(update={"base": _kept_files(ws, spec.base)})
    here, there = (one.base.model_dump(mode="json") for one in (old, new))
    free = {{"guidance": "cfg"}.get(row.name, row.name) for row in (*old.axes, *new.axes)}
    other = [name for name, value in there.items() if here[name] != value and name not in free]
    if other or old.weight != new.weight:
        field = other[0] if other else "weight"
        thing = f"comparison {comparison.name}"
        raise BadInput(thing, f"has another {field} in all of its cells", "give another --name")
    more = {row.name: row.values for row in new.axes}
    labels = {row.name: [row.label(i) for i in range(len(row.values))] for row in new.axes}
    return grow(ws, comparison, more, labels)


def go_on(ws: "Workspace", comparison: Comparison) -> Comparison:
    """Queue again what was stopped, failed or lost its picture."""
    return _put(ws, comparison, spec_of(comparison))


def stop(ws: "Workspace", comparison: Comparison) -> int:
    """Call off what is not drawn yet, but for cells that another comparison waits for; returns how many."""
    live = [cell for cell in ws.catalog.grids.cells(comparison.id) if cell.job_id and cell.state in LIVE]
    wanted = ws.catalog.grids.shared([cell.sample_id for cell in live], comparison.id)
    return ws.catalog.grids.cancel({cell.job_id for cell in live if cell.sample_id not in wanted})


def remove(ws: "Workspace", comparison: Comparison) -> int:
    """Forget a comparison with its votes; pictures that it alone was made for go to the trash.

    Returns:
        How many pictures went.

    Raises:
        BadInput: one of its cells is being drawn.
    """
    stop(ws, comparison)
    cells = ws.catalog.grids.cells(comparison.id)
    ids = {cell.sample_id for cell in cells}
    kept = ws.catalog.grids.shared(ids, comparison.id)
    own = ws.catalog.list(Sample, id=tuple(ids - kept), purpose=PURPOSE)
    if any(cell.state == JobState.LEASED and cell.sample_id not in kept for cell in cells):
        raise BadInput(f"comparison {comparison.name}", "is being drawn", "try again in a moment")
    ws.catalog.delete(Comparison, comparison.id)
    for sample in own:
        ws.catalog.delete(Sample, sample.id)
        folder = ws.sample_dir(sample.id)
        if folder.exists():
            ws.trash.put(folder, sample.id)
    return sum(len(sample.files) for sample in own)


def cells_of(ws: "Workspace", comparison: Comparison) -> dict[Place, Cell]:
    """All cells by place."""
    return {place_of(one.place): _cell(one) for one in ws.catalog.grids.cells(comparison.id)}


def progress(ws: "Workspace", comparison: Comparison, cells: Mapping[Place, Cell]) -> Progress:
    """How far it is, and how long it will take still."""
    once = {cell.sample_id: cell for cell in cells.values()}.values()
    drawn = [cell for cell in once if cell.state == "drawn"]
    live = sum(cell.state in ("waiting", "drawing") for cell in once)
    failed, missing = (sum(cell.state == state for cell in once) for state in ("failed", "missing"))
    own = [cell.seconds for cell in drawn if cell.seconds][-_RECENT:]
    pace = median(own) if len(own) > 2 else seconds_each(ws, spec_of(comparison))
    left = None if pace is None or not live else pace * live
    return Progress(len(once), len(drawn), live, failed, missing, left)


def seconds_each(ws: "Workspace", spec: Spec) -> float | None:
    """How long a cell takes, by what this base has drawn here; None = nothing yet that tells.

    Time goes by steps, pixels and passes; so samples of another size count, too.
    """
    base = ws.catalog.find(Base, spec.base.base)
    done = ws.catalog.list(Job, kind=JobKind.SAMPLE, state=JobState.DONE, limit=_RECENT)
    seconds = {job.subject_id: float(job.result.get("seconds", 0)) for job in done}
    samples = ws.catalog.list(Sample, id=tuple(seconds)) if base else []
    rates = [
        seconds[sample.id] / work
        for sample in samples
        if base and sample.base_id == base.id and seconds[sample.id] > 0
        if (work := _work(SampleRequest.model_validate(sample.request)))
    ]
    if not rates:
        return None
    requests = [spec.request(place) for place in in_order(spec)[:_RECENT]]
    return median(rates) * sum(map(_work, requests)) / len(requests)


def _work(request: SampleRequest) -> float:
    """What a request costs, in steps of a pixel."""
    passes = 2 if request.cfg > 1 or request.true_cfg > 1 else 1
    return request.count * request.steps * passes * request.width * request.height


def _put(ws: "Workspace", comparison: Comparison, spec: Spec) -> Comparison:
    """Write the comparison with the cells of `spec`, and queue those that are not there yet."""
    prepared = _prepared(ws, spec)
    known = _there(ws, [one.key for one in prepared.values()])
    given_up = _given_up(ws, comparison, set(known.values()))
    samples: list[Sample] = []
    jobs: list[Job] = []
    started = now()
    try:
        for one in prepared.values():
            if one.key in known:
                continue
            sample, job = write(ws, one, purpose=PURPOSE, background=True)
            known[one.key] = sample.id
            samples.append(sample)
            turn = started + timedelta(microseconds=len(jobs))
            jobs.append(replace(job, created_at=turn))
        cells = [
            ComparisonCell(comparison_id="", place=place_text(place), key=one.key, sample_id=known[one.key])
            for place, one in prepared.items()
        ]
        value = spec.model_dump(mode="json")
        made = ws.catalog.grids.put(replace(comparison, spec=value), cells, samples, jobs)
    except BaseException:
        for sample in samples:
            shutil.rmtree(ws.sample_dir(sample.id), ignore_errors=True)
        raise
    for sample_id in given_up:
        ws.catalog.delete(Sample, sample_id)
        shutil.rmtree(ws.sample_dir(sample_id), ignore_errors=True)
    return made


def _prepared(ws: "Workspace", spec: Spec) -> dict[Place, Prepared]:
    """Every cell with all that it names, in the order of drawing.

    Raises:
        StudioError: one cannot be drawn; the first is named.
    """
    seen = Seen()
    return {place: prepare(ws, spec.request(place), seen) for place in in_order(spec)}


def _there(ws: "Workspace", keys: Sequence[str]) -> dict[str, str]:
    """Key -> sample of the cells that need not be drawn: their picture is there, or in the queue."""
    known = ws.catalog.grids.known(keys)
    files = {one.id: one.files for one in ws.catalog.list(Sample, id=tuple(known.values()))}
    return {
        key: id for key, id in known.items() if all(ws.resolve(file).is_file() for file in files.get(id, ()))
    }


def _given_up(ws: "Workspace", comparison: Comparison, used: set[str]) -> set[str]:
    """Samples of this comparison without a picture, which nobody will draw: others take their place."""
    if not comparison.id:
        return set()
    idle = {
        cell.sample_id
        for cell in ws.catalog.grids.cells(comparison.id)
        if not cell.files and cell.state and cell.state not in LIVE and cell.sample_id not in used
    }
    own = {one.id for one in ws.catalog.list(Sample, id=tuple(idle), purpose=PURPOSE)}
    return own - ws.catalog.grids.shared(idle, comparison.id)


def _cell(one: CellState) -> Cell:
    state = "missing"
    if one.files:
        state = "drawn"
    elif one.state == JobState.LEASED:
        state = "drawing"
    elif one.state == JobState.QUEUED:
        state = "waiting"
    elif one.state == JobState.FAILED:
        state = "failed"
    error = one.error if state == "failed" else ""
    return Cell(place_of(one.place), one.sample_id, one.key, state, error, one.seconds)


def _kept_files(ws: "Workspace", request: SampleRequest) -> SampleRequest:
    """The request with its pictures among the workspace's own: cells are drawn later, too, when it grows.

    Raises:
        BadInput: one is not there.
    """
    if not files_of(request):
        return request

    def keep(name: str) -> str:
        path = ws.resolve(name)
        if not path.is_file():
            raise BadInput(str(path), "is not there", "give a picture")
        return ws.relative(ws.blobs.path(ws.blobs.put(path)))

    pictures = {name: keep(getattr(request, name)) for name in ("image", "mask") if getattr(request, name)}
    controls = tuple(
        one.model_copy(update={"image": keep(one.image)}) if one.image else one for one in request.controls
    )
    return request.model_copy(update={**pictures, "controls": controls})


def free_name(ws: "Workspace", plain: str) -> str:
    """`plain`, with a number when there is a comparison of this name already."""
    name, number = plain, 1
    while ws.catalog.find(Comparison, name) is not None:
        number += 1
        name = f"{plain} {number}"
    return name


def _made_up_name(ws: "Workspace", spec: Spec) -> str:
    """What is compared."""
    base = ws.catalog.get(Base, spec.base.base).name
    about = " x ".join(row.name for row in spec.varied or spec.axes)
    return free_name(ws, f"{base}, {about}"[:_LONGEST])


def _checked_name(name: str) -> str:
    name = " ".join(name.split())
    if not name or len(name) > _LONGEST or not name.isprintable():
        wrong = "is empty or longer than 100 characters"
        raise BadInput(f"name {name[:40]!r}", wrong, "write a short name")
    return name
