"""One adapter on one layer, as what it adds to the layer's output; and the layer that adds it up.

Every method becomes a function of the layer's input x and of W x, at a strength of 1, so adapters of any
methods can act on the same layer, each times its weight. Nothing is merged into W. Factors are kept small:
a FLUX-sized adapter as whole weights would need as much memory as the base.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry.formats.factors import Additive, DoraFactors, Factors, LohaFactors, LokrFactors, OftFactors
from registry.formats.internal import LoraFactors
from registry.formats.tensors import Array

Addition = Callable[[Tensor, Tensor], Tensor]  # (x, W x without bias) -> what is added


class AdaptedLayer(nn.Module):
    """A linear layer or convolution with adapters beside it.

    y = W x + b + sum_i weight_i addition_i(x, W x)

    Args:
        base: The layer, which stays as it is.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.additions: dict[str, Addition] = {}
        self.active: list[tuple[str, float]] = []  # in order

    @property
    def weight(self) -> Tensor:
        """Of the base; diffusers asks some layers for their dtype."""
        return self.base_layer.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> Tensor | None:
        """Of the base."""
        return self.base_layer.bias  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's own output when no adapter acts."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if not self.active:
            return result
        plain = result if self.bias is None else result - self.bias.view(-1, *[1] * (self.weight.ndim - 2))
        for slot, weight in self.active:
            added = self.additions[slot](x, plain)
            result = result + (added if weight == 1 else added * weight)
        return result


def addition(factors: LoraFactors | Factors, layer: Any) -> Addition:
    """What `factors` add to the output of `layer` (nn.Linear or nn.Conv2d).

    Tensors are in the layer's dtype and on its device; what depends on W is worked out here, once, in fp32.
    """
    if isinstance(factors, DoraFactors):
        return _dora(factors, layer) if factors.per_output else _whole(factors, layer)
    if isinstance(factors, LoraFactors):
        return _lora(factors, layer)
    if isinstance(factors, OftFactors):
        return _turned(factors, layer)
    if isinstance(factors, LohaFactors | LokrFactors):
        return _product(factors, layer)
    return _whole(factors, layer)


def _lora(factors: LoraFactors, layer: Any) -> Addition:
    """S B A x."""
    down, up, scale = _tensor(factors.down, layer), _tensor(factors.up, layer), factors.scale
    if layer.weight.ndim == 2:
        down, up = down.flatten(1), up.flatten(1)
        return lambda x, _: F.linear(F.linear(x, down), up) * scale
    down, up = down.reshape(len(down), *layer.weight.shape[1:]), up.reshape(*up.shape[:2], 1, 1)
    return lambda x, _: F.conv2d(_convolved(x, down, layer), up) * scale


def _dora(factors: DoraFactors, layer: Any) -> Addition:
    """(g - 1) W x + g D x with g = m / |W + D|, one for each output."""
    inner = addition(factors.inner, layer)
    turned = layer.weight.detach().float() + _delta(factors.inner, layer)
    ratio = torch.from_numpy(factors.magnitude).to(turned.device) / turned.flatten(1).norm(dim=1)
    gain = ratio.view(-1, *[1] * (turned.ndim - 2))
    rest, gain = (gain - 1).to(layer.weight.dtype), gain.to(layer.weight.dtype)
    return lambda x, plain: rest * plain + gain * inner(x, plain)


def _product(factors: LohaFactors | LokrFactors, layer: Any) -> Addition:
    """D x with D made anew from its factors in every call, as in training."""
    shape = layer.weight.shape
    if isinstance(factors, LohaFactors):
        w1 = _low(factors.w1_a, factors.w1_b, factors.t1, layer)
        w2 = _low(factors.w2_a, factors.w2_b, factors.t2, layer)
        scale = factors.alpha / factors.rank
        combine: Callable[[Tensor, Tensor], Tensor] = torch.mul
    else:
        w1 = _low(factors.w1_a, factors.w1_b, None, layer, factors.w1)
        w2 = _low(factors.w2_a, factors.w2_b, factors.t2, layer, factors.w2)
        scale, combine = factors.scale, torch.kron

    def delta() -> Tensor:
        return combine(w1(), w2()).reshape(shape) * scale

    if layer.weight.ndim == 2:
        return lambda x, _: F.linear(x, delta())
    return lambda x, _: _convolved(x, delta(), layer)


def _turned(factors: OftFactors, layer: Any) -> Addition:
    """W (R' - 1) x, by turning x."""
    if layer.weight.ndim > 2 and layer.weight[0, 0].numel() > 1:
        return _whole(factors, layer)
    block = factors.block
    rest = _tensor(factors.rotations() - np.eye(block, dtype=np.float32), layer)

    def spin(x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (-1, block))
        return torch.einsum("...kj,kjc->...kc", parts, rest.expand(parts.shape[-2], -1, -1)).flatten(-2)

    if layer.weight.ndim == 2:
        return lambda x, _: F.linear(spin(x), layer.weight)
    return lambda x, _: _convolved(spin(x.movedim(1, -1)).movedim(-1, 1), layer.weight, layer)


def _whole(factors: Factors, layer: Any) -> Addition:
    """(W' - W) x with the whole change kept; for forms that are rare in practice."""
    change = factors.change(layer.weight.detach().float().cpu().numpy())
    kept = _tensor(change, layer)
    return lambda x, _: F.linear(x, kept) if kept.ndim == 2 else _convolved(x, kept, layer)


def _convolved(x: Tensor, weight: Tensor, layer: Any) -> Tensor:
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


def _low(
    a: Array | None, b: Array | None, core: Array | None, layer: Any, whole: Array | None = None
) -> Callable[[], Tensor]:
    """A factor as (rows, columns): whole, a b, or a b with a core between them."""
    if whole is not None:
        kept = _tensor(whole, layer).flatten(1)
        return lambda: kept
    assert a is not None
    assert b is not None
    left, right = _tensor(a, layer), _tensor(b, layer)
    if core is None:
        return lambda: left @ right
    middle = _tensor(core, layer)
    return lambda: torch.einsum("ijkl,ip,jr->prkl", middle, left, right).flatten(1)


def _delta(inner: LoraFactors | Additive, layer: Any) -> Tensor:
    """The change of W in fp32."""
    return (
        torch.from_numpy(np.ascontiguousarray(inner.delta()))
        .to(layer.weight.device)
        .reshape(layer.weight.shape)
    )


def _tensor(values: Array, layer: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(layer.weight.device, layer.weight.dtype)
