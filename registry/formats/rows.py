"""Changes kept whole, and some rows of a change: what the published checkpoints' fused layers need.

A layer there may be several of ours, stacked. A LoRA is divided by `fusing`; here is what the other methods
come to, and the way back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from registry.errors import BadInput
from registry.formats.factors import (
    Additive,
    DoraFactors,
    Factors,
    LohaFactors,
    LokrFactors,
    OftBlocks,
    OftFactors,
    shape_of,
)
from registry.formats.fusing import fuse, swap_halves, unfuse
from registry.formats.header import shown
from registry.formats.internal import LoraFactors
from registry.formats.original import Place
from registry.formats.tensors import Array

Change = LoraFactors | Factors
Pieces = tuple[tuple[int, int], ...]  # [start, stop) of rows, in order


@dataclass(frozen=True)
class FullFactors:
    """The change itself, as LyCORIS' "full" and its norms have it.

    Args:
        diff: Shaped like the weight: (out, in), (out, in, kh, kw), or (channels,) of a norm.
        method: "full", or "norm" for one side.
    """

    diff: Array
    method: str = "full"

    @property
    def rank(self) -> int:
        """None."""
        return 0

    @property
    def strength(self) -> float:
        """None."""
        return 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in kh kw); (channels, 1) of a norm."""
        return len(self.diff), self.diff.size // len(self.diff)

    def delta(self) -> Array:
        """(out, in kh kw)."""
        return self.diff.reshape(self.shape)

    def change(self, weight: Array) -> Array:
        """The change in the shape of `weight`."""
        return self.diff.reshape(weight.shape)


@dataclass(frozen=True)
class RowsFactors:
    """Some rows of the change of a layer that is several of ours.

    Args:
        whole: What was trained.
        pieces: Which of its rows, in order.
    """

    whole: LohaFactors | LokrFactors
    pieces: Pieces

    @property
    def method(self) -> str:
        """Of the whole."""
        return self.whole.method

    @property
    def rank(self) -> int:
        """Of the whole."""
        return self.whole.rank

    @property
    def alpha(self) -> float:
        """Of the whole."""
        return self.whole.alpha

    @property
    def strength(self) -> float:
        """alpha of the whole."""
        return self.whole.alpha

    @property
    def shape(self) -> tuple[int, int]:
        """(rows taken, in kh kw)."""
        return sum(stop - start for start, stop in self.pieces), self.whole.shape[1]

    def delta(self) -> Array:
        """(rows taken, in kh kw)."""
        return taken(self.whole.delta(), self.pieces)

    def change(self, weight: Array) -> Array:
        """`delta` in the shape of `weight`."""
        return self.delta().reshape(weight.shape)


def divided(component: str, place: Place, factors: Change, where: str) -> dict[str, Change]:
    """Our modules, by full name, of one that a published checkpoint names.

    Raises:
        BadInput: its rows cannot be divided among them; `where` names it.
    """
    if isinstance(factors, LoraFactors):
        lora = unfuse(factors, place.shares, where)
        parts: Sequence[Change] = [swap_halves(part) for part in lora] if place.halves else lora
    elif place.special:
        rows, columns = factors.shape
        parts = [rows_of(factors, pieces, where) for pieces in _pieces(place, rows, columns, where)]
    else:
        parts = [factors]
    return {f"{component}.{module}": part for module, part in zip(place.modules, parts, strict=True)}


def divided_bias(place: Place, bias: Array, inputs: int, where: str) -> list[Array]:
    """The change of a bias, (out,), divided like the rows of its weight.

    Args:
        place: Of the layer.
        bias: What is added to the layer's bias.
        inputs: Width of the layer's input; 0 = unknown.
        where: Names the module in errors.
    """
    return (
        [taken(bias, pieces) for pieces in _pieces(place, len(bias), inputs, where)]
        if place.special
        else [bias]
    )


def united_bias(place: Place, parts: Mapping[str, Array], inputs: int) -> Array:
    """Inverse of `divided_bias`; `parts` by path, those that are not there stay unchanged."""
    if place.halves:
        (bias,) = parts.values()
        return divided_bias(place, bias, inputs, f"module {shown(place.path)}")[0]
    known = next(i for i, path in enumerate(place.modules) if path in parts)
    unit = len(parts[place.modules[known]]) // place.shares[known]
    rows = zip(place.modules, place.shares, strict=True)
    return np.concatenate([parts.get(path, np.zeros(unit * share, np.float32)) for path, share in rows])


def united(component: str, place: Place, parts: Mapping[str, Change]) -> Change:
    """Inverse of `divided`; modules that are not in `parts` stay unchanged.

    Raises:
        BadInput: the parts cannot be one layer.
    """
    row = [parts.get(f"{component}.{module}") for module in place.modules]
    where = f"module {shown(place.path)}"
    if not place.special:
        return next(part for part in row if part is not None)
    there = [part for part in row if part is not None]
    if all(isinstance(part, LoraFactors) for part in there):
        factors = fuse(
            [part for part in row if part is None or isinstance(part, LoraFactors)], place.shares, where
        )
        return swap_halves(factors) if place.halves else factors
    if place.halves and len(there) == 1:
        rows, columns = shape_of(there[0])
        return rows_of(there[0], _pieces(place, rows, columns, where)[0], where)
    return _stacked(row, there, place.shares, where)


