"""What can be done about a finding with one click, and taken back.

    datasets/<id>.jsonl   one fix a line: the pictures as they were before it

A fix takes pictures out of the set, cuts what no text encoder reads off a caption, writes the trigger word
alike, or gives a weight back. Undoing puts back what that fix changed, also when other things were changed
since; a caption that somebody wrote anew stays as it is.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, NotFound, several
from registry.files import atomic_write
from registry.records import Dataset, Image, now
from studio.datasets.findings import Finding, Patient
from studio.datasets.ingest import images_of
from studio.datasets.listing import some
from studio.datasets.seen import seen_captions

if TYPE_CHECKING:
    from studio.workspace import Workspace

FOLDER = "datasets"
KEPT = 50  # fixes that can be taken back
LEAVE_OUT = {
    "duplicates": "Leave the copies out",
    "near-duplicates": "Leave the copies out",
    "blurred": "Leave them out",
    "upscaled": "Leave them out",
    "unreadable": "Leave them out",
    "lost": "Leave them out",
    "no-bucket": "Leave them out",
    "extreme-aspect": "Leave them out",
    "aspect-outliers": "Leave them out",
    "borders": "Leave them out",
    "small": "Leave them out",
}
HARMLESS = ("small", "aspect-outliers")  # to leave out, though they are no fault
FIELDS = ("caption", "weight", "repeats", "mask")  # of a picture, that a fix may change


@dataclass(frozen=True)
class Fixed:
    """One fix that was made.

    Args:
        code: Of the finding.
        text: What was done, one sentence.
        before: The pictures that it changed or took out, as they were.
        after: Those that it changed, as they became.
        time: When, ISO 8601.
    """

    code: str
    text: str
    before: tuple[Image, ...]
    after: tuple[Image, ...]
    time: str = ""


def repair_of(patient: Patient, finding: Finding) -> str:
    """What a button says that does something about it; "" when nothing safe can be done."""
    if finding.code in LEAVE_OUT:
        some = 0 < len(finding.images) < len(patient.images)
        wanted = finding.severity != "info" or finding.code in HARMLESS
        return LEAVE_OUT[finding.code] if some and wanted else ""
    if finding.code in _CHANGES:
        label, change = _CHANGES[finding.code]
        chosen = set(finding.images)
        changes = (
            image for image in patient.images if image.id in chosen and change(patient, image) != image
        )
        return label if next(changes, None) is not None else ""
    return ""


def repair(patient: Patient, finding: Finding) -> Fixed:
    """Do it; `undo` takes it back.

    Raises:
        BadInput: nothing can be done about this finding with one click.
    """
    if not repair_of(patient, finding):
        raise BadInput(f"finding {finding.code}", "cannot be fixed with one click", finding.fix)
    ws, dataset, chosen = patient.ws, patient.dataset, set(finding.images)
    images = images_of(ws, dataset)
    before = tuple(image for image in images if image.id in chosen)
    if not before:
        raise BadInput(
            f"finding {finding.code}", "is about pictures that are gone", "check the data set again"
        )
    if finding.code in LEAVE_OUT:
        after: tuple[Image, ...] = ()
        if len(before) == len(images):
            raise BadInput(f"data set {dataset.name}", "would be empty", "remove the data set instead")
        kept = [image for image in images if image.id not in chosen]
        text = f"Left {several(len(before), 'picture')} out: {some([image.name for image in before])}."
    else:
        label, change = _CHANGES[finding.code]
        made = {image.id: change(patient, image) for image in before}
        before = tuple(image for image in before if made[image.id] != image)
        after = tuple(made[image.id] for image in before)
        kept = [made.get(image.id, image) for image in images]
        text = f"{label}: {some([image.name for image in before])}."
    done = Fixed(finding.code, text, before, after, now().isoformat())
    _write(
        ws, dataset, [*made_fixes(ws, dataset), done]
    )  # first: a crash leaves nothing that cannot come back
    ws.catalog.replace_images(dataset.id, kept)
    return done


def undo(ws: "Workspace", dataset: Dataset) -> Fixed:
    """Take the newest fix back.

    Raises:
        NotFound: there is none.
    """
    fixes = made_fixes(ws, dataset)
    if not fixes:
        raise NotFound(f"data set {dataset.name}", "has no fix to take back", "see `studio datasets check`")
    last = fixes[-1]
    before, after = ({image.id: image for image in part} for part in (last.before, last.after))
    images: list[Image] = []
    for image in images_of(ws, dataset):
        made, was = after.get(image.id), before.get(image.id)
        if made is not None and was is not None:
            image = _back(image, made, was)
        images.append(image)
    if not last.after:
        there = {image.pixel_hash for image in images} | {image.id for image in images}
        for image in sorted(last.before, key=lambda image: image.position):
            if image.id not in there and (image.pixel_hash not in there or last.code == "duplicates"):
                images.insert(min(image.position, len(images)), image)
    ws.catalog.replace_images(dataset.id, images)
    _write(ws, dataset, fixes[:-1])
    return last


def made_fixes(ws: "Workspace", dataset: Dataset) -> list[Fixed]:
    """Fixes that can be taken back, oldest first; a line that cannot be read is left out."""
    try:
        lines = _file(ws, dataset).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[Fixed] = []
    for line in lines:
        try:
            value: dict[str, Any] = json.loads(line)
            before, after = (tuple(_image(i) for i in value[part]) for part in ("before", "after"))
            found.append(Fixed(str(value["code"]), str(value["text"]), before, after, str(value["time"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _back(image: Image, made: Image, was: Image) -> Image:
    """The picture with what the fix changed as it was, where it still is as the fix left it."""
    values = {
        name: getattr(was, name)
        for name in FIELDS
        if getattr(made, name) != getattr(was, name) and getattr(image, name) == getattr(made, name)
    }
    return replace(image, **values)


def _shortened(patient: Patient, image: Image) -> Image:
    """Without the tags or sentences at its end that are not read; as it is when that is not safe."""
    reader, caption = patient.longest, image.caption.strip()
    if reader is None or "\n" in caption or "{" in caption:
        return image
    for mark in (", ", ". ", " "):
        parts = caption.split(mark)
        for count in range(len(parts) - 1, 0, -1):
            shorter = replace(image, caption=mark.join(parts[:count]).rstrip(" ,"))
            texts = seen_captions(patient.dataset, shorter, patient.recipe.data if patient.recipe else None)
            if max(map(reader.count, texts)) <= reader.limit:
                spare = reader.limit - max(map(reader.count, texts))
                if spare <= reader.limit // 2:  # not half of the caption for the sake of a whole sentence
                    return shorter
                break
    return image


def _spelt(patient: Patient, image: Image) -> Image:
    from studio.datasets.doctor_words import misspelt

    wrong = misspelt(image.caption, patient.trigger.lower())
    return replace(image, caption=image.caption.replace(wrong, patient.trigger)) if wrong else image


def _weighed(_patient: Patient, image: Image) -> Image:
    return replace(image, weight=1.0) if image.weight == 0 else image


_CHANGES: dict[str, tuple[str, Callable[[Patient, Image], Image]]] = {
    "long-captions": ("Cut what is not read", _shortened),
    "trigger-misspelt": ("Write the trigger word alike", _spelt),
    "weightless": ("Give them the weight 1", _weighed),
}


def _image(value: dict[str, Any]) -> Image:
    fields: dict[str, Any] = {**value, "tags": tuple(value.get("tags", ()))}
    return Image(**fields)


def _write(ws: "Workspace", dataset: Dataset, fixes: Sequence[Fixed]) -> None:
    lines = [json.dumps(asdict(fix), ensure_ascii=False) + "\n" for fix in fixes[-KEPT:]]
    atomic_write(_file(ws, dataset), "".join(lines))


def _file(ws: "Workspace", dataset: Dataset) -> Path:
    return ws.home / FOLDER / f"{dataset.id}.jsonl"
