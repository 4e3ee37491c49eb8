"""Running mean of the adapter's weights; it is what previews show and files keep."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Exponential moving average (Polyak and Juditsky 1992), fp32, on the parameters' device.

    mean <- d mean + (1 - d) value with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the random
    start is forgotten early.

    Args:
        parameters: What is averaged.
        decay: 0 = off: the mean is the parameters themselves and costs nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        self.means = [p.detach().clone() for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step; one fused call."""
        if self.decay:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            get_ema_multi_avg_fn(decay)(self.means, [p.detach() for p in self.parameters], self.updates)
        self.updates += 1

    def values(self) -> list[Tensor]:
        """What a file keeps: the means, or the parameters when averaging is off."""
        return self.means or [p.detach() for p in self.parameters]

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Generator[None]:
        """The model with the means in place of its weights; the very same weights come back after."""
        if not self.decay:
            yield
            return
        weights = [p.detach().clone() for p in self.parameters]
        self._set(self.means)
        try:
            yield
        finally:
            self._set(weights)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
