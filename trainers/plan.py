"""What the model will see, and in which order: buckets, batches, captions. No torch, no pictures opened.

Everything random here is a pure function of (seed, epoch, item): nothing has a state, so a resumed run skips
to its batch and meets exactly the pictures, captions and crops it would have met.

Sizes are (height, width) in pixels.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from registry.errors import BadInput, several
from trainers.priors import showings, word_pattern
from trainers.recipe_fields import DataSection
from trainers.rundir import ManifestItem, RunDir

TRIGGER_MARK = "[trigger]"

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Where a training picture came from: `original` was resized to cover `target`, then cropped to it."""

    original: Size  # (height, width) of the picture as uploaded
    crop_origin: Size  # (top, left) of the crop, in pixels of the resized picture
    target: Size  # (height, width) of the bucket

    @property
    def scale(self) -> float:
        """Factor from original to resized pixels; at most 1 unless enlarging was asked for."""
        return max(self.target[0] / self.original[0], self.target[1] / self.original[1])

    @property
    def resized(self) -> Size:
        """(height, width) before the crop."""
        return round(self.original[0] * self.scale), round(self.original[1] * self.scale)

    @property
    def kept(self) -> float:
        """Share of the picture's area that the crop keeps, 0 to 1."""
        return self.target[0] * self.target[1] / (self.resized[0] * self.resized[1])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The crop (left, top, right, bottom) in pixels of the original."""
        (height, width), (top, left), scale = self.target, self.crop_origin, self.scale
        right, bottom = (left + width) / scale, (top + height) / scale
        return left / scale, top / scale, min(right, self.original[1]), min(bottom, self.original[0])

    def mirrored(self) -> "Geometry":
        """The same crop seen in the mirror."""
        top, left = self.crop_origin
        return Geometry(self.original, (top, self.resized[1] - self.target[1] - left), self.target)


@dataclass(frozen=True)
class Item:
    """A picture of the run with its place."""

    index: int  # names it in every draw; position in the manifest, plus its length for each further size
    source: ManifestItem
    geometry: Geometry
    repeats: int = 1  # times per epoch
    crops: tuple[Geometry, ...] = ()  # all that are shown, when there are several; the first is `geometry`

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return self.source.name or self.source.image


class Slot(NamedTuple):
    """One showing of an item within an epoch."""

    item: int
    copy: int  # 0 .. repeats - 1


def load_items(rundir: RunDir) -> list[ManifestItem]:
    """The run's frozen pictures.

    Raises:
        BadInput: none at all, or one with a size or weight that cannot be.
    """
    sources = rundir.read_manifest()
    if not sources:
        raise BadInput("data set", "has no pictures", "add some and start again")
    for source in sources:
        if source.width < 1 or source.height < 1 or source.repeats < 1 or not 0 <= source.weight < math.inf:
            raise BadInput(
                source.name or source.image, "has a damaged line in the manifest", "start a new run"
            )
    return sources


def bucket_sizes(resolution: int, step: int, max_aspect: float) -> list[Size]:
    """All (height, width) in multiples of `step` that fill resolution^2 as far as possible and not more.

    Args:
        resolution: Side in pixels of the square whose area is the limit; at least `step`.
        step: Multiple of both sides in pixels.
        max_aspect: Largest ratio of long to short side; the square is always in.
    """
    square = resolution // step * step
    sizes = {(square, square)}
    for height in range(step, int(resolution * math.sqrt(max_aspect)) + step, step):
        width = resolution * resolution // height // step * step
        if width and max(height / width, width / height) <= max_aspect:
            sizes |= {(height, width), (width, height)}
    return sorted(sizes)


def assign_buckets(
    sources: Sequence[ManifestItem], *, resolution: int, step: int, data: DataSection
) -> tuple[list[Item], list[str]]:
    """Give every picture exactly one bucket; returns the items and notes for the log.

    A picture goes to the bucket of the nearest aspect ratio (in log) at the full resolution. If that would
    enlarge it, it gets a bucket of its own size, rounded down to steps: small pictures train as they are
    instead of teaching blur.

    Args:
        sources: Pictures of the manifest.
        resolution: train.resolution.
        step: data.bucket_step, or the family's multiple when that is 0.
        data: The section of the recipe.

    Raises:
        BadInput: resolution below step, or a picture that fits no bucket; nothing is left out in silence.
    """
    if resolution < step:
        raise BadInput(
            "train.resolution",
            f"is {resolution}, below the bucket step of {step}",
            "raise it or lower data.bucket_step",
        )
    max_aspect = data.max_aspect if data.buckets else 1.0
    full = bucket_sizes(resolution, step, max_aspect)
    items: list[Item] = []
    for index, source in enumerate(sources):
        if fits_no_bucket(source.width, source.height, step=step, data=data):
            wrong = f"is {source.width}x{source.height}, smaller than the smallest bucket {step}x{step}"
            do = "replace it, remove it, or set data.upscale=true"
            raise BadInput(source.name or source.image, wrong, do)
        target = min(full, key=lambda size: abs(math.log(size[0] * source.width / (size[1] * source.height))))
        if not data.upscale and (target[0] > source.height or target[1] > source.width):
            target = _own_size(source, resolution, step, max_aspect)
        geometry = _cropped((source.height, source.width), target, data.crop)
        items.append(Item(index, source, geometry, source.repeats * data.repeats))
    return items, _notes(items, set(full))


def fits_no_bucket(width: int, height: int, *, step: int, data: DataSection) -> bool:
    """Whether a picture of that size in pixels is smaller than the smallest bucket, step x step."""
    return not data.upscale and min(width, height) < step


def _own_size(source: ManifestItem, resolution: int, step: int, max_aspect: float) -> Size:
    height, width = source.height // step * step, source.width // step * step
    height = min(height, int(width * max_aspect) // step * step)
    width = min(width, int(height * max_aspect) // step * step)
    while height * width > resolution * resolution:
        height, width = (height - step, width) if height > width else (height, width - step)
    return height, width


def _cropped(original: Size, target: Size, crop: str) -> Geometry:
    resized = Geometry(original, (0, 0), target).resized
    top = 0 if crop == "top" else (resized[0] - target[0]) // 2
    return Geometry(original, (top, (resized[1] - target[1]) // 2), target)


def _notes(items: list[Item], full: set[Size]) -> list[str]:
    small = [
        f"{i.label} ({i.source.width}x{i.source.height})" for i in items if i.geometry.target not in full
    ]
    enlarged = [f"{i.label} ({i.source.width}x{i.source.height})" for i in items if i.geometry.scale > 1]
    cut = [f"{i.label} (keeps {i.geometry.kept:.0%})" for i in items if i.geometry.kept < 0.75]
    counts: defaultdict[Size, int] = defaultdict(int)
    for item in items:
        counts[item.geometry.target] += 1
    shapes = ", ".join(f"{width}x{height}: {n}" for (height, width), n in sorted(counts.items()))
    notes = [f"{several(len(items), 'picture')} in buckets {shapes}"]
    for these, what in (
        (small, "smaller than the training resolution and not enlarged for it"),
        (enlarged, "enlarged to their bucket, which teaches blur"),
        (cut, "cropped by more than a quarter"),
    ):
        if these:
            more = f" and {len(these) - 5} more" if len(these) > 5 else ""
            count = several(len(these), "picture is", "pictures are")
            notes.append(f"{count} {what}: {', '.join(these[:5])}{more}")
    return notes


def draw(seed: int, *place: int | str) -> float:
    """A number in [0, 1) that depends on its arguments alone: counter-based, no state to save."""
    return (draw_seed(seed, *place) >> 10) / 2**53


def draw_seed(seed: int, *place: int | str) -> int:
    """A 63-bit seed for a generator that serves one place only (BLAKE2b of the arguments)."""
    text = ":".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def batch_plan(
    items: Sequence[Item], seed: int, epoch: int, batch_size: int, *, world: int = 1
) -> list[tuple[Slot, ...]]:
    """The batches of one epoch, of all processes together; order depends on (seed, epoch) alone.

    Pictures of a batch share a bucket, also across processes. With several buckets the rest of each forms a
    smaller batch; with a single bucket the last batch is filled up from the epoch's beginning, so that all
    batches have one shape. Every process has a share of every batch: where fewer pictures than processes are
    left, some meet twice.

    Args:
        items: Pictures with their buckets.
        seed: train.seed.
        epoch: From 0.
        batch_size: Pictures per process.
        world: Processes.

    Returns:
        For each batch its slots, dealt out by `share`; every showing occurs in at least one of them.
    """
    buckets: defaultdict[Size, list[tuple[float, Slot]]] = defaultdict(list)
    for position, copy in showings(items, epoch):
        item = items[position]
        key = draw(seed, "order", epoch, item.index, copy)
        buckets[item.geometry.target].append((key, Slot(position, copy)))
    size = batch_size * world
    whole: list[tuple[float, list[Slot]]] = []
    for target in sorted(buckets):
        slots = [slot for _, slot in sorted(buckets[target])]
        if len(buckets) == 1:
            slots = _filled(slots, math.ceil(len(slots) / size) * size)
        for start in range(0, len(slots), size):
            part = slots[start : start + size]
            whole.append((draw(seed, "batch", epoch, *target, start), _filled(part, max(len(part), world))))
    return [tuple(part) for _, part in sorted(whole)]


def _filled(slots: list[Slot], count: int) -> list[Slot]:
    return [slots[i % len(slots)] for i in range(count)]


def share(count: int, rank: int, world: int) -> slice:
    """Rank's contiguous part of `count` rows; parts differ by at most one."""
    return slice(count * rank // world, count * (rank + 1) // world)


def replace_trigger(text: str, trigger: str, class_word: str = "") -> str:
    """`text` with [trigger] replaced; without a trigger word the mark goes, with the comma it leaves."""
    if TRIGGER_MARK not in text:
        return text
    if trigger:
        return text.replace(TRIGGER_MARK, _called(text, trigger, class_word))
    parts = (" ".join(part.split()) for part in text.replace(TRIGGER_MARK, "").split(","))
    return ", ".join(part for part in parts if part)


def final_caption(caption: str, trigger: str, class_word: str = "") -> str:
    """The caption as the text encoder gets it, before dropout.

    [trigger] is replaced; a caption that does not have the trigger as a word of its own gets it in front. The
    class word goes where the trigger goes, unless the caption has it already.
    """
    caption = " ".join(caption.split())
    if TRIGGER_MARK in caption:
        return replace_trigger(caption, trigger, class_word)
    if not trigger or _has_word(caption, trigger):
        return caption
    called = _called(caption, trigger, class_word)
    return f"{called}, {caption}" if caption else called


def _called(text: str, trigger: str, class_word: str) -> str:
    return f"{trigger} {class_word}" if class_word and not _has_word(text, class_word) else trigger


def _has_word(text: str, word: str) -> bool:
    return word_pattern(word).search(text) is not None


def shown_flipped(item: Item, copy: int, *, data: DataSection, seed: int, epoch: int) -> bool:
    """Whether one showing is mirrored."""
    return data.flip and draw(seed, "flip", epoch, item.index, copy) < 0.5


def check_captions(items: Sequence[Item], data: DataSection) -> None:
    """Refuse pictures without a caption when data.require_captions says so.

    Raises:
        BadInput: names the first few.
    """
    missing = [item.label for item in items if not item.source.caption.strip()]
    if missing and data.require_captions:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise BadInput(
            "captions",
            f"{len(missing)} of {several(len(items), 'picture')} without one: {', '.join(missing[:3])}{more}",
            "write them, or set data.require_captions=false",
        )
