"""A few real steps of a run, to know what it will cost here: the real base, pictures and sizes.

Started only when somebody asks (`studio train --forecast --probe`, a button). It has a run directory of its
own in cache/probes that is removed afterwards, no row and no job; latents and texts that it made stay in the
cache for the run itself. What it measured is remembered (`speed`), so the next forecast knows it.
"""

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from registry.errors import StudioError
from registry.records import Base, Dataset, Image, Run, RunState
from studio.runs import speed
from studio.runs.checks import check_run, with_trigger
from studio.runs.executors import Executor, LocalExecutor, Trainer
from studio.runs.frozen import manifest_item, new_run, write_files
from studio.runs.outcome import log_tail
from trainers.recipe import Recipe
from trainers.rundir import RunDir, Status

if TYPE_CHECKING:
    from studio.workspace import Workspace

FOLDER = "probes"  # in cache/
STEPS = 6  # the first one warms up and does not count
POLL = 0.1  # seconds
PATIENCE = 1800.0  # seconds: caching of a large data set is a part of it


def probe(
    ws: "Workspace",
    recipe: Recipe,
    base: Base,
    dataset: Dataset,
    regularisation: Dataset | None = None,
    *,
    executor: Executor | None = None,
    stop: Callable[[], bool] | None = None,
) -> speed.Seen:
    """Train a few steps and remember what they cost.

    Args:
        ws: The workspace.
        recipe: As it will be trained.
        base: What to train on.
        dataset: The pictures.
        regularisation: Others that are shown in turn; they change nothing in a step's cost and are left out.
        executor: What starts trainers.
        stop: Asked ten times a second; true = end without a result.

    Raises:
        BadInput: the run would be refused; see `checks.check_run`.
        StudioError: another run is going on, or the trainer failed; one line.
    """
    recipe = with_trigger(recipe, dataset)
    check_run(ws, recipe, base, dataset, regularisation)
    going = ws.catalog.list(Run, state=tuple(s for s in RunState if s.active), limit=1)
    if going:
        wrong = f"cannot be measured while run {going[0].name} trains: both would be slower"
        raise StudioError("the forecast", wrong, "wait for its end, or do without")
    run = new_run("probe", _short(recipe), base, dataset)
    folder = ws.home / "cache" / FOLDER / run.id
    folder.mkdir(parents=True)
    try:
        items = [manifest_item(ws, folder, image) for image in ws.catalog.list(Image, dataset_id=dataset.id)]
        rundir = RunDir(folder)
        write_files(ws, rundir, run, Recipe.model_validate(run.recipe), base, items, place=folder)
        started = time.monotonic()
        status = _train(rundir, executor or LocalExecutor(ws.key.hex()), stop)
        took = time.monotonic() - started
        return speed.remember_probe(ws, base.weight_hash, recipe, status, took)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short(recipe: Recipe) -> Recipe:
    """The few steps: no previews, no checkpoint before the last one."""
    return recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"max_steps": STEPS}),
            "preview": recipe.preview.model_copy(update={"every": 0}),
            "checkpoints": recipe.checkpoints.model_copy(update={"every": 1_000_000}),
        }
    )


def _train(rundir: RunDir, executor: Executor, stop: Callable[[], bool] | None) -> Status:
    """Start the trainer and wait for its end; nothing of it is left when this returns."""
    identity = executor.start(rundir)
    deadline = time.monotonic() + PATIENCE
    try:
        while executor.exit_code(identity) is None and identity.alive():
            if (stop is not None and stop()) or time.monotonic() > deadline:
                raise StudioError("the forecast", "was not measured: it was stopped", "ask again")
            time.sleep(POLL)
    finally:
        _end(identity, executor)
    status = rundir.read_status()
    if status is None or status.state != "finished" or not status.seconds_per_step:
        lines = log_tail(rundir).strip().splitlines()
        why = (status.reason if status else "") or (lines[-1][:200] if lines else "the trainer said nothing")
        raise StudioError("the forecast", f"was not measured: {why.rstrip('.')}", "the run would fail, too")
    return status


def _end(identity: Trainer, executor: Executor) -> None:
    """Kill what still lives, and take its exit code."""
    if identity.alive():
        identity.kill()
    for _ in range(50):
        if executor.exit_code(identity) is not None or not identity.alive():
            return
        time.sleep(POLL)
