"""Layers of a base with adapters beside them; without an active one they are what they were, to the bit.

    y = W x + b + sum_i weight_i addition_i(x, W x) + B diag(s) A x        linear layers and convolutions
    y = norm(x; W + sum_i weight_i dW_i, b + sum_i weight_i db_i)          norms

A and B hold the factors of all active LoRAs, rank beside rank, so any number of them costs what one costs
(Hu et al. 2021, arXiv:2106.09685: W' = W + alpha / r B A); s holds weight times alpha / r of each rank. What
is switched lies in `Acts`, outside of the module: setting an attribute of a module takes longer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Addition = Callable[[Tensor, Tensor], Tensor]  # (x, W x without bias) -> what is added
# A (r, in) or (r, in, kh, kw); B (out, r), both in the layer's dtype or in 16 bits that it holds exactly;
# s, fp32, (r,) or (r, 1, 1) for convolutions
Pair = tuple[Tensor, Tensor, Tensor]


@dataclass(slots=True)
class Level:
    """A factor that all layers of one adapter share: where its schedule is."""

    value: float = 1.0


STEADY = Level()  # of text encoders, which read the prompt before the first step


@dataclass(frozen=True, slots=True)
class NormChange:
    """What one adapter adds to a norm's parameters, each (channels,) or None."""

    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Acting:
    """One adapter on one layer at `weight` times `level`."""

    change: Any  # Addition | NormChange
    weight: float
    level: Level

    @property
    def strength(self) -> float:
        """As of now."""
        return self.weight * self.level.value


@dataclass(slots=True)
class Acts:
    """What acts on a layer now."""

    pairs: tuple[Pair, ...] = ()  # one, or on the CPU one for each LoRA
    others: list[Acting] = field(default_factory=list[Acting])


class _Adapted(nn.Module):
    """What both kinds share. To those who ask, it is the layer inside."""

    def __init__(self, base: nn.Module, acts: Acts) -> None:
        super().__init__()
        self.base_layer, self.acts = base, acts

    @property
    def weight(self) -> Tensor:
        """Of the base; diffusers asks some layers for their dtype."""
        return self.base_layer.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> Tensor | None:
        """Of the base."""
        return self.base_layer.bias  # pyright: ignore[reportReturnType]

    def __getattr__(self, name: str) -> Any:
        """Whatever else the base has: `in_features`, `eps`, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class AdaptedLayer(_Adapted):
    """A linear layer or convolution."""

    def __init__(self, base: nn.Module, acts: Acts) -> None:
        super().__init__(base, acts)
        self.key = torch.tensor(next(_keys))  # as a tensor, so that blocks alike are compiled once
        _layers[int(self.key)] = self

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's own output when no adapter acts."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if torch.compiler.is_compiling():
            adapt(result, x, self.key)
            return result
        return self.adapted(x, result)

    def adapted(self, x: Tensor, result: Tensor) -> Tensor:
        """The base's output `result` with what adapters add for `x`; may be `result` itself, changed."""
        acts = self.acts
        if acts.others:
            result = self._with_others(x, result, acts.others)
        for pair in acts.pairs:
            add = _add_convolved if len(pair[0].shape) == 4 else _add_projected
            result = add(x, result, pair, self.base_layer)
        return result

    def _with_others(self, x: Tensor, result: Tensor, others: list[Acting]) -> Tensor:
        bias = self.bias
        plain = result
        if bias is not None:
            plain = result - (bias.view(-1, 1, 1) if isinstance(self.base_layer, nn.Conv2d) else bias)
        for acting in others:
            strength = acting.strength
            if strength != 0:
                added = acting.change(x, plain)
                result = result + (added if strength == 1 else added * strength)
        return result


_keys = count()
_layers: WeakValueDictionary[int, AdaptedLayer] = WeakValueDictionary()


@torch.library.custom_op("studio::adapt", mutates_args={"result"})
def adapt(result: Tensor, x: Tensor, key: Tensor) -> None:
    """What adapters do, as one step that a compiler does not look into.

    Their number, ranks, methods and strengths are no part of what was compiled, so nothing is compiled anew.
    """
    added = _layers[int(key)].adapted(x, result)
    if added is not result:
        result.copy_(added)


class AdaptedNorm(_Adapted):
    """A norm of any class that multiplies by a weight (channels,), with or without a bias."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base's own output when no adapter acts."""
        acting = [(item.change, item.strength) for item in self.acts.others if item.strength != 0]
        if not acting:
            return self.base_layer(*args, **kwargs)
        values: dict[str, Any] = {"weight": self.weight, "bias": getattr(self.base_layer, "bias", None)}
        for change, strength in acting:
            for name in values:
                if (added := getattr(change, name)) is not None:
                    values[name] = values[name] + strength * added
        changed = {name: value for name, value in values.items() if value is not None}
        return torch.func.functional_call(self.base_layer, changed, args, kwargs)


def _add_projected(x: Tensor, result: Tensor, pair: Pair, _layer: Any) -> Tensor:
    """Linear layers. In place where that is safe: a copy of the output costs as much as both products."""
    down, up, scale = pair[0].to(x.dtype), pair[1].to(x.dtype), pair[2]
    low = F.linear(x, down).mul_(scale)  # in fp32, whatever x is in
    if low.dtype == result.dtype == up.dtype and result.is_contiguous() and not result.requires_grad:
        result.view(-1, result.shape[-1]).addmm_(low.view(-1, low.shape[-1]), up.t())
        return result
    return result + F.linear(low, up)


def _add_convolved(x: Tensor, result: Tensor, pair: Pair, layer: Any) -> Tensor:
    """Convolutions: the first factor has the kernel, the second is 1 x 1."""
    down, up, scale = pair[0].to(x.dtype), pair[1].to(x.dtype), pair[2]
    low = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation).mul_(scale)
    return result + F.conv2d(low, up[:, :, None, None])
