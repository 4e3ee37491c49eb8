"""The child that measures an evidence sheet: `python -m studio.evidence.task HOME JOB`.

It may be killed at any moment and is started anew: what it found is written in one go at the end.
"""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from registry.errors import BadInput
from registry.records import Base, Comparison, Evaluation, Job, Run
from studio.compare import grids
from studio.compare.spec import Spec
from studio.evidence.evaluations import plan_of, settle
from studio.evidence.figures import Judgement, Shot
from studio.evidence.judge import judge
from studio.evidence.measure import measure
from studio.evidence.pictures import Pictures
from studio.evidence.plan import Plan
from studio.evidence.result import Evidence
from studio.runs.chore_child import Say, run_child, teller
from studio.runs.ranking import ranking_of
from studio.sampling.request import SIDE

if TYPE_CHECKING:
    from studio.workspace import Workspace

MOST_SIDE = 512  # pixels; 1,000 pictures of this size take 0.8 GB


def perform(ws: "Workspace", evaluation: Evaluation, say: Say | None = None) -> Evidence:
    """Measure the pictures of a sheet, judge, and keep what was found.

    Raises:
        StudioError: a picture, the base or the encoder is gone.
    """
    started, plan = time.monotonic(), plan_of(evaluation)
    comparison = ws.catalog.get(Comparison, evaluation.comparison_id)
    base, pictures = ws.catalog.get(Base, plan.base), Pictures(ws, evaluation, plan)
    size = measured_size(grids.spec_of(comparison))
    encoder = None
    if plan.encoder:
        from studio.evidence.encoders import load_encoder

        encoder = load_encoder(plan.encoder)
    measured = measure(
        shots_of(pictures, plan, size),
        plan.prompts,
        training_pictures(pictures, plan, size),
        base=ws.resolve(base.location) if base.kind == "folder" else None,
        size=size,
        encoder=encoder,
        say=say,
    )
    judgement = named(judge(measured, plan.order, probes_of(ws, evaluation)), plan)
    evidence = Evidence(
        points=measured.points,
        judgement=judgement,
        encoder=encoder.name if encoder else "",
        seconds=round(time.monotonic() - started, 2),
    )
    settle(ws, evaluation, evidence)
    return evidence


def named(judgement: Judgement, plan: Plan) -> Judgement:
    """A judgement whose sentences name adapters instead of their ids; checkpoints are steps there."""

    def said(text: str) -> str:
        for subject in plan.subjects:
            text = text.replace(subject.id, subject.name)
        return text

    sentences = ("reason", "weight_reason", "memorised_reason", "sure")
    ranks = tuple(rank.model_copy(update={"reason": said(rank.reason)}) for rank in judgement.ranks)
    changes = {name: said(getattr(judgement, name)) for name in sentences}
    return judgement.model_copy(update=changes | {"ranks": ranks})


def measured_size(spec: Spec) -> tuple[int, int]:
    """(width, height) in pixels at which pictures are measured: as drawn, but no side above MOST_SIDE."""
    longest = max(spec.base.width, spec.base.height)
    share = min(1.0, MOST_SIDE / longest)
    width, height = (
        max(SIDE, round(side * share) // SIDE * SIDE) for side in (spec.base.width, spec.base.height)
    )
    return width, height


def shots_of(pictures: Pictures, plan: Plan, size: tuple[int, int]) -> list[Shot]:
    """The drawn pictures at a size; the base alone once, whatever the strength.

    Raises:
        BadInput: one is gone.
    """
    shots: list[Shot] = []
    for spot in pictures.samples:
        picture = pictures.drawn(spot)
        if picture is None:
            subject, weight, prompt, seed = spot
            name = f"the picture of {plan.named(subject)} at {weight:g}, seed {seed}"
            raise BadInput(name, f"for {plan.prompts[prompt].text[:60]!r} is gone", "ask for the sheet again")
        shots.append(Shot(*spot, _fit(picture, size)))
    return shots


def training_pictures(pictures: Pictures, plan: Plan, size: tuple[int, int]) -> list[Image.Image]:
    """Pictures to be like, covered and cropped to a size.

    Raises:
        BadInput: one is gone.
    """
    found: list[Image.Image] = []
    for index, blob in enumerate(plan.training):
        picture = pictures.training(index)
        if picture is None:
            do = "ask for the sheet again, which leaves out what is gone; a damaged one has to be put back"
            raise BadInput(f"picture {blob[:12]} of the data set", "is gone or damaged", do)
        found.append(_fit(picture, size))
    return found


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def probes_of(ws: "Workspace", evaluation: Evaluation) -> dict[str, Mapping[str, float]]:
    """Probe losses of a run's checkpoints, by subject, as far as they are known."""
    run = ws.catalog.find(Run, evaluation.run_id) if evaluation.run_id else None
    rows = ranking_of(ws, run).rows if run else ()
    return {f"{evaluation.run_id}@{row.step}": row.figures for row in rows}


def do(ws: "Workspace", job: Job) -> None:
    """Do a job of kind EVALUATE; nothing when its sheet is gone."""
    evaluation = ws.catalog.find(Evaluation, job.subject_id)
    if evaluation is not None:
        perform(ws, evaluation, teller(ws, job))


if __name__ == "__main__":
    sys.exit(run_child(do))
