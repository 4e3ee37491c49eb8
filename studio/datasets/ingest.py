"""Pictures into the workspace: read, decoded safely, stored by content, entered in one transaction.

One bad file never stops the rest; it is refused by name. Nothing is entered before all pictures are stored:
a crash or a refusal leaves no half data set (a blob without a row is harmless, the next ingest finds it).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from registry.errors import BadInput, NotFound, several
from registry.files import check_name
from registry.records import Dataset, Image
from studio.datasets.captions import clean_caption
from studio.datasets.decode import Decoded, Decoders, Source
from studio.datasets.listing import clean_name, reason, some
from studio.datasets.sources import AnySource, Reading, Stream, Upload, open_sources

if TYPE_CHECKING:
    from studio.workspace import Workspace

__all__ = [
    "IngestReport", "Upload", "add_images", "create_dataset", "images_of", "remove_images", "set_captions",
    "set_mask", "set_trigger",
]  # fmt: skip

Progress = Callable[[int, int], None]  # pictures done, pictures in all (0 = not known)
USE_PICTURES = "use JPEG, PNG, WebP, BMP, TIFF or AVIF pictures"
MAX_TRIGGER = 100  # characters


@dataclass(frozen=True)
class IngestReport:
    """What became of the pictures."""

    dataset: Dataset
    added: int
    duplicates: int  # pictures left out because the same pixels were there already
    refused: list[tuple[str, str]]  # file and why it was left out
    notes: list[str]
    uncaptioned: int  # of those added


@dataclass
class _Intake:
    """What has come in so far."""

    images: list[Image] = field(default_factory=list[Image])
    known: dict[str, str] = field(default_factory=dict[str, str])  # pixel hash -> name of the picture
    duplicates: list[str] = field(default_factory=list[str])  # "b.png = a.png"
    refused: list[BadInput] = field(default_factory=list[BadInput])
    notes: list[str] = field(default_factory=list[str])
    converted: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # note -> names

    def take(self, image: Image) -> None:
        """Keep a picture, once."""
        if (twin := self.known.get(image.pixel_hash)) is not None:
            self.duplicates.append(f"{image.name} = {twin}")
            return
        self.known[image.pixel_hash] = image.name
        self.images.append(image)
        if image.note:
            self.converted.setdefault(image.note, []).append(image.name)

    def report(self, dataset: Dataset) -> IngestReport:
        """Everything a person should hear."""
        notes = [f"{note}: {some(names)}" for note, names in self.converted.items()]
        if masked := sum(bool(image.mask) for image in self.images):
            notes.append(f"masks came with {masked} of {several(len(self.images), 'picture')}")
        if self.duplicates:
            notes.append(f"left out, there already: {some(self.duplicates)}")
        return IngestReport(
            dataset=dataset,
            added=len(self.images),
            duplicates=len(self.duplicates),
            refused=[(error.thing, reason(error)) for error in self.refused],
            notes=[*notes, *self.notes],
            uncaptioned=sum(not image.caption for image in self.images),
        )


def create_dataset(
    ws: "Workspace",
    name: str,
    sources: Sequence[AnySource],
    *,
    trigger: str = "",
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Make a data set from folders, zips, pictures, uploads or `hf:owner/name[:split]`.

    Args:
        ws: The workspace.
        name: Of the new data set.
        sources: Where the pictures are; captions lie beside them (see `captions`).
        trigger: Word that will call up what is learned.
        reading: What is taken from the sources.
        progress: Called after each picture.

    Raises:
        BadInput: the name is taken, or a source has no usable picture; nothing is entered then.
    """
    check_name(name)
    if ws.catalog.find(Dataset, name) is not None:
        raise BadInput(
            f"data set {name!r}", "exists already", "choose another name, or add pictures to it on its page"
        )
    trigger = _trigger(trigger)
    intake = _take_in(ws, sources, _Intake(), reading or Reading(), progress)
    labels = "; ".join(_label(source) for source in sources)
    dataset = Dataset(name=name, trigger=trigger, source=labels[:1000])
    return intake.report(ws.catalog.add_dataset(dataset, intake.images))


