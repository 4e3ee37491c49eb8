"""Several adapters as one: D = sum_i w_i D_i, module by module.

    concat   exactly: factors side by side, ranks added up
    svd      the best change of a given rank (Eckart and Young), from the factors alone
    ties     TIES-Merging (Yadav et al. 2023, arXiv:2306.01708), then SVD
    dare     DARE (Yu et al. 2023, arXiv:2311.03099), then SVD

TIES keeps of each w_i D_i the entries of largest magnitude (`density`, per module), elects for every entry
the sign whose sum is larger, and averages those that have it. DARE drops entries at random, keeps the share
`density`, and divides by it. Both make changes of full rank, so what SVD leaves out is stated as error.

Changes of norms and biases are vectors: they are added up (`concat`, `svd`) or go by the rules of TIES and
DARE, and are exact.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.operations.lowrank import Change, Weights, change_from, dense_svd, inner, joined, svd
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.report import ModuleResult, OperationReport, left_out
from registry.formats.operations.strength import Strength
from registry.formats.operations.vectors import as_factors, combined, is_norm, matrices_of, norms_of
from registry.formats.operations.words import united_words
from registry.formats.tensors import Array

DENSITIES = {"ties": 0.2, "dare": 0.5}  # of TIES the paper's; DARE on factors of low rank bears less dropping
METHODS = ("concat", "svd", *DENSITIES)


@dataclass(frozen=True)
class Ingredient:
    """One adapter of a merge."""

    name: str
    form: AdapterForm
    strength: Strength = field(default_factory=Strength)


@dataclass(frozen=True)
class MergeSettings:
    """How to merge.

    Args:
        method: One of METHODS.
        rule: Rank of the result; for all methods but concat. Empty = the largest rank that goes in.
        density: Share of entries that `ties` and `dare` keep; 0 = their usual one.
        seed: Of DARE.
    """

    method: str = "concat"
    rule: RankRule = field(default_factory=RankRule)
    density: float = 0.0
    seed: int = 0

    def checked(self) -> "MergeSettings":
        """These settings.

        Raises:
            BadInput: they do not go together.
        """
        if self.method not in METHODS:
            raise BadInput(f"method {shown(self.method)}", "is unknown", f"use one of {', '.join(METHODS)}")
        self.rule.checked(needed=False)
        if self.method == "concat" and self.rule != RankRule():
            raise BadInput("method concat", "adds the ranks up", "leave the rank out, or use --method svd")
        if self.density and self.method not in DENSITIES:
            raise BadInput("density", f"means nothing to {self.method}", "use it with ties or dare")
        if not 0 <= self.density <= 1:
            raise BadInput(f"density {self.density:g}", "is not a share between 0 and 1", "try 0.2")
        return self


def merge(
    parts: Sequence[Ingredient],
    settings: MergeSettings,
    weights: Weights | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[AdapterForm, OperationReport]:
    """The adapter that does alone what `parts` do together, and how close it comes.

    Args:
        parts: At least one, of one family.
        settings: How.
        weights: The base, for DoRA and OFT.
        progress: Told (modules done, modules).

    Raises:
        BadInput: families or shapes differ, a method needs the base, nothing is left.
    """
    settings.checked()
    family = one_family(parts)
    modules = list(dict.fromkeys(name for part in parts for name in matrices_of(part.form)))
    made: dict[str, LoraFactors] = {}
    results: list[ModuleResult] = []
    for number, module in enumerate(modules):
        changes = _changes(parts, family, module, weights)
        if changes:
            factors, result = _merged(module, changes, settings)
            made[module] = factors
            results.append(result)
        if progress:
            progress(number + 1, len(modules))
    norms = combined(parts, family, lambda form: norms_of(form).items(), partial(_one_vector, settings))
    biases = combined(parts, family, lambda form: form.biases.items(), partial(_one_vector, settings))
    words = united_words([(part.name, part.form.words) for part in parts])
    if not made and not words and not norms and not biases:
        raise BadInput("merge", "has nothing in it: all weights are 0", "give a weight other than 0")
    report = OperationReport(settings.method, tuple(results), tuple(_notes(parts, family)))
    return AdapterForm(family, made, as_factors(norms), words=words, biases=biases), report


def one_family(parts: Sequence[Ingredient]) -> str:
    """The family of all parts.

    Raises:
        BadInput: there are none, one is of no known family, or two differ; both are named.
    """
    if not parts:
        raise BadInput("merge", "has no adapters", "name at least one")
    for part in parts:
        if not part.form.family:
            do = "say what it is for with studio adapters set-family"
            raise BadInput(f"adapter {part.name}", "is of no known family", do)
        if part.form.family != parts[0].form.family:
            wrong = f"is for {part.form.family}, adapter {parts[0].name} for {parts[0].form.family}"
            raise BadInput(f"adapter {part.name}", wrong, "merge adapters of one family")
    return parts[0].form.family


def _changes(parts: Sequence[Ingredient], family: str, module: str, weights: Weights | None) -> list[Change]:
    """w_i D_i of those that change the module.

    Raises:
        BadInput: two are for weights of different sizes.
    """
    found: list[Change] = []
    first = ""
    for part in parts:
        factors = part.form.modules.get(module) or part.form.others.get(module)
        weight = part.strength.of(family, module) if factors is not None else 0.0
        if factors is None or weight == 0:
            continue
        try:
            change = change_from(family, module, factors, weights)
        except BadInput as error:
            raise BadInput(f"adapter {part.name}, {error.thing}", error.wrong, error.do) from error
        if found and change.shape != found[0].shape:
            sides = [" x ".join(map(str, item.shape)) for item in (found[0], change)]
            wrong = f"is {sides[0]} in adapter {first} and {sides[1]} in adapter {part.name}"
            raise BadInput(f"module {shown(module)}", wrong, "merge adapters that were trained on one base")
        first = first or part.name
        found.append(change.times(weight))
    return found


def _merged(module: str, changes: list[Change], settings: MergeSettings) -> tuple[LoraFactors, ModuleResult]:
    kernel = max((change.kernel for change in changes), key=len)
    whole = joined(changes)
    if settings.method == "concat":
        return whole.lora(), ModuleResult(
            module, whole.rank, 0.0, float(np.sqrt(max(0.0, inner(whole, whole))))
        )
    rule = settings.rule if settings.rule != RankRule() else RankRule(max(change.rank for change in changes))
    if settings.method == "svd":
        found = svd(whole)
    else:
        density = settings.density or DENSITIES[settings.method]
        combine = _ties if settings.method == "ties" else _dare
        dense = combine((change.dense() for change in changes), density, _seed(module, settings.seed))
        found = dense_svd(dense, rule.enough)
    rank = rule.choose(found)
    result = ModuleResult(module, rank, found.error(rank), float(np.sqrt(found.energy)))
    return found.cut(rank, kernel).lora(), result


def _one_vector(settings: MergeSettings, module: str, vectors: Sequence[Array]) -> Array:
    """Several adapters' changes of one norm or bias, already weighted, as one."""
    if settings.method not in DENSITIES:
        return np.asarray(np.sum(vectors, axis=0), np.float32)
    combine = _ties if settings.method == "ties" else _dare
    return combine(vectors, settings.density or DENSITIES[settings.method], _seed(module, settings.seed))


