"""What a run is given, frozen before its row appears: recipe, pictures and the world around it.

The run keeps its own list of pictures; what becomes of the data set later changes nothing in it.
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import StudioError
from registry.files import atomic_folder, atomic_write, write_json
from registry.hashing import canonical_json
from registry.ids import new_id
from registry.records import JSON, Base, Dataset, Image, Run, RunImage
from trainers.recipe import Recipe, recipe_hash
from trainers.rundir import CHECKPOINTS, MANIFEST, MEMORY, RECIPE, ManifestItem, RunDir, RunEnv

if TYPE_CHECKING:
    from studio.workspace import Workspace

_BLOB = re.compile(r"[0-9a-f]{64}")


def new_run(name: str, recipe: Recipe, base: Base, dataset: Dataset) -> Run:
    """A run that has not begun and has no row yet."""
    return Run(
        id=new_id(),
        name=name,
        family=recipe.family,
        goal=recipe.goal,
        base_id=base.id,
        dataset_id=dataset.id,
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe_hash(recipe),
        dataset_hash=dataset.content_hash,
        base_hash=base.weight_hash,
        seed=recipe.train.seed,
        steps=recipe.train.max_steps,
    )


def manifest_item(ws: "Workspace", folder: Path, image: Image) -> ManifestItem:
    """A picture of a data set as a line of the manifest; paths are relative to the run's `folder`."""
    return ManifestItem(
        image=os.path.relpath(ws.blobs.path(image.blob), folder),
        pixel_hash=image.pixel_hash,
        width=image.width,
        height=image.height,
        caption=image.caption,
        name=image.name,
        mask=os.path.relpath(ws.blobs.path(image.mask), folder) if image.mask else "",
        weight=image.weight,
        repeats=image.repeats,
    )


def image_of(item: ManifestItem) -> Image:
    """A line of a run's manifest as a picture again, when its data set is gone."""
    return Image(
        blob=Path(item.image).name,
        pixel_hash=item.pixel_hash,
        width=item.width,
        height=item.height,
        caption=item.caption,
        name=item.name,
        mask=Path(item.mask).name if item.mask else "",
        weight=item.weight,
        repeats=item.repeats,
    )


def enter(
    ws: "Workspace",
    run: Run,
    recipe: Recipe,
    base: Base,
    items: Sequence[ManifestItem],
    *,
    checkpoint: Path | None = None,
    memory: JSON | None = None,
) -> Run:
    """Write the run's directory, then its row, its job and its pictures in one transaction.

    Args:
        ws: The workspace.
        run: The row, its id included.
        recipe: What to do.
        base: What to train on.
        items: The pictures, paths relative to the run directory.
        checkpoint: Folder of a checkpoint to start from.
        memory: Savings of memory that it begins with, see `trainers.ladder`.

    Raises:
        StudioError: the disk is full, or the row could not be written (the directory is removed then).
    """
    folder = ws.run_dir(run.id).path
    inside = f"parent/{CHECKPOINTS}/{checkpoint.name}" if checkpoint else ""
    with atomic_folder(folder) as temporary:
        if checkpoint:
            # Its own copy: the parent may prune the checkpoint, or be removed, before the branch starts.
            shutil.copytree(checkpoint, temporary / inside, copy_function=_link_or_copy)
        if memory:
            write_json(temporary / MEMORY, memory)
        write_files(ws, RunDir(temporary), run, recipe, base, items, place=folder, parent=inside)
    try:
        return ws.catalog.add_run(run, run_images(run.id, items))
    except StudioError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def run_images(run_id: str, items: Sequence[ManifestItem]) -> list[RunImage]:
    """The pictures of a manifest as records; a path that is no blob of the workspace gives none."""
    return [
        RunImage(
            run_id=run_id,
            position=position,
            pixel_hash=item.pixel_hash,
            blob=name if _BLOB.fullmatch(name := Path(item.image).name) else "",
            name=item.name,
        )
        for position, item in enumerate(items)
    ]


def manifest_of(ws: "Workspace", run: Run, most: int | None = None) -> list[ManifestItem] | None:
    """The (first) pictures that a run was given; None when its directory is gone or not what was written."""
    try:
        return ws.run_dir(run.id).read_manifest(most)
    except (OSError, ValueError, TypeError):
        return None


def fill_run_images(ws: "Workspace") -> int:
    """Enter the pictures of runs from before they were kept in the catalog; returns of how many runs.

    Those that have theirs cost one query in all; a run whose directory is gone stays without.
    """
    filled = 0
    for run in ws.catalog.list(Run, id=tuple(ws.catalog.lineage.runs_without_images())):
        items = manifest_of(ws, run)
        if items:
            filled += ws.catalog.lineage.add_run_images(run.id, run_images(run.id, items))
    return filled


def write_files(
    ws: "Workspace",
    rundir: RunDir,
    run: Run,
    recipe: Recipe,
    base: Base,
    items: Sequence[ManifestItem],
    *,
    place: Path,
    parent: str = "",
) -> None:
    """Write recipe.json, manifest.jsonl and env.json; paths in them are relative to `place`."""
    write_json(rundir.file(RECIPE), recipe.model_dump(mode="json"))
    atomic_write(rundir.file(MANIFEST), "".join(canonical_json(asdict(item)) + "\n" for item in items))
    rundir.write_env(
        RunEnv(
            run_id=run.id,
            name=run.name,
            family=run.family,
            base_location=base.location if base.kind == "hub" else _place(ws, base.location, place),
            base_kind=base.kind,
            base_hash=base.weight_hash,
            base_config=_place(ws, base.config, place) if base.config else "",
            base_revision=base.revision,
            cache=os.path.relpath(ws.home / "cache", place),
            parent=parent,
            versions={key: str(value) for key, value in run.versions.items()},
        )
    )


def _place(ws: "Workspace", location: str, folder: Path) -> str:
    """A path of the catalog as seen from `folder`: relative inside the workspace, else absolute."""
    path = ws.resolve(location)
    return os.path.relpath(path, folder) if path.is_relative_to(ws.home) else str(path)


def _link_or_copy(source: str, target: str) -> str:
    """A hard link costs nothing; across disks it must be a copy."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
    return target
