"""Evidence sheets in the catalog: ask for one, how far it is, what it found, and what follows from it.

A sheet is a grid of pictures (`studio.compare.grids`) that is measured when the last of them is drawn. The
worker sees to that (`queue_due`), so neither a page nor a terminal has to stay open.
"""

import shlex
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, NotFound, StudioError
from registry.grids import LIVE
from registry.records import Adapter, Comparison, Evaluation, Job, JobKind, JobState, Run, Sample, now
from studio.compare import grids
from studio.evidence.plan import Plan, Wishes, plan_hash, plan_of_adapter, plan_of_run, spec_of_plan
from studio.evidence.result import Evidence
from studio.sampling.chosen import ready_adapter

if TYPE_CHECKING:
    from studio.workspace import Workspace


@dataclass(frozen=True)
class Stage:
    """How far a sheet is."""

    name: str  # "drawing" | "incomplete" (stopped, failed, lost) | "measuring" | "measured" | "failed"
    drawn: int = 0
    total: int = 0
    seconds_left: float | None = None
    error: str = ""

    @property
    def live(self) -> bool:
        """Whether something goes on."""
        return self.name in ("drawing", "measuring")


@dataclass(frozen=True)
class Asked:
    """A sheet that could be made, before anything is drawn."""

    about: Run | Adapter
    plan: Plan
    cells: int
    missing: int  # pictures that are not drawn yet
    seconds: float | None  # that these take; None = unknown


def ask(ws: "Workspace", about: Run | Adapter, wishes: Wishes | None = None) -> Asked:
    """What a sheet would take.

    Raises:
        BadInput: nothing can be judged; in one line.
    """
    about = _ready(ws, about)
    plan = _plan(ws, about, wishes or Wishes())
    spec = spec_of_plan(ws, plan)
    missing = grids.undrawn(ws, spec)
    each = grids.seconds_each(ws, spec)
    return Asked(about, plan, spec.size, missing, each * missing if each is not None else None)


def begin(ws: "Workspace", asked: Asked) -> Evaluation:
    """Make a sheet, or go on with the one of the same plan; cells that are drawn are not drawn again."""
    about, plan = asked.about, asked.plan
    hash_ = plan_hash(plan)
    known = ws.catalog.list(Evaluation, **_owner(about), plan_hash=hash_, limit=1)
    if known:
        go_on(ws, known[0])
        return known[0]
    spec = spec_of_plan(ws, plan)
    comparison = grids.create(ws, spec, grids.free_name(ws, f"Evidence of {about.name}"[:90]))
    made = Evaluation(
        **_owner(about), comparison_id=comparison.id, plan=plan.model_dump(mode="json"), plan_hash=hash_
    )
    try:
        return ws.catalog.add(made)
    except StudioError:  # its run or adapter went meanwhile: nobody would look at the pictures
        with suppress(StudioError):
            grids.remove(ws, comparison)
        raise


def go_on(ws: "Workspace", evaluation: Evaluation) -> None:
    """Draw what was stopped, failed or lost, and measure again what could not be measured.

    Raises:
        StudioError: a picture cannot be drawn any more, for example because its checkpoint was pruned.
    """
    stage = stage_of(ws, evaluation)
    comparison = ws.catalog.get(Comparison, evaluation.comparison_id)
    if stage.name == "incomplete":
        grids.go_on(ws, comparison)
    elif stage.name == "failed" and _lost(ws, comparison):
        grids.go_on(ws, comparison)
        for job in ws.catalog.list(Job, kind=JobKind.EVALUATE, subject_id=evaluation.id):
            with suppress(NotFound):
                ws.catalog.delete(Job, job.id)  # it is measured when the pictures are there, as at first
    elif stage.name == "failed":
        _enqueue(ws, evaluation)


def stop(ws: "Workspace", evaluation: Evaluation) -> int:
    """Call off what is not done yet; returns how many pictures are not drawn."""
    jobs = ws.catalog.list(Job, kind=JobKind.EVALUATE, subject_id=evaluation.id, state=LIVE)
    if not jobs and stage_of(ws, evaluation).name == "measuring":
        jobs = [_enqueue(ws, evaluation)]  # no worker has queued it yet: what is called off stays so
    for job in jobs:
        ws.catalog.cancel_job(job.id)
    return grids.stop(ws, ws.catalog.get(Comparison, evaluation.comparison_id))


