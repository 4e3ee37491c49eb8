"""An adapter at another rank: for each module the best change of the rank that the rule chooses."""

from collections.abc import Callable

import numpy as np

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.operations.lowrank import Weights, change_from, svd
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.report import ModuleResult, OperationReport, left_out
from registry.formats.operations.vectors import as_factors, is_norm, matrices_of, norms_of

ALPHAS = ("rank", "scale")


def resize(
    form: AdapterForm,
    rule: RankRule,
    *,
    alpha: str = "rank",
    weights: Weights | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[AdapterForm, OperationReport]:
    """The adapter at the ranks that `rule` chooses; any method becomes LoRA, norms and biases stay.

    Args:
        form: Of any method.
        rule: See `ranks`.
        alpha: "rank": alpha = rank, the strength is in the factors. "scale": alpha / rank stays what it
            was, as kohya's script does it.
        weights: The base, for DoRA and OFT.
        progress: Told (modules done, modules).

    Raises:
        BadInput: the rule or a module cannot be used.
    """
    rule.checked()
    if alpha not in ALPHAS:
        raise BadInput(f"alpha {shown(alpha)}", "is unknown", f"use one of {', '.join(ALPHAS)}")
    matrices = matrices_of(form)
    if not matrices:
        raise BadInput("adapter", "has no weights to resize", "choose another")
    made: dict[str, LoraFactors] = {}
    results: list[ModuleResult] = []
    for number, (module, factors) in enumerate(matrices.items()):
        change = change_from(form.family, module, factors, weights)
        found = svd(change)
        rank = rule.choose(found)
        cut = found.cut(rank, change.kernel)
        kept = factors.scale if isinstance(factors, LoraFactors) and alpha == "scale" else 0.0
        made[module] = cut.lora(kept * rank)
        results.append(ModuleResult(module, rank, found.error(rank), float(np.sqrt(found.energy))))
        if progress:
            progress(number + 1, len(matrices))
    methods = sorted({f.method for f in form.others.values() if not is_norm(f)})
    notes = [f"{', '.join(methods)} became LoRA"] if methods else []
    resized = AdapterForm(form.family, made, as_factors(norms_of(form)), words=form.words, biases=form.biases)
    return resized, OperationReport("resize", tuple(results), (*notes, *left_out(form)))
