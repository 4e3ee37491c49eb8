"""What a source holds, before anything is decoded: entries by relative name, wherever they lie.

Folders, zips and uploads all become a `Listing`; captions and pictures are looked up in it alike.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from registry.errors import BadInput, NotFound, StudioError
from studio.datasets.decode import read_file, too_large

PICTURES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".avif"}
# Not read here, but meant as pictures: each is refused by name instead of overlooked.
FOREIGN = {".heic", ".heif", ".svg", ".gif", ".jxl", ".jp2", ".psd", ".ico", ".tga", ".dng", ".cr2", ".nef"}
SIDECARS = {".txt", ".caption"}
METADATA = {"metadata.jsonl", "metadata.csv"}
MASK_ENDINGS = ("-masklabel", "_mask", ".mask")  # of a file name without its suffix
MASK_FOLDER = "masks"
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Entry:
    """One file of a source; `read(limit)` returns at most `limit` bytes or raises BadInput."""

    name: str  # relative to the source, "/" between folders
    read: Callable[[int], bytes]


@dataclass
class Listing:
    """The files of one source, and what was wrong or worth saying about it."""

    label: str  # the source as the person named it
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    refused: list[BadInput] = field(default_factory=list[BadInput])
    notes: list[str] = field(default_factory=list[str])

    def add(self, entry: Entry) -> None:
        """Take one more file in."""
        self.entries[entry.name] = entry

    def refuse(self, error: BadInput) -> None:
        """Remember a file that cannot be used, and why."""
        self.refused.append(error)

    def pictures(self) -> list[Entry]:
        """What is meant as a picture, by its ending, in natural order: img2 before img10."""
        chosen = {name for name in self.entries if suffix(name) in PICTURES | FOREIGN}
        return [self.entries[name] for name in self.in_order(chosen)]

    @staticmethod
    def in_order(names: Iterable[str]) -> list[str]:
        """Names in natural order; equal ones but for case or zeros in the order of their characters."""
        return sorted(names, key=lambda name: (natural(name), name))

    def others(self) -> list[str]:
        """Names of files that are neither pictures nor captions."""
        known = PICTURES | FOREIGN | SIDECARS
        return [n for n in self.entries if suffix(n) not in known and PurePosixPath(n).name not in METADATA]


def suffix(name: str) -> str:
    """The ending of a file name in lower case, with its dot."""
    return PurePosixPath(name).suffix.lower()


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that counts digits as numbers: "img2" < "img10"; case does not matter."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return tuple((0, int(p), "") if p.isascii() and p.isdecimal() else (1, 0, p) for p in parts)


def ignored(name: str) -> bool:
    """Files that systems leave behind and nobody means: hidden ones, macOS resource forks, Thumbs.db."""
    parts = PurePosixPath(name).parts
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1:] in {
        ("Thumbs.db",),
        ("desktop.ini",),
    }


def reason(error: StudioError) -> str:
    """What is wrong and what to do, for a place where the name of the file already stands."""
    return str(error).removeprefix(f"{error.thing}: ")


def some(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def list_folder(folder: Path, *, recursive: bool = True) -> Listing:
    """Files of a folder; folders that are links are not followed, so that a loop ends."""
    listing = Listing(str(folder))
    try:
        for path in _walk(folder, recursive):
            name = path.relative_to(folder).as_posix()
            if not ignored(name):
                listing.add(_file_entry(path, name))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(str(folder), f"cannot be read ({reason})", "check its permissions") from error
    return listing


def list_files(paths: Iterable[Path]) -> Listing:
    """Single files of one folder, with the caption files that lie beside them."""
    paths = list(paths)
    folder = paths[0].parent
    listing = Listing(str(paths[0]) if len(paths) == 1 else f"{len(paths)} files of {folder}")
    for path in paths:
        for beside in (path, *_beside(path)):
            listing.add(_file_entry(beside, beside.relative_to(folder).as_posix()))
    return listing


def list_uploads(uploads: Iterable[tuple[str, bytes]]) -> Listing:
    """Files that came through the browser; only the last part of each name is used."""
    listing = Listing("upload")
    for given, data in uploads:
        name = PurePosixPath(given.replace("\\", "/")).name or "unnamed"
        if name in listing.entries:
            listing.refuse(BadInput(name, "came twice in one upload", "rename one of them"))
            continue
        listing.add(Entry(name, _held(name, data)))
    return listing


def existing(path: Path) -> Path:
    """`path`, when there is something.

    Raises:
        NotFound: there is not.
    """
    try:
        found = path.exists()
    except OSError:  # a name too long for the system
        found = False
    if not found:
        raise NotFound(str(path)[:200], "is not there", "check the path")
    return path


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if recursive and not path.is_symlink():
                yield from _walk(path, recursive)
        else:
            yield path


def _beside(path: Path) -> list[Path]:
    candidates = [path.with_suffix(s) for s in sorted(SIDECARS)] + [path.with_name(f"{path.name}.txt")]
    candidates += [path.with_name(name) for name in sorted(METADATA)]
    candidates += [path.parent / name for name in masks_beside(path.name)]
    return [candidate for candidate in candidates if candidate != path and candidate.is_file()]


def masks_beside(name: str) -> list[str]:
    """Where the mask of the file `name` may lie, as seen from its folder."""
    stem = PurePosixPath(name).stem
    return [*(f"{stem}{ending}.png" for ending in MASK_ENDINGS), f"{MASK_FOLDER}/{stem}.png"]


def _file_entry(path: Path, name: str) -> Entry:
    shown = clean_name(name)
    return Entry(shown, lambda limit: read_file(path, shown, limit))


def _held(name: str, data: bytes) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        if len(data) > limit:
            raise too_large(name, len(data), limit)
        return data

    return read


def clean_name(name: str) -> str:
    """`name` as text that can be stored and shown: no undecodable bytes, no control characters."""
    visible = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return visible.encode("utf-8", "replace").decode()
