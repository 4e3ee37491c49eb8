"""Which tensors of a file are which module's, from their names alone, when all of it is plain LoRA.

Remembered by file: adapters of one trainer have the same names, and looking up 800 modules takes tens of
milliseconds, more than reading their weights. Every other file takes the long way through `load`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from registry.formats import grammar
from registry.formats.families import family_format
from registry.formats.header import Header
from registry.formats.original import Place
from registry.formats.words import word_keys

_PLAIN = {"down", "up", "alpha"}
_NORMS = {"w_norm", "b_norm"}
_REMEMBERED = 64  # layouts; each is some 100 kB


@dataclass(frozen=True, slots=True)
class PlainModule:
    """One module of a file.

    Args:
        name: As the file spells it.
        component: Of the pipeline.
        place: Its module in our names; several where the published checkpoints fuse layers.
        down: Key of its first factor.
        up: Key of its second.
        alpha: Key of its strength; "" = none.
    """

    name: str
    component: str
    place: Place
    down: str
    up: str
    alpha: str = ""

    @property
    def module(self) -> str:
        """Full name of its first, and unless the place is special only, module."""
        return f"{self.component}.{self.place.modules[0]}"


@dataclass(frozen=True)
class PlainLayout:
    """A file of plain LoRA by its names.

    Args:
        modules: All of them.
        words: Keys of new words of text encoders.
        ignored: Keys that cannot be understood.
    """

    modules: tuple[PlainModule, ...]
    words: tuple[str, ...]
    ignored: tuple[str, ...]


@lru_cache(maxsize=_REMEMBERED)
def plain_layout(family: str, keys: tuple[str, ...]) -> PlainLayout | None:
    """The layout of a file with these keys; None when anything in it is not plain LoRA, or names clash.

    Raises:
        BadInput: no such family.
    """
    names = family_format(family)
    words = tuple(word_keys(keys))
    spoken = set(words)
    groups = grammar.grouped({key: key for key in keys if key not in spoken})
    ignored = list(groups.ignored)
    modules: list[PlainModule] = []
    taken: set[str] = set()
    for name, parts in groups.modules.items():
        place = names.place_of(name) if parts.keys() - {"alpha"} else None
        if place is None:
            ignored += groups.keys[name]
            continue
        ours = {f"{place[0]}.{module}" for module in place[1].modules}
        whole = {"down", "up"} <= parts.keys() <= _PLAIN and len(groups.keys[name]) == len(parts)
        if not whole or taken & ours:
            return None
        taken |= ours
        modules.append(PlainModule(name, *place, parts["down"], parts["up"], parts.get("alpha", "")))
    return PlainLayout(tuple(modules), words, tuple(ignored)) if modules else None


def layers_in(header: Header, family: str) -> tuple[list[str], list[str]]:
    """Full names of the layers (no norms) that a file of any method changes, and keys nobody understands.

    Raises:
        BadInput: no such family.
    """
    names = family_format(family)
    spoken = set(word_keys(header.tensors))
    shapes = {key: info.shape for key, info in header.tensors.items() if key not in spoken}
    groups = grammar.grouped(shapes)
    unknown = list(groups.ignored)
    found: dict[str, None] = {}
    for name, parts in groups.modules.items():
        place = names.place_of(name) if parts.keys() - {"alpha"} else None
        if place is None:
            unknown += groups.keys[name]
        elif not _is_norm(parts):
            found.update(dict.fromkeys(f"{place[0]}.{module}" for module in place[1].modules))
    return list(found), unknown


def _is_norm(parts: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the parts are a norm's, or only a bias's, which may be one's."""
    return bool(parts.keys() & _NORMS) or len(parts.get("diff", ())) == 1 or set(parts) == {"diff_b"}
