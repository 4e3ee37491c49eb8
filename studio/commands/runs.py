"""`studio train` and `studio runs`: start, watch, steer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.shared import (
    ago,
    invocation,
    note,
    open_workspace,
    plain,
    show_done,
    show_record,
    show_rows,
)

if TYPE_CHECKING:
    from registry.records import Dataset, Run
    from studio.runs.forecast import Forecast
    from studio.runs.ranking import Ranking
    from studio.workspace import Workspace

app = typer.Typer(
    name="runs", help="Runs: list, show, log, stop, resume, branch, keep.", no_args_is_help=True
)

Wait = Annotated[bool, typer.Option("--wait", help="Stay until it is done, showing progress.")]
On = Annotated[
    str, typer.Option("--on", help="Where it trains: local, or ray for the cluster of `studio cluster`.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Recipe key=value; may be repeated.")]


def train(
    recipe: Annotated[Path | None, typer.Argument(help="TOML file; default: the goal's preset.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run and of its adapter.")] = "",
    base: Annotated[str, typer.Option(help="Base model: see `studio bases list`.")] = "pocket",
    dataset: Annotated[str, typer.Option(help="Data set: see `studio datasets list`.")] = "",
    goal: Annotated[str, typer.Option(help="style, character or concept.")] = "style",
    sets: Sets = None,
    regularisation: Annotated[
        str, typer.Option(help="Data set whose pictures the base should keep drawing as it does.")
    ] = "",
    on: On = "local",
    wait: Wait = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="Only say what it would cost.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="With --forecast: train a few steps to measure it.")
    ] = False,
) -> None:
    """Train an adapter.

    Example: studio train --base pocket --dataset cat --goal character --set train.max_steps=300 --wait
    """
    from registry.errors import BadInput, NotFound
    from registry.records import PLACES, Base, Dataset
    from studio.runs import launch
    from studio.runs.checks import check_run, with_trigger
    from studio.runs.forecast import forecast as make_forecast
    from studio.runs.places import check_place
    from trainers.recipe import apply_sets, load_recipe, preset

    workspace = open_workspace()
    dataset_record = _dataset(workspace, dataset, recipe)
    try:
        base_record = workspace.catalog.get(Base, base)
    except NotFound as error:
        do = f"{error.do}; add it with `studio bases add NAME LOCATION`"
        raise NotFound(error.thing, error.wrong, do) from None
    if recipe and recipe.exists() and not (recipe.is_file() or recipe.is_dir()):
        raise BadInput(str(recipe), "is not a plain file", "give the path of a recipe")  # could never end
    chosen = load_recipe(recipe) if recipe else preset(base_record.family, goal, base_record.name)
    chosen = with_trigger(apply_sets(chosen, sets or []), dataset_record)
    kept = workspace.catalog.get(Dataset, regularisation) if regularisation else None
    remarks = check_run(workspace, chosen, base_record, dataset_record, kept)
    if forecast:
        check_place(workspace, on)  # a run's is checked when it is launched
    if probe:
        from studio.runs.probe import probe as measure

        if not forecast:
            raise BadInput("--probe", "measures what a forecast says", "write --forecast --probe")
        note("training a few steps to measure them; nothing of it is kept but the figures")
        measure(workspace, chosen, base_record, dataset_record, kept)
    if forecast:
        if on != PLACES[0]:
            note("these are the figures of this machine, not of the cluster")
        _show_forecast(make_forecast(workspace, chosen, base_record, dataset_record, kept), remarks)
        return
    for remark in remarks:
        note(f"warning: {remark}.")
    run = launch.launch(workspace, chosen, base_record, dataset_record, name, regularisation=kept, place=on)
    show_started(workspace, run, wait=wait)


@app.command("list")
def list_(
    state: Annotated[str, typer.Option(help="Only this state.")] = "",
) -> None:
    """List the runs, newest first.

    Example: studio runs list --state running
    """
    from registry.errors import BadInput
    from registry.records import Run, RunState

    if state and state not in list(RunState):
        raise BadInput(f"state {state!r}", "is unknown", f"use one of {', '.join(RunState)}")
    catalog = open_workspace().catalog
    found = catalog.list(Run, state=state) if state else catalog.list(Run)
    show_rows(
        [plain(run) | {"_began": ago(run.started_at) if run.started_at else ""} for run in found],
        [
            ("id", lambda r: r["id"]),
            ("name", lambda r: r["name"]),
            ("state", lambda r: r["state"]),
            ("on", lambda r: r["place"]),
            ("step", lambda r: f"{r['step']}/{r['steps']}"),
            ("started", lambda r: r["_began"]),
            ("reason", lambda r: r["reason"]),
        ],
        empty="No runs. Start one: studio train --help",
    )


@app.command()
def show(run: str) -> None:
    """Show a run: state, recipe, adapters, and its checkpoints, the best first.

    Example: studio runs show 01hv3k9x2m
    """
    from registry.records import Base, Run
    from studio.commands.recipes import changes
    from studio.runs.ranking import ranking_of

    workspace = open_workspace()
    record = workspace.catalog.get(Run, run)
    facts, ranking = _described(workspace, record), ranking_of(workspace, record)
    if invocation.json:
        show_record(facts | {"ranking": ranking.to_dict()})
        return
    base = workspace.catalog.find(Base, record.base_id)
    recipe = changes(record.recipe, base.name if base else "")
    show_record(facts | {"recipe": recipe, "held_out": ", ".join(ranking.held_out)})
    _show_ranking(ranking)


@app.command()
def keep(
    checkpoint: Annotated[str, typer.Argument(metavar="RUN@STEP", help="A checkpoint of a run.")],
    name: Annotated[str, typer.Option(help="Name of the adapter; default: RUN step STEP.")] = "",
) -> None:
    """Take a checkpoint of a run into the library, and mark it as the one you picked.

    Example: studio runs keep ink@400 --name "ink, light"
    """
    from studio.runs.keep import keep as keep_checkpoint

    kept = keep_checkpoint(open_workspace(), checkpoint, name)
    how = "is now adapter" if kept.new else "was in the library already, as adapter"
    picked = {"run": kept.run.id, "step": kept.run.pick_step, "new": kept.new}
    show_done(
        f"Checkpoint {kept.run.name}@{kept.run.pick_step} {how} {kept.adapter.name} ({kept.adapter.id}).",
        plain(kept.adapter) | {"kept": picked},
    )


@app.command()
def log(
    run: str,
    lines: Annotated[int, typer.Option(min=1, help="How many lines from the end.")] = 200,
) -> None:
    """Print what the trainer wrote.

    Example: studio runs log 01hv3k9x2m --lines 50
    """
    from collections import deque

    from registry.records import Run
    from trainers.rundir import LOG

    workspace = open_workspace()
    record = workspace.catalog.get(Run, run)
    path = workspace.run_dir(record.id).file(LOG)
    tail: list[str] = []
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as stream:
            tail = [line.rstrip("\n") for line in deque(stream, maxlen=lines)]
    show_done("\n".join(tail) or "Nothing written yet.", {"id": record.id, "lines": tail})


@app.command()
def stop(run: str) -> None:
    """Finish the step, save a checkpoint and stop; a second stop kills. Waits for it where no worker runs.

    Example: studio runs stop 01hv3k9x2m
    """
    _end("stop", run)


@app.command()
def pause(run: str) -> None:
    """Save a checkpoint and leave the device; `resume` goes on. Waits for it where no worker runs.

    Example: studio runs pause 01hv3k9x2m
    """
    _end("pause", run)


@app.command()
def resume(
    run: str,
    on: Annotated[str, typer.Option("--on", help="local or ray; default: where it was.")] = "",
    wait: Wait = False,
) -> None:
    """Go on from the newest checkpoint, exactly as if the run had not been interrupted.

    Example: studio runs resume 01hv3k9x2m --wait
    """
    workspace, record = _wish("resume", run, on)
    show_started(workspace, record, wait=wait)


@app.command()
def branch(
    run: str,
    from_step: Annotated[int, typer.Option("--from", min=1, help="Step of the checkpoint to start from.")],
    sets: Sets = None,
    name: Annotated[str, typer.Option(help="Name of the new run.")] = "",
    wait: Wait = False,
) -> None:
    """Start a new run from a checkpoint of another, with other settings.

    Example: studio runs branch 01hv3k9x2m --from 200 --set optimizer.lr=5e-5
    """
    from registry.records import Run
    from studio.runs import launch

    workspace = open_workspace()
    parent = workspace.catalog.get(Run, run)
    show_started(workspace, launch.branch(workspace, parent, from_step, sets or [], name=name), wait=wait)


def _dataset(workspace: "Workspace", named: str, recipe: Path | None) -> "Dataset":
    """The data set of `studio train`; a folder or a data set in a wrong place is said to be one."""
    from registry.errors import BadInput
    from registry.records import Dataset

    catalog, first = workspace.catalog, str(recipe or "")
    if first and not named and catalog.find(Dataset, first) is not None:
        raise BadInput(first, "is a data set, and a recipe is expected there", f"write --dataset {first}")
    for given in (named, first):
        if given and Path(given).is_dir() and catalog.find(Dataset, given) is None:
            do = f"make one: studio datasets add NAME {given}, then train with --dataset NAME"
            raise BadInput(given, "is a folder, not a data set", do)
    if not named:
        there = catalog.count(Dataset) > 0
        do = "name one of `studio datasets list`" if there else "make one: studio datasets add NAME FOLDER"
        raise BadInput("--dataset", "is missing", do)
    return catalog.get(Dataset, named)


def _show_forecast(cost: "Forecast", remarks: list[str]) -> None:
    """Figures in the units people use, then what is worth knowing, a sentence a line."""
    from studio.app.words import duration, size
    from studio.runs.forecast import figure_words

    if invocation.json:
        show_record(plain(cost) | {"warnings": remarks})
        return
    show_record(
        {
            "steps": f"{cost.steps:,}",
            "time": figure_words(cost.time, lambda minutes: duration(minutes * 60)),
            "start and end": figure_words(cost.start, lambda minutes: duration(minutes * 60)),
            "memory": figure_words(cost.peak, size),
            "RAM": figure_words(cost.ram, size),
            "disk, at most": size(cost.disk_bytes),
            "fit": cost.fit,
        },
        title="Forecast",
    )
    show_done("\n".join((*cost.reasons, *cost.notes, *(f"Warning: {remark}." for remark in remarks))), {})


def _show_ranking(ranking: "Ranking") -> None:
    """Checkpoints, best first, a line each; then whether to stop."""
    from trainers.rundir import PROBES

    rows: list[dict[str, Any]] = ranking.to_dict()["checkpoints"]
    if not rows:
        return
    titles = {"train": "training", "held_out": "held out", "prior": "other prompts"}
    shown = [name for name in PROBES if any(row[name] is not None for row in rows)]

    def figure(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: "" if row[name] is None else f"{row[name]:.4f}"

    show_rows(
        rows,
        [
            ("step", lambda row: row["step"]),
            *((titles[name], figure(name)) for name in shown),
            ("stage", lambda row: row["stage"]),
            ("why", lambda row: row["reason"]),
        ],
        empty="",
    )
    if ranking.advice:
        show_done(ranking.advice, {})


def _wish(wish: str, key: str, *more: str) -> "tuple[Workspace, Run]":
    """Say to `launch` what is wanted of a run."""
    from registry.records import Run
    from studio.runs import launch

    workspace = open_workspace()
    return workspace, getattr(launch, wish)(workspace, workspace.catalog.get(Run, key), *more)


def _end(wish: str, key: str) -> None:
    """Stop or pause a run, and say how far that is."""
    from studio.runs.follow import obeyed

    workspace, run = _wish(wish, key)
    run = obeyed(workspace, run, None if invocation.json else note)
    show_done(f"{run.name}: {run.state}", _described(workspace, run))


def show_started(workspace: "Workspace", run: "Run", *, wait: bool) -> None:
    """Report a queued run; with `wait` follow it to its end and fail when it fails or is cut short."""
    from registry.errors import StudioError
    from studio.runs.follow import follow

    if wait:
        run = follow(workspace, run, None if invocation.json else note)
    elif workspace.holder() is None:
        note("No worker is running: start one with `studio worker` or `studio app`, or use --wait.")
    show_done(
        f"Run {run.id} ({run.name}): {run.state}, step {run.step} of {run.steps}.", _described(workspace, run)
    )
    if wait and run.state in {"failed", "interrupted"}:
        raise StudioError(
            f"run {run.name}", run.reason.rstrip(".") or run.state, f"see `studio runs log {run.id}`"
        )


def _described(workspace: "Workspace", run: "Run") -> dict[str, Any]:
    from registry.records import Adapter, Checkpoint

    catalog = workspace.catalog
    return plain(run) | {
        "path": str(workspace.run_dir(run.id).path),
        "adapters": [a.id for a in catalog.list(Adapter, run_id=run.id)],
        "checkpoints": [c.step for c in catalog.list(Checkpoint, run_id=run.id, order="step")],
    }
