"""What a module's adapter is when it is not a plain LoRA: its factors, and the weight they make of W.

W is (out, in), or (out, in, kh, kw) read as (out, in kh kw). Every class answers `change(W)` = W' - W; those
whose change does not depend on W also answer `delta()`, as (out, in kh kw).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from registry.formats.internal import LoraFactors
from registry.formats.tensors import Array

if TYPE_CHECKING:
    from registry.formats.rows import RowsFactors


class Factors(Protocol):
    """What every method answers."""

    @property
    def method(self) -> str:
        """Name as in `inspect`."""
        ...

    @property
    def rank(self) -> int:
        """Inner dimension; 0 when the method, or this module, has none."""
        ...

    @property
    def strength(self) -> float:
        """alpha; 0 when the method has none."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in kh kw) of the weight it is for; 0 where the factors do not say."""
        ...

    def change(self, weight: Array) -> Array:
        """W' - W, shaped like `weight`."""
        ...


class Additive(Factors, Protocol):
    """A method that adds the same to every W."""

    def delta(self) -> Array:
        """(out, in kh kw)."""
        ...


@dataclass(frozen=True)
class LohaFactors:
    """alpha / r (w1_a w1_b) * (w2_a w2_b), entry by entry (Hyeon-Woo et al. 2022, "FedPara").

    Args:
        w1_a: (out, r); (r, out) with a core.
        w1_b: (r, in kh kw); (r, in) with a core.
        w2_a: As w1_a.
        w2_b: As w1_b.
        alpha: Strength.
        t1: Core (r, r, kh, kw) of the first product, or None.
        t2: Core of the second product, or None.
    """

    w1_a: Array
    w1_b: Array
    w2_a: Array
    w2_b: Array
    alpha: float
    t1: Array | None = None
    t2: Array | None = None
    method: str = "loha"

    @property
    def rank(self) -> int:
        """r."""
        return self.w1_b.shape[0]

    @property
    def strength(self) -> float:
        """alpha."""
        return self.alpha

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in kh kw)."""
        if self.t1 is None:
            return self.w1_a.shape[0], self.w1_b.shape[1]
        return self.w1_a.shape[1], self.w1_b.shape[1] * self.t1.shape[2] * self.t1.shape[3]

    def delta(self) -> Array:
        """(out, in kh kw)."""
        one = product(self.w1_a, self.w1_b, self.t1)
        return np.float32(self.alpha / self.rank) * one * product(self.w2_a, self.w2_b, self.t2)

    def change(self, weight: Array) -> Array:
        """`delta` in the shape of `weight`."""
        return self.delta().reshape(weight.shape)


@dataclass(frozen=True)
class LokrFactors:
    """alpha / r w1 (x) w2, a Kronecker product (Edalati et al. 2022, "KronA"; LyCORIS).

    Args:
        w1: (a, b), or None when it is w1_a w1_b.
        w2: (c, d) or (c, d, kh, kw), or None when it is w2_a w2_b, or their core `t2` between them.
        alpha: Strength; without meaning when both factors are whole.
        w1_a: (a, r).
        w1_b: (r, b).
        w2_a: (c, r); (r, c) with a core.
        w2_b: (r, d kh kw); (r, d) with a core.
        t2: Core (r, r, kh, kw).
        whole_scale: Strength when both factors are whole: PEFT keeps alpha / r there, all others take 1.
    """

    w1: Array | None
    w2: Array | None
    alpha: float
    w1_a: Array | None = None
    w1_b: Array | None = None
    w2_a: Array | None = None
    w2_b: Array | None = None
    t2: Array | None = None
    whole_scale: float = 1.0
    method: str = "lokr"

    @property
    def rank(self) -> int:
        """r; 0 when both factors are whole."""
        inner = self.w1_b if self.w1 is None else self.w2_b
        return 0 if inner is None else inner.shape[0]

    @property
    def strength(self) -> float:
        """alpha."""
        return self.alpha

    @property
    def scale(self) -> float:
        """alpha / r, or that of whole factors."""
        return self.alpha / self.rank if self.rank else self.whole_scale

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in kh kw)."""
        a, b = self.w1.shape if self.w1 is not None else (len(_some(self.w1_a)), _some(self.w1_b).shape[1])
        if self.w2 is not None:
            c, d = self.w2.shape[0], self.w2.size // self.w2.shape[0]
        elif self.t2 is not None:
            c, d = _some(self.w2_a).shape[1], _some(self.w2_b).shape[1] * self.t2.shape[2] * self.t2.shape[3]
        else:
            c, d = _some(self.w2_a).shape[0], _some(self.w2_b).shape[1]
        return a * c, b * d

    def delta(self) -> Array:
        """(out, in kh kw)."""
        w1 = self.w1 if self.w1 is not None else _some(self.w1_a) @ _some(self.w1_b)
        w2 = self.w2 if self.w2 is not None else product(_some(self.w2_a), _some(self.w2_b), self.t2)
        return np.float32(self.scale) * np.kron(w1, w2.reshape(w2.shape[0], -1))

    def change(self, weight: Array) -> Array:
        """`delta` in the shape of `weight`."""
        return self.delta().reshape(weight.shape)


