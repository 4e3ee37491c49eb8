"""Methods that a layout cannot carry, made into plain LoRA by singular value decomposition.

For each module the best change of low rank (Eckart and Young 1936) of what its method changes; the error is
the Frobenius norm of what is lost over that of the change, and is stated, never assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from registry.errors import BadInput
from registry.formats.factors import Factors, LohaFactors, LokrFactors, change_of
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.operations.lowrank import Svd, Weights, base_weight, change_from, dense_svd, svd
from registry.formats.operations.report import ModuleResult, OperationReport
from registry.formats.rows import FullFactors, RowsFactors

DEFAULT_ERROR = 0.01
MAX_RANK = 4096


@dataclass(frozen=True)
class ToLora:
    """How other methods become LoRA.

    Args:
        rank: The most that a module may have; 0 = as many as `max_error` needs.
        max_error: Relative error of a module's change that is allowed; 0 = whatever the rank costs. With
            neither, 1 %.
        weights: The base, for methods whose change depends on the weight (DoRA, OFT).
    """

    rank: int = 0
    max_error: float = 0.0
    weights: Weights | None = None

    def checked(self) -> "ToLora":
        """These settings, with the error that is meant.

        Raises:
            BadInput: a number is out of range.
        """
        if not 0 <= self.rank <= MAX_RANK:
            raise BadInput(f"rank {self.rank}", f"is not between 1 and {MAX_RANK}", "choose another")
        if not 0 <= self.max_error < 1:
            raise BadInput(
                f"max-error {self.max_error:g}", "is not between 0 and 1", "try 0.01, which is 1 %"
            )
        default = 0.0 if self.rank or self.max_error else DEFAULT_ERROR
        return ToLora(self.rank, self.max_error or default, self.weights)


def converted(form: AdapterForm, settings: ToLora) -> tuple[AdapterForm, OperationReport]:
    """`form` with LoRA in every module, and what that costs; modules of LoRA stay as they are.

    Norms and biases have no LoRA and are left out; the report's notes name them.

    Raises:
        BadInput: a method needs the base, a module needs a higher rank, or nothing would be left.
    """
    settings = settings.checked()
    made: dict[str, LoraFactors] = dict(form.modules)
    results: list[ModuleResult] = []
    for module, factors in form.others.items():
        if factors.method == "norm":
            continue
        found, kernel = _decomposed(form.family, module, factors, settings)
        rank = _rank(module, found, settings)
        made[module] = found.cut(rank, kernel).lora()
        results.append(ModuleResult(module, rank, found.error(rank), float(np.sqrt(found.energy))))
    if not made:
        raise BadInput("adapter", "changes nothing but norms and biases", "use --format kohya")
    report = OperationReport("convert", tuple(results), _notes(form, results))
    return AdapterForm(form.family, made, words=form.words, ignored=form.ignored), report


def _decomposed(family: str, module: str, factors: Factors, settings: ToLora) -> tuple[Svd, tuple[int, ...]]:
    """Singular values and vectors of a module's change, and its kernel."""
    enough = 0 if settings.max_error else settings.rank
    if isinstance(factors, FullFactors):
        return dense_svd(factors.delta(), enough), factors.diff.shape[2:]
    if isinstance(factors, RowsFactors):  # of a fused layer, which is linear
        return dense_svd(factors.delta(), enough), ()
    if isinstance(factors, LohaFactors | LokrFactors):
        change = change_from(family, module, factors)
        return svd(change), change.kernel
    weight = base_weight(module, factors, settings.weights)
    change = change_of(factors, weight)
    return dense_svd(change.reshape(len(change), -1), enough), weight.shape[2:]


def _rank(module: str, found: Svd, settings: ToLora) -> int:
    known = max(1, len(found.s))
    if not settings.max_error:
        return min(settings.rank, known)
    most = min(settings.rank or known, known)
    rank = next((rank for rank in range(1, most + 1) if found.error(rank) <= settings.max_error), 0)
    if not rank:
        wrong = f"would lose {found.error(most):.1%} at rank {most}, more than {settings.max_error:.1%}"
        raise BadInput(f"module {shown(module)}", wrong, "give a higher --rank or --max-error")
    return rank


def _notes(form: AdapterForm, results: Sequence[ModuleResult]) -> tuple[str, ...]:
    notes: list[str] = []
    if results:
        report = OperationReport("convert", tuple(results))
        methods = ", ".join(sorted({f.method for f in form.others.values() if f.method != "norm"}))
        ranks = sorted(report.ranks)
        span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        off = f"off by {report.total_error:.1e} in all, {report.worst.error:.1e} in {report.worst.module}"
        notes.append(f"{len(results)} modules of {methods} became LoRA of {span}: {off}")
    norms = [module for module, factors in form.others.items() if factors.method == "norm"]
    if norms:
        notes.append(f"{len(norms)} norms are left out, which have no LoRA: {_some(norms)}")
    if form.biases:
        notes.append(f"changes of {len(form.biases)} biases are left out: {_some(list(form.biases))}")
    return tuple(notes)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
