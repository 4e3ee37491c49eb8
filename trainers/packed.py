"""LoRA layers that compute in 16 bits, while what learns stays in fp32.

PEFT keeps factors in fp32. Over a base in bf16 or fp16 each layer then turns its input to fp32, autocast
turns that and the factors back, and gradients go the same way home: per layer and step a dozen operations
that only carry numbers about. Here layers hold 16-bit stand-ins of their factors (`Flat.stand_ins`). Products
see the numbers that autocast would have given them; B A x is added within its product, not after it. An input
that comes in fp32, as norms give it on a GPU, is turned once for all layers that read it one after the other.

For LoRA and rsLoRA, convolutions included. Other methods, and layers whose own weights are kept otherwise
(T5 keeps some in fp32 beside fp16), stay with PEFT.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from trainers.flat import Flat
from trainers.method_table import PEFT_NAME, is_plain_lora
from trainers.methods import Trainables
from trainers.stored import StoredLayer


def pack(trainables: Trainables, flats: Sequence[Flat], dtype: torch.dtype) -> int:
    """Let the plain LoRA layers of all components compute in `dtype`; returns how many do.

    A group goes over as a whole or not at all: all of its parameters have to be factors of such layers.

    Args:
        trainables: What learns, attached.
        flats: The same in groups.
        dtype: Of the base; nothing is done for fp32.
    """
    if dtype == torch.float32:
        return 0
    layers = [m for part in trainables.components.values() for m in part.modules() if _fits(m, dtype)]
    places = {id(half.weight): half for layer in layers for half in _halves(layer)}
    for flat in flats:
        if all(id(parameter) in places for parameter in flat.named.values()):
            for key, stand_in in flat.stand_ins(dtype).items():
                places[id(flat.named[key])].weight = stand_in
    packed = [layer for layer in layers if all(half.weight.dtype == dtype for half in _halves(layer))]
    turned = Turned(dtype)
    for layer in packed:
        layer.forward = _forward(layer, turned)  # PEFT chooses by class, we by dtype
    return len(packed)


def _fits(layer: Any, dtype: torch.dtype) -> bool:
    if not is_plain_lora(layer) or not isinstance(layer.base_layer, nn.Linear | nn.Conv2d):
        return False
    base: Any = layer.base_layer
    return (base.dtype if isinstance(base, StoredLayer) else base.weight.dtype) == dtype


def _halves(layer: Any) -> tuple[Any, Any]:
    """A and B."""
    return layer.lora_A[PEFT_NAME], layer.lora_B[PEFT_NAME]


class Turned:
    """An activation in 16 bits: made, and kept for the way back, once for queries, keys and values."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._last: tuple[Any, tuple[int, bool], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """`x` in 16 bits."""
        if x.dtype == self.dtype:
            return x
        if torch.compiler.is_compiling():  # finds by itself what is computed twice
            return x.to(self.dtype)
        state = (x._version, torch.is_grad_enabled())
        if self._last is None or self._last[0]() is not x or self._last[1] != state:
            self._last = (ref(x, self._forget), state, x.to(self.dtype))
        return self._last[2]

    def _forget(self, _: Any) -> None:
        self._last = None  # with its input it has gone out of use


def _forward(layer: Any, turned: Turned) -> Callable[..., Tensor]:
    """W x + s B A x; the second part is added in place to the first, which no way back needs."""
    base, scale, dropout = layer.base_layer, layer.scaling[PEFT_NAME], layer.lora_dropout[PEFT_NAME]
    down, up = _halves(layer)

    def linear(x: Tensor, *_: Any, **__: Any) -> Tensor:
        if layer.disable_adapters:
            return base(x)
        rows = turned(x).flatten(0, -2)
        result = base(rows).addmm_(down(dropout(rows)), up.weight.t(), alpha=scale)
        return result.unflatten(0, x.shape[:-1])

    def convolution(x: Tensor, *_: Any, **__: Any) -> Tensor:
        if layer.disable_adapters:
            return base(x)
        x = turned(x)
        return base(x).add_(up(down(dropout(x))), alpha=scale)

    return linear if isinstance(base, nn.Linear) else convolution
