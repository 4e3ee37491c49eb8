"""Runs with checkpoints, and evidence sheets of them, without training or drawing."""

import random
from collections.abc import Sequence
from dataclasses import replace

from registry.records import Checkpoint, Comparison, Evaluation, Run
from studio.compare.grids import cells_of, spec_of
from studio.evidence.evaluations import ask, begin, plan_of, settle
from studio.evidence.figures import Figures, Judgement, Near, Point, Rank
from studio.evidence.plan import Wishes
from studio.evidence.result import Evidence
from studio.workspace import Workspace
from tests.app.compared import blurred, draw
from tests.support.adapters import make_form, write_run_file
from tests.support.sampling import MODULES, pocket_shapes
from trainers.rundir import checkpoint_name, write_manifest

MANY = Wishes(seeds=2, weights=(0.5, 0.75, 1.0))
FEW = replace(MANY, prompts=("a heron, inkstyle", "a boat, inkstyle"), priors=("a heron",))
GOALS = {"undertrained": "concept", "good": "style", "overtrained": "character"}


def add_checkpoints(ws: Workspace, run: Run, steps: Sequence[int]) -> None:
    """Checkpoints that verify, with random adapters."""
    for step in steps:
        folder = ws.run_dir(run.id).path / "checkpoints" / checkpoint_name(step)
        folder.mkdir(parents=True)
        write_run_file(make_form(pocket_shapes(ws, MODULES), seed=step), folder / "adapter.safetensors")
        write_manifest(folder, step, ws.key)


def evidence(order: Sequence[str], weights: Sequence[float], *, memorised: bool = False) -> Evidence:
    """Made-up figures: the middle subject is the best, at 0.75."""
    middle = len(order) // 2
    points = [_point("", 0.0, 0.0, copies=0.0)]
    ranks: list[Rank] = []
    for place, subject in enumerate(order):
        training = (place + 1) / len(order)
        points += [_point(subject, w, min(1.0, training * w * 1.4), copies=0.8 * memorised) for w in weights]
        stage = "good" if place == middle else "undertrained" if place < middle else "overtrained"
        reason = f"It closes {10 * place + 50} % of the way to the training pictures."
        ranks.append(Rank(subject=subject, score=0.9 - 0.2 * abs(place - middle), stage=stage, reason=reason))
    why = "9 of 16 pictures copy 3 training pictures." if memorised else ""
    judgement = Judgement(
        ranks=tuple(sorted(ranks, key=lambda rank: -rank.score)), pick=order[middle],
        reason="It is nearest to the training pictures and still follows prompts.",
        weight=0.75, low=0.5, high=1.0, weight_reason="Above it, other prompts change as well.",
        memorised=memorised, memorised_reason=why,
        sure="First in 94 % of resamples.",
    )  # fmt: skip
    return Evidence(points=tuple(points), judgement=judgement, seconds=2.5)


def judged_run(
    ws: Workspace, run: Run, wishes: Wishes = MANY, *, memorised: bool = False, measured: bool = True
) -> Evaluation:
    """An evidence sheet of a run whose pictures are the demo's own."""
    evaluation = begin(ws, ask(ws, run, wishes))
    comparison = ws.catalog.get(Comparison, evaluation.comparison_id)
    spec, done = spec_of(comparison), set[str]()
    for place, cell in cells_of(ws, comparison).items():
        if cell.sample_id in done:
            continue
        done.add(cell.sample_id)
        number = random.Random(cell.sample_id).randrange(8)
        goal = list(GOALS.values())[place[0] % 3]
        weight = float(spec.values_at(place)["weight"])
        draw(ws, cell.sample_id, blurred(goal, number, weight))
    plan = plan_of(evaluation)
    return (
        settle(ws, evaluation, evidence(plan.order, plan.weights, memorised=memorised))
        if measured
        else evaluation
    )


def note_checkpoints(ws: Workspace, run: Run, steps: Sequence[int]) -> None:
    """As the worker enters them."""
    for step in steps:
        path = f"runs/{run.id}/checkpoints/{checkpoint_name(step)}"
        ws.catalog.add(Checkpoint(run_id=run.id, step=step, path=path, loss=0.1))


def _point(subject: str, weight: float, likeness: float, *, copies: float) -> Point:
    figures = Figures(
        likeness=likeness, adherence=1 - 0.3 * likeness, diversity=1 - 0.4 * likeness, drift=0.2 * weight,
        copying=copies,
    )  # fmt: skip
    near = (
        Near(prompt=0, seed=4001, training=0, similarity=0.7),
        Near(prompt=1, seed=4002, training=1, similarity=0.6),
    )
    return Point(
        subject=subject, weight=weight, figures=figures, pictures=12, nearest=near if subject else ()
    )