def stage_of(ws: "Workspace", evaluation: Evaluation) -> Stage:
    """How far it is."""
    if evaluation.measured_at is not None:
        return Stage("measured")
    jobs = ws.catalog.list(Job, kind=JobKind.EVALUATE, subject_id=evaluation.id, limit=1)
    if jobs and jobs[0].state in (JobState.FAILED, JobState.CANCELLED):
        return Stage("failed", error=jobs[0].error or "it was called off")
    comparison = ws.catalog.get(Comparison, evaluation.comparison_id)
    cells = grids.cells_of(ws, comparison)
    found = grids.progress(ws, comparison, cells)
    if found.live:
        return Stage("drawing", found.drawn, found.total, found.seconds_left)
    if found.drawn < found.total:
        wrong = next((c.error for c in cells.values() if c.error), "")
        return Stage("incomplete", found.drawn, found.total, error=wrong)
    return Stage("measuring", found.drawn, found.total)


def queue_due(ws: "Workspace") -> int:
    """Queue the measuring of sheets whose pictures are all drawn; returns how many."""
    due = 0
    for evaluation in ws.catalog.list(Evaluation, measured_at=None):
        waits = ws.catalog.count(Job, kind=JobKind.EVALUATE, subject_id=evaluation.id)
        if not waits and not ws.catalog.grids.undrawn(evaluation.comparison_id):
            _enqueue(ws, evaluation)
            due += 1
    return due


def plan_of(evaluation: Evaluation) -> Plan:
    """Its plan."""
    return Plan.model_validate(evaluation.plan)


def evidence_of(evaluation: Evaluation) -> Evidence | None:
    """What it found; None = it is not measured yet."""
    return Evidence.model_validate(evaluation.result) if evaluation.result else None


def newest(ws: "Workspace", about: Run | Adapter) -> Evaluation | None:
    """The newest sheet of a run or an adapter."""
    found = ws.catalog.list(Evaluation, **_owner(about), limit=1)
    return found[0] if found else None


def judged(ws: "Workspace", adapter: Adapter) -> tuple[Evaluation, str] | None:
    """The newest measured sheet that has this adapter, and the subject that it is there.

    That is a sheet of its own, or of its run with a checkpoint at its step.
    """
    own = ws.catalog.list(Evaluation, adapter_id=adapter.id)
    of_run = ws.catalog.list(Evaluation, run_id=adapter.run_id) if adapter.run_id else []
    names = {adapter.id, f"{adapter.run_id}@{adapter.step}"}
    for evaluation in sorted([*own, *of_run], key=lambda one: one.created_at, reverse=True):
        mine = names & set(plan_of(evaluation).order)
        if mine and evaluation.result:
            return evaluation, mine.pop()
    return None


def memorised(ws: "Workspace", adapter: Adapter) -> str:
    """Why an adapter should not be handed on without a look: it copies pictures; "" = nothing is known."""
    found = judged(ws, adapter)
    evidence = evidence_of(found[0]) if found else None
    if found is None or evidence is None or evidence.judgement.pick != found[1]:
        return ""
    return evidence.judgement.memorised_reason if evidence.judgement.memorised else ""


def settle(ws: "Workspace", evaluation: Evaluation, evidence: Evidence) -> Evaluation:
    """Keep what was found, and write the recommended strength to the adapters that are the pick."""
    done = ws.catalog.update(
        Evaluation, evaluation.id, result=evidence.model_dump(mode="json"), measured_at=now()
    )
    judgement = evidence.judgement
    for adapter in adapters_of_pick(ws, done, evidence):
        ws.catalog.update(Adapter, adapter.id, recommended_weight=judgement.weight)
    steps = {subject.id: subject.step for subject in plan_of(done).subjects}
    if done.run_id and steps.get(judgement.pick):
        ws.catalog.pick(done.run_id, steps[judgement.pick], judgement.reason, "evidence")
    return done


def adapters_of_pick(ws: "Workspace", evaluation: Evaluation, evidence: Evidence) -> list[Adapter]:
    """Adapters of the catalog that are what is recommended."""
    run, mark, step = evidence.judgement.pick.rpartition("@")
    if mark and run == evaluation.run_id and step.isdecimal():
        return ws.catalog.list(Adapter, run_id=run, step=int(step))
    return ws.catalog.list(Adapter, id=evidence.judgement.pick)


