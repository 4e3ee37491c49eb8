"""Which block of its model a module is in, as people who weigh blocks name them.

The names are those of the published checkpoints, short: IN00 to IN11, MID, OUT00 to OUT11 of a UNet (input,
middle and output blocks, as in kohya's and A1111's block weights), DOUBLE00, SINGLE00 (FLUX.1), JOINT00
(SD3.5), TE1.00 for layers of text encoders; REST is everything outside the blocks.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from registry.formats.families import family_format
from registry.formats.internal import component_of
from registry.formats.original import BFL, MMDIT, SGM

_HEADS = {
    "input_blocks": "IN", "middle_block": "MID", "output_blocks": "OUT", "double_blocks": "DOUBLE",
    "single_blocks": "SINGLE", "joint_blocks": "JOINT",
}  # fmt: skip
GROUPS = ("IN", "MID", "OUT", "DOUBLE", "SINGLE", "JOINT", "REST", "TE")
REST, MID, TEXT = "REST", "MID", "TE"
_GROUPS_OF = ((SGM, ("IN", MID, "OUT")), (MMDIT, ("JOINT",)), (BFL, ("DOUBLE", "SINGLE")))
_TEXT_LAYER = re.compile(r"\.(?:layers|block)\.(\d+)\.")
_LABEL = re.compile(r"(TE[123]?|[A-Z]+)\.?(\d*)")


@dataclass(frozen=True)
class Block:
    """A block by group ("IN", "TE2") and number; -1 where the group has no numbers."""

    group: str
    number: int = -1

    @property
    def label(self) -> str:
        """`IN04`, `MID`, `TE1.07`."""
        if self.number < 0:
            return self.group
        dot = "." if self.group.startswith(TEXT) else ""
        return f"{self.group}{dot}{self.number:02d}"

    @property
    def order(self) -> tuple[int, str, int]:
        """For sorting: the way that data takes through the denoiser, then the text encoders."""
        return GROUPS.index(TEXT if self.group.startswith(TEXT) else self.group), self.group, self.number


def groups_of(family: str) -> tuple[str, ...]:
    """Groups of a family's blocks in the order in which data takes them, the text encoders last."""
    original = family_format(family).original or SGM
    return (*next(groups for names, groups in _GROUPS_OF if names is original), TEXT)


@lru_cache(maxsize=16_384)  # some ten bases' modules: sampling asks again with every change of a weight
def block_of(family: str, module: str) -> Block:
    """Block of a module by its full name."""
    names = family_format(family)
    component = component_of(module)
    if component != names.denoiser:
        found = _TEXT_LAYER.search(module)
        group = f"TE{component.removeprefix('text_encoder').lstrip('_') or '1'}"
        return Block(group, int(found[1]) if found else -1)
    place = (names.original or SGM).of_module(module.removeprefix(f"{component}."))
    head, _, rest = (place.path if place else "").partition(".")
    group = _HEADS.get(head, REST)
    number = rest.partition(".")[0]
    if group in (MID, REST) or not number.isdecimal():
        return Block(group)
    return Block(group, int(number))
