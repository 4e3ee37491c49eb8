"""What an adapter changes beside matrices: weights of norms and biases, of which sums are exact."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from registry.errors import BadInput
from registry.formats.factors import Factors
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.rows import FullFactors
from registry.formats.tensors import Array

if TYPE_CHECKING:
    from registry.formats.operations.merge import Ingredient

Vectors = dict[str, Array]  # module -> (channels,)
Combine = Callable[[str, Sequence[Array]], Array]  # module, each adapter's share -> what becomes of them


def is_norm(factors: LoraFactors | Factors) -> bool:
    """Whether it is the change of a norm's weight, which is no matrix."""
    return isinstance(factors, FullFactors) and factors.method == "norm"


def matrices_of(form: AdapterForm) -> dict[str, LoraFactors | Factors]:
    """All modules but the norms."""
    return {module: factors for module, factors in form.everything.items() if not is_norm(factors)}


def norms_of(form: AdapterForm) -> Vectors:
    """What the weights of norms change by."""
    return {
        m: f.diff.reshape(-1) for m, f in form.others.items() if isinstance(f, FullFactors) and is_norm(f)
    }


def as_factors(norms: Vectors) -> dict[str, Factors]:
    """Inverse of `norms_of`."""
    return {module: FullFactors(values, "norm") for module, values in norms.items()}


def combined(
    parts: Sequence["Ingredient"], family: str, of: Callable[[AdapterForm], Iterable[tuple[str, Array]]],
    combine: Combine,
) -> Vectors:  # fmt: skip
    """The vectors of several adapters as one set, each times its adapter's weight of that module.

    Args:
        parts: The adapters.
        family: Of all of them.
        of: What to take of an adapter: (module, vector).
        combine: Makes one of several.

    Raises:
        BadInput: two have another number of channels.
    """
    found: dict[str, list[Array]] = {}
    first: dict[str, str] = {}
    for part in parts:
        for module, values in of(part.form):
            weight = part.strength.of(family, module)
            if weight == 0:
                continue
            row = found.setdefault(module, [])
            if row and row[0].shape != values.shape:
                one, two = (
                    f"{len(v)} channels in adapter {n}"
                    for v, n in ((row[0], first[module]), (values, part.name))
                )
                wrong = f"has {one} and {two}"
                do = "merge adapters that were trained on one base"
                raise BadInput(f"norm or bias of module {shown(module)}", wrong, do)
            first.setdefault(module, part.name)
            row.append(values * values.dtype.type(weight))
    return {module: combine(module, row) for module, row in found.items()}
