"""Which sizes a picture trains at, and which parts of it: several resolutions, several crops. No torch.

Buckets of one resolution are `plan.assign_buckets`; here every picture gets one in each resolution that does
not enlarge it, and the crop modes that need more than the picture's shape.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from registry.errors import several
from trainers.plan import Geometry, Item, Size, assign_buckets, bucket_sizes, draw
from trainers.recipe_fields import DataSection
from trainers.rundir import ManifestItem

Point = tuple[float, float]  # (x, y) as shares of width and height, 0 to 1
SHOWN = 5  # names in a note


def place_items(
    sources: Sequence[ManifestItem],
    *,
    sizes: Sequence[int],
    step: int,
    data: DataSection,
    seed: int,
    focus: Callable[[ManifestItem], Point | None] | None = None,
) -> tuple[list[Item], list[str]]:
    """The run's items and notes for the log, the first of which is the tally of buckets.

    The smallest resolution takes every picture (a small one at its own size); of the larger ones a picture
    gets those that do not enlarge it (all, with data.upscale) and that give it another bucket.

    Args:
        sources: Pictures of the manifest.
        sizes: Sides in pixels, ascending; `TrainSection.sizes`.
        step: Multiple of both sides of a bucket, in pixels.
        data: The section of the recipe.
        seed: train.seed, for random crops.
        focus: Where a picture's mask has its center; asked when data.crop is "focus".

    Raises:
        BadInput: see `assign_buckets`.
    """
    items, notes = assign_buckets(sources, resolution=sizes[0], step=step, data=data)
    taken: defaultdict[int, set[Size]] = defaultdict(set)
    for item in items:
        taken[item.index].add(item.geometry.target)
    for level, size in enumerate(sizes[1:], 1):
        full = set(bucket_sizes(size, step, data.max_aspect if data.buckets else 1.0))
        out: list[str] = []
        for item in assign_buckets(sources, resolution=size, step=step, data=data)[0]:
            target = item.geometry.target
            if target not in full or target in taken[item.index]:
                out.append(item.label)
                continue
            taken[item.index].add(target)
            items.append(replace(item, index=level * len(sources) + item.index))
        if out:
            more = f" and {len(out) - SHOWN} more" if len(out) > SHOWN else ""
            names = ", ".join(out[:SHOWN]) + more
            count = several(len(out), "picture is", "pictures are")
            notes.append(f"{count} too small for {size} px and not shown there: {names}")
    if len(sizes) > 1:
        notes[0] = _tally(items)
    if data.crop == "random" and data.crop_variants:
        items = [_randomly_cropped(item, data.crop_variants, seed) for item in items]
    if data.crop == "focus" and focus is not None:
        items = [_focused(item, focus(item.source)) for item in items]
    return items, notes


def views(item: Item) -> list[Item]:
    """The item once for each crop that is shown of it."""
    return [replace(item, geometry=crop, crops=()) for crop in item.crops] or [item]


def shown_view(item: Item, copy: int, *, seed: int, epoch: int) -> Item:
    """The item with the crop of one showing."""
    if not item.crops:
        return item
    return views(item)[int(draw(seed, "crop", epoch, item.index, copy) * len(item.crops))]


def _randomly_cropped(item: Item, count: int, seed: int) -> Item:
    """`count` crops drawn from (seed, pixels, size, number); fewer where there is nothing to choose."""
    geometry, identity = item.geometry, item.source.pixel_hash
    (height, width), (whole_height, whole_width) = geometry.target, geometry.resized
    crops: list[Geometry] = []
    for number in range(count):
        place = (identity, height, width, number)
        top = int(draw(seed, "crop top", *place) * (whole_height - height + 1))
        left = int(draw(seed, "crop left", *place) * (whole_width - width + 1))
        crops.append(replace(geometry, crop_origin=(top, left)))
    crops = list(dict.fromkeys(crops))
    return replace(item, geometry=crops[0], crops=tuple(crops) if len(crops) > 1 else ())


def _focused(item: Item, point: Point | None) -> Item:
    """The crop whose center is as near to the point as the picture's edges allow."""
    if point is None:
        return item
    geometry = item.geometry
    (height, width), (whole_height, whole_width) = geometry.target, geometry.resized
    top = round(point[1] * whole_height - height / 2)
    left = round(point[0] * whole_width - width / 2)
    origin = (min(max(top, 0), whole_height - height), min(max(left, 0), whole_width - width))
    return replace(item, geometry=replace(geometry, crop_origin=origin))


def _tally(items: Sequence[Item]) -> str:
    counts = Counter(item.geometry.target for item in items)
    shapes = ", ".join(f"{width}x{height}: {n}" for (height, width), n in sorted(counts.items()))
    return f"{several(len(items), 'showing')} an epoch in buckets {shapes}"
