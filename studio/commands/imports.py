"""`studio adapters import`, `watch` and `verify --all`: taking files in and looking after them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.shared import ago, invocation, note, open_workspace, plain, show_done, show_rows

if TYPE_CHECKING:
    from registry.records import Job
    from studio.imports.report import CheckReport, ImportReport
    from studio.workspace import Workspace

watch = typer.Typer(name="watch", help="Folders whose new adapters are taken in.", no_args_is_help=True)


def import_(
    sources: Annotated[list[str], typer.Argument(help="Files, folders, or addresses (https).")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files into the workspace.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Put on each of them; may be repeated.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until all are hashed, also when a worker does it.")
    ] = False,
) -> None:
    """Take adapters in: files stay where they are unless --copy says otherwise.

    They are listed by their headers at once, then read and hashed. When a worker is running it does the
    reading, and this command returns when all are listed.

    Example: studio adapters import ~/ComfyUI/models/loras --tag comfy
    """
    from registry.errors import StudioError
    from studio.imports import submit as imports

    ws = open_workspace()
    job = imports.submit(ws, sources, copy=copy, tags=tag or [])
    tell = _Progress(ws, lambda: _import_line(imports.report(ws, job)))

    def ended(_job: "Job") -> bool:
        tell()
        return not wait and _other_works(ws) and imports.report(ws, job).past_listing

    imports.wait(ws, job, ended, None)
    report = imports.report(ws, job)
    if report.error:
        raise StudioError(f"import {job.id}", report.error.rstrip("."), "what was listed is kept")
    _show_import(report)
    if not report.taken and report.count("bad"):
        raise typer.Exit(2)


def _show_import(report: "ImportReport") -> None:
    for file, line in report.bad:
        note(f"refused {line}" if line.startswith(file) else f"refused {file}: {line}")
    for file, name in report.duplicates:
        note(f"duplicate {file}: is {name}")
    for file, name in report.moved:
        note(f"found {name} again: {file}")
    for file, reason in report.unidentified:
        note(f"unidentified {file}: {reason.removeprefix('unidentified: ')}")
    for file, line in report.notes:
        note(f"note {file}: {line}")
    rest = report.bytes_total - report.bytes_done
    going_on = f" {rest / 1e6:.0f} MB are being hashed by the worker." if report.phase != "done" else ""
    show_done(report.summary() + going_on, report.to_dict())


def verify_all(*, full: bool, search: list[Path]) -> None:
    """Look at the files of all adapters and print what was found; exit code 1 when some are not right."""
    from registry.errors import StudioError
    from studio.imports import submit as imports

    ws = open_workspace()
    job = imports.submit_check(ws, full=full, folders=search)
    tell = _Progress(ws, lambda: _check_line(imports.check_report(ws, job)))

    def ended(_job: "Job") -> bool:
        tell()
        return False

    imports.wait(ws, job, ended, None)
    report = imports.check_report(ws, job)
    if report.error:
        raise StudioError(f"check {job.id}", report.error.rstrip("."), "try again")
    for name, place in report.relinked:
        note(f"found {name} again: {place}")
    for name, place in report.missing:
        note(f"missing {name}: {place}")
    for name, wrong in report.changed:
        note(f"changed {name}: {wrong}")
    show_done(report.summary(), report.to_dict())
    if report.missing or report.changed:
        raise typer.Exit(1)


@watch.command("add")
def watch_add(folder: Path) -> None:
    """Watch a folder: what is put into it is taken in while a worker runs.

    Example: studio adapters watch add ~/ComfyUI/models/loras
    """
    from studio.imports.watch import add

    made = add(open_workspace(), folder)
    show_done(
        f"Watching {made.path}; a worker takes in what is there (studio worker, studio app).", plain(made)
    )


@watch.command("list")
def watch_list() -> None:
    """List the watched folders.

    Example: studio adapters watch list
    """
    from registry.records import Watch

    show_rows(
        [
            plain(w) | {"_looked": ago(w.scanned_at) if w.scanned_at else "never"}
            for w in open_workspace().catalog.list(Watch, order="path")
        ],
        [
            ("id", lambda r: r["id"]),
            ("folder", lambda r: r["path"]),
            ("looked", lambda r: r["_looked"]),
            ("note", lambda r: r["note"]),
        ],
        empty="No folder is watched. Watch one: studio adapters watch add FOLDER",
    )


@watch.command("remove")
def watch_remove(folder: str) -> None:
    """Stop watching a folder; its adapters stay in the catalog.

    Example: studio adapters watch remove ~/ComfyUI/models/loras
    """
    from studio.imports.watch import remove

    gone = remove(open_workspace(), folder)
    show_done(f"No longer watching {gone.path}.", plain(gone))


class _Progress:
    """Says a line on stderr when it differs from the last."""

    def __init__(self, ws: "Workspace", describe: Callable[[], str]) -> None:
        self._ws, self._describe, self._line = ws, describe, ""

    def __call__(self) -> None:
        line = "" if invocation.json else self._describe()
        if line and line != self._line:
            self._line = line
            note(line)


def _import_line(report: "ImportReport") -> str:
    if report.phase in {"waiting", "done"}:
        return ""
    if report.phase == "hashing":
        return f"hashing: {report.bytes_done / 1e9:.1f} of {report.bytes_total / 1e9:.1f} GB"
    return f"{report.phase}: {report.files} files, {report.listed} new"


def _check_line(report: "CheckReport") -> str:
    if report.phase in {"waiting", "done"}:
        return ""
    return f"{report.phase}: {report.done} of {report.total}"


def _other_works(ws: "Workspace") -> bool:
    """Whether another process than this one holds the workspace."""
    holder = ws.holder()
    return holder is not None and holder["pid"] != os.getpid()
