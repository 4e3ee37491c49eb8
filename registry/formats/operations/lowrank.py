"""Weight changes of low rank: their singular values and norms, found from the factors alone.

A change is D = up down with up (out, r) and down (r, in kh kw), strength folded in. Its singular values are
those of a matrix of r x r that the Gram matrices up' up and down down' give, so that D itself, which may have
a hundred million entries, is never made. (QR of the factors gives the same, at three to ten times the cost.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.formats.factors import Additive, Factors, LohaFactors, LokrFactors, change_of, product, shape_of
from registry.formats.families import family_format
from registry.formats.header import shown
from registry.formats.internal import LoraFactors
from registry.formats.tensors import Array

Array64 = NDArray[np.float64]
Floats = TypeVar("Floats", Array, Array64)
SMALL = 512  # shorter side of a matrix whose whole SVD is cheap (0.1 s)
# Multiplications up to which OpenBLAS stays on one thread. Several wait for each other at every product of
# small factors: on a busy machine thirty times as long as the product takes.
ONE_THREAD = 1 << 18
EXTRA, ROUNDS = 16, 4  # of the randomized SVD: more columns than asked for, and power iterations
NEGLIGIBLE = 1e-6  # of the largest singular value: rounding noise of fp32
# Leaves of module paths that are convolutions wherever they occur -> kernel.
_KERNELS = {"conv1": (3, 3), "conv2": (3, 3), "conv": (3, 3), "conv_in": (3, 3), "conv_out": (3, 3),
            "conv_shortcut": (1, 1)}  # fmt: skip


class Weights(Protocol):
    """Where the weights of a base come from; `sources.BaseWeights` reads them from its files."""

    def read(self, module: str) -> Array:
        """Weight of a module, (out, in) or (out, in, kh, kw)."""
        ...


@dataclass(frozen=True)
class Change:
    """D = up down, strength folded in.

    Args:
        up: (out, r) float32.
        down: (r, in kh kw) float32.
        kernel: (kh, kw) of a convolution, () of a linear layer.
    """

    up: Array
    down: Array
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Columns of `up`: the rank is at most that."""
        return self.up.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in kh kw)."""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Array:
        """D, (out, in kh kw)."""
        return self.up @ self.down

    def times(self, weight: float) -> "Change":
        """`weight` D."""
        return Change(self.up * np.float32(weight), self.down, self.kernel)

    def lora(self, alpha: float = 0.0) -> LoraFactors:
        """The change as factors of a LoRA.

        Args:
            alpha: Strength to write; what it is more or less than the rank goes into `up`. 0 = the rank.
        """
        inputs = self.down.shape[1] // int(np.prod(self.kernel, dtype=int))
        up = self.up.reshape(*self.up.shape, *[1] * len(self.kernel))
        factors = LoraFactors(self.down.reshape(self.rank, inputs, *self.kernel), up, float(self.rank))
        return factors.with_alpha(alpha or float(self.rank))


@dataclass(frozen=True)
class Svd:
    """D = u diag(s) vt, s falling.

    Args:
        u: (out, k).
        s: (k,).
        vt: (k, in kh kw).
        energy: Sum of the squares of all singular values, those left out included.
        total: Sum of all singular values; 0 when only the largest are known.
    """

    u: Array64
    s: Array64
    vt: Array64
    energy: float
    total: float = 0.0

    def cut(self, rank: int, kernel: tuple[int, ...]) -> Change:
        """The best change of that rank (Eckart and Young 1936), its strength shared by both factors."""
        root = np.sqrt(self.s[:rank])
        up = (self.u[:, :rank] * root).astype(np.float32)
        return Change(up, (root[:, None] * self.vt[:rank]).astype(np.float32), kernel)

    def error(self, rank: int) -> float:
        """|D - cut| / |D| in the Frobenius norm; 0 for a change of zero."""
        lost = max(0.0, self.energy - float(np.square(self.s[:rank]).sum()))
        if rank >= len(self.s) and self.total:
            lost = 0.0
        return float(np.sqrt(lost / self.energy)) if self.energy else 0.0


def change_from(
    family: str, module: str, factors: LoraFactors | Factors, weights: Weights | None = None
) -> Change:
    """What the factors of any method change their weight by.

    Args:
        family: Of the adapter.
        module: Full name; says which kernel it has where the factors do not.
        factors: Of any method.
        weights: The base, for methods whose change depends on the weight (DoRA, OFT).

    Raises:
        BadInput: the method needs the base and there is none.
    """
    if isinstance(factors, LoraFactors):
        return _of_lora(factors)
    if factors.method == "norm":
        wrong = "is a norm, whose change is no matrix"
        raise BadInput(f"module {shown(module)}", wrong, "export the adapter with --convert lora first")
    if isinstance(factors, LohaFactors) and factors.t1 is None and factors.t2 is None:
        up, down = _khatri_rao(factors)
    elif isinstance(factors, LokrFactors):
        up, down = _kronecker(factors)
    elif hasattr(factors, "delta"):
        up, down = _split(cast("Additive", factors).delta())
    else:
        weight = base_weight(module, factors, weights)
        up, down = _split(change_of(factors, weight).reshape(weight.shape[0], -1))
        return Change(up, down, weight.shape[2:])
    return Change(up, down, _kernel(family, module))


def svd(change: Change) -> Svd:
    """All singular values and vectors of a change, from its factors; below 1e-7 of the first they are noise.

    With up = Q1 R1 and down' = Q2 R2, where R R' are the Gram matrices, it is that of R1' R2, r x r.
    """
    up, down = change.up.astype(np.float64), change.down.astype(np.float64)
    root_up, inverse_up = _root(_across(up, up))
    root_down, inverse_down = _root(_across(down.T, down.T))
    u, s, vt = np.linalg.svd(root_up.T @ root_down)
    short = min(change.shape)
    left, right = _times(up, inverse_up @ u), _times(down.T, inverse_down @ vt.T)
    return Svd(left[:, :short], s[:short], right[:, :short].T, float(np.square(s).sum()), float(s.sum()))


def singular_values(change: Change) -> Array64:
    """Singular values of a change, falling; those below 1e-7 of the first are noise."""
    up, down = change.up.astype(np.float64), change.down.astype(np.float64)
    root = _root(_across(up, up))[0]
    found = np.linalg.eigvalsh(root.T @ _across(down.T, down.T) @ root)[::-1]
    return np.sqrt(np.maximum(found, 0))[: min(change.shape)]


def _across(a: Floats, b: Floats) -> Floats:
    """a' b of two tall matrices, in steps that OpenBLAS does on one thread, see ONE_THREAD."""
    step = ONE_THREAD // (a.shape[1] * b.shape[1])
    if step < 8 or len(a) <= step:
        return a.T @ b
    whole = len(a) - len(a) % step
    steps = a[:whole].reshape(-1, step, a.shape[1]).transpose(0, 2, 1)
    return np.matmul(steps, b[:whole].reshape(-1, step, b.shape[1])).sum(axis=0) + a[whole:].T @ b[whole:]


