"""Which files of a source are masks of its pictures: beside them by name, or in a folder `masks`.

For `cat/001.jpg`: `cat/001-masklabel.png` (OneTrainer), `cat/001_mask.png`, `cat/001.mask.png`,
`cat/masks/001.png` and `masks/001.png`. A file with such a name and no picture to it is a picture.
"""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from studio.datasets.listing import MASK_ENDINGS, MASK_FOLDER, Entry, Listing, natural, some


class Masks:
    """The masks of one listing."""

    def __init__(self, listing: Listing) -> None:
        self._by_picture: dict[str, Entry] = {}
        pictures = listing.pictures()
        by_stem: dict[str, list[Entry]] = {}
        for entry in pictures:
            by_stem.setdefault(_stem(entry.name), []).append(entry)
        names: set[str] = set()
        for picture in pictures:
            for stem in _stems(picture.name):
                if found := [entry for entry in by_stem.get(stem, ()) if entry is not picture]:
                    self._by_picture.setdefault(picture.name, found[0])
                    names.add(found[0].name)
        self.names = frozenset(names)
        for name in self.names:  # the mask of a mask is none
            self._by_picture.pop(name, None)
        if alone := _without_picture(pictures, self.names):
            listing.notes.append(f"masks without a picture, taken as pictures: {some(alone)}")

    def of(self, name: str) -> Entry | None:
        """The mask of the picture `name`."""
        return self._by_picture.get(name)


def _stem(name: str) -> str:
    """`name` without its last ending, in lower case."""
    return str(PurePosixPath(name).with_suffix("")).lower()


def _stems(name: str) -> Iterator[str]:
    """What the mask of a picture is called, without its ending."""
    path = PurePosixPath(_stem(name))
    yield from (f"{path}{ending}" for ending in MASK_ENDINGS)
    whole = PurePosixPath(name.lower()).name
    for folder in (path.parent / MASK_FOLDER, path.parent.parent / MASK_FOLDER):
        if folder != path.parent:
            yield str(folder / path.name)
            yield str(folder / whole)  # 001.jpg.png


def _without_picture(pictures: Iterable[Entry], masks: frozenset[str]) -> list[str]:
    """Files in a folder of masks that no picture asked for, when others in it were asked for."""
    used = {str(PurePosixPath(name).parent) for name in masks}
    alone = [
        entry.name
        for entry in pictures
        if entry.name not in masks
        and str(PurePosixPath(entry.name).parent) in used
        and PurePosixPath(entry.name).parent.name.lower() == MASK_FOLDER
    ]
    return sorted(alone, key=natural)