def _ties(changes: Iterable[Array], density: float, _seed: int) -> Array:
    trimmed = [_largest(change, density) for change in changes]
    elected = np.sign(np.sum(trimmed, axis=0))
    total, count = np.zeros_like(trimmed[0]), np.zeros_like(trimmed[0])
    for item in trimmed:
        agrees = (np.sign(item) == elected) & (item != 0)
        total += np.where(agrees, item, 0)
        count += agrees
    return np.divide(total, np.maximum(count, 1), dtype=np.float32)


def _largest(dense: Array, density: float) -> Array:
    """The share `density` of entries that is largest in magnitude; 0 elsewhere."""
    keep = max(1, round(density * dense.size))
    if keep >= dense.size:
        return dense
    magnitudes = np.abs(dense)
    limit = np.partition(magnitudes, dense.size - keep, axis=None)[dense.size - keep]
    return np.where(magnitudes >= limit, dense, np.float32(0))


def _dare(changes: Iterable[Array], density: float, seed: int) -> Array:
    random = np.random.default_rng(seed)
    total = np.zeros(1, np.float32)
    for change in changes:
        kept = random.random(change.shape, np.float32) < density
        total = total + np.where(kept, change / np.float32(density), np.float32(0))
    return total


def _seed(module: str, seed: int) -> int:
    """A number of its own for each module, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {module}".encode()).digest()[:8], "little")


def _notes(parts: Sequence[Ingredient], family: str) -> Iterator[str]:
    for part in parts:
        methods = sorted({factors.method for factors in part.form.others.values() if not is_norm(factors)})
        if methods:
            yield f"{part.name}: {', '.join(methods)} became LoRA"
        yield from (f"{part.name}: {note}" for note in left_out(part.form))
        for entry in part.strength.blocks:
            alone = Strength(1.0, blocks=(entry,))
            mine = [*part.form.everything, *part.form.biases]
            if entry.factor != 1 and all(alone.of(family, module) == 1 for module in mine):
                yield f"{part.name}: block weight {entry.name} is about none of its modules"