def _times(tall: Array64, square: Array64) -> Array64:
    """tall @ square, likewise."""
    step = ONE_THREAD // square.size
    if step < 8 or len(tall) <= step:
        return tall @ square
    whole = len(tall) - len(tall) % step
    done = np.matmul(tall[:whole].reshape(-1, step, tall.shape[1]), square).reshape(whole, -1)
    return np.concatenate([done, tall[whole:] @ square])


def _root(gram: Array64) -> tuple[Array64, Array64]:
    """R with R R' = gram, and the inverse of R', with zeros where there is nothing."""
    squares, axes = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(squares, 0))
    there = roots > NEGLIGIBLE * 1e-2 * roots[-1]
    inverse = np.divide(1, roots, out=np.zeros_like(roots), where=there)
    return axes * (roots * there), axes * inverse


def inner(a: Change, b: Change) -> float:
    """<Da, Db>, the sum over all entries of the product: tr(Da' Db), from the factors."""
    return float(np.sum(_across(a.up, b.up) * _across(a.down.T, b.down.T), dtype=np.float64))


def dense_svd(matrix: Array, rank: int = 0) -> Svd:
    """The largest `rank` singular values and vectors of a whole matrix; all of them with 0.

    Small matrices are decomposed whole; large ones by the randomized range finder with power iterations
    (Halko, Martinsson and Tropp 2011, arXiv:0909.4061), its random numbers being the same every time.
    """
    short = min(matrix.shape)
    energy = float(np.square(matrix, dtype=np.float64).sum())
    if not rank or short <= SMALL or 4 * rank >= short:
        u, s, vt = np.linalg.svd(
            matrix.astype(np.float64 if short <= SMALL else np.float32), full_matrices=False
        )
        return Svd(u.astype(np.float64), s.astype(np.float64), vt.astype(np.float64), energy, float(s.sum()))
    random = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + EXTRA), np.float32)
    basis = np.linalg.qr(matrix @ random)[0]
    for _ in range(ROUNDS):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    u, s, vt = np.linalg.svd((basis.T @ matrix).astype(np.float64), full_matrices=False)
    return Svd((basis.astype(np.float64) @ u)[:, :rank], s[:rank], vt[:rank], energy)


