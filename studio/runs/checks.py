"""What is refused before a run is queued or its cost is told, and what is said about it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from registry.errors import BadInput, several
from registry.records import Base, Dataset, Image
from studio.control_facts import PART_LABELS
from studio.media_facts import what_is_it
from studio.runs.layers import check_patterns
from studio.sampling.media.kinds import MOTION
from trainers.families import FAMILIES
from trainers.fitting import Traits, check_recipe, idle_remarks
from trainers.held_out import held_out
from trainers.plan import fits_no_bucket
from trainers.recipe import Recipe, preset

if TYPE_CHECKING:
    from studio.workspace import Workspace

_PLAIN = "train on the plain base; its adapters often fit this one as well"
DRAWS_ONLY = {
    "inpaint": ("reads a mask beside the picture, which training does not give it", _PLAIN),
    "fill": ("reads a mask beside the picture, which training does not give it", _PLAIN),
    "refiner": ("is a refiner, which finishes the pictures of another base", "train on an SDXL base"),
}


def check_run(
    ws: "Workspace",
    recipe: Recipe,
    base: Base,
    dataset: Dataset,
    regularisation: Dataset | None = None,
    images: Sequence[Image] | None = None,
) -> list[str]:
    """Refuse a run that could not be trained; returns remarks, one line each.

    Args:
        ws: The workspace.
        recipe: With its trigger word, see `with_trigger`.
        base: What to train on.
        dataset: The pictures.
        regularisation: Other pictures that are shown in turn.
        images: The pictures, where the catalog has them no more; default: those of the data set.

    Raises:
        BadInput: family mismatch, missing base, no pictures, missing captions, unfit resolution, values that
            rule each other out, patterns without a layer.
    """
    check_base(ws, base)
    check_trainable(base)
    check_fit(ws, recipe, base)
    if images is None:
        images = ws.catalog.list(Image, dataset_id=dataset.id)
    check_images(ws, recipe, dataset, images)
    if regularisation is not None:
        if regularisation.id == dataset.id:
            do = "choose another one for regularisation"
            raise BadInput(f"data set {dataset.name}", "is also what is to be learned", do)
        calm = recipe.data.model_copy(update={"require_captions": False})  # the class prompt stands in
        kept = ws.catalog.list(Image, dataset_id=regularisation.id)
        check_images(ws, recipe.model_copy(update={"data": calm}), regularisation, kept)
    usual = preset(base.family, recipe.goal, base.name)
    return [*_spared(ws, recipe, images, regularisation), *idle_remarks(recipe, usual, traits_of(ws, base))]


def _spared(
    ws: "Workspace", recipe: Recipe, images: Sequence[Image], regularisation: Dataset | None
) -> list[str]:
    """What to say when pictures are held out.

    Raises:
        BadInput: more are to be held out than can be.
    """
    kept = ws.catalog.list(Image, dataset_id=regularisation.id) if regularisation else []
    pictures = {image.pixel_hash: image.caption for image in images}
    for image in kept:
        pictures.pop(image.pixel_hash, None)
    held = held_out(recipe, pictures)
    if not held:
        return []
    said = several(len(held), "picture is", "pictures are")
    return [f"{said} held out, to judge checkpoints by: checkpoints.held_out=0 trains on all of them"]


def with_trigger(recipe: Recipe, dataset: Dataset) -> Recipe:
    """`recipe` with the data set's trigger word where it has none of its own."""
    if recipe.data.trigger or not dataset.trigger:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"trigger": dataset.trigger})})


def check_base(ws: "Workspace", base: Base) -> None:
    """Refuse what is no base, or is not where the catalog says.

    Raises:
        BadInput: a ControlNet, what makes no pictures; the folder or file is missing.
    """
    if base.part:
        wrong, do = _no_base(base)
        raise BadInput(f"base {base.name}", wrong, do)
    check_there(ws, base)