@dataclass(frozen=True)
class DoraFactors:
    """m (W + D) / |W + D| with D of another method (Liu et al. 2024, "DoRA").

    Args:
        inner: What makes D.
        magnitude: m, flat: one for each output (norms of rows), or for each input channel, which older
            LyCORIS files have.
        per_output: Which of the two.
    """

    inner: "LoraFactors | LohaFactors | LokrFactors | RowsFactors"
    magnitude: Array
    per_output: bool = True
    method: str = "dora"

    @property
    def rank(self) -> int:
        """Of the inner method."""
        return self.inner.rank

    @property
    def strength(self) -> float:
        """alpha of the inner method."""
        return self.inner.alpha

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in kh kw)."""
        return shape_of(self.inner)

    def change(self, weight: Array) -> Array:
        """W' - W."""
        turned = (weight + self.inner.delta().reshape(weight.shape)).reshape(len(weight), -1)
        if not self.per_output:  # (out, in, kh kw), also when the weight came flat
            turned = turned.reshape(len(weight), self.magnitude.size, -1)
        axes = (1,) if self.per_output else (0, 2)
        norm = np.sqrt(np.square(turned).sum(axes, keepdims=True))
        changed = self.magnitude.reshape(norm.shape) / np.maximum(norm, 1e-12) * turned
        return changed.reshape(weight.shape) - weight


@dataclass(frozen=True)
class OftFactors:
    """W R', which turns the inputs in blocks (Qiu et al. 2023), as PEFT does it.

    Args:
        vectors: (k, b (b - 1) / 2): upper triangles of the skew-symmetric blocks Q; k = 1: one for all.
        terms: 0 = R is the Cayley transform (I - Q) (I + Q)^-1, else PEFT's series of that many terms.
        inputs: in, kh kw included; 0 = k blocks.
    """

    vectors: Array
    terms: int = 0
    inputs: int = 0
    method: str = "oft"

    @property
    def rank(self) -> int:
        """None."""
        return 0

    @property
    def strength(self) -> float:
        """None."""
        return 0.0

    @property
    def block(self) -> int:
        """b, of a block of n = b (b - 1) / 2 values."""
        return round((1 + np.sqrt(1 + 8 * self.vectors.shape[1])) / 2)

    @property
    def shape(self) -> tuple[int, int]:
        """(unknown, in kh kw)."""
        return 0, self.inputs or self.vectors.shape[0] * self.block

    def rotations(self) -> Array:
        """R by block, (k, b, b)."""
        b = self.block
        skew = np.zeros((len(self.vectors), b, b), np.float64)
        rows, columns = np.triu_indices(b, 1)
        skew[:, rows, columns] = self.vectors
        skew -= skew.transpose(0, 2, 1)
        eye = np.eye(b)
        if not self.terms:  # (I - Q) and (I + Q)^-1 commute
            return np.linalg.solve(eye + skew, eye - skew).astype(np.float32)
        total, power = np.broadcast_to(eye, skew.shape).copy(), skew
        last = max(3, self.terms - 1) if self.terms > 2 else self.terms - 1
        for term in range(1, last + 1):  # I + 2 Q + 2 Q^2 + ..., the last one counted once
            total += (1 if term == last and self.terms > 2 else 2) * power
            power = power @ skew
        return total.astype(np.float32)

    def change(self, weight: Array) -> Array:
        """W' - W."""
        turn, b = self.rotations(), self.block
        blocks = weight.reshape(weight.shape[0], -1, b)
        if len(turn) == 1:
            turn = np.broadcast_to(turn, (blocks.shape[1], b, b))
        return np.einsum("okj,kcj->okc", blocks, turn, optimize=True).reshape(weight.shape) - weight