def rows_of(factors: Change, pieces: Pieces, where: str) -> Change:
    """The rows of `pieces` of what `factors` change.

    Raises:
        BadInput: the method's rows depend on each other.
    """
    if isinstance(factors, LoraFactors):
        return LoraFactors(factors.down, taken(factors.up, pieces), factors.alpha)
    if isinstance(factors, FullFactors):
        return FullFactors(taken(factors.diff, pieces))
    if isinstance(factors, LohaFactors | LokrFactors):
        return RowsFactors(factors, pieces)
    if isinstance(factors, RowsFactors):  # halves of what was exchanged before
        rows = np.concatenate([np.arange(start, stop) for start, stop in factors.pieces])
        return RowsFactors(factors.whole, tuple((int(rows[a]), int(rows[b - 1]) + 1) for a, b in pieces))
    if isinstance(factors, OftFactors):
        return factors  # it turns inputs, which all rows have in common
    if isinstance(factors, OftBlocks):
        return _oft_rows(factors, pieces, where)
    assert isinstance(factors, DoraFactors)
    inner = rows_of(factors.inner, pieces, where)
    assert isinstance(inner, LoraFactors | LohaFactors | LokrFactors | RowsFactors)
    if factors.per_output:
        return DoraFactors(inner, taken(factors.magnitude, pieces))
    if sum(stop - start for start, stop in pieces) != factors.shape[0]:
        wrong = "has DoRA magnitudes per input over the rows of several layers"
        raise BadInput(where, wrong, "ask its author for a file with magnitudes per output")
    return DoraFactors(inner, factors.magnitude, per_output=False)


def taken(values: Array, pieces: Pieces) -> Array:
    """Rows of `values`."""
    return np.concatenate([values[start:stop] for start, stop in pieces])


def _pieces(place: Place, rows: int, columns: int, where: str) -> list[Pieces]:
    """Rows of each of the place's modules; `rows` is 0 where the factors do not say."""
    total = sum(place.shares)
    if rows % total:
        wrong = f"has {rows} outputs, which is no multiple of {total}"
        raise BadInput(where, wrong, "check which base it was trained on")
    if place.halves:
        if not columns and not place.path.startswith("final_layer"):
            raise BadInput(where, "does not say how wide its input is", "ask its author for a whole file")
        half = rows // 2
        return [((half, rows), (0, half))] if rows == 2 * columns or not columns else [((0, rows),)]
    ends = [rows // total * share for share in accumulate(place.shares)]
    return [((start, stop),) for start, stop in zip([0, *ends], ends, strict=False)]


def _oft_rows(factors: OftBlocks, pieces: Pieces, where: str) -> OftBlocks:
    block = factors.blocks.shape[1]
    if any(edge % block for piece in pieces for edge in piece):
        wrong = f"has blocks of {block} rows that lie in two layers"
        raise BadInput(where, wrong, "ask its author for a file in diffusers' names")
    of_blocks = tuple((start // block, stop // block) for start, stop in pieces)
    rescale = None if factors.rescale is None else taken(factors.rescale.reshape(-1), pieces)
    return OftBlocks(taken(factors.limited(), of_blocks), 0.0, rescale)


def _stacked(
    row: Sequence[Change | None], there: Sequence[Change], shares: Sequence[int], where: str
) -> Change:
    """Parts of several methods' layers as one."""
    if all(isinstance(part, FullFactors) for part in there):
        return _full_stack(row, shares)
    first = there[0]
    if (
        isinstance(first, RowsFactors)
        and all(isinstance(p, RowsFactors) and p.whole is first.whole for p in there)
        and len(there) == len(row)
    ):
        return first.whole
    if len(there) == len(row) and all(isinstance(part, OftBlocks) and not part.alpha for part in there):
        blocks = [part for part in there if isinstance(part, OftBlocks)]
        if len({part.blocks.shape[1] for part in blocks}) == 1 and all(
            part.rescale is None for part in blocks
        ):
            return OftBlocks(np.concatenate([part.blocks for part in blocks]))
    if len(there) == len(row) and all(isinstance(part, DoraFactors) and part.per_output for part in there):
        parts = [part for part in there if isinstance(part, DoraFactors)]
        inner = [part.inner for part in parts if isinstance(part.inner, LoraFactors)]
        if len(inner) == len(parts):
            magnitude = np.concatenate([part.magnitude for part in parts])
            return DoraFactors(fuse(inner, shares, where), magnitude)
    methods = sorted({part.method if not isinstance(part, LoraFactors) else "lora" for part in there})
    wrong = f"is one layer of {len(row)} in kohya's layout, where its {' and '.join(methods)} cannot be one"
    raise BadInput(where, wrong, "use --convert lora, or another format")


def _full_stack(row: Sequence[Change | None], shares: Sequence[int]) -> FullFactors:
    diffs = [part.diff if isinstance(part, FullFactors) else None for part in row]
    known, share = next((d, s) for d, s in zip(diffs, shares, strict=True) if d is not None)
    unit, inside = len(known) // share, known.shape[1:]
    return FullFactors(
        np.concatenate(
            [
                np.zeros((unit * share, *inside), np.float32) if diff is None else diff
                for diff, share in zip(diffs, shares, strict=True)
            ]
        )
    )


def additive(factors: Change) -> Additive | LoraFactors | None:
    """`factors` when they add the same to every W."""
    return None if isinstance(factors, DoraFactors | OftFactors | OftBlocks) else factors  # pyright: ignore[reportReturnType]
