"""Starting, stopping, pausing, resuming and branching runs: files first, then one transaction.

Nothing here starts a process. What is wanted goes into the catalog; the worker makes it happen.
"""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING

from registry.errors import BadInput, NotFound, StudioError
from registry.files import check_name, read_json, require_space
from registry.ids import new_id
from registry.records import JSON, PLACES, TRAINING, Base, Dataset, Image, Job, JobState, Run, RunState, now
from studio.runs.checkpoints import verified_checkpoints
from studio.runs.checks import check_base, check_fit, check_run, with_trigger
from studio.runs.forecast import forecast
from studio.runs.frozen import enter, manifest_item, new_run
from studio.runs.places import check_place
from trainers.held_out import held_out, teaching
from trainers.priors import REGULARISATION
from trainers.recipe import Recipe, apply_sets, recipe_hash, thaw
from trainers.rundir import CHECKPOINTS, MEMORY, ManifestItem, RunDir, checkpoint_name, verify_checkpoint

if TYPE_CHECKING:
    from studio.workspace import Workspace

LIBRARIES = ("lora-studio", "torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")


def launch(
    ws: "Workspace",
    recipe: Recipe,
    base: Base,
    dataset: Dataset,
    name: str = "",
    *,
    regularisation: Dataset | None = None,
    place: str = PLACES[0],
) -> Run:
    """Put a run into the queue; everything it needs is frozen in its run directory.

    Args:
        ws: The workspace.
        recipe: What to do; an empty `data.trigger` is filled from the data set.
        base: What to train on.
        dataset: The pictures.
        name: Of the run and its adapter; default: the recipe's, else `<data set>-<goal>`.
        regularisation: Pictures of what the base should keep drawing as it is: shown in turn with the others,
            with weight `preservation.weight` and without the trigger word.
        place: Where it trains, one of `PLACES`.

    Raises:
        BadInput: bad name, no such place, or see `checks.check_run`.
        StudioError: not enough disk space.
    """
    recipe = with_trigger(recipe, dataset)
    check_place(ws, place)
    check_run(ws, recipe, base, dataset, regularisation)
    images = ws.catalog.list(Image, dataset_id=dataset.id)
    priors = ws.catalog.list(Image, dataset_id=regularisation.id) if regularisation else []
    name = check_name(name or recipe.name or f"{dataset.name}-{recipe.goal}", "run name")
    require_space(ws.home, forecast(ws, recipe, base, dataset, regularisation).disk_bytes, "this run")
    run = replace(new_run(name, recipe, base, dataset), versions=versions(), place=place)
    folder = ws.run_dir(run.id).path
    items = [manifest_item(ws, folder, image) for image in images]
    items += [_regularisation_item(ws, folder, image, recipe) for image in priors]
    return enter(ws, run, recipe, base, items)


def stop(ws: "Workspace", run: Run) -> Run:
    """Ask for a checkpoint and an end; ask again to kill. A queued run is cancelled at once.

    Raises:
        StudioError: the run has ended, or is paused.
    """
    run = ws.catalog.get(Run, run.id)
    if run.state is RunState.STOPPING:
        _cancel_jobs(ws, run)
        return run
    if run.state is RunState.QUEUED:
        return _cancel_queued(ws, run, RunState.STOPPED)
    if not run.state.active:
        raise StudioError(_called(run), f"is {run.state}", "only a queued or running run can be stopped")
    live = {RunState.STARTING, RunState.RUNNING, RunState.PAUSING}
    return ws.catalog.move_run(run.id, RunState.STOPPING, expect=live)


def pause(ws: "Workspace", run: Run) -> Run:
    """Ask for a checkpoint and free the device; `resume` goes on. A queued run just waits.

    Raises:
        StudioError: the run is not queued, starting or running.
    """
    run = ws.catalog.get(Run, run.id)
    if run.state is RunState.QUEUED:
        return _cancel_queued(ws, run, RunState.PAUSED)
    if run.state not in {RunState.STARTING, RunState.RUNNING}:
        raise StudioError(_called(run), f"is {run.state}", "only a queued or running run can be paused")
    return ws.catalog.move_run(run.id, RunState.PAUSING, expect={RunState.STARTING, RunState.RUNNING})


def resume(ws: "Workspace", run: Run, place: str = "") -> Run:
    """Queue a run again; it goes on from its newest checkpoint that verifies, else from the beginning.

    Args:
        ws: The workspace.
        run: The run.
        place: Where it goes on, one of `PLACES`; "" = where it was.

    Raises:
        StudioError: the run is not paused, stopped, failed or interrupted.
        BadInput: its base is gone, or no such place.
    """
    run = ws.catalog.get(Run, run.id)
    if not run.state.resumable:
        do = "only a paused, stopped, interrupted or failed run can be resumed"
        raise StudioError(_called(run), f"is {run.state}", do)
    check_base(ws, ws.catalog.get(Base, run.base_id))
    check_place(ws, place := place or run.place)
    rundir = ws.run_dir(run.id)
    rundir.write_env(replace(rundir.read_env(), resume=True))
    return ws.catalog.move_run(
        run.id,
        RunState.QUEUED,
        expect={run.state},
        job=Job(kind=replace(run, place=place).job_kind, subject_id=run.id),
        place=place,
        reason="",
        ended_at=None,
    )


