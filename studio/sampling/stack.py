"""Adapters on a loaded base: any number at once, each at its own strength, never merged into the base.

W' = W + sum_i weight_i (W'_i - W), with W'_i what adapter i alone makes of W; for LoRA the change is
alpha_i / r_i up_i down_i (Hu et al. 2021, arXiv:2106.09685).

The factors sit beside the weights (see `parts`) and are never merged: merging and unmerging drifts. An
adapter of weight 0 is not active at all, so it equals the base exactly. A few inactive ones stay loaded.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from registry.errors import BadInput
from registry.formats.factors import Factors, shape_of
from registry.formats.internal import AdapterForm, LoraFactors, component_of
from registry.formats.load import load_adapter
from registry.formats.peft_config import PeftConfig
from registry.formats.words import Words
from studio.sampling.parts import AdaptedLayer, addition
from trainers.new_tokens import set_words

if TYPE_CHECKING:
    from trainers.families.base import Family

KEEP = 4  # loaded adapters; each costs memory


@dataclass(frozen=True)
class AdapterUseInStack:
    """An adapter file and how strongly it acts on the denoiser and on the text encoders."""

    name: str  # as its owner knows it
    path: Path
    key: str  # of its tensors and, where these do not say it, its strength
    weight: float
    text_weight: float
    peft: PeftConfig | None = None  # what the catalog knows of its strength


@dataclass(frozen=True)
class LoadReport:
    """What of an adapter found its place in the base."""

    name: str
    matched: int  # modules
    unmatched: tuple[str, ...] = ()


class AdapterStack:
    """The adapters of one loaded base."""

    def __init__(self, family: "Family") -> None:
        self._family = family
        self._loaded: OrderedDict[str, LoadReport] = OrderedDict()
        self._words: dict[str, Words] = {}  # of the loaded adapters that have new ones
        self._known: tuple[str, ...] = ()  # slots whose words the tokenizers know now

    def use(self, wanted: Sequence[AdapterUseInStack]) -> list[LoadReport]:
        """Make exactly these adapters act, in this order.

        Raises:
            BadInput: a file cannot be read, or does not fit the base; both dimensions are named.
        """
        reports = [self._load(use) for use in wanted]
        self._drop_old({_slot(use.key) for use in wanted})
        self._speak([_slot(use.key) for use in wanted if use.weight or use.text_weight])
        for component, model in self._models().items():
            weights = {
                _slot(use.key): use.weight if component == self._family.denoiser_name else use.text_weight
                for use in wanted
            }
            _activate(model, {slot: weight for slot, weight in weights.items() if weight != 0.0})
        return reports

    def clear(self) -> None:
        """Forget all adapters; the base is as it was loaded."""
        self._speak([])
        self._drop_old(set(), keep=0)

    def _speak(self, slots: Sequence[str]) -> None:
        """Let the text encoders know the new words of these adapters; of two of one name the last counts."""
        speaking = tuple(slot for slot in slots if slot in self._words)
        if speaking == self._known:
            return
        words = {
            word: {name: torch.from_numpy(value) for name, value in rows.items()}
            for slot in speaking
            for word, rows in self._words[slot].items()
        }
        set_words(self._family, words)
        self._known = speaking

    def _models(self) -> dict[str, nn.Module]:
        return {self._family.denoiser_name: self._family.denoiser, **self._family.text_encoders}

    def _load(self, use: AdapterUseInStack) -> LoadReport:
        slot = _slot(use.key)
        if slot in self._loaded:
            self._loaded.move_to_end(slot)
            return self._loaded[slot]
        form, _, _ = load_adapter(use.path, self._family.name, use.peft)
        places, unmatched = self._places(use.name, form)
        if not places and not form.words:
            raise BadInput(
                f"adapter {use.name}", "has no module that is part of this base", "choose another base"
            )
        for (model, path), factors in places.items():
            _attach(model, path, slot, factors)
        if form.words:
            self._words[slot] = form.words
        report = LoadReport(use.name, len(places), unmatched)
        self._loaded[slot] = report
        return report

    def _places(
        self, name: str, form: AdapterForm
    ) -> tuple[dict[tuple[nn.Module, str], LoraFactors | Factors], tuple[str, ...]]:
        """Where each module of `form` goes; checked as a whole before anything is changed."""
        models = self._models()
        places: dict[tuple[nn.Module, str], LoraFactors | Factors] = {}
        unmatched: list[str] = []
        for module, factors in form.everything.items():
            component = component_of(module)
            model = models.get(component)
            path = module.removeprefix(component + ".")
            found = None if model is None else _find(model, path)
            if model is None or found is None:
                unmatched.append(module)
                continue
            _check_shape(name, module, found[1], factors)
            places[model, found[0]] = factors
        # Changes of biases are not drawn, and keys that nobody understands cannot be.
        return places, (*unmatched, *(f"{module} (bias)" for module in form.biases), *form.ignored)

    def _drop_old(self, needed: set[str], keep: int = KEEP) -> None:
        """Delete the longest unused adapters until at most `keep` are loaded, never a needed one."""
        for slot in [slot for slot in self._loaded if slot not in needed]:
            if len(self._loaded) <= keep:
                return
            for model in self._models().values():
                _detach(model, slot)
            del self._loaded[slot]
            self._words.pop(slot, None)


def _slot(key: str) -> str:
    """Name of a loaded adapter."""
    return f"a{key[:32]}"


def _find(model: nn.Module, path: str) -> tuple[str, nn.Module] | None:
    """Path and layer (without adapters around it); newer transformers have no `text_model.` in memory."""
    for candidate in (path, path.removeprefix("text_model.")):
        try:
            module = model.get_submodule(candidate)
        except AttributeError:
            continue
        base = module.base_layer if isinstance(module, AdaptedLayer) else module
        if isinstance(base, nn.Linear | nn.Conv2d):
            return candidate, base
    return None


def _check_shape(name: str, module: str, layer: Any, factors: LoraFactors | Factors) -> None:
    """Refuse what was trained for a layer of other sides."""
    out, into = layer.weight.shape[0], layer.weight.shape[1]
    area = layer.weight[0, 0].numel()
    rows, columns = shape_of(factors)
    if (not rows or rows == out) and (not columns or columns == into * area):
        return
    if isinstance(factors, LoraFactors):
        columns = factors.down.shape[1]
    elif columns % area == 0:
        columns //= area
    theirs = f"{columns or into} -> {rows or out}"
    wrong = f"does not fit this base: {module} is {theirs} in the adapter and {into} -> {out} in the base"
    raise BadInput(f"adapter {name}", wrong, "use the base it was trained on")


def _attach(model: nn.Module, path: str, slot: str, factors: LoraFactors | Factors) -> None:
    """Add one adapter to one layer, inactive."""
    layer = model.get_submodule(path)
    if not isinstance(layer, AdaptedLayer):
        layer = AdaptedLayer(layer)
        _replace(model, path, layer)
    layer.additions[slot] = addition(factors, layer.base_layer)


def _activate(model: nn.Module, weights: dict[str, float]) -> None:
    """Let exactly these adapters act, in this order, at these strengths."""
    for module in model.modules():
        if isinstance(module, AdaptedLayer):
            module.active = [(slot, weight) for slot, weight in weights.items() if slot in module.additions]


def _detach(model: nn.Module, slot: str) -> None:
    """Remove an adapter; a layer without any becomes the plain layer again."""
    for path, module in list(model.named_modules()):
        if isinstance(module, AdaptedLayer) and module.additions.pop(slot, None):
            module.active = [item for item in module.active if item[0] != slot]
            if not module.additions:
                _replace(model, path, module.base_layer)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
