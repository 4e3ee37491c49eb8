"""`studio compare` and `studio comparisons`: grids of pictures, and the rankings that votes give."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.shared import (
    PlaceOption,
    ago,
    invocation,
    note,
    open_workspace,
    plain,
    show_done,
    show_record,
    show_rows,
)
from studio.sampling.schedulers import samplers_help

if TYPE_CHECKING:
    from registry.records import Comparison
    from studio.compare.spec import Spec
    from studio.workspace import Workspace

app = typer.Typer(
    name="comparisons", help="Comparisons: list, show, export, stop, go on, remove.", no_args_is_help=True
)

Rows = Annotated[str, typer.Option(help="Axis that goes down: adapter, weight, prompt, seed, ...")]
Columns = Annotated[str, typer.Option(help="Axis that goes across.")]


def compare(
    context: typer.Context,
    out: Annotated[Path, PlaceOption(help="Folder for contact sheet, page and facts.")],
    base: Annotated[str, typer.Option(help="Base model.")] = "pocket",
    like: Annotated[
        Path | None, typer.Option("--from", help="Picture whose settings all cells share, instead of --base.")
    ] = None,
    adapters: Annotated[
        list[str] | None, typer.Option(help="A,B,none; RUN@STEP is a checkpoint; repeatable.")
    ] = None,
    checkpoints: Annotated[
        list[str] | None, typer.Option(help="RUN:all or RUN:100,200; also none,RUN:all; repeatable.")
    ] = None,
    weights: Annotated[str, typer.Option(help="Strengths of the adapters: 0,0.5,1. Default: 1.")] = "",
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeatable.")] = None,
    negative: Annotated[str, typer.Option(help="What to avoid.")] = "",
    seeds: Annotated[str, typer.Option(help="1,2,3. Default: 0.")] = "",
    steps: Annotated[str, typer.Option(help="Numbers of steps: 10,25. Default: 25.")] = "",
    cfg: Annotated[str, typer.Option(help="Guidance scales: 2,5. Default: that of the base's presets.")] = "",
    schedulers: Annotated[
        list[str] | None,
        typer.Option(help=f"Sampler; repeatable. {samplers_help()}."),
    ] = None,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; default: the base's own.")] = "",
    name: Annotated[str, typer.Option(help="Of the comparison; one of this name grows by what is new.")] = "",
    rows: Rows = "",
    columns: Columns = "",
) -> None:
    """Compare adapters, checkpoints, strengths, prompts, seeds and settings; draws what is not there yet.

    Example: studio compare --adapters ink,wash,none --weights 0.5,1 --prompt "a cat" --seeds 1,2 --out grid
    """
    from studio.compare import grids
    from studio.compare.layout import layout
    from studio.sampling.submit import folder_for

    workspace = open_workspace()
    options: dict[str, list[str]] = {
        "adapter": _split(adapters), "checkpoint": _checkpoints(checkpoints), "weight": _split([weights]),
        "prompt": prompt or [], "seed": _split([seeds]), "steps": _split([steps]), "guidance": _split([cfg]),
        "scheduler": schedulers or [],
    }  # fmt: skip
    with folder_for(out):
        spec = _spec(workspace, context, base, like, options, negative=negative, size=size)
        layout(spec, rows, columns)  # before anything is drawn
        made = _made(workspace, spec, name)
        done = grids.progress(workspace, made, grids.cells_of(workspace, made))
        note(f"comparison {made.name}: {spec.size:,} cells, {done.total - done.drawn:,} to draw")
        _wait(workspace, made)
        _write(workspace, made, out, rows, columns)


@app.command("list")
def list_() -> None:
    """List the comparisons, newest first.

    Example: studio comparisons list
    """
    from registry.records import Comparison
    from studio.compare.grids import spec_of

    workspace = open_workspace()
    counts = workspace.catalog.grids.counts()
    found: list[dict[str, Any]] = []
    for one in workspace.catalog.list(Comparison):
        cells, drawn = counts.get(one.id, (0, 0))
        axes = " x ".join(f"{row.name} {len(row.values)}" for row in spec_of(one).axes)
        facts = {"id": one.id, "name": one.name, "axes": axes, "cells": cells, "drawn": drawn}
        found.append(facts | {"created_at": one.created_at, "_added": ago(one.created_at)})
    show_rows(
        [plain(row) for row in found],
        [
            ("id", lambda r: r["id"]),
            ("name", lambda r: r["name"]),
            ("axes", lambda r: r["axes"]),
            ("drawn", lambda r: f"{r['drawn']}/{r['cells']}"),
            ("made", lambda r: r["_added"]),
        ],
        empty="No comparisons. Make one: studio compare --help",
    )


@app.command()
def show(comparison: str) -> None:
    """Show a comparison: what is compared, its cells with files and hashes, rankings.

    Example: studio comparisons show grid
    """
    from studio.compare.outputs import facts

    workspace = open_workspace()
    show_record(facts(workspace, _found(workspace, comparison)))


@app.command()
def export(
    comparison: str,
    out: Annotated[Path, PlaceOption(help="Folder for contact sheet, page and facts.")],
    rows: Rows = "",
    columns: Columns = "",
) -> None:
    """Write a comparison as it is now: PNG, HTML that needs no network, JSON.

    Example: studio comparisons export grid --out grid --columns adapter
    """
    workspace = open_workspace()
    _write(workspace, _found(workspace, comparison), out, rows, columns)


@app.command()
def stop(comparison: str) -> None:
    """Call off what is not drawn yet; what is drawn stays.

    Example: studio comparisons stop grid
    """
    from studio.compare.grids import stop as call_off

    workspace = open_workspace()
    record = _found(workspace, comparison)
    count = call_off(workspace, record)
    show_done(f"Called off {count} pictures of {record.name}.", {"id": record.id, "stopped": count})


@app.command("continue")
def continue_(comparison: str) -> None:
    """Draw what was stopped, failed or lost; stays until it is done.

    Example: studio comparisons continue grid
    """
    from studio.compare.grids import go_on

    workspace = open_workspace()
    record = go_on(workspace, _found(workspace, comparison))
    _wait(workspace, record)
    show_done(f"Comparison {record.name} is drawn.", {"id": record.id, "name": record.name})


@app.command()
def remove(comparison: str) -> None:
    """Forget a comparison with its votes; pictures that were made for it alone go to the trash.

    Example: studio comparisons remove grid
    """
    from studio.compare.grids import remove as forget

    workspace = open_workspace()
    record = _found(workspace, comparison)
    count = forget(workspace, record)
    done = f"Removed comparison {record.name}; {count} pictures went to the trash."
    show_done(done, {"id": record.id, "name": record.name, "pictures": count})


def _found(workspace: "Workspace", key: str) -> "Comparison":
    from registry.records import Comparison

    return workspace.catalog.get(Comparison, key)


def _split(texts: list[str] | None) -> list[str]:
    """A,B -> the parts."""
    return [part.strip() for text in texts or [] for part in text.split(",") if part.strip()]


def _checkpoints(texts: list[str] | None) -> list[str]:
    """RUN:100,200 -> RUN:100, RUN:200; a part without a run belongs to the run before it."""
    found: list[str] = []
    run = ""
    for part in _split(texts):
        head, mark, _ = part.rpartition(":")
        if mark:
            run = head
        found.append(f"{run}:{part}" if run and part.isdecimal() else part)
    return found


def _spec(
    workspace: "Workspace",
    context: typer.Context,
    base: str,
    like: Path | None,
    options: dict[str, list[str]],
    *,
    negative: str,
    size: str,
) -> "Spec":
    """The spec that the options ask for."""
    from registry.errors import BadInput
    from studio.commands import modes
    from studio.compare.build import base_request, from_texts
    from studio.sampling.again import request_of

    if like is not None:
        if others := sorted({"base", "negative", "size"} & modes.given(context)):
            do = "leave it out; what the picture says is shared by all cells"
            raise BadInput(f"--{others[0]}", "does not go with --from", do)
        shared = request_of(workspace, Path(modes.absolute(like)))
    else:
        if not options["prompt"]:
            raise typer.BadParameter("is missing: say what to draw", param_hint="--prompt")
        shared = base_request(workspace, base, negative=negative, size=modes.size(size) if size else None)
    return from_texts(workspace, shared, options)


def _made(workspace: "Workspace", spec: "Spec", name: str) -> "Comparison":
    """A new comparison, or the one of this name with what is new."""
    from registry.records import Comparison
    from studio.compare import grids

    known = workspace.catalog.find(Comparison, name) if name else None
    return grids.grow_to(workspace, known, spec) if known else grids.create(workspace, spec, name)


def _wait(workspace: "Workspace", made: "Comparison") -> None:
    """Until nothing of it is in the queue.

    Raises:
        StudioError: cells failed; says the first.
        KeyboardInterrupt: Ctrl-C; the rest is called off.
    """
    from studio.compare.waiting import wait

    wait(workspace, made, None if invocation.json else note)


def _write(workspace: "Workspace", made: "Comparison", out: Path, rows: str, columns: str) -> None:
    from studio.compare.outputs import export as write

    files = [str(file) for file in write(workspace, made, out, rows=rows, columns=columns)]
    show_done("\n".join(files), {"id": made.id, "name": made.name, "files": files})