def branch(ws: "Workspace", run: Run, step: int, sets: list[str], name: str = "") -> Run:
    """Queue a new run that starts from a checkpoint of another, on the same frozen pictures.

    Args:
        ws: The workspace.
        run: The run to branch from; it may still be going.
        step: Step of one of its checkpoints.
        sets: `key=value` changes to its recipe; the adapter's shape stays.
        name: Of the new run; default: `<name>-from-<step>`.

    Raises:
        BadInput: no such checkpoint, other shape of adapter or other words, pictures held out that were
            trained on, nothing left to train, or as `launch`.
    """
    source = ws.run_dir(run.id)
    checkpoint = source.file(CHECKPOINTS) / checkpoint_name(step)
    if not verify_checkpoint(checkpoint, ws.key):
        there = ", ".join(map(str, verified_checkpoints(source, ws.key, {}))) or "none yet"
        raise NotFound(_called(run), f"has no checkpoint at step {step} that verifies", f"there is: {there}")
    parent = thaw(run.recipe)
    recipe = apply_sets(parent, sets)
    if recipe.adapter.model_copy(update={"dropout": parent.adapter.dropout}) != parent.adapter:
        raise BadInput("--set adapter", "changes the shape of the adapter", "start a new run for that")
    if _words(recipe) != _words(parent):
        raise BadInput("--set tokens", "changes the words that are learned", "start a new run for that")
    if recipe.train.max_steps <= step:
        wrong = f"is {recipe.train.max_steps}, the checkpoint is at {step}"
        raise BadInput("train.max_steps", wrong, f"add --set train.max_steps={step + parent.train.max_steps}")
    pictures = teaching(items := source.read_manifest())
    if not held_out(recipe, pictures) <= held_out(parent, pictures):
        wrong = "names pictures that the run trained on already"
        raise BadInput("checkpoints.held_out", wrong, "leave it as it was, or start a new run")
    base = ws.catalog.get(Base, run.base_id)
    check_base(ws, base)
    check_fit(ws, recipe, base)
    check_place(ws, run.place)
    made = anew(run, recipe, name or f"{run.name[:80]}-from-{step}")
    made = replace(made, step=step, parent_run_id=run.id, parent_step=step)
    memory = _memory_of(source, recipe, parent)
    return enter(ws, made, recipe, base, items, checkpoint=checkpoint, memory=memory)


def _memory_of(rundir: RunDir, recipe: Recipe, parent: Recipe) -> JSON | None:
    """The savings of memory that a run needed: its branch begins in the middle, where some come too late.

    What the branch's own recipe asks for counts all the same.
    """
    path = rundir.file(MEMORY)
    if not path.exists():
        return None
    memory: JSON = read_json(path)
    if recipe.optimizer.name != parent.optimizer.name:
        memory |= {"optimizer": ""}
    if recipe.train.compile == "on" and memory.get("compiled") is False:
        memory |= {"compiled": None}
    return memory


def anew(run: Run, recipe: Recipe, name: str) -> Run:
    """A run that has not begun, like `run` but for its recipe.

    Raises:
        BadInput: the name cannot be used.
    """
    return replace(
        run,
        id=new_id(),
        created_at=now(),
        name=check_name(name, "run name"),
        state=RunState.QUEUED,
        reason="",
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe_hash(recipe),
        seed=recipe.train.seed,
        step=0,
        steps=recipe.train.max_steps,
        parent_run_id="",
        parent_step=0,
        versions=versions(),
        process=None,
        started_at=None,
        ended_at=None,
        pick_step=0,
        pick_reason="",
        pick_by="",
    )


def versions() -> dict[str, str]:
    """Versions of what a run depends on, without importing any of it."""
    found = {"python": python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _words(recipe: Recipe) -> tuple[tuple[str, ...], int, bool]:
    """What decides which vectors a run has, and whether there is an adapter beside them."""
    tokens = recipe.tokens
    return tokens.words, tokens.vectors if tokens.words else 0, tokens.only


def _regularisation_item(ws: "Workspace", folder: Path, image: Image, recipe: Recipe) -> ManifestItem:
    preservation = recipe.preservation
    return replace(
        manifest_item(ws, folder, image),
        caption=image.caption.strip() or preservation.class_prompt,
        weight=preservation.loss_weight,
        role=REGULARISATION,
    )


def _cancel_queued(ws: "Workspace", run: Run, to: RunState) -> Run:
    moved = ws.catalog.move_run(run.id, to, expect={RunState.QUEUED}, ended_at=now())
    _cancel_jobs(ws, run)
    return moved


def _cancel_jobs(ws: "Workspace", run: Run) -> None:
    live = (JobState.QUEUED, JobState.LEASED)
    for job in ws.catalog.list(Job, kind=TRAINING, subject_id=run.id, state=live):
        ws.catalog.cancel_job(job.id)


def _called(run: Run) -> str:
    return f"run {run.name} ({run.id})"
