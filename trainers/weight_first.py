"""LoRA computed weight first, y = (W + s B A) x, where that is cheaper than PEFT's y = W x + s B (A x).

PEFT's order makes two thin products and two more passes over the activations in each layer, forward and
backward. On a CPU and small layers these cost more than the arithmetic they save. Weight first needs the
gradient of the whole weight (2 N in out operations for N tokens), from which those of A and B follow by two
tiny products, so it is for small layers only. Same function up to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from trainers.method_table import PEFT_NAME, is_plain_lora
from trainers.methods import Trainables
from trainers.stored import StoredLayer

LARGEST = 1 << 17  # weights of a layer, in * out * kernel area; a 3x3 convolution of 96 channels has 83k


def apply_weight_first(trainables: Trainables, device: torch.device) -> int:
    """Switch the small adapted layers of all components over; returns how many.

    Nothing is done on a GPU, where the large layers matter, nor with adapter dropout, which acts on x, nor
    for methods other than LoRA and rsLoRA.
    """
    if device.type != "cpu":
        return 0
    count = 0
    for component in trainables.components.values():
        for module in component.modules():
            if _fits(module):
                module.forward = _weight_first(module)  # PEFT chooses by class, we by size
                count += 1
            elif isinstance(module, GEGLU) and _fits(module.proj):
                module.forward = _halves(module)
    return count


def _fits(layer: Any) -> bool:
    return (
        is_plain_lora(layer)
        and not isinstance(layer.base_layer, StoredLayer)  # whose whole weight would stay
        and isinstance(layer.lora_dropout[PEFT_NAME], nn.Identity)
        and (
            isinstance(base := layer.base_layer, nn.Linear)
            or (isinstance(base, nn.Conv2d) and base.groups == 1)
        )
        and base.weight.dtype == torch.float32
        and base.weight.numel() <= LARGEST
    )


def _merge(layer: Any) -> Callable[[], Tensor]:
    """A function that gives W + s B A, shaped as W."""
    weight, scale = layer.base_layer.weight, layer.scaling[PEFT_NAME]
    down, up = layer.lora_A[PEFT_NAME].weight, layer.lora_B[PEFT_NAME].weight
    if weight.ndim == 2:
        return lambda: torch.addmm(weight, up, down, alpha=scale)
    flat = weight.flatten(1)
    return lambda: torch.addmm(flat, up.flatten(1), down.flatten(1), alpha=scale).view_as(weight)


def _weight_first(layer: Any) -> Callable[..., Tensor]:
    base, bias, merged = layer.base_layer, layer.base_layer.bias, _merge(layer)

    def linear(x: Tensor, *_: Any, **__: Any) -> Tensor:
        return base(x) if layer.disable_adapters else F.linear(x, merged(), bias)

    def convolution(x: Tensor, *_: Any, **__: Any) -> Tensor:
        if layer.disable_adapters:
            return base(x)
        return F.conv2d(x, merged(), bias, base.stride, base.padding, base.dilation)

    return linear if isinstance(base, nn.Linear) else convolution


def _halves(gate: GEGLU) -> Callable[..., Tensor]:
    """x1 * gelu(x2) of two products: halves of one would lie apart in memory, which elementwise work and its
    gradients pay for with copies."""
    layer: Any = gate.proj
    merged, base, bias = _merge(layer), layer.base_layer.weight, layer.base_layer.bias

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        # The base alone goes the same way, so that an adapter of zeros rounds as none does.
        weights = (base if layer.disable_adapters else merged()).chunk(2)
        biases = (None, None) if bias is None else bias.chunk(2)
        value, gated = (F.linear(x, *half) for half in zip(weights, biases, strict=True))
        return value * F.gelu(gated)

    return forward
