"""A LoRA from a fine-tuned model and its base: for each layer the best change of low rank.

D = W tuned - W base, cut to a rank by SVD (Eckart and Young 1936). One layer is in memory at a time.
"""

from collections.abc import Callable, Collection

import numpy as np

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors, component_of
from registry.formats.operations.lowrank import dense_svd
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.report import ModuleResult, OperationReport
from registry.formats.operations.sources import BaseWeights, differing
from registry.formats.tensors import Array


def extract(
    base: BaseWeights,
    tuned: BaseWeights,
    rule: RankRule,
    *,
    components: Collection[str] = (),
    convolutions: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[AdapterForm, OperationReport]:
    """The adapter that makes `tuned` of `base`, and how close it comes.

    Args:
        base: The base.
        tuned: The fine-tuned model, of the same family.
        rule: Rank of each module. `sv_cumulative`, or a dynamic rule without a limit, needs all singular
            values: seconds for each large layer.
        components: Only these; () = all that both have.
        convolutions: Also those of 3 x 3.
        progress: Told (modules done, modules).

    Raises:
        BadInput: shapes differ, a layer is missing, or nothing differs.
    """
    rule.checked()
    wanted = [module for module in base.places if not components or component_of(module) in components]
    theirs = {component_of(module) for module in tuned.places}
    made: dict[str, LoraFactors] = {}
    results: list[ModuleResult] = []
    for number, module in enumerate(wanted):
        if progress:
            progress(number, len(wanted))
        if component_of(module) not in theirs or (not convolutions and _is_large_kernel(base.shape(module))):
            continue
        change = _difference(base, tuned, module)
        if not change.any():
            continue
        found = dense_svd(change.reshape(change.shape[0], -1), rule.enough)
        rank = rule.choose(found)
        made[module] = found.cut(rank, change.shape[2:]).lora()
        results.append(ModuleResult(module, rank, found.error(rank), float(np.sqrt(found.energy))))
    if not made:
        raise BadInput(str(tuned.path), f"has the weights of {base.path}", "give a model that was fine-tuned")
    return AdapterForm(base.family, made), OperationReport(
        "extract", tuple(results), _notes(base, tuned, theirs)
    )


def _difference(base: BaseWeights, tuned: BaseWeights, module: str) -> Array:
    if module not in tuned:
        wrong = f"has no module {shown(module)}, which its base has"
        raise BadInput(str(tuned.path), wrong, "give the base that it was trained from")
    ours, theirs = base.shape(module), tuned.shape(module)
    if np.prod(ours) != np.prod(theirs) or ours[:2] != theirs[:2]:
        sides = f"{' x '.join(map(str, theirs))}, in the base {' x '.join(map(str, ours))}"
        raise BadInput(str(tuned.path), f"has module {shown(module)} of {sides}", "give its own base")
    return tuned.read(module).reshape(ours) - base.read(module)


def _is_large_kernel(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[2] > 1


def _notes(base: BaseWeights, tuned: BaseWeights, theirs: set[str]) -> tuple[str, ...]:
    notes = [
        f"{component} is not in {tuned.path.name}"
        for component in dict.fromkeys(map(component_of, base.places))
        if component not in theirs
    ]
    types = [{place.info.dtype for place in item.places.values()} for item in (base, tuned)]
    if types[0] != types[1]:
        stored = " and ".join("/".join(sorted(item)) for item in types)
        notes.append(f"base and model are stored in {stored}: rounding looks like training")
    others = list(differing(base, tuned))
    if others:
        lost = "norms, biases and embeddings differ too, which a LoRA cannot hold"
        notes.append(f"{len(others)} {lost} (the first is {shown(others[0])})")
    if base.is_file != tuned.is_file:
        notes.append("norms and biases were not compared: one is a folder, the other a file")
    return tuple(notes)
