"""Several linear layers as one and back, with the same weight change.

Layers that read the same input and whose outputs are stacked: W = [W1; W2; W3]. Their changes B_i A_i become
one change B A with A = [A1; A2; A3] and B = block_diag(B1, B2, B3), of rank r1 + r2 + r3.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from registry.errors import BadInput
from registry.formats.internal import LoraFactors
from registry.formats.tensors import Array


def fuse(parts: Sequence[LoraFactors | None], shares: Sequence[int], where: str) -> LoraFactors:
    """One layer for the stacked ones.

    Args:
        parts: In the order of the rows; None for a layer that has no change.
        shares: Rows of each layer in a common unit, which tells how many a missing one has.
        where: Names the layer in errors.

    Returns:
        Factors whose scale (alpha / rank) is that of the first part; exact, because alpha follows the rank.

    Raises:
        BadInput: the parts read inputs of different widths, or their rows are not in proportion.
    """
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    there = [(part, share) for part, share in zip(parts, shares, strict=True) if part is not None]
    units = {part.up.shape[0] / share for part, share in there}
    widths = {part.down.shape[1:] for part, _ in there}
    if len(units) != 1 or len(widths) != 1 or not units.copy().pop().is_integer():
        raise BadInput(where, "has parts of shapes that cannot lie side by side", "use the diffusers format")
    unit = int(units.pop())
    scale = next((part.scale for part, _ in there if part.alpha), 1.0)
    rank = sum(part.rank for part, _ in there)
    up = np.zeros((unit * sum(shares), rank), np.float32)
    row = column = 0
    for part, share in zip(parts, shares, strict=True):
        if part is not None:
            here = part.with_alpha(scale * part.rank)
            up[row : row + share * unit, column : column + part.rank] = here.up
            column += part.rank
        row += share * unit
    return LoraFactors(np.concatenate([part.down for part, _ in there]), up, scale * rank)


def unfuse(whole: LoraFactors, shares: Sequence[int], where: str) -> list[LoraFactors]:
    """The stacked layers of one, each with only the part of A that it uses, at the scale of the whole.

    A layer without any change comes back with factors of zeros. Factors that were trained as one share their
    whole A.

    Raises:
        BadInput: the rows cannot be divided that way.
    """
    if len(shares) == 1:
        return [whole]
    rows, total = whole.up.shape[0], sum(shares)
    if whole.up.ndim != 2 or whole.down.ndim != 2 or rows % total:
        wrong = f"has {rows} outputs, which is no multiple of {total}"
        raise BadInput(where, wrong, "check which base it was trained on")
    ends = [rows // total * share for share in accumulate(shares)]
    return [_part(whole, whole.up[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _part(whole: LoraFactors, up: Array) -> LoraFactors:
    used = np.flatnonzero(up.any(axis=0))
    if len(used) == 0:
        used = np.array([0])
    return LoraFactors(whole.down[used], np.ascontiguousarray(up[:, used]), whole.scale * len(used))


def swap_halves(factors: LoraFactors) -> LoraFactors:
    """(shift, scale) <-> (scale, shift): the outputs' halves exchanged, where there are just two."""
    if factors.up.shape[0] != 2 * factors.down.shape[1]:
        return factors
    first, second = np.split(factors.up, 2)
    return LoraFactors(factors.down, np.concatenate([second, first]), factors.alpha)
