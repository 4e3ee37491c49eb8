"""The doctor's checks of pixels: they read what `examine` found and look at nothing themselves.

Without an examination they say nothing; pages and the command line see to it that there is one.
"""

import math
from collections.abc import Iterable
from statistics import median

from registry.errors import several
from registry.records import Image
from studio.datasets.findings import Finding, Patient, are, ids, names
from studio.datasets.listing import some

SOFT = 2.4  # pixels that an edge is wide where training sees it; a sharp picture has 1 to 2
ENLARGED = 2.3  # pixels that an edge is wide in the file
REPEATS = 13.0  # what enlarging leaves stands out as far; blur and chance reach 12.7
LIKELY = 10.0  # the same beside edges that ring as well; there, blur and chance reach 9.9
FAR = 20.0  # the same beside edges wider than BILINEAR: a blur by the mean of a box reaches 17.7
SOME, PLACES = 4.0, 10.0  # places of edges: fewer repeat by chance; from so many on, enlarging mostly shows
SLIGHT = 3.4  # pixels up to which an edge was hardly widened by a lens; enlarging by 2 leaves less
UNKNOWN = 4.8  # the same where enlarging may hide; filters widen by no more up to a factor of 4
BREAKS = 2.4  # how sharply an edge of straight pieces breaks; blur and JPEG reach 2.33
BILINEAR = 6.2  # pixels that bilinear enlarging by up to 4 widens an edge to
RINGS = 0.04  # overshoot that filters leave beside edges, and sharpened textures as well
SHARP = 1.35  # pixels that an edge of a sharp picture is wide, for guessing an enlarged one's original
MANY = 8  # pictures from which one can be unlike the others
STRETCH = math.log(1.6)  # by which an outlier's shape differs from the usual at least
OUTLIERS = 0.1  # share of the set that may be outliers; more are no outliers


def unreadable(patient: Patient) -> Finding | None:
    """Pictures that are stored and cannot be decoded any more."""
    if patient.seen is None:
        return None
    bad = [image for image in _with(patient, patient.seen.unreadable) if patient.has_file(image)]
    if not bad:
        return None
    message = f"{are(bad)} damaged and cannot be read: {names(bad)}."
    return Finding("bad", "unreadable", message, ids(bad), "Leave them out, or add the originals again.")


def near_duplicates(patient: Patient) -> Finding | None:
    """Copies that were mirrored, resized, recompressed or cropped a little: they count double, too."""
    if patient.seen is None:
        return None
    twins: dict[str, str] = {}  # copy -> the one that stays
    by_hash = {image.pixel_hash: image for image in patient.images}
    for group in copy_groups(patient):
        best = min(group, key=lambda name: _worse(patient, by_hash[name]))
        twins |= {name: best for name in group if name != best}
    copies = _with(patient, twins)
    if not copies:
        return None
    pairs = [f"{image.name} of {by_hash[twins[image.pixel_hash]].name}" for image in copies]
    message = (
        f"{several(len(copies), 'picture is a copy', 'pictures are copies')}, hardly changed: {some(pairs)}."
    )
    return Finding("warn", "near-duplicates", message, ids(copies), "Leave the smaller one of each out.")


