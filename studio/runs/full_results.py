"""What a full fine-tune leaves behind: a base of the workspace, named after the run."""

import os
import shutil
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import NotFound
from registry.files import atomic_folder
from registry.hashing import hash_folder
from registry.records import Base, Run
from studio.bases import detect_base
from trainers.recipe import Recipe
from trainers.rundir import MODEL, RunDir

if TYPE_CHECKING:
    from studio.workspace import Workspace


def is_full(run: Run) -> bool:
    """Whether a run trains the base's own weights."""
    return Recipe.model_validate(run.recipe).adapter.method == "full"


def register_run_base(ws: "Workspace", run: Run, rundir: RunDir) -> Base:
    """Take the model that `run` wrote into the catalog; doing it again gives the same record.

    Args:
        ws: The workspace.
        run: The run that made it; the base gets its name, with a number when that is taken.
        rundir: Its files; the folder `model/` becomes `bases/<run id>/`.

    Raises:
        NotFound: the trainer wrote no model.
        BadInput: the model is not sound.
        StudioError: the disk is full.
    """
    place = ws.home / "bases" / run.id
    known = [base for base in ws.catalog.list(Base) if base.location == ws.relative(place)]
    if known and place.is_dir():
        return known[0]
    source = rundir.file(MODEL)
    if not source.is_dir():
        raise NotFound(str(source), "was not written by the trainer", "resume the run")
    with atomic_folder(place) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=_link_or_copy)
    if known:
        return known[0]
    facts = detect_base(str(place), family=run.family)
    return ws.catalog.add(
        Base(
            name=_free_name(ws, run.name),
            family=facts.family,
            variant=facts.variant,
            location=ws.relative(place),
            kind="folder",
            weight_hash=hash_folder(place, ws.memo),
        )
    )


def _free_name(ws: "Workspace", name: str) -> str:
    """The first of "name", "name 2", "name 3", ... that no base has."""
    taken = {base.name for base in ws.catalog.list(Base)}
    if name not in taken:
        return name
    return next(found for n in count(2) if (found := f"{name[:95]} {n}") not in taken)


def _link_or_copy(source: str, target: str) -> str:
    """Both are ours and never written again: a link costs nothing; across disks it must be a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return str(Path(target))