def add_images(
    ws: "Workspace",
    dataset: Dataset,
    sources: Sequence[AnySource],
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Add pictures to the end of a data set; those it has already are left out.

    Raises:
        BadInput: a source has no usable picture; nothing is added then.
    """
    known = {image.pixel_hash: image.name for image in images_of(ws, dataset)}
    intake = _take_in(ws, sources, _Intake(known=known), reading or Reading(), progress)
    held = images_of(ws, dataset)  # again: someone may have edited captions in the meantime
    return intake.report(ws.catalog.replace_images(dataset.id, [*held, *intake.images]))


def images_of(ws: "Workspace", dataset: Dataset) -> list[Image]:
    """The pictures of a data set, in order."""
    return ws.catalog.list(Image, dataset_id=dataset.id, order="position")


def set_captions(ws: "Workspace", dataset: Dataset, captions: Mapping[str, str]) -> Dataset:
    """Replace captions, by id of the picture.

    Raises:
        NotFound: an id is not in this data set.
    """
    images = images_of(ws, dataset)
    _require(images, captions)
    changed = [
        replace(image, caption=clean_caption(captions[image.id])) if image.id in captions else image
        for image in images
    ]
    return ws.catalog.replace_images(dataset.id, changed)


def set_mask(ws: "Workspace", dataset: Dataset, image_id: str, mask: tuple[str, bytes] | None) -> Dataset:
    """Give a picture a mask, or take its mask away.

    Args:
        ws: The workspace.
        dataset: What the picture belongs to.
        image_id: The picture.
        mask: File name and content, white counts; None = no mask.

    Raises:
        NotFound: the picture is not in this data set.
        BadInput: it is no picture, not grey, or of another shape.
    """
    images = images_of(ws, dataset)
    _require(images, [image_id])
    chosen = next(image for image in images if image.id == image_id)
    blob = ""
    if mask is not None:
        name, content = clean_name(mask[0]), mask[1]
        with Decoders(1) as decoders:
            blob = ws.blobs.put(decoders.decode_mask(content, name, (chosen.width, chosen.height)))
    changed = [replace(image, mask=blob) if image.id == image_id else image for image in images]
    return ws.catalog.replace_images(dataset.id, changed)


def set_trigger(ws: "Workspace", dataset: Dataset, trigger: str) -> Dataset:
    """Replace the trigger word."""
    return ws.catalog.update(Dataset, dataset.id, trigger=_trigger(trigger))


def remove_images(ws: "Workspace", dataset: Dataset, ids: Collection[str]) -> Dataset:
    """Take pictures out of a data set; runs that used them keep their own list.

    Raises:
        NotFound: an id is not in this data set.
        BadInput: none would remain.
    """
    images = images_of(ws, dataset)
    _require(images, ids)
    kept = [image for image in images if image.id not in ids]
    if not kept:
        raise BadInput(f"data set {dataset.name!r}", "would be empty", "remove the data set instead")
    return ws.catalog.replace_images(dataset.id, kept)


def _take_in(
    ws: "Workspace",
    sources: Sequence[AnySource],
    intake: _Intake,
    reading: Reading,
    progress: Progress | None,
) -> _Intake:
    """Decode and store all pictures of all sources into `intake`."""
    if not sources:
        raise BadInput("sources", "are missing", "name a folder, a zip, pictures or hf:owner/name")

    def store(decoded: Decoded) -> tuple[Image, BadInput | None]:
        image = Image(
            blob=ws.blobs.put(decoded.data),
            mask=ws.blobs.put(decoded.mask) if decoded.mask else "",
            pixel_hash=decoded.pixel_hash,
            name="",
            width=decoded.width,
            height=decoded.height,
            note=decoded.note,
        )
        return image, decoded.mask_error

    done, usable = 0, 0
    with ExitStack() as stack, Decoders() as decoders:
        streams = open_sources(sources, stack, reading)
        total = sum(stream.total for stream in streams) if all(stream.total for stream in streams) else 0
        for stream in streams:
            refused: list[BadInput] = []
            before = usable
            for source, result in decoders.decode_all(stream.pictures, store):
                done += 1
                if isinstance(result, BadInput):
                    refused.append(result)
                else:
                    usable += 1
                    image, mask_error = result
                    if mask_error is not None:
                        intake.refused.append(mask_error)
                    intake.take(_named(image, source))
                if progress:
                    progress(done, total)
            refused = [*refused, *stream.refused]
            if stream.whole and usable == before:
                raise _unusable(stream, refused)
            intake.refused += refused
            intake.notes += stream.notes
    if not usable:
        raise _nothing(sources, intake.refused)
    return intake


def _named(image: Image, source: Source) -> Image:
    return replace(
        image,
        name=source.name,
        caption=source.caption,
        repeats=source.repeats,
        weight=source.weight,
    )


def _unusable(stream: Stream, refused: Sequence[BadInput]) -> BadInput:
    why = f" ({refused[0].thing} {refused[0].wrong})" if refused else ""
    more = f", and {several(len(refused) - 1, 'other file')} neither" if len(refused) > 1 else ""
    return BadInput(stream.label, f"has no picture that can be used{why}{more}", USE_PICTURES)


def _nothing(sources: Sequence[AnySource], refused: Sequence[BadInput]) -> BadInput:
    if len(refused) == 1:
        return refused[0]
    why = f" ({refused[0].thing} {refused[0].wrong})" if refused else ""
    wrong = f"{'has' if len(sources) == 1 else 'have'} no picture that can be used{why}"
    return BadInput(some([_label(source) for source in sources]), wrong, USE_PICTURES)


def _label(source: AnySource) -> str:
    return clean_name(source[0] if isinstance(source, tuple) else str(source))


def _trigger(trigger: str) -> str:
    trigger = " ".join(clean_caption(trigger).split())
    if len(trigger) > MAX_TRIGGER:
        raise BadInput("trigger", f"has {len(trigger)} characters", f"use at most {MAX_TRIGGER}")
    return trigger


def _require(images: Iterable[Image], ids: Iterable[str]) -> None:
    held = {image.id for image in images}
    if missing := [identity for identity in ids if identity not in held]:
        raise NotFound(f"picture {missing[0]!r}", "is not in this data set", "read the data set again")
