"""How strongly an adapter takes part: a weight, one for the text encoders, and factors of blocks.

    ink:0.8                                   everything times 0.8
    ink:0.8:0.3                               text encoders times 0.3
    ink:0.8[IN04-08=0,MID=0.5,*attn2*=1.2]    0.8 times the factor of the block
    ink:0.8[1,0,0,0,1,1,1,1,1,1,1,1]          the lists of A1111's LoRA Block Weight, by their length

A name is a block (IN04), a range (IN04-08), a group (IN, MID, OUT, DOUBLE, SINGLE, JOINT, REST, TE, TE1), or
a pattern of module names with `*`; capitals do not matter. The last that fits a module counts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.operations.blocks import GROUPS, TEXT, block_of

_ALIASES = {"BASE": "TE", "M00": "MID", "DOWN": "IN", "UP": "OUT"}
_NAME = re.compile(r"(TE[123]|[A-Z]+)\.?(\d{1,3})?(?:-(TE[123]|[A-Z]+)?\.?(\d{1,3}))?")
# Length of a list of A1111's LoRA Block Weight -> what its places are (SD1.5 attention and all blocks; SDXL).
_LISTS = {
    17: "TE IN01 IN02 IN04 IN05 IN07 IN08 MID " + " ".join(f"OUT{n:02d}" for n in range(3, 12)),
    26: " ".join(["TE", *(f"IN{n:02d}" for n in range(12)), "MID", *(f"OUT{n:02d}" for n in range(12))]),
    12: "TE IN04 IN05 IN07 IN08 MID " + " ".join(f"OUT{n:02d}" for n in range(6)),
    20: " ".join(["TE", *(f"IN{n:02d}" for n in range(9)), "MID", *(f"OUT{n:02d}" for n in range(9))]),
}
MOST = 200  # entries between the brackets
_DO = "write for example ink:0.8[IN04-08=0,MID=1]; see docs/catalog.md"


@dataclass(frozen=True)
class BlockFactor:
    """One entry between the brackets: a group with numbers from `first` to `last`, or a pattern."""

    name: str  # group in capitals, or a pattern of module names in small letters
    factor: float
    first: int = -1  # -1 = the whole group
    last: int = -1

    def fits(self, module: str, group: str, number: int) -> bool:
        """Whether it is about this module, which is in that block."""
        if "*" in self.name:
            return fnmatchcase(module.lower(), self.name)
        same = group == self.name or (self.name == TEXT and group.startswith(TEXT))
        return same and (self.first < 0 or self.first <= number <= self.last)


@dataclass(frozen=True)
class Strength:
    """How strongly one adapter takes part.

    Args:
        weight: Of the denoiser.
        text: Of the text encoders; None = as `weight`.
        blocks: Factors of blocks, the last that fits counts.
    """

    weight: float = 1.0
    text: float | None = None
    blocks: tuple[BlockFactor, ...] = ()

    def of(self, family: str, module: str) -> float:
        """Weight of one module."""
        group = block_of(family, module).group
        weight = self.weight if self.text is None or not group.startswith(TEXT) else self.text
        return weight * self.factor(family, module)

    def factor(self, family: str, module: str) -> float:
        """Factor of the block of one module."""
        block = block_of(family, module)
        fitting = [entry.factor for entry in self.blocks if entry.fits(module, block.group, block.number)]
        return fitting[-1] if fitting else 1.0


def make_strength(weight: float = 1.0, text: float | None = None, blocks: str = "") -> Strength:
    """A checked strength.

    Raises:
        BadInput: a number is not finite, or `blocks` (what stands in the brackets) is not in the grammar.
    """
    for number in (weight, *([] if text is None else [text])):
        if not np.isfinite(number) or abs(number) > 100:
            raise BadInput(f"weight {number:g}", "is not between -100 and 100", "usual are 0 to 1.5")
    return Strength(weight, text, tuple(_entry(*item) for item in block_factors(blocks).items()))


def strength_of_blocks(blocks: Mapping[str, float]) -> Strength:
    """Strength 1 with the given factors of blocks, in their order.

    Raises:
        BadInput: a name is not in the grammar, or a factor is not finite.
    """
    return make_strength(blocks=",".join(f"{name}={factor!r}" for name, factor in blocks.items()))


def split_blocks(text: str) -> tuple[str, str]:
    """`ink:0.8[MID=0]` -> ("ink:0.8", "MID=0")."""
    head, bracket, inner = text.rpartition("[")
    if not bracket or not text.endswith("]"):
        return text, ""
    return head, inner[:-1]


def block_factors(text: str) -> dict[str, float]:
    """What stands in the brackets as name -> factor, in order; A1111's lists under the names of their places.

    Raises:
        BadInput: it is not in the grammar, or a factor is not finite.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(parts) > MOST:
        raise BadInput("block weights", f"have {len(parts)} entries, the limit is {MOST}", _DO)
    if parts and not any("=" in part for part in parts):
        if len(parts) not in _LISTS:
            lengths = ", ".join(map(str, sorted(_LISTS)))
            wrong = f"are a list of {len(parts)}, known are lists of {lengths}"
            raise BadInput("block weights", wrong, "name the blocks: IN04=0.5")
        parts = [f"{name}={value}" for name, value in zip(_LISTS[len(parts)].split(), parts, strict=True)]
    found: dict[str, float] = {}
    for part in parts:
        name, _, value = part.partition("=")
        try:
            factor = float(value)
        except ValueError:
            factor = float("nan")
        if not np.isfinite(factor) or abs(factor) > 100:
            raise BadInput(f"block weight {shown(part)}", "is not NAME=FACTOR", _DO)
        _entry(name.strip(), factor)
        found.pop(name.strip(), None)  # the last one counts, so it comes last
        found[name.strip()] = factor
    return found


def _entry(name: str, factor: float) -> BlockFactor:
    if "*" in name:
        return BlockFactor(name.lower(), factor)
    found = _NAME.fullmatch(_ALIASES.get(name.upper(), name.upper()))
    group = _ALIASES.get(found[1], found[1]) if found else ""
    known = group in GROUPS or group in {"TE1", "TE2", "TE3"}
    if not found or not known or (found[3] and _ALIASES.get(found[3], found[3]) != group):
        raise BadInput(f"block {shown(name)}", "is no block, range, group or pattern with *", _DO)
    if group == TEXT and found[2] is not None:
        raise BadInput(f"block {shown(name)}", "is a layer of no text encoder", "write TE1.05 or TE2.05")
    if found[2] is None:
        if found[4] is not None:
            raise BadInput(f"block {shown(name)}", "is a range without its start", _DO)
        return BlockFactor(group, factor)
    first = int(found[2])
    last = int(found[4]) if found[4] is not None else first
    if last < first:
        raise BadInput(f"block {shown(name)}", "is a range that ends before it starts", _DO)
    return BlockFactor(group, factor, first, last)
