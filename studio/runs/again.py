"""The same run once more: recipe, base and pictures; what is no longer the same is said, not glossed over."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput, NotFound, several
from registry.files import require_space
from registry.records import Base, Dataset, Image, Run
from studio.runs.checks import check_run
from studio.runs.diff import compare_pictures
from studio.runs.forecast import forecast
from studio.runs.frozen import enter, image_of, manifest_item, manifest_of
from studio.runs.launch import anew
from studio.runs.places import check_place
from trainers.recipe import apply_sets, thaw
from trainers.rundir import ManifestItem

if TYPE_CHECKING:
    from studio.workspace import Workspace

USE_PRESENT = "add --present to take what is there now"


def run_again(
    ws: "Workspace", run: Run, sets: Sequence[str] = (), *, present: bool = False, name: str = ""
) -> Run:
    """Queue a run like another: its recipe, base and frozen pictures, its seed unless `sets` change it.

    Args:
        ws: The workspace.
        run: The run to do again, in whatever state.
        sets: `key=value` changes to its recipe.
        present: Take data set and base as they are now, though they have changed.
        name: Of the new run; default: `<name>-again`.

    Raises:
        NotFound: the data set is gone, and the run's own list too (or `present` asks for what is there now).
        BadInput: data set or base have changed since (and `present` is False), or as `launch`.
        StudioError: not enough disk space.
    """
    recipe = apply_sets(thaw(run.recipe), sets)
    base = ws.catalog.get(Base, run.base_id)
    then = manifest_of(ws, run)
    dataset, images = _pictures(ws, run, None if present else then)
    made = anew(run, recipe, name or f"{run.name[:90]}-again")
    folder = ws.run_dir(made.id).path
    today = [manifest_item(ws, folder, image) for image in images]
    items = [*today, *_kept(then or [])] if present else _unchanged(run, base, dataset, then, today)
    check_run(ws, recipe, base, dataset, images=images)
    check_place(ws, run.place)
    _check_files(folder, items)
    require_space(ws.home, forecast(ws, recipe, base, dataset).disk_bytes, "this run")
    made = replace(made, dataset_hash=dataset.content_hash, base_hash=base.weight_hash)
    return enter(ws, made, recipe, base, items)


def _pictures(ws: "Workspace", run: Run, then: list[ManifestItem] | None) -> tuple[Dataset, Sequence[Image]]:
    """The data set with its pictures; when it is gone, what the run's frozen list says of them."""
    dataset = ws.catalog.find(Dataset, run.dataset_id)
    if dataset is not None:
        return dataset, ws.catalog.list(Image, dataset_id=dataset.id)
    if then is None:
        wrong = "trained on a data set that is gone"
        raise NotFound(f"run {run.name}", wrong, "make a data set from the originals and train on that")
    images = [image_of(item) for item in then if not item.role]
    gone = Dataset(id=run.dataset_id, name="(gone)", content_hash=run.dataset_hash, image_count=len(images))
    return gone, images


def _unchanged(
    run: Run, base: Base, dataset: Dataset, then: list[ManifestItem] | None, today: list[ManifestItem]
) -> list[ManifestItem]:
    """The frozen pictures, if data set and base are still what they were."""
    if dataset.content_hash != run.dataset_hash:
        wrong = f"has changed since run {run.name}{_how(then, today)}"
        raise BadInput(f"data set {dataset.name}", wrong, USE_PRESENT)
    if base.weight_hash != run.base_hash:
        raise BadInput(f"base {base.name}", f"has other weights than for run {run.name}", USE_PRESENT)
    if then is None:
        raise BadInput(f"run {run.name}", "has lost its list of pictures", USE_PRESENT)
    return then


def _how(then: list[ManifestItem] | None, today: list[ManifestItem]) -> str:
    """` (2 pictures added, 1 caption changed)`."""
    if then is None:
        return ""
    own = [item for item in then if not item.role]
    kinds = [difference.key for difference in compare_pictures(own, today)]
    words = (
        ("added", "picture", "added"),
        ("removed", "picture", "removed"),
        ("caption", "caption", "changed"),
    )
    counts = [(kinds.count(key), noun, verb) for key, noun, verb in words]
    told = ", ".join(f"{several(count, noun)} {verb}" for count, noun, verb in counts if count)
    return f" ({told})" if told else ""


def _kept(then: list[ManifestItem]) -> list[ManifestItem]:
    """Regularisation pictures: the catalog has no data set for them, only the run's list."""
    return [item for item in then if item.role]


def _check_files(folder: Path, items: Sequence[ManifestItem]) -> None:
    """`folder` is not there yet, so its relative paths are read by their text alone."""
    for item in items:
        for path in filter(None, (item.image, item.mask)):
            if not Path.resolve(folder / path).is_file():
                wrong = "has lost its file"
                raise BadInput(f"picture {item.name}", wrong, "make the data set again from the originals")