def joined(changes: Sequence[Change]) -> Change:
    """The sum of changes of one module, exactly: factors side by side, ranks added up."""
    kernel = max((change.kernel for change in changes), key=len)
    up = np.concatenate([change.up for change in changes], axis=1)
    return Change(up, np.concatenate([change.down for change in changes]), kernel)


def _of_lora(factors: LoraFactors) -> Change:
    up = factors.up.reshape(factors.up.shape[0], factors.rank) * np.float32(factors.scale)
    return Change(up, factors.down.reshape(factors.rank, -1), factors.down.shape[2:])


def _khatri_rao(factors: LohaFactors) -> tuple[Array, Array]:
    """(A B) * (C D), entry by entry, is a product of rank r^2: each column of A times each of C."""
    rows, columns = factors.shape
    up = factors.w1_a[:, :, None] * factors.w2_a[:, None, :]
    down = factors.w1_b[:, None, :] * factors.w2_b[None, :, :]
    scale = np.float32(factors.alpha / factors.rank)
    return _shorter(up.reshape(rows, -1) * scale, down.reshape(-1, columns))


def _kronecker(factors: LokrFactors) -> tuple[Array, Array]:
    """(A B) (x) (C D) = (A (x) C) (B (x) D)."""
    one, two = _halves(factors)
    up = np.kron(one[0], two[0]) * np.float32(factors.scale)
    return _shorter(up, np.kron(one[1], two[1]))


def _halves(factors: LokrFactors) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Each factor of a Kronecker product as two matrices with as few columns as it needs."""
    whole = factors.w1
    first = (_present(factors.w1_a), _present(factors.w1_b)) if whole is None else _split(whole)
    if factors.w2 is not None:
        second = _split(factors.w2.reshape(factors.w2.shape[0], -1))
    elif factors.t2 is not None:
        second = _split(product(_present(factors.w2_a), _present(factors.w2_b), factors.t2))
    else:
        second = _present(factors.w2_a), _present(factors.w2_b)
    return first, second


def _present(value: Array | None) -> Array:
    assert value is not None, "checked when it was read"
    return value


def _split(matrix: Array) -> tuple[Array, Array]:
    """A whole matrix as two factors, of the rank that it has but for rounding."""
    found = dense_svd(matrix)
    rank = max(1, int((found.s > NEGLIGIBLE * found.s[0]).sum())) if len(found.s) else 1
    change = found.cut(rank, ())
    return change.up, change.down


def _shorter(up: Array, down: Array) -> tuple[Array, Array]:
    """The same product with at most as many columns as its shorter side."""
    short = min(up.shape[0], down.shape[1])
    if up.shape[1] <= short:
        return up, down
    eye = np.eye(short, dtype=np.float32)
    return (eye, up @ down) if up.shape[0] == short else (up @ down, eye)


def _kernel(family: str, module: str) -> tuple[int, ...]:
    leaf = module.rpartition(".")[2]
    if leaf in {"proj_in", "proj_out"} and ".attentions." in module and family_format(family).conv_attention:
        return 1, 1
    return _KERNELS.get(leaf, ())


def base_weight(module: str, factors: Factors, weights: Weights | None) -> Array:
    """The weight that a method's change depends on, (out, in) or (out, in, kh, kw).

    Raises:
        BadInput: there is no base, or the module has other sides there.
    """
    if weights is None:
        wrong = f"is {factors.method.upper()}, whose change depends on the base's weight"
        raise BadInput(f"module {shown(module)}", wrong, "name the base with --base")
    weight = weights.read(module)
    rows, columns = shape_of(factors)
    if (rows and rows != weight.shape[0]) or (columns and columns != weight.size // weight.shape[0]):
        sides = f"{rows or '?'} x {columns or '?'}"
        wrong = f"is {sides} in the adapter and {' x '.join(map(str, weight.shape))} in the base"
        raise BadInput(f"module {shown(module)}", wrong, "use the base it was trained on")
    return weight
