"""A data set's pixels, looked at: each picture once, by the hash of its pixels, then all of them together.

    cache/measures/ab/abcd...-1      what one picture measures (`measures`)
    cache/examined/<key>.json        `Examined`: what a set of pictures has in it

A second look is read from there; a new picture costs itself and the comparison. Nothing of this runs in a
page: the worker does it (`examining`), or the command line, and pages read what is there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import Damaged, StudioError
from registry.files import read_json, write_json
from registry.hashing import hash_json
from registry.records import Image

if TYPE_CHECKING:
    from studio.workspace import Workspace

VERSION = 3  # of what is made of the measures
FEW = 24  # pictures that are measured in this process: children take a moment to start
Progress = Callable[[int, int], None]  # pictures done, of how many


@dataclass(frozen=True)
class Examined:
    """What the pixels of a set say. Pictures are named by their pixel hash."""

    edges: dict[str, float] = field(default_factory=dict[str, float])  # width in pixels; 0 = cannot be told
    ringing: dict[str, float] = field(default_factory=dict[str, float])
    repeats: dict[str, float] = field(default_factory=dict[str, float])
    places: dict[str, float] = field(default_factory=dict[str, float])
    breaks: dict[str, float] = field(default_factory=dict[str, float])
    bars: dict[str, list[float]] = field(default_factory=dict[str, list[float]])  # of those that have some
    colours: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    copies: list[list[str]] = field(default_factory=list[list[str]])  # pairs
    marks: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # corner -> pictures
    unreadable: list[str] = field(default_factory=list[str])


def known(ws: "Workspace", images: Iterable[Image]) -> Examined | None:
    """What an earlier look found in exactly these pictures; None = nobody has looked. Cheap."""
    path = _result(ws, {image.pixel_hash for image in images})
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, Damaged, TypeError):
        return None


def examine(ws: "Workspace", images: Sequence[Image], progress: Progress | None = None) -> Examined:
    """Look at the pictures that nobody has looked at, and at the set as a whole.

    Raises:
        StudioError: the disk is full.
    """
    if (before := known(ws, images)) is not None:
        return before
    blobs = {image.pixel_hash: ws.blobs.path(image.blob) for image in images}
    new = {name: path for name, path in blobs.items() if not _place(ws, name).exists()}
    unreadable: set[str] = set()
    for done, (name, problem) in enumerate(_measured(ws, new), len(blobs) - len(new) + 1):
        if problem:
            unreadable.add(name)
        if progress:
            progress(done, len(blobs))
    found = _together(ws, sorted(blobs.keys() - unreadable), sorted(unreadable))
    with suppress(StudioError):  # a memory aid; a full disk is complained of elsewhere
        write_json(_result(ws, set(blobs)), asdict(found), durable=False)
    return found


def _measured(ws: "Workspace", new: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(pixel hash, what is wrong) of each as it is done."""
    from studio.datasets.measuring import measure_all, measure_into

    files = {name: (path, _place(ws, name)) for name, path in new.items()}
    if len(files) > FEW:
        yield from measure_all(files)
    else:
        yield from ((name, measure_into(*places)) for name, places in files.items())


def _together(ws: "Workspace", names: Sequence[str], unreadable: list[str]) -> Examined:
    from studio.datasets.alike import copies
    from studio.datasets.colours import colours_of
    from studio.datasets.marks import repeated_marks
    from studio.datasets.measures import Measures

    pictures: list[Measures] = []
    there: list[str] = []
    for name in names:
        with suppress(OSError, ValueError):
            pictures.append(Measures.of(_place(ws, name).read_bytes()))
            there.append(name)
    pairs = copies(pictures)
    again = {j for _, j in pairs}
    single = [k for k in range(len(pictures)) if k not in again]
    marks = repeated_marks([pictures[k] for k in single])
    return Examined(
        edges={name: picture.edge for name, picture in zip(there, pictures, strict=True)},
        ringing={name: picture.ringing for name, picture in zip(there, pictures, strict=True)},
        repeats={name: picture.repeats for name, picture in zip(there, pictures, strict=True)},
        places={name: picture.places for name, picture in zip(there, pictures, strict=True)},
        breaks={name: picture.breaks for name, picture in zip(there, pictures, strict=True)},
        bars={n: list(p.bars) for n, p in zip(there, pictures, strict=True) if any(p.bars)},
        colours=dict(zip(there, colours_of(pictures), strict=True)),
        copies=[[there[i], there[j]] for i, j in pairs],
        marks={corner: [there[single[k]] for k in having] for corner, having in marks.items()},
        unreadable=unreadable,
    )


def _place(ws: "Workspace", pixel_hash: str) -> Path:
    from studio.datasets.measures import VERSION as MEASURED

    return ws.home / "cache" / "measures" / pixel_hash[:2] / f"{pixel_hash}-{MEASURED}"


def _result(ws: "Workspace", hashes: set[str]) -> Path:
    key = hash_json([VERSION, sorted(hashes)])
    return ws.home / "cache" / "examined" / f"{key[:32]}.json"


@lru_cache(maxsize=16)
def _read(path: Path, _changed: int) -> Examined:
    value: Any = read_json(path)
    return Examined(**value)
