"""The doctor's checks of masks, weights and caption options. Each mask is opened once."""

from functools import lru_cache
from pathlib import Path

from PIL import Image as Pixels

from registry.errors import several
from registry.records import Image
from studio.datasets.decode import MASK_RATIO
from studio.datasets.findings import Finding, Patient, ids, names
from studio.datasets.seen import seen_captions


def masks_unusable(patient: Patient) -> Finding | None:
    """Masks that are gone, black all over, or of another shape."""
    bad: list[Image] = []
    why: dict[str, None] = {}
    for image in patient.images:
        if wrong := _mask_fault(patient, image):
            bad.append(image)
            why[wrong] = None
    if not bad:
        return None
    message = f"{several(len(bad), 'mask')} cannot be used ({'; '.join(why)}): {names(bad)}."
    fix = "Paint white what counts and add the pictures again, or set data.masks to off."
    return Finding("bad", "masks-unusable", message, ids(bad), fix)


def masks_partly(patient: Patient) -> Finding | None:
    """Some pictures have a mask, others none; or masks that are not used."""
    masked = [image for image in patient.images if image.mask]
    if not masked:
        return None
    if patient.recipe is not None and not patient.recipe.data.masks:
        message = (
            f"{several(len(masked), 'picture has a mask', 'pictures have masks')} that will not be used."
        )
        return Finding("info", "masks-unused", message, ids(masked), "Set data.masks to use them.")
    bare = [image for image in patient.images if not image.mask]
    if not bare:
        return None
    count = f"{len(bare)} of {several(len(patient.images), 'picture')}"
    message = f"{count} without a mask, though others have one; they count whole: {names(bare)}."
    return Finding("info", "masks-partly", message, ids(bare), "Give them a mask, or leave it so.")


def weightless(patient: Patient) -> Finding | None:
    """Pictures with a weight of 0 are shown and teach nothing."""
    none = [image for image in patient.images if image.weight == 0]
    if not none:
        return None
    count = several(len(none), "picture has", "pictures have")
    message = f"{count} a weight of 0 and teach nothing: {names(none)}."
    return Finding("warn", "weightless", message, ids(none), "Remove them, or give them a weight.")


def versions(patient: Patient) -> Finding | None:
    """Captions of which one of several versions is shown at a time."""
    recipe = patient.recipe
    data, seed = (recipe.data, recipe.train.seed) if recipe is not None else (None, 0)
    counts = {image.id: len(seen_captions(patient.dataset, image, data, seed)) for image in patient.images}
    many = [image for image in patient.images if counts[image.id] > 1]
    if recipe is not None and recipe.data.shuffle_tags and not many and len(patient.images) > 1:
        sign = recipe.data.caption_separator
        message = f"Tags are to be shuffled, but no caption has two of them with {sign!r} between."
        return Finding("warn", "no-tags", message, (), "Set data.caption_separator, or do not shuffle.")
    if not many:
        return None
    most = max(counts.values())
    count = several(len(many), "caption comes", "captions come")
    message = f"{count} in up to {most} versions, one at each showing: {names(many)}."
    fix = "Lines and {this|that} are alternatives; data.variations=false shows them as they are."
    return Finding("info", "versions", message, ids(many), fix)


def _mask_fault(patient: Patient, image: Image) -> str:
    if not image.mask:
        return ""
    try:
        width, height, brightest = _mask_facts(patient.ws.blobs.path(image.mask))
    except (OSError, SyntaxError, ValueError):
        return "lost or damaged"
    if brightest == 0:
        return "black all over"
    same = abs((image.width / image.height) / (width / height) - 1) <= MASK_RATIO
    return "" if same else "of another shape than its picture"


@lru_cache(maxsize=20_000)
def _mask_facts(path: Path) -> tuple[int, int, int]:
    """Width, height and brightest grey of a stored mask; a blob never changes."""
    with Pixels.open(path, formats=("PNG",)) as mask:
        brightest = mask.convert("L").getextrema()[1]
        return mask.width, mask.height, int(brightest)  # pyright: ignore[reportArgumentType]
