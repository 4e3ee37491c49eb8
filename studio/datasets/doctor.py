"""The data set doctor: what training would trip over, each finding with its pictures and what to do.

A check is a function `(Patient) -> Finding | None` and a row in CHECKS. They read the catalog, the sizes of
files and what an examination of the pixels left (`examine`), so that pages can run them at every change.
"""

import re
from collections.abc import Callable
from dataclasses import replace

from registry.errors import NotFound, several
from registry.records import Base, Dataset, Image
from studio.datasets import doctor_masks, doctor_pixels, doctor_words
from studio.datasets.examine import known
from studio.datasets.findings import Finding, Patient, Severity, are, ids, names, without_bucket
from studio.datasets.fixes import Fixed, repair, repair_of
from studio.datasets.ingest import images_of
from studio.datasets.listing import PICTURES, suffix
from studio.workspace import POCKET, Workspace
from trainers.recipe import Recipe, preset

FEW = 5  # pictures; fewer are learned by heart


def check_dataset(
    ws: Workspace, dataset: Dataset, recipe: Recipe | None = None, base: Base | None = None
) -> list[Finding]:
    """Run all checks; the worst first.

    Args:
        ws: The workspace.
        dataset: The data set.
        recipe: It is judged by; None = not chosen yet.
        base: Whose tokenizer counts; None = not chosen yet.
    """
    return _findings(_patient(ws, dataset, recipe, base))


def _patient(ws: Workspace, dataset: Dataset, recipe: Recipe | None, base: Base | None) -> Patient:
    images = images_of(ws, dataset)
    return Patient(ws, dataset, images, recipe, base, known(ws, images))


def _findings(patient: Patient) -> list[Finding]:
    found = [finding for check in CHECKS if (finding := check(patient)) is not None]
    order = ("bad", "warn", "info")
    found.sort(key=lambda finding: order.index(finding.severity))
    return [replace(finding, repair=repair_of(patient, finding)) for finding in found]


def fix_finding(
    ws: Workspace, dataset: Dataset, code: str, recipe: Recipe | None = None, base: Base | None = None
) -> Fixed:
    """Do what can be done with one click about the finding `code`; `fixes.undo` takes it back.

    Raises:
        NotFound: there is no such finding now.
        BadInput: nothing can be done about it with one click.
    """
    patient = _patient(ws, dataset, recipe, base)
    found = {finding.code: finding for finding in _findings(patient)}
    if code not in found:
        there = ", ".join(key for key, finding in found.items() if finding.repair) or "none"
        raise NotFound(f"finding {code!r}", "is not there", f"findings with a fix: {there}")
    return repair(patient, found[code])


def usual_recipe(ws: Workspace, base: str = "", goal: str = "style") -> Recipe | None:
    """The preset that a data set is judged by.

    Args:
        ws: The workspace.
        base: Id or name of a base; "" = the pocket base while a person has added none, else None.
        goal: Of the recipe.

    Raises:
        NotFound: no such base.
        BadInput: no such goal.
    """
    chosen = usual_base(ws, base)
    return preset(chosen.family, goal, chosen.name) if chosen is not None else None


def usual_base(ws: Workspace, base: str = "") -> Base | None:
    """The base that a data set is judged by; see `usual_recipe`.

    Raises:
        NotFound: no such base.
    """
    if not base and not all(one.builtin for one in ws.catalog.list(Base, part="")):
        return None
    return ws.catalog.get(Base, base or POCKET)


def empty(patient: Patient) -> Finding | None:
    """No picture at all."""
    if patient.images:
        return None
    return Finding("bad", "empty", "There are no pictures.", (), "Add some.")


def lost(patient: Patient) -> Finding | None:
    """Pictures whose file in the workspace is gone or empty; training could not read them."""
    gone = [image for image in patient.images if not patient.has_file(image)]
    if not gone:
        return None
    count = several(len(gone), "picture has", "pictures have")
    fix = "Make the data set again from the originals, or bring the workspace's folder blobs/ back."
    return Finding("bad", "lost", f"{count} lost their file: {names(gone)}.", ids(gone), fix)


def too_few(patient: Patient) -> Finding | None:
    """So few that the adapter copies instead of learning."""
    count = len(patient.images)
    if not 0 < count < FEW:
        return None
    message = f"Only {several(count, 'picture')}: the adapter will learn them by heart."
    return Finding("warn", "too-few", message, (), f"Add some; {FEW} are the least, 15 to 30 are good.")


def uncaptioned(patient: Patient) -> Finding | None:
    """Pictures without a caption train on the trigger word alone."""
    bare = [image for image in patient.images if not image.caption]
    if not bare:
        return None
    alone = f"the trigger word {patient.trigger!r} alone" if patient.trigger else "no words at all"
    count = f"{len(bare)} of {several(len(patient.images), 'picture')}"
    message = f"{count} without a caption: what they show is learned with {alone} ({names(bare)})."
    severity: Severity = "warn"
    if patient.recipe is not None and patient.recipe.data.require_captions:
        severity = "bad"
    return Finding(severity, "uncaptioned", message, ids(bare), "Write what is in each picture.")


