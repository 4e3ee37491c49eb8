"""Where pictures come from: folders, zips, single files, uploads, hub data sets, each as a stream."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from registry.errors import BadInput
from registry.files import expand_home
from studio.datasets.captions import Captions, CaptionsFrom, folder_repeats
from studio.datasets.decode import MAX_BYTES, Source
from studio.datasets.hub import HUB, HubPictures
from studio.datasets.listing import (
    Entry,
    Listing,
    existing,
    list_files,
    list_folder,
    list_uploads,
    some,
    suffix,
)
from studio.datasets.masks import Masks
from studio.datasets.zips import is_zip, open_zip

TABLES = {".parquet", ".arrow"}  # of a Hugging Face data set


class Upload(NamedTuple):
    """A file that came through the browser."""

    name: str
    data: bytes


AnySource = Path | str | tuple[str, bytes]


@dataclass
class Stream:
    """The pictures of one source, in order. `refused` and `notes` are complete when `pictures` has ended."""

    label: str  # the source as the person named it
    pictures: Iterator[Source]
    total: int  # how many pictures; 0 = not known before the end
    whole: bool  # a folder, zip or data set: without any usable picture it is refused as such
    refused: list[BadInput] = field(default_factory=list[BadInput])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Reading:
    """What is read from a source beside pixels and captions.

    Args:
        recursive: Whether folders within folders count.
        captions_from: "file" or "folder": take what has no caption from its name.
        folder_repeats: Read repeats from kohya's folder names, "10_sks dog".
        alpha_masks: Transparency is the mask of a picture that has no other.
    """

    recursive: bool = True
    captions_from: CaptionsFrom = ""
    folder_repeats: bool = False
    alpha_masks: bool = False


def open_sources(sources: Sequence[AnySource], stack: ExitStack, reading: Reading) -> list[Stream]:
    """Open every source; `stack` closes the zips.

    Single files of one folder are one source, so that pictures find the captions given beside them; all
    uploads are one source, too.

    Args:
        sources: As the person named them.
        stack: Closes what was opened.
        reading: What is taken from them.

    Raises:
        NotFound: a path is not there.
        BadInput: a source cannot be opened.
    """
    streams: list[Stream] = []
    loose: dict[Path, list[Path]] = {}
    uploads: list[tuple[str, bytes]] = []
    for source in sources:
        if isinstance(source, tuple):
            if is_zip(source[1][:4], source[0]):
                streams.append(_listed(stack.enter_context(open_zip(source[1], source[0])), reading))
            else:
                uploads.append(source)
        elif isinstance(source, str) and source.startswith(HUB):
            streams.append(_from_hub(source, reading))
        else:
            path = _path(source)
            if path.is_dir():
                streams.append(_folder(path, reading))
            elif is_zip(_head(path), path.name):
                streams.append(_listed(stack.enter_context(open_zip(path, str(path))), reading))
            else:
                loose.setdefault(path.parent, []).append(path)
    streams += [_given(list_files(paths), {path.name for path in paths}, reading) for paths in loose.values()]
    if uploads:
        listing = list_uploads(uploads)
        streams.append(_given(listing, set(listing.entries), reading))
    return streams


def _path(source: Path | str) -> Path:
    text = str(source).strip()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        wrong, do = "is a web address", "download it first, or name a data set of the hub as hf:owner/name"
        raise BadInput(text, wrong, do)
    if not text:
        raise BadInput("source", "is empty", "name a folder, a zip, pictures or hf:owner/name")
    return existing(expand_home(text))


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise BadInput(str(path), "is not a plain file", "give a picture, a folder or a zip")
    try:
        with path.open("rb") as stream:
            return stream.read(4)
    except OSError as error:
        raise BadInput(str(path), f"cannot be read ({error.strerror})", "check its permissions") from error


def _folder(path: Path, reading: Reading) -> Stream:
    listing = list_folder(path, recursive=reading.recursive)
    if not listing.pictures() and any(suffix(name) in TABLES for name in listing.entries):
        return _from_hub(f"{HUB}{path}", reading, label=str(path))
    return _listed(listing, reading)


def _listed(listing: Listing, reading: Reading) -> Stream:
    """A folder or zip: what has the ending of a picture; other files are named in a note."""
    if others := listing.others():
        listing.notes.append(f"left out, no pictures: {some(sorted(others))}")
    return _stream(listing, listing.pictures(), reading, whole=True)


def _given(listing: Listing, wanted: set[str], reading: Reading) -> Stream:
    """Files named one by one: each is a picture unless it is a caption; the content decides."""
    chosen = {entry.name for entry in listing.pictures()} | set(listing.others())
    entries = [listing.entries[name] for name in listing.in_order(chosen & wanted)]
    return _stream(listing, entries, reading, whole=False)


def _stream(listing: Listing, entries: list[Entry], reading: Reading, *, whole: bool) -> Stream:
    masks = Masks(listing)
    entries = [entry for entry in entries if entry.name not in masks.names]

    def pictures() -> Iterator[Source]:
        captions = Captions(listing, reading.captions_from)
        in_folders: dict[str, int] = {}
        for entry in entries:
            mask = masks.of(entry.name)
            repeats, weight = captions.numbers(entry.name)
            if found := folder_repeats(entry.name):
                in_folders[PurePosixPath(entry.name).parent.name] = found
                repeats = found if reading.folder_repeats and repeats == 1 else repeats
            yield Source(
                entry.name,
                _reader(entry),
                captions.of(entry.name),
                mask=_reader(mask) if mask else None,
                mask_name=mask.name if mask else "",
                alpha=reading.alpha_masks and mask is None,
                repeats=repeats,
                weight=weight,
            )
        captions.finish()
        if in_folders:
            listing.notes.append(_folder_note(in_folders, used=reading.folder_repeats))

    return Stream(listing.label, pictures(), len(entries), whole, listing.refused, listing.notes)


def _folder_note(repeats: dict[str, int], *, used: bool) -> str:
    if used:
        told = some([f"{name} ({count} times an epoch)" for name, count in repeats.items()])
        return f"repeats taken from folder names: {told}"
    return (
        f"folder names hold repeats, which were not used: {some(list(repeats))}; "
        "add with --folder-repeats to use them"
    )


def _reader(entry: Entry) -> Callable[[], bytes]:
    return lambda: entry.read(MAX_BYTES)


def _from_hub(spec: str, reading: Reading, label: str = "") -> Stream:
    found = HubPictures(spec)
    pictures = (replace(source, alpha=reading.alpha_masks) for source in found)
    return Stream(label or spec, pictures, found.total, True, found.refused, found.notes)
