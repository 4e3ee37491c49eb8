"""Keeping a checkpoint: its adapter goes to the library, and the run says which one was picked.

The checkpoint itself may be pruned afterwards: the library has a copy.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.errors import BadInput, NotFound
from registry.records import Adapter, Run
from studio.adapters import register_run_adapter, step_name
from studio.evidence.evaluations import recommended
from studio.made import require_free_name
from studio.runs.ranking import ranking_of
from studio.sampling.chosen import DIGITS, checkpoint_of

if TYPE_CHECKING:
    from studio.workspace import Workspace


@dataclass(frozen=True)
class Kept:
    """A checkpoint in the library; `new` = it was not there before."""

    adapter: Adapter
    run: Run
    new: bool


def keep(ws: "Workspace", key: str, name: str = "") -> Kept:
    """Take checkpoint RUN@STEP into the library and mark it as a person's pick.

    Raises:
        BadInput: no checkpoint is named, or see `keep_step`.
        NotFound: there is no such run, or see `keep_step`.
    """
    run, mark, step = key.rpartition("@")
    if not (mark and run and step.isdecimal() and len(step) <= DIGITS):
        raise BadInput(
            f"checkpoint {key[:60]!r}", "names no step of a run", "write RUN@STEP, for example ink@400"
        )
    return keep_step(ws, ws.catalog.get(Run, run), int(step), name)


def keep_step(ws: "Workspace", run: Run, step: int, name: str = "") -> Kept:
    """Take a checkpoint into the library and mark it as a person's pick; doing it again changes nothing.

    Args:
        ws, run: The workspace; the run.
        step: Step of the checkpoint.
        name: Of the adapter; default: `<run> step <step>`. One that is there already keeps its own.

    Raises:
        NotFound: the run has no such checkpoint, or not any more.
        BadInput: it is damaged, holds no adapter or a value that is not finite; the name is taken; the
            adapter lies in the trash.
        StudioError: the disk is full.
    """
    found = checkpoint_of(ws, run, step)
    ranking = ranking_of(ws, run)
    row = ranking.of(step) if ranking.by else None
    known = ws.catalog.list(Adapter, tensor_sha256=found.tensor_sha256, run_id=run.id)
    if known and known[0].trashed_at is not None:
        do = f"bring it back: studio adapters restore {known[0].id}"
        raise BadInput(found.name, f"is adapter {known[0].name}, which lies in the trash", do)
    if name and not known:
        require_free_name(ws, name)
    try:
        adapter = register_run_adapter(ws, run, ws.resolve(found.path), step, name or step_name(run, step))
    except FileNotFoundError as error:
        raise NotFound(found.name, "was pruned just now", "keep a newer one") from error
    if not known and (weight := recommended(ws, run, step)) is not None:
        adapter = ws.catalog.update(Adapter, adapter.id, recommended_weight=weight)
    picked = ws.catalog.pick(run.id, step, row.reason if row else "", "you")
    return Kept(adapter, picked, new=not known)


def pick_by_probe(ws: "Workspace", run: Run) -> Run:
    """Mark the checkpoint that the probe says is best, unless evidence or a person has picked one."""
    best = ranking_of(ws, run).best
    return ws.catalog.pick(run.id, best.step, best.reason, "probe") if best else run
