"""Training of bf16 weights: what an update changes is rounded up or down by chance, so that nothing is lost.

bf16 keeps 8 bits. An update below 1/256 of its weight would round away each time; rounded up with the
probability of what would be cut off, it arrives on average (Gupta et al. 2015, "Deep Learning with Limited
Numerical Precision", sec. 3; for bf16 training Zamirai et al. 2020, "Revisiting BFloat16 Training").
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.flat import Flat
from trainers.plan import draw_seed

PIECE = 1 << 26  # values in fp32 at a time: 256 MiB each of weights and gradients
COUNT = "rounded_steps"  # key in the first parameter group: steps done, the place of the random numbers

Piece = Callable[[], tuple[Tensor, Tensor | None]]  # values and gradient, bf16; no gradient when frozen


@torch.no_grad()
def set_stochastic_(target: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    """target <- source, rounded stochastically: the mean over draws is `source`.

    bf16 is fp32 without its low 16 bits, so adding 16 random bits and cutting them off rounds away from zero
    with exactly the probability of the remainder. Values that bf16 holds stay; so do infinities.

    Args:
        target: bf16, written in place.
        source: fp32, of the same shape and on the same device.
        generator: Of that device.
    """
    assert target.dtype == torch.bfloat16
    assert source.dtype == torch.float32
    bits = source.contiguous().view(torch.int32)
    chance = torch.randint(1 << 16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device)
    rounded = chance.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32)
    return target.copy_(rounded)


@torch.no_grad()
def add_stochastic_(target: Tensor, update: Tensor, generator: torch.Generator) -> Tensor:
    """target <- target + update, rounded stochastically; bf16 and fp32, see `set_stochastic_`."""
    return set_stochastic_(target, target.float() + update, generator)


class Rounded(Optimizer):
    """An fp32 optimizer for bf16 weights: it sees them in fp32, piece by piece, and what it makes of them is
    rounded stochastically. Its state is fp32 (or 8-bit); copies in fp32 exist of one piece at a time.

    The random numbers of a piece depend on (seed, step, piece) alone; the step is kept in the first parameter
    group, so a resumed run draws what the uninterrupted one would have drawn.

    Args:
        pieces: The values of each parameter group, piece by piece.
        groups: Options of each parameter group, without "params".
        make: Parameter groups -> the optimizer; must treat parameters one by one, as AdamW does.
        seed: train.seed.
    """

    def __init__(
        self,
        pieces: Sequence[Sequence[Piece]],
        groups: Sequence[dict[str, Any]],
        make: Callable[[list[dict[str, Any]]], Optimizer],
        seed: int,
    ) -> None:
        self._pieces, self._seed = pieces, seed
        shadows = [[_shadow(piece) for piece in group] for group in pieces]
        self.inner = make(
            [{**group, "params": params} for group, params in zip(groups, shadows, strict=True)]
        )
        self.inner.param_groups[0][COUNT] = 0
        self._follow()

    def _follow(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self.defaults = self.inner.defaults

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] # no loss
        """One update of all pieces that have gradients."""
        assert closure is None
        self.param_groups[0][COUNT] += 1
        for index, (pieces, group) in enumerate(zip(self._pieces, self.param_groups, strict=True)):
            for position, (piece, shadow) in enumerate(zip(pieces, group["params"], strict=True)):
                values, gradient = piece()
                if gradient is None:
                    continue
                shadow.data, shadow.grad = values.float(), gradient.float()
                self.inner.step()  # all others have no gradient and are passed over
                place = draw_seed(self._seed, "rounding", self.param_groups[0][COUNT], index, position)
                set_stochastic_(values, shadow.data, torch.Generator(values.device).manual_seed(place))
                shadow.data, shadow.grad = values.new_empty(0, dtype=torch.float32), None

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = False) -> None:
        """Gradients back to 0, in place: they are views of one buffer."""
        del set_to_none
        for gradient in (piece()[1] for group in self._pieces for piece in group):
            if gradient is not None:
                gradient.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Of the optimizer inside."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the optimizer inside."""
        self.inner.load_state_dict(state_dict)
        self._follow()


def pieces_of(flat: Flat, *, layers: bool, size: int = PIECE) -> list[Piece]:
    """The values of a group: layer by layer, or in runs of at most `size` values of the flat buffer."""
    if layers:
        return [_layer(parameter) for parameter in flat.named.values()]
    count = flat.parameter.numel()
    return [_run(flat, start, min(size, count - start)) for start in range(0, count, size)]


def _layer(parameter: nn.Parameter) -> Piece:
    return lambda: (parameter.data, parameter.grad)


def _run(flat: Flat, start: int, length: int) -> Piece:
    def piece() -> tuple[Tensor, Tensor | None]:
        gradient = flat.parameter.grad
        values = flat.parameter.data.narrow(0, start, length)
        return values, None if gradient is None else gradient.narrow(0, start, length)

    return piece


def _shadow(piece: Piece) -> nn.Parameter:
    return nn.Parameter(torch.empty(0, dtype=torch.float32, device=piece()[0].device))


def any_bf16(flats: Iterable[Flat]) -> bool:
    """Whether weights are trained in bf16, as in a full fine-tune that saves memory."""
    return any(flat.parameter.dtype == torch.bfloat16 for flat in flats)
