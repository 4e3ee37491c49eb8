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
from torch import Tensor, nn

from trainers.method_table import PEFT_NAME, is_plain_lora
from trainers.methods import Trainables

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
        for layer in component.modules():
            if is_plain_lora(layer) and (forward := _weight_first(layer)):
                layer.forward = forward  # type: ignore[method-assign] # PEFT chooses by class, we by size
                count += 1
    return count


def _weight_first(layer: Any) -> Callable[..., Tensor] | None:
    base = layer.base_layer
    if not isinstance(layer.lora_dropout[PEFT_NAME], nn.Identity) or base.weight.numel() > LARGEST:
        return None
    weight, bias = base.weight, base.bias
    down, up, scale = layer.lora_A[PEFT_NAME].weight, layer.lora_B[PEFT_NAME].weight, layer.scaling[PEFT_NAME]
    if isinstance(base, nn.Linear) and weight.dtype == torch.float32:

        def linear(x: Tensor, *_: Any, **__: Any) -> Tensor:
            if layer.disable_adapters:
                return base(x)
            return F.linear(x, torch.addmm(weight, up, down, alpha=scale), bias)

        return linear
    if isinstance(base, nn.Conv2d) and weight.dtype == torch.float32 and base.groups == 1:
        flat = weight.flatten(1)

        def convolution(x: Tensor, *_: Any, **__: Any) -> Tensor:
            if layer.disable_adapters:
                return base(x)
            merged = torch.addmm(flat, up.flatten(1), down.flatten(1), alpha=scale).view_as(weight)
            return F.conv2d(x, merged, bias, base.stride, base.padding, base.dilation)

        return convolution
    return None