def copy_groups(patient: Patient) -> list[list[str]]:
    """Pixel hashes of pictures that are copies of one another, also by way of a third."""
    leader: dict[str, str] = {}

    def lead(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    there = {image.pixel_hash for image in patient.images}
    for one, other in patient.seen.copies if patient.seen else ():
        if one in there and other in there:
            leader[lead(one)] = lead(other)
    groups: dict[str, list[str]] = {}
    for name in leader:
        groups.setdefault(lead(name), []).append(name)
    return list(groups.values())


def blurred(patient: Patient) -> Finding | None:
    """Pictures without a sharp edge at the size that training sees: they teach blur."""
    soft = [
        image
        for image in patient.images
        if not _enlarged(patient, image) and _edge(patient, image) * _shrunk(patient, image) >= SOFT
    ]
    if not soft:
        return None
    message = f"{are(soft)} blurred, nothing in them is sharp at {patient.resolution} px: {names(soft)}."
    if _most(patient, soft):
        return Finding("info", "blurred", message, ids(soft), "Most are: so it may be the style itself.")
    return Finding("warn", "blurred", message, ids(soft), "Leave them out, unless blur is what you want.")


def upscaled(patient: Patient) -> Finding | None:
    """Pictures that were made larger than they are: their pixels hold no more than the small ones did."""
    large = [image for image in patient.images if _enlarged(patient, image)]
    if not large:
        return None
    small = [image for image in large if _true_side(patient, image) < patient.resolution]
    sides = [f"{image.name} (about {_true_side(patient, image)} px)" for image in large]
    message = (
        f"{several(len(large), 'picture was', 'pictures were')} enlarged from a smaller one: {some(sides)}."
    )
    fix = "Use the originals; training gives them a bucket of their own size."
    if not small:
        return Finding("info", "upscaled", message, ids(large), "They are large enough; it does no harm.")
    if _most(patient, large):
        return Finding("info", "upscaled", message, ids(large), "Most look so: it may be the style itself.")
    return Finding("warn", "upscaled", message, ids(large), fix)


def repeated_corners(patient: Patient) -> Finding | None:
    """The same mark in a corner of many pictures is learned before anything else."""
    if patient.seen is None or not patient.seen.marks:
        return None
    marks = {corner: _with(patient, names) for corner, names in patient.seen.marks.items()}
    marked = _with(patient, {name for names in patient.seen.marks.values() for name in names})
    where = " and ".join(f"{corner} ({len(images)})" for corner, images in marks.items() if images)
    if not marked:
        return None
    message = f"{several(len(marked), 'picture has', 'pictures have')} the same mark in a corner, {where}: "
    fix = "Crop it away or paint it over; a mask that is black there keeps it from counting."
    return Finding("warn", "watermark", f"{message}{names(marked)}.", ids(marked), fix)


def borders(patient: Patient) -> Finding | None:
    """Bars of one colour at the edges."""
    if patient.seen is None:
        return None
    barred = _with(patient, patient.seen.bars)
    if not barred:
        return None
    message = (
        f"{several(len(barred), 'picture has bars', 'pictures have bars')} of one colour: {names(barred)}."
    )
    return Finding("warn", "borders", message, ids(barred), "Crop the bars off; they are learned as well.")


def aspect_outliers(patient: Patient) -> Finding | None:
    """A few pictures of another shape than the rest: alone in their bucket, seen in batches of one."""
    if len(patient.images) < MANY:
        return None
    shapes = [math.log(image.width / image.height) for image in patient.images]
    usual = median(shapes)
    spread = median(abs(shape - usual) for shape in shapes)
    limit = max(STRETCH, 4 * spread)
    most = math.log(patient.longest_aspect)  # longer ones are said to be too long
    odd = [
        image
        for image, shape in zip(patient.images, shapes, strict=True)
        if abs(shape - usual) > limit and abs(shape) <= most
    ]
    if not odd or len(odd) > OUTLIERS * len(patient.images):
        return None
    message = f"{are(odd)} of quite another shape than the rest: {names(odd)}."
    fix = "Crop them to the shape of the others, or leave them out."
    return Finding("info", "aspect-outliers", message, ids(odd), fix)


def _worse(patient: Patient, image: Image) -> tuple[int, float, int]:
    """Of copies the largest stays, then the sharpest, then the first."""
    return -image.width * image.height, _edge(patient, image), image.position


def _most(patient: Patient, images: list[Image]) -> bool:
    return len(patient.images) >= MANY and 2 * len(images) > len(patient.images)


def _edge(patient: Patient, image: Image) -> float:
    return patient.seen.edges.get(image.pixel_hash, 0.0) if patient.seen else 0.0


def _enlarged(patient: Patient, image: Image) -> bool:
    """Whether wide edges come from enlarging: it shows, or, where it may hide, it is the likelier cause."""
    edge, name, seen = _edge(patient, image), image.pixel_hash, patient.seen
    if seen is None or edge < ENLARGED:
        return False
    repeats, places, breaks = (of.get(name, 0.0) for of in (seen.repeats, seen.places, seen.breaks))
    rings = seen.ringing.get(name, 0.0) >= RINGS
    needed = FAR if edge > BILINEAR else LIKELY if rings else REPEATS
    if edge < SLIGHT or (places >= SOME and repeats >= needed):
        return True
    return places < PLACES and (edge < UNKNOWN or rings or (breaks >= BREAKS and edge < BILINEAR))


def _true_side(patient: Patient, image: Image) -> int:
    """Side in pixels of a square with as many pixels as the original had."""
    return round(math.sqrt(image.width * image.height) * SHARP / _edge(patient, image))


def _shrunk(patient: Patient, image: Image) -> float:
    """By how much training makes the picture smaller; 1 = not at all."""
    return min(1.0, patient.resolution / math.sqrt(image.width * image.height))


def _with(patient: Patient, hashes: Iterable[str]) -> list[Image]:
    wanted = set(hashes)
    return [image for image in patient.images if image.pixel_hash in wanted]


CHECKS = (
    unreadable,
    near_duplicates,
    blurred,
    upscaled,
    repeated_corners,
    borders,
    aspect_outliers,
)
