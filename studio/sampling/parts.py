"""One adapter on one layer, as what it adds to the layer's output, for methods beside plain LoRA.

Every method becomes a function of the layer's input x and of W x, at a strength of 1, so adapters of any
methods can act on the same layer, each times its weight. Nothing is merged into W. Factors are kept small:
a FLUX-sized adapter as whole weights would need as much memory as the base.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from registry.errors import BadInput
from registry.formats.factors import Additive, DoraFactors, Factors, LohaFactors, LokrFactors, OftFactors
from registry.formats.internal import LoraFactors
from registry.formats.rows import FullFactors
from registry.formats.tensors import Array
from studio.sampling.layers import Addition, NormChange


@dataclass(frozen=True)
class Site:
    """A layer as additions see it.

    Args:
        layer: nn.Linear or nn.Conv2d.
        shape: Of its weight.
        device: Where it computes; its weight may rest elsewhere.
        dtype: What it computes in.
    """

    layer: Any
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def whole_weight(self) -> Tensor:
        """W in fp32, on the device.

        Raises:
            BadInput: the base keeps it in another form, or on disk.
        """
        weight: Tensor = self.layer.weight
        if weight.is_meta or tuple(weight.shape) != self.shape or not weight.is_floating_point():
            wrong = "depends on the base's weights, which are not in memory as they are"
            do = "keep the base whole and in memory, or use an adapter of plain LoRA"
            raise BadInput("its method", wrong, do)
        return weight.detach().to(self.device, torch.float32)


def addition(factors: LoraFactors | Factors, site: Site) -> Addition:
    """What `factors` add to the output of a layer.

    Tensors are in the layer's dtype and on its device; what depends on W is worked out here, once, in fp32.
    """
    if isinstance(factors, DoraFactors):
        return _dora(factors, site) if factors.per_output else _whole(factors, site)
    if isinstance(factors, LoraFactors):
        return _lora(factors, site)
    if isinstance(factors, OftFactors):
        return _turned(factors, site)
    if isinstance(factors, LohaFactors | LokrFactors):
        return _product(factors, site)
    return _whole(factors, site)


def added_bias(values: Array, site: Site) -> Addition:
    """What is added to the bias, (out,), whether the layer has one or not."""
    kept = _tensor(values, site).view(-1, *[1] * (len(site.shape) - 2))
    return lambda _x, _plain: kept


def norm_change(weight: Array | None, bias: Array | None, site: Site) -> NormChange:
    """What is added to a norm's parameters, each (channels,)."""
    first, second = (None if value is None else _tensor(value.reshape(-1), site) for value in (weight, bias))
    return NormChange(first, second)


def _lora(factors: LoraFactors, site: Site) -> Addition:
    """S B A x."""
    down, up, scale = _tensor(factors.down, site), _tensor(factors.up, site), factors.scale
    if len(site.shape) == 2:
        down, up = down.flatten(1), up.flatten(1)
        return lambda x, _: F.linear(F.linear(x, down), up) * scale
    down, up = down.reshape(len(down), *site.shape[1:]), up.reshape(*up.shape[:2], 1, 1)
    return lambda x, _: F.conv2d(_convolved(x, down, site), up) * scale


def _dora(factors: DoraFactors, site: Site) -> Addition:
    """(g - 1) W x + g D x with g = m / |W + D|, one for each output."""
    inner = addition(factors.inner, site)
    turned = site.whole_weight() + _delta(factors.inner, site)
    ratio = torch.from_numpy(factors.magnitude).to(turned.device) / turned.flatten(1).norm(dim=1)
    gain = ratio.view(-1, *[1] * (turned.ndim - 2))
    rest, gain = (gain - 1).to(site.dtype), gain.to(site.dtype)
    return lambda x, plain: rest * plain + gain * inner(x, plain)


def _product(factors: LohaFactors | LokrFactors, site: Site) -> Addition:
    """D x with D made anew from its factors in every call, as in training."""
    shape = site.shape
    if isinstance(factors, LohaFactors):
        w1 = _low(factors.w1_a, factors.w1_b, factors.t1, site)
        w2 = _low(factors.w2_a, factors.w2_b, factors.t2, site)
        scale = factors.alpha / factors.rank
        combine: Callable[[Tensor, Tensor], Tensor] = torch.mul
    else:
        w1 = _low(factors.w1_a, factors.w1_b, None, site, factors.w1)
        w2 = _low(factors.w2_a, factors.w2_b, factors.t2, site, factors.w2)
        scale, combine = factors.scale, torch.kron

    def delta() -> Tensor:
        return combine(w1(), w2()).reshape(shape) * scale

    if len(site.shape) == 2:
        return lambda x, _: F.linear(x, delta())
    return lambda x, _: _convolved(x, delta(), site)


def _turned(factors: OftFactors, site: Site) -> Addition:
    """W (R' - 1) x, by turning x."""
    if len(site.shape) > 2 and prod(site.shape[2:]) > 1:
        return _whole(factors, site)
    site.whole_weight()  # read in every call, so it must be there
    block, layer = factors.block, site.layer
    rest = _tensor(factors.rotations() - np.eye(block, dtype=np.float32), site)

    def spin(x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (-1, block))
        return torch.einsum("...kj,kjc->...kc", parts, rest.expand(parts.shape[-2], -1, -1)).flatten(-2)

    if len(site.shape) == 2:
        return lambda x, _: F.linear(spin(x), layer.weight)
    return lambda x, _: _convolved(spin(x.movedim(1, -1)).movedim(-1, 1), layer.weight, site)


def _whole(factors: Factors, site: Site) -> Addition:
    """(W' - W) x with the whole change kept; for forms that are rare in practice."""
    if isinstance(factors, FullFactors):  # needs no W
        change = factors.diff.reshape(site.shape)
    else:
        change = factors.change(site.whole_weight().cpu().numpy())
    kept = _tensor(change, site)
    return lambda x, _: F.linear(x, kept) if kept.ndim == 2 else _convolved(x, kept, site)


def _convolved(x: Tensor, weight: Tensor, site: Site) -> Tensor:
    layer = site.layer
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


def _low(
    a: Array | None, b: Array | None, core: Array | None, site: Site, whole: Array | None = None
) -> Callable[[], Tensor]:
    """A factor as (rows, columns): whole, a b, or a b with a core between them."""
    if whole is not None:
        kept = _tensor(whole, site).flatten(1)
        return lambda: kept
    assert a is not None
    assert b is not None
    left, right = _tensor(a, site), _tensor(b, site)
    if core is None:
        return lambda: left @ right
    middle = _tensor(core, site)
    return lambda: torch.einsum("ijkl,ip,jr->prkl", middle, left, right).flatten(1)


def _delta(inner: LoraFactors | Additive, site: Site) -> Tensor:
    """The change of W in fp32."""
    return torch.from_numpy(np.ascontiguousarray(inner.delta())).to(site.device).reshape(site.shape)


def _tensor(values: Array, site: Site) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(site.device, site.dtype)
