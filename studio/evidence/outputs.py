"""An evidence sheet as text, as JSON types, and as a page of its own (HTML)."""

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.files import atomic_write
from registry.records import Adapter, Base, Evaluation, Run
from studio.evidence.evaluations import adapters_of_pick, evidence_of, plan_of, predecessor, stage_of
from studio.evidence.page import PageFacts, page_html
from studio.evidence.pictures import Pictures
from studio.evidence.rows import figures_at
from studio.evidence.table import ranked_table
from studio.evidence.words import MEASURES, strength_line

if TYPE_CHECKING:
    from studio.workspace import Workspace


def about_name(ws: "Workspace", evaluation: Evaluation) -> str:
    """Name of the run or adapter that a sheet is about."""
    if evaluation.run_id:
        run = ws.catalog.find(Run, evaluation.run_id)
        return run.name if run else evaluation.run_id
    adapter = ws.catalog.find(Adapter, evaluation.adapter_id)
    return adapter.name if adapter else evaluation.adapter_id


def facts(ws: "Workspace", evaluation: Evaluation) -> dict[str, Any]:
    """All that is known of a sheet, as JSON types."""
    evidence, before = evidence_of(evaluation), predecessor(ws, evaluation)
    stage = stage_of(ws, evaluation)
    return {
        "id": evaluation.id,
        "about": about_name(ws, evaluation),
        "run_id": evaluation.run_id,
        "adapter_id": evaluation.adapter_id,
        "comparison_id": evaluation.comparison_id,
        "created_at": evaluation.created_at.isoformat(),
        "state": stage.name,
        "error": stage.error,
        "plan": evaluation.plan,
        "evidence": evidence.model_dump(mode="json") if evidence else None,
        "adapters": [one.id for one in adapters_of_pick(ws, evaluation, evidence)] if evidence else [],
        "predecessor": short(ws, before) if before else None,
    }


def text(ws: "Workspace", evaluation: Evaluation) -> str:
    """What was found, for a terminal."""
    evidence, plan = evidence_of(evaluation), plan_of(evaluation)
    if evidence is None:
        return f"Evidence of {about_name(ws, evaluation)}: {stage_of(ws, evaluation).name}."
    judgement = evidence.judgement
    strength = strength_line(judgement.weight, judgement.low, judgement.high)
    lines = [
        ranked_table(plan, evidence),
        f"Use {plan.named(judgement.pick)}. {judgement.reason}",
        f"Strength {strength}. {judgement.weight_reason}",
        judgement.sure,
    ]
    if judgement.memorised:
        lines.append(f"Warning: {judgement.memorised_reason}")
    made = adapters_of_pick(ws, evaluation, evidence)
    if made:
        lines.append(f"Written to adapter {made[0].name}: recommended strength {judgement.weight:g}.")
    elif evaluation.run_id:
        lines.append(f"To keep it as an adapter: studio runs keep {plan.named(judgement.pick)}")
    if (before := predecessor(ws, evaluation)) is not None and (then := short(ws, before)):
        lines.append(f"The run before, {then['pick']} at {then['weight']:g}: {then['line']}")
    return "\n".join(line for line in lines if line)


def check_out(out: Path) -> None:
    """Refuse a place that no page can be written to, before anything is drawn.

    Raises:
        BadInput: it is a folder, or nothing can be written to where it lies.
    """
    if out.is_dir():
        raise BadInput(str(out), "is a folder", "name a file, for example evidence.html")
    if not out.absolute().parent.is_dir():
        raise BadInput(str(out.parent), "is not there", "make the folder first, or name another place")
    try:
        with TemporaryFile(dir=out.absolute().parent):  # to try says more than permissions do
            pass
    except OSError as error:
        wrong = f"cannot be written to ({(error.strerror or str(error)).lower()})"
        raise BadInput(str(out.absolute().parent), wrong, "name another place") from None


def write_page(ws: "Workspace", evaluation: Evaluation, out: Path) -> Path:
    """Write the report in place of an older one.

    Raises:
        BadInput: it is not measured, or a picture is gone.
    """
    atomic_write(out, page_of(ws, evaluation).encode())
    return out


def page_of(ws: "Workspace", evaluation: Evaluation) -> str:
    """The report as HTML.

    Raises:
        BadInput: it is not measured yet.
    """
    evidence, plan = evidence_of(evaluation), plan_of(evaluation)
    if evidence is None:
        raise BadInput("the evidence sheet", "is not measured yet", "wait for it")
    before = predecessor(ws, evaluation)
    base = ws.catalog.find(Base, plan.base)
    return page_html(
        PageFacts(
            about=about_name(ws, evaluation),
            base=base.name if base else plan.base,
            made_at=evaluation.created_at,
            plan=plan,
            evidence=evidence,
            pictures=Pictures(ws, evaluation, plan),
            before=short(ws, before) if before else None,
        )
    )


def short(ws: "Workspace", evaluation: Evaluation) -> dict[str, Any]:
    """What another sheet recommends, with its figures."""
    evidence, plan = evidence_of(evaluation), plan_of(evaluation)
    if evidence is None:
        return {}
    pick, weight = evidence.judgement.pick, evidence.judgement.weight
    figures = figures_at(evidence, plan, pick)
    line = ", ".join(f"{measure.label.lower()} {figures[measure.name]}" for measure in MEASURES)
    return {
        "id": evaluation.id, "about": about_name(ws, evaluation), "pick": plan.named(pick), "weight": weight,
        "figures": figures, "line": line,
    }  # fmt: skip
