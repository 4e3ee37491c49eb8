"""Weights of a base in 8 or 4 bits: they rest so, and each is made whole while its layer is asked.

    int8   w = c s        c from -127 to 127, s = max |w| / 127 of each output
    fp8    w = c s        c a float of 4 + 3 bits (e4m3fn), s = max |w| / 448 of each output
    nf4    w = t[c] s     c one of 16 levels t, s = max |w| of each block of 64
                          (Dettmers et al. 2023, "QLoRA", arXiv:2305.14314, section 3 and appendix E)

Training goes through them, too: a pass keeps the codes for the way back, never the whole weight, so an
adapter learns over a base that takes a half or a quarter of its memory (QLoRA, section 3).

Only weights are rounded. What flows through a layer stays in the base's dtype: LLM.int8() rounds that as
well, by way of fp16, which T5 and FLUX.1 overflow. Everything is plain torch, so the CPU draws by the same
formulas, and whoever asks a layer for its weight gets it whole: adapters of every method act as they do
elsewhere. Biases, norms, embeddings, the layers outside of the repeated blocks, CLIP and the VAE stay as they
are: they are small, and much depends on them.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from registry.errors import BadInput

if TYPE_CHECKING:
    from trainers.families.base import Family

Precision = Literal["whole", "int8", "fp8", "nf4"]
ROUNDED: tuple[Precision, ...] = ("int8", "fp8", "nf4")  # from fine to coarse
BLOCK = 64  # weights of nf4 that share a scale
FP8 = torch.float8_e4m3fn  # Micikevicius et al. 2022, "FP8 Formats for Deep Learning"
TINY = 2.0**-24  # the smallest number above 0 in fp16
# Where a normal distribution, cut to 16 parts of the same share, has its middles; 0 is exact.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_REPEATED = re.compile(
    r"(^|[._])blocks?\."
)  # down_blocks.0, mid_block, transformer_blocks.3, encoder.block.5


class StoredLayer(nn.Module, ABC):
    """What both kinds share. `weight` is made anew whenever it is asked for.

    Args:
        layer: nn.Linear or nn.Conv2d, whose weight is taken from it.
        precision: How it is kept; "whole" as it is, for what rests elsewhere.
        device: Where the rounding is done; what comes of it lies where the layer lay.
    """

    plain: ClassVar[Callable[..., nn.Module]]

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """PEFT makes its convolutions by the class of the layer they act on: those are plain ones."""
        of_layer = not args or isinstance(args[0], nn.Module)
        return super().__new__(cls) if of_layer else cls.plain(*args, **options)

    def __init__(self, layer: Any, precision: Precision, device: torch.device) -> None:
        nn.Module.__init__(self)
        for name, value in vars(layer).items():  # in_features, stride, ...
            vars(self).setdefault(name, value)
        self.training = layer.training
        self.precision: Precision = precision
        self._fetch: Fetch | None = None
        self.shape, self.dtype = tuple(layer.weight.shape), layer.weight.dtype
        self.register_parameter("bias", layer.bias)
        codes, scales = _ROUND[precision](layer.weight.detach().to(device))
        home = layer.weight.device
        self.codes: Tensor
        self.scales: Tensor
        self.register_buffer("codes", codes.to(home))
        self.register_buffer("scales", scales.to(home))
        layer.weight = None

    @property
    def weight(self) -> Tensor:
        """(out, in) or (out, in, kh, kw), in the base's dtype."""
        codes, scales = self._fetch(self) if self._fetch else (self.codes, self.scales)
        return _WHOLE[self.precision](codes, scales, self.shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return sum(tensor.nbytes for tensor in (self.resting if self._fetch else (self.codes, self.scales)))

    def rest(self, fetch: "Fetch", *, pinned: bool) -> None:
        """Stay in the main memory when the base is moved.

        Args:
            fetch: This layer -> its codes and scales where it computes.
            pinned: In memory that a GPU can copy from beside its work.
        """
        tensors = self._buffers.pop("codes"), self._buffers.pop("scales")
        codes, scales = (t.pin_memory() if pinned else t for t in tensors if t is not None)
        self.resting: tuple[Tensor, Tensor] = (codes, scales)
        self._fetch = fetch

    def leave(self) -> None:
        """Give up what rests in the main memory, and with that of all layers its copies on the device."""
        if self._fetch is not None:
            self._fetch = None
            del self.resting

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """What the plain layer gives with the rounded weight."""
        if torch.is_grad_enabled() and input.requires_grad:
            return cast(Tensor, _Passed.apply(input, self))
        return self.applied(input)

    @abstractmethod
    def applied(self, x: Tensor) -> Tensor:
        """(.., in) -> (.., out), or (B, in, H, W) -> (B, out, H', W')."""

    @abstractmethod
    def turned_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """Gradient of the input, which is of `shape`, from that of the output."""


class StoredLinear(StoredLayer, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A linear layer."""

    plain = nn.Linear

    def applied(self, x: Tensor) -> Tensor:
        """See `StoredLayer.applied`."""
        return F.linear(x, self.weight, self.bias)

    def turned_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """See `StoredLayer.turned_back`."""
        return (gradient @ self.weight.to(gradient.dtype)).view(shape)


class StoredConv2d(StoredLayer, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A convolution."""

    plain = nn.Conv2d

    def applied(self, x: Tensor) -> Tensor:
        """See `StoredLayer.applied`."""
        return self._conv_forward(x, self.weight, self.bias)

    def turned_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """See `StoredLayer.turned_back`."""
        weight = self.weight.to(gradient.dtype)
        ways: Any = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d_input(list(shape), weight, gradient, *ways)


class _Passed(torch.autograd.Function):
    """A stored layer on the way there and back. Its weight is frozen, so the way back needs nothing but the
    weight, which is made whole again: autograd would keep the whole one of every layer until then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: StoredLayer) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return layer.applied(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return ctx.layer.turned_back(gradients[0], ctx.shape).to(ctx.dtype), None


def compress(family: "Family", precision: Precision) -> None:
    """Round the large parts of a freshly loaded base; see `compress_part`."""
    for part in _large_parts(family).values():
        compress_part(part, precision, family.device)


def compress_part(part: nn.Module, precision: Precision, device: torch.device) -> None:
    """Round a freshly loaded part layer by layer, so that little is there twice; computed on `device`.

    Raises:
        BadInput: fp8 on a device that has no such numbers.
    """
    if precision == "fp8" and not _has_fp8(device):
        wrong = f"are numbers of 8 bits that this device ({device.type}) does not have"
        raise BadInput("weights in fp8", wrong, "choose int8, which takes no more memory")
    if precision != "whole":
        store_part(part, precision, device)


def store_part(part: nn.Module, precision: Precision = "whole", device: torch.device | None = None) -> None:
    """Turn what is still plain in a part's blocks into stored layers, whole or rounded (on `device`)."""
    for holder, attribute, layer in list(_layers(part)):
        kind = StoredConv2d if isinstance(layer, nn.Conv2d) else StoredLinear
        setattr(holder, attribute, kind(layer, precision, device or layer.weight.device))


@cache
def _has_fp8(device: torch.device) -> bool:
    """Whether it turns numbers into fp8 and back; Apple's GPUs do not."""
    try:
        return torch.ones(1, device=device).to(FP8).float().item() == 1
    except (RuntimeError, TypeError):
        return False


def bytes_saved(family: "Family", precision: Precision) -> dict[str, int]:
    """Of each part that `compress` would round, how many bytes less it would take."""
    if precision == "whole":
        return {}
    return {
        name: sum(_saved(layer.weight, precision) for _, _, layer in _layers(part))
        for name, part in _large_parts(family).items()
    }


def _large_parts(family: "Family") -> dict[str, nn.Module]:
    """The denoiser, and T5 where there is one."""
    parts: dict[str, nn.Module] = {family.denoiser_name: family.denoiser}
    if family.t5_encoder in family.text_encoder_names:
        parts[family.t5_encoder] = family.part(family.t5_encoder)
    return parts


def _layers(part: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """(who holds it, its name there, layer) of all that is worth rounding."""
    for path, module in part.named_modules():
        for name, layer in module.named_children():
            where = f"{path}.{name}" if path else name
            if _plain(layer) and _REPEATED.search(where):
                yield module, name, layer


def _plain(layer: nn.Module) -> bool:
    """A linear layer, or a convolution with a number of zeros around: the way back knows no other edges."""
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def _saved(weight: Tensor, precision: Precision) -> int:
    count, size = weight.numel(), weight.element_size()
    if precision != "nf4":
        return count * (size - 1) - (size if precision == "int8" else 4) * len(weight)
    return count * size - -(-count // 2) - 2 * -(-count // BLOCK)


# -- int8


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows = weight.float().flatten(1)
    # fp16 goes on below its smallest normal number, and the scales of quiet outputs lie there.
    least = TINY if weight.dtype == torch.float16 else torch.finfo(weight.dtype).tiny
    # Codes are found with the scale as it is kept: bf16 has eight bits for it.
    scales = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(least).to(weight.dtype)
    codes = (rows / scales.float()).round_().clamp_(-127, 127)
    return codes.to(torch.int8).view(weight.shape), scales.view(-1, *[1] * (weight.ndim - 1))


def _from_int8(codes: Tensor, scales: Tensor, _shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).mul_(scales)


# -- fp8


def _fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes as bytes, which nobody takes for numbers to convert; scales in fp32, whatever the base's dtype:
    they bound no rounding, and one that comes out too small would cut off the largest weights."""
    rows, most = weight.float().flatten(1), torch.finfo(FP8).max
    scales = (rows.abs().amax(1, keepdim=True) / most).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (rows / scales).clamp_(-most, most).to(FP8)
    return codes.view(torch.uint8).view(weight.shape), scales.view(-1, *[1] * (weight.ndim - 1))


def _from_fp8(codes: Tensor, scales: Tensor, _shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return codes.view(FP8).to(dtype).mul_(scales)


# -- nf4: two codes a byte, the first in its upper half; filled up to whole blocks


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    flat = weight.float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True).to(torch.float16)  # finer than what it scales
    levels = torch.tensor(LEVELS, device=flat.device)
    shares = blocks / scales.float().clamp_min(TINY)
    codes = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2, out_int32=True).view(-1, 2)
    return (codes[:, 0] * 16 + codes[:, 1]).to(torch.uint8), scales


def _from_nf4(codes: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Both halves of a byte are looked up at once."""
    pairs = torch.tensor(LEVELS, dtype=dtype, device=codes.device)
    pairs = torch.stack((pairs.repeat_interleave(16), pairs.repeat(16)), dim=1)
    blocks = nn.functional.embedding(codes.int(), pairs).view(-1, BLOCK).mul_(scales)
    return blocks.view(-1)[: prod(shape)].view(shape)


Fetch = Callable[[StoredLayer], tuple[Tensor, Tensor]]
_ROUND: Mapping[Precision, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "whole": lambda weight: (weight, weight.new_empty(0)),
    "int8": _int8,
    "fp8": _fp8,
    "nf4": _nf4,
}
_WHOLE: Mapping[Precision, Callable[[Tensor, Tensor, tuple[int, ...], torch.dtype], Tensor]] = {
    "whole": lambda codes, *_: codes,
    "int8": _from_int8,
    "fp8": _from_fp8,
    "nf4": _from_nf4,
}