def check_there(ws: "Workspace", base: Base) -> None:
    """Refuse what is not where the catalog says.

    Raises:
        BadInput: the folder or file is missing.
    """
    if base.kind == "hub":
        return
    place = ws.resolve(base.location)
    index = "config.json" if base.part == MOTION else "model_index.json"
    missing = place if not place.exists() else place / index
    if not place.exists() or (base.kind == "folder" and not missing.exists()):
        raise BadInput(
            f"base {base.name}", f"{missing} is missing", "bring it back, or remove the base and add it again"
        )


def _no_base(base: Base) -> tuple[str, str]:
    """What is wrong with a part of the catalog as a base for pictures, and what to do."""
    if base.part in PART_LABELS:
        wrong = f"is a {PART_LABELS[base.part]}, which steers a base and is none"
    elif base.part == MOTION:
        wrong = "is a motion adapter, which makes a base move and is none"
    else:
        wrong = f"is a {what_is_it(base.part, base.family)}, which is neither trained nor takes adapters"
    return wrong, "choose a base for pictures: `studio bases list`"


def check_trainable(base: Base) -> None:
    """Refuse a base that only draws.

    Raises:
        BadInput: it is made for inpainting, or a refiner.
    """
    kind = base.variant.rpartition("-")[2]
    if kind in DRAWS_ONLY:
        wrong, do = DRAWS_ONLY[kind]
        raise BadInput(f"base {base.name}", wrong, do)


def check_fit(ws: "Workspace", recipe: Recipe, base: Base) -> None:
    """Refuse a recipe that the base, or its own other values, rule out.

    Raises:
        BadInput: names the field.
    """
    if recipe.family != base.family:
        raise BadInput(
            "recipe", f"is for {recipe.family}, base {base.name} is {base.family}", "choose one that fits"
        )
    step = recipe.bucket_step
    for size in recipe.train.sizes:
        if size < step or size % step:
            near = max(step, round(size / step) * step)
            key = "train.resolution" if size == recipe.train.resolution else "train.resolutions"
            wrong = f"is {size}, sides are multiples of {step}"
            raise BadInput(key, wrong, f"use {near}, or set data.bucket_step")
    check_recipe(recipe, traits_of(ws, base))
    check_patterns(ws, recipe, base)


def traits_of(ws: "Workspace", base: Base) -> Traits:
    """What the catalog and the base's configs say; what they do not is as the family has it."""
    info, t5 = FAMILIES[base.family], None
    if base.kind != "hub" and info.t5 in info.optional:
        t5 = (ws.resolve(base.config or base.location) / info.t5 / "config.json").is_file()
    noise = base.variant.startswith("eps") or None
    return Traits(t5, info.guidance_input and base.variant not in info.unguided, noise)


def check_images(ws: "Workspace", recipe: Recipe, dataset: Dataset, images: Sequence[Image]) -> None:
    """Refuse a data set that has no pictures, has lost some, or has some that fit no bucket.

    Raises:
        BadInput: names the data set or the picture.
    """
    if not images:
        raise BadInput(f"data set {dataset.name}", "has no pictures", "add some: studio datasets add --help")
    for image in images:
        if fits_no_bucket(image.width, image.height, step=recipe.bucket_step, data=recipe.data):
            side = recipe.bucket_step
            wrong = f"is {image.width}x{image.height}, smaller than the smallest bucket {side}x{side}"
            do = f"leave it out (studio datasets check {dataset.name}), or set data.upscale=true"
            raise BadInput(f"picture {image.name}", wrong, do)
        blob = ws.blobs.path(image.blob)
        if not blob.is_file() or blob.stat().st_size == 0:
            wrong = f"of data set {dataset.name} has lost its file"
            raise BadInput(f"picture {image.name}", wrong, "make the data set again from the originals")
        if recipe.data.masks and image.mask and not ws.blobs.path(image.mask).is_file():
            do = "make the data set again from the originals, or set data.masks=false"
            raise BadInput(f"mask of {image.name}", "has lost its file", do)
    bare = [image.name for image in images if not image.caption.strip()]
    if recipe.data.require_captions and bare:
        wrong = f"has {several(len(bare), 'picture')} without a caption, the first is {bare[0]}"
        do = f"write them: studio datasets caption {dataset.name}, or set data.require_captions=false"
        raise BadInput(f"data set {dataset.name}", wrong, do)