@dataclass(frozen=True)
class OftBlocks:
    """Turns the outputs in blocks, as kohya's and LyCORIS' `oft_blocks` do: W'_k = R_k' W_k.

    R = (I + Q) (I - Q)^-1 with Q = S - S'.

    Args:
        blocks: S, (k, b, b).
        alpha: When above 0, |Q| is limited to alpha * out.
        rescale: Factor per output, flat, or None.
    """

    blocks: Array
    alpha: float = 0.0
    rescale: Array | None = None
    method: str = "oft"

    @property
    def rank(self) -> int:
        """None."""
        return 0

    @property
    def strength(self) -> float:
        """The limit."""
        return self.alpha

    @property
    def shape(self) -> tuple[int, int]:
        """(out, unknown)."""
        return self.blocks.shape[0] * self.blocks.shape[1], 0

    def limited(self) -> Array:
        """S, already within the limit."""
        norm = float(np.linalg.norm((self.blocks - self.blocks.transpose(0, 2, 1)).astype(np.float64))) + 1e-8
        limit = self.alpha * self.shape[0]
        return self.blocks * np.float32(limit / norm) if 0 < limit < norm else self.blocks

    def change(self, weight: Array) -> Array:
        """W' - W."""
        blocks = self.limited().astype(np.float64)
        skew = blocks - blocks.transpose(0, 2, 1)
        eye = np.eye(self.blocks.shape[1])
        turn = np.linalg.solve(eye - skew, eye + skew).astype(np.float32)
        parts = weight.reshape(*self.blocks.shape[:2], -1)
        turned = np.einsum("knm,kni->kmi", turn, parts, optimize=True).reshape(weight.shape)
        if self.rescale is not None:
            turned = turned * self.rescale.reshape(-1, *[1] * (weight.ndim - 1))
        return turned - weight


def merged_weight(factors: LoraFactors | Factors, weight: Array) -> Array:
    """The weight that does alone what `weight` and the adapter do together, at full strength."""
    return weight + change_of(factors, weight)


def change_of(factors: LoraFactors | Factors, weight: Array) -> Array:
    """What the adapter changes `weight` by, shaped like it."""
    change = factors.delta() if isinstance(factors, LoraFactors) else factors.change(weight)
    return change.reshape(weight.shape)


def shape_of(factors: LoraFactors | Factors) -> tuple[int, int]:
    """(out, in kh kw); 0 where the factors do not say."""
    if isinstance(factors, LoraFactors):
        return factors.up.shape[0], factors.down.size // factors.rank
    return factors.shape


def stand_in(factors: Factors) -> Array:
    """A weight on which two readings of a module can be compared when the base is not at hand."""
    rows, columns = (side or 16 for side in factors.shape)
    return np.random.default_rng(rows * columns).standard_normal((rows, columns), np.float32) / np.float32(8)


def factors_error(got: LoraFactors | Factors, wanted: Factors) -> float:
    """Frobenius norm of the difference of two weight changes on a stand-in, over that of the wanted one."""
    if shape_of(got) != wanted.shape:
        return float("inf")
    weight = stand_in(wanted)
    change = wanted.change(weight)
    difference = float(np.linalg.norm(change_of(got, weight) - change))
    size = float(np.linalg.norm(change))
    return difference / size if size else difference


def product(a: Array, b: Array, core: Array | None) -> Array:
    """a b, (rows, columns); with a core (r, r, kh, kw) its Tucker form, a (r, rows) and b (r, columns)."""
    if core is None:
        return a @ b
    made = np.einsum("ijkl,ip,jr->prkl", core, a, b, optimize=True)
    return made.reshape(made.shape[0], -1).astype(np.float32)


def _some(value: Array | None) -> Array:
    if value is None:
        raise TypeError("a factor is missing")
    return value