def no_trigger(patient: Patient) -> Finding | None:
    """Nothing to call up what was learned."""
    if patient.trigger or not patient.images:
        return None
    message = "There is no trigger word: what is learned acts on every prompt."
    return Finding("info", "no-trigger", message, (), "Set a word that means nothing else, or leave it so.")


def trigger_missing(patient: Patient) -> Finding | None:
    """Captions that training will change: the trigger word is put in front of them."""
    if not patient.trigger:
        return None
    without = [i for i in patient.images if i.caption and not _has_trigger(i.caption, patient.trigger)]
    if not without:
        return None
    count = several(len(without), "caption lacks", "captions lack")
    message = f"{count} the trigger word {patient.trigger!r}: {names(without)}."
    fix = "Training puts it in front of them; write it where it reads better, if you like."
    return Finding("info", "trigger-missing", message, ids(without), fix)


def small(patient: Patient) -> Finding | None:
    """Pictures with fewer pixels than training asks for."""
    side = patient.resolution
    lost = ids(_without_bucket(patient))
    tiny = [i for i in patient.images if i.width * i.height < side * side and i.id not in lost]
    if not tiny:
        return None
    recipe = patient.recipe
    enlarged = recipe is not None and recipe.data.upscale
    fate = "and enlarged, which looks soft" if enlarged else "and kept at that size"
    whose = "" if recipe is not None else f", for a {side} px base"
    message = f"{are(tiny)} smaller than {side} x {side} pixels{whose} {fate}: {names(tiny)}."
    severity: Severity = "warn" if enlarged else "info"
    return Finding(severity, "small", message, ids(tiny), "Use larger originals or a lower resolution.")


def no_bucket(patient: Patient) -> Finding | None:
    """Pictures that training would refuse: a side is shorter than the smallest bucket's."""
    lost, recipe = _without_bucket(patient), patient.recipe
    if not lost or recipe is None:
        return None
    side = recipe.bucket_step
    message = f"{are(lost)} smaller than the smallest bucket, {side} x {side}: {names(lost)}."
    fix = "Training would not start: replace them, leave them out, or set data.upscale=true."
    return Finding("bad", "no-bucket", message, ids(lost), fix)


def extreme_aspect(patient: Patient) -> Finding | None:
    """So wide or tall that much is cropped away."""
    limit = patient.longest_aspect
    long = [i for i in patient.images if max(i.width, i.height) > limit * min(i.width, i.height)]
    if not long:
        return None
    message = f"{are(long)} so long that a third or more is cropped away: {names(long)}."
    return Finding("warn", "extreme-aspect", message, ids(long), "Crop them to what matters.")


def duplicates(patient: Patient) -> Finding | None:
    """The same pixels twice count double."""
    by_pixels: dict[str, list[Image]] = {}
    for image in patient.images:
        by_pixels.setdefault(image.pixel_hash, []).append(image)
    double = [image for twins in by_pixels.values() for image in twins[1:]]
    if not double:
        return None
    message = f"{are(double)} there twice: {names(double)}."
    return Finding("warn", "duplicates", message, ids(double), "Remove the second of each.")


def path_captions(patient: Patient) -> Finding | None:
    """Captions that are file names: some export wrote the wrong column."""
    odd = [image for image in patient.images if _looks_like_path(image)]
    if not odd:
        return None
    count = several(len(odd), "caption looks", "captions look")
    message = f"{count} like a file name, such as {odd[0].caption[:60]!r}: {names(odd)}."
    return Finding("warn", "path-captions", message, ids(odd), "Write what is in each picture.")


CHECKS: tuple[Callable[[Patient], Finding | None], ...] = (
    empty,
    lost,
    too_few,
    uncaptioned,
    trigger_missing,
    no_trigger,
    small,
    no_bucket,
    extreme_aspect,
    duplicates,
    path_captions,
    doctor_masks.masks_unusable,
    doctor_masks.masks_partly,
    doctor_masks.weightless,
    doctor_masks.versions,
    *doctor_pixels.CHECKS,
    *doctor_words.CHECKS,
)


def _has_trigger(caption: str, trigger: str) -> bool:
    """As the trainer sees it (trainers.plan.final_caption): a word of its own, or the mark for it."""
    word = rf"(?<!\w){re.escape(trigger)}(?!\w)"
    return "[trigger]" in caption or re.search(word, caption, re.IGNORECASE) is not None


def _without_bucket(patient: Patient) -> list[Image]:
    return without_bucket(patient.images, patient.recipe) if patient.recipe else []


def _looks_like_path(image: Image) -> bool:
    caption = image.caption.strip()
    if not caption or "\n" in caption or "://" in caption:
        return False
    path = " " not in caption and re.search(r"[/\\]\w", caption) is not None
    return path or caption == image.name or suffix(caption) in PICTURES