def scores(ws: "Workspace", run: Run) -> dict[int, tuple[float, str, str]]:
    """Step -> score, stage and reason of a run's checkpoints, from its newest measured sheet."""
    plan, evidence = _measured(ws, run)
    if plan is None or evidence is None:
        return {}
    steps = {subject.id: subject.step for subject in plan.subjects}
    return {steps[rank.subject]: (rank.score, rank.stage, rank.reason) for rank in evidence.judgement.ranks}


def recommended(ws: "Workspace", run: Run, step: int) -> float | None:
    """The strength for a checkpoint, if the newest measured sheet of its run picked it."""
    plan, evidence = _measured(ws, run)
    if plan is None or evidence is None:
        return None
    picked = [subject.step for subject in plan.subjects if subject.id == evidence.judgement.pick]
    return evidence.judgement.weight if picked == [step] else None


def _measured(ws: "Workspace", run: Run) -> tuple[Plan | None, Evidence | None]:
    """Plan and result of the newest measured sheet of a run."""
    for evaluation in ws.catalog.list(Evaluation, run_id=run.id):
        if (evidence := evidence_of(evaluation)) is not None:
            return plan_of(evaluation), evidence
    return None, None


def predecessor(ws: "Workspace", evaluation: Evaluation) -> Evaluation | None:
    """The measured sheet of the run before: what it was branched from, or the last of these pictures."""
    run = ws.catalog.find(Run, evaluation.run_id) if evaluation.run_id else None
    if run is None:
        return None
    same = ws.catalog.list(Run, dataset_id=run.dataset_id, base_id=run.base_id)
    before = [one.id for one in same if one.created_at < run.created_at]
    for id in dict.fromkeys([*filter(None, [run.parent_run_id]), *before]):
        measured = (one for one in ws.catalog.list(Evaluation, run_id=id) if one.result)
        if (found := next(measured, None)) is not None:
            return found
    return None


def _plan(ws: "Workspace", about: Run | Adapter, wishes: Wishes) -> Plan:
    return plan_of_run(ws, about, wishes) if isinstance(about, Run) else plan_of_adapter(ws, about, wishes)


def _ready(ws: "Workspace", about: Run | Adapter) -> Run | Adapter:
    """With an adapter's identity; one that was only listed may turn out to be another one of the library."""
    return about if isinstance(about, Run) else ready_adapter(ws, about.id)


def _lost(ws: "Workspace", comparison: Comparison) -> bool:
    """Whether the file of a picture is gone."""
    ids = tuple({cell.sample_id for cell in ws.catalog.grids.cells(comparison.id)})
    files = (file for sample in ws.catalog.list(Sample, id=ids) for file in sample.files)
    return any(not ws.resolve(file).is_file() for file in files)


def _owner(about: Run | Adapter) -> dict[str, Any]:
    return {"run_id": about.id} if isinstance(about, Run) else {"adapter_id": about.id}


def _enqueue(ws: "Workspace", evaluation: Evaluation) -> Job:
    return ws.catalog.enqueue(Job(kind=JobKind.EVALUATE, subject_id=evaluation.id))


def about_of(ws: "Workspace", key: str) -> Run | Adapter:
    """The run or adapter with this id or name; a run comes before its own adapter, which is called like it.

    Raises:
        BadInput: there is none, or two that have nothing to do with each other are called so.
    """
    run, adapter = ws.catalog.find(Run, key), ws.catalog.find(Adapter, key)
    if run is None and adapter is None:
        name, mark, step = key.rpartition("@")
        if mark and name and step.isdecimal() and ws.catalog.find(Run, name) is not None:
            do = f"name the run: studio evaluate {shlex.quote(name)} --checkpoints {step[:18]}"
            raise BadInput(f"{key!r}", "is one checkpoint of a run", do)
    if run is None:
        return adapter if adapter is not None else ws.catalog.get(Run, key)
    if adapter is not None and adapter.run_id != run.id and key not in (run.id, adapter.id):
        raise BadInput(f"{key!r}", "is both a run and an adapter", f"write the id: {run.id} or {adapter.id}")
    return run
