"""What an adapter does where: size and rank of its change by module and block, and what adapters share.

norm        Frobenius norm of the change, |D|
spectral    its largest singular value
effective   exp of the entropy of s / sum(s) (Roy and Vetterli 2007): how many directions count
rank95      how many singular values hold 95 % of |D|^2
share       |D|^2 of a block over that of the whole adapter
similarity  <Da, Db> / (|Da| |Db|), -1 to 1, from traces of products of the factors
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from registry.formats.factors import Factors
from registry.formats.internal import AdapterForm, LoraFactors, component_of
from registry.formats.operations.blocks import Block, block_of
from registry.formats.operations.lowrank import (
    Array64,
    Change,
    Weights,
    change_from,
    inner,
    singular_values,
)
from registry.formats.operations.vectors import matrices_of, norms_of

ENERGY = 0.95
DEAD = 1e-8  # norm below which a module does nothing
CONCENTRATED = 0.8  # share of one block
HUGE = 50.0  # spectral norm; a trained one is 0.1 to 5
TEXT_HEAVY = 0.5  # share of the text encoders


@dataclass(frozen=True)
class ModuleFacts:
    """One module."""

    module: str
    component: str
    block: str
    method: str
    rank: int
    norm: float
    spectral: float
    effective: float
    rank95: int

    @property
    def dead(self) -> bool:
        """Whether it changes nothing."""
        return self.norm < DEAD


@dataclass(frozen=True)
class BlockFacts:
    """All modules of one block together."""

    block: str
    component: str
    modules: int
    dead: int
    norm: float
    share: float
    spectral: float  # largest of its modules
    effective: float  # mean over its living modules


@dataclass(frozen=True)
class XRay:
    """An adapter seen through; blocks are in the order in which data takes them."""

    family: str
    modules: tuple[ModuleFacts, ...]
    blocks: tuple[BlockFacts, ...]
    norm: float
    components: dict[str, float]  # component -> share
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return {
            "family": self.family,
            "norm": self.norm,
            "components": self.components,
            "dead": sum(item.dead for item in self.modules),
            "warnings": list(self.warnings),
            "blocks": [vars(item) for item in self.blocks],
            "modules": [vars(item) | {"dead": item.dead} for item in self.modules],
        }


@dataclass(frozen=True)
class Similarity:
    """How alike two adapters are."""

    overall: float
    shared: int  # modules that both change
    blocks: dict[str, float]
    modules: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return dict(vars(self))


Changes = dict[str, Change]


def changes_of(form: AdapterForm, weights: Weights | None = None) -> Changes:
    """The change of every module but norms, which are no matrices.

    Raises:
        BadInput: a method needs the base.
    """
    return {
        module: change_from(form.family, module, factors, weights)
        for module, factors in matrices_of(form).items()
    }


def xray(form: AdapterForm, changes: Changes) -> XRay:
    """Look through an adapter.

    Args:
        form: The adapter.
        changes: `changes_of` it.
    """
    places = {module: block_of(form.family, module) for module in changes}
    everything = form.everything
    facts = [
        _module(everything[module], module, change, places[module]) for module, change in changes.items()
    ]
    energy = sum(item.norm**2 for item in facts)
    order = sorted(dict.fromkeys(places.values()), key=lambda block: block.order)
    grouped: dict[str, list[ModuleFacts]] = {block.label: [] for block in order}
    components: dict[str, float] = dict.fromkeys(form.components, 0.0)
    for item in facts:
        grouped[item.block].append(item)
        components[item.component] += item.norm**2 / energy if energy else 0.0
    blocks = tuple(_block(label, items, energy) for label, items in grouped.items())
    found = XRay(form.family, tuple(facts), blocks, float(np.sqrt(energy)), components, ())
    return replace(found, warnings=tuple(_warnings(found, form)))


def similarity(family: str, a: Changes, b: Changes) -> Similarity:
    """How alike the changes of two adapters of one family are; modules of other sizes count as not shared."""
    squares = [{name: inner(c, c) for name, c in item.items()} for item in (a, b)]
    products = {
        name: inner(change, b[name])
        for name, change in a.items()
        if name in b and b[name].shape == change.shape
    }
    by_block: dict[str, list[str]] = {}
    for name in sorted(products, key=lambda name: block_of(family, name).order):
        by_block.setdefault(block_of(family, name).label, []).append(name)
    return Similarity(
        _cosine(sum(products.values()), sum(squares[0].values()), sum(squares[1].values())),
        len(products),
        {
            label: _cosine(*(sum(table[name] for name in names) for table in (products, *squares)))
            for label, names in by_block.items()
        },
        {name: _cosine(value, squares[0][name], squares[1][name]) for name, value in products.items()},
    )


def _cosine(product: float, a: float, b: float) -> float:
    return max(-1.0, min(1.0, product / math.sqrt(a * b))) if a > 0 and b > 0 else 0.0


def _module(factors: LoraFactors | Factors, module: str, change: Change, block: Block) -> ModuleFacts:
    values = singular_values(change)
    norm = float(np.sqrt(np.square(values).sum()))
    return ModuleFacts(
        module=module,
        component=component_of(module),
        block=block.label,
        method=getattr(factors, "method", "lora"),
        rank=factors.rank,
        norm=norm,
        spectral=float(values[0]) if len(values) else 0.0,
        effective=_effective(values),
        rank95=_rank_of_energy(values),
    )


def _effective(values: Array64) -> float:
    total = float(values.sum())
    if not total:
        return 0.0
    share = values[values > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _rank_of_energy(values: Array64) -> int:
    energy = np.cumsum(np.square(values))
    whole = float(energy[-1]) if len(energy) else 0.0
    return int(np.searchsorted(energy, ENERGY * whole)) + 1 if whole else 0


def _block(label: str, items: Sequence[ModuleFacts], energy: float) -> BlockFacts:
    own = sum(item.norm**2 for item in items)
    living = [item.effective for item in items if not item.dead]
    return BlockFacts(
        block=label,
        component=items[0].component,
        modules=len(items),
        dead=sum(item.dead for item in items),
        norm=float(np.sqrt(own)),
        share=own / energy if energy else 0.0,
        spectral=max(item.spectral for item in items),
        effective=float(np.mean(living)) if living else 0.0,
    )


def _vectors(form: AdapterForm) -> Iterable[tuple[str, Collection[str]]]:
    return ("norms", norms_of(form)), ("biases", form.biases)


def _warnings(found: XRay, form: AdapterForm) -> list[str]:
    """What a person should know, in plain words."""
    lines: list[str] = []
    dead = [item for item in found.modules if item.dead]
    if dead and len(dead) == len(found.modules):
        return ["it changes nothing: all its weights are zero"]
    if dead:
        some = f"{len(dead)} of {len(found.modules)} modules change nothing (dead)"
        lines.append(f"{some}, the first is {dead[0].module}")
    top = max(found.blocks, key=lambda item: item.share, default=None)
    if top and len(found.blocks) > 1 and top.share > CONCENTRATED:
        lines.append(f"{top.share:.0%} of the change is in block {top.block} alone")
    large = [item for item in found.modules if item.spectral > HUGE]
    if large:
        worst = max(large, key=lambda item: item.spectral)
        lines.append(
            f"{len(large)} modules have a very large change (up to {worst.spectral:.0f} in {worst.module}): "
            "use a low weight, or an earlier checkpoint"
        )
    text = sum(share for name, share in found.components.items() if name.startswith("text"))
    if text > TEXT_HEAVY:
        lines.append(f"{text:.0%} of the change is in the text encoders: prompts will mean other things")
    elif text > 0:
        lines.append("it changes the text encoders, too, whose weight can be set apart")
    thin = [item for item in found.modules if item.rank > 8 and 0 < item.rank95 <= item.rank / 8]
    if len(thin) > len(found.modules) / 2:
        lines.append("most modules use an eighth of their rank or less: resizing it would lose little")
    if beside := [f"{len(found)} {name}" for name, found in _vectors(form) if found]:
        lines.append(f"it changes {' and '.join(beside)}, too, which are not among the figures")
    if form.words:
        lines.append(f"it brings new words: {', '.join(form.words)}")
    return lines
