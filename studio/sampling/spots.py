"""The places of a base where an adapter can act, by the names that adapter files are read into."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from registry.errors import BadInput
from registry.formats.families import TEXT_ROOT
from registry.formats.internal import component_of
from studio.sampling.layers import STEADY, Acting, Acts, AdaptedLayer, AdaptedNorm, Level
from trainers.stored import StoredLayer

if TYPE_CHECKING:
    from trainers.families.base import Family


class Spot:
    """One layer of a base.

    Args:
        parent: The module that holds it, under `attribute`.
        attribute: See `parent`.
        moving: Whether it is asked in every step; text encoders are not.
        dtype: What the base computes in.
    """

    def __init__(self, parent: nn.Module, attribute: str, *, moving: bool, dtype: torch.dtype) -> None:
        self._parent, self._attribute, self.moving = parent, attribute, moving
        layer: Any = getattr(parent, attribute)
        adapted = isinstance(layer, AdaptedLayer | AdaptedNorm)
        self.base: Any = layer.base_layer if adapted else layer
        self.acts: Acts = layer.acts if adapted else Acts()
        # To ask a rounded layer for its weight makes it whole, which takes time and memory.
        weight = self.base if isinstance(self.base, StoredLayer) else self.base.weight
        self.is_norm = len(weight.shape) == 1
        # Weights kept in 8 or 4 bits are nothing to compute in, and may have lost their shape.
        whole = weight.dtype.is_floating_point and weight.dtype.itemsize > 1
        self.dtype: torch.dtype = weight.dtype if whole else dtype
        self.shape: tuple[int, ...] = tuple(weight.shape)
        if not whole and isinstance(self.base, nn.Linear):
            self.shape = (self.base.out_features, self.base.in_features)
        self.inputs = self.shape[1:]  # (in,) or (in, kh, kw)

    def wrap(self) -> None:
        """Put the layer that adapters can act on in its place."""
        if getattr(self._parent, self._attribute) is self.base:
            kind = AdaptedNorm if self.is_norm else AdaptedLayer
            setattr(self._parent, self._attribute, kind(self.base, self.acts).train(self.base.training))

    def unwrap(self) -> None:
        """Put the plain layer back."""
        self.acts.pairs = ()
        self.acts.others.clear()
        setattr(self._parent, self._attribute, self.base)

    def level(self, own: Level) -> Level:
        """The one that counts here, of an adapter whose schedule is at `own`."""
        return own if self.moving else STEADY

    def add(self, change: Any, weight: float, level: Level) -> None:
        """Let a change act."""
        self.acts.others.append(Acting(change, weight, self.level(level)))

    def check(self, adapter: str, module: str, rows: int, columns: int) -> None:
        """Refuse what was trained for a layer of other sides.

        Args:
            adapter: Its name.
            module: Name of the layer in it.
            rows: Outputs; 0 = the factors do not say.
            columns: Inputs, times those of a kernel; 0 likewise.

        Raises:
            BadInput: both sides are named.
        """
        out, into = self.shape[0], self.inputs[0] if self.inputs else 1
        area = prod(self.inputs[1:])
        if (not rows or rows == out) and (not columns or columns == into * area):
            return
        shown = columns // area if columns % area == 0 else columns
        theirs = f"{shown or into} -> {rows or out}"
        wrong = f"does not fit this base: {module} is {theirs} in the adapter and {into} -> {out} in the base"
        raise BadInput(f"adapter {adapter}", wrong, "use the base it was trained on")


class Spots:
    """All of a base, found by name; a model that the base has exchanged is looked through anew."""

    def __init__(self, family: "Family") -> None:
        self._family = family
        self._models: dict[str, tuple[nn.Module, dict[str, Spot]]] = {}

    def find(self, module: str) -> Spot | None:
        """The place of a module; newer transformers have no `text_model.` in memory."""
        component = component_of(module)
        path = module.removeprefix(component + ".")
        spots = self._of(component)
        return spots.get(path) or spots.get(path.removeprefix(TEXT_ROOT))

    def current(self) -> bool:
        """Whether the base still has the models that were looked through."""
        return all(self._family.part(name) is model for name, (model, _) in self._models.items())

    def clear(self) -> None:
        """Every layer plain again."""
        for _, spots in self._models.values():
            for spot in spots.values():
                spot.unwrap()
        self._models.clear()

    def wrap_within(self, blocks: Sequence[nn.Module]) -> None:
        """Let adapters act on all linear layers and convolutions in these blocks of the denoiser."""
        if not blocks:
            return
        inside = {id(module) for block in blocks for module in block.modules()}
        for spot in self._of(self._family.denoiser_name).values():
            if id(spot.base) in inside and not spot.is_norm:
                spot.wrap()

    def _of(self, component: str) -> dict[str, Spot]:
        moving = component == self._family.denoiser_name
        if not moving and component not in self._family.text_encoder_names:
            return {}
        model: nn.Module = self._family.part(component)
        known = self._models.get(component)
        if known is None or known[0] is not model:
            known = self._models[component] = (model, dict(self._walk(model, moving)))
        return known[1]

    def _walk(self, model: nn.Module, moving: bool) -> Iterator[tuple[str, Spot]]:
        modules = dict(model.named_modules())
        for path, module in modules.items():
            parent, _, attribute = path.rpartition(".")
            holder = modules[parent]
            if module is model or isinstance(holder, AdaptedLayer | AdaptedNorm):
                continue
            if isinstance(module, AdaptedLayer | AdaptedNorm) or _can_be_adapted(module):
                yield path, Spot(holder, attribute, moving=moving, dtype=self._family.dtype)


def _can_be_adapted(module: Any) -> bool:
    """Linear layers, convolutions, and norms with a weight."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1
