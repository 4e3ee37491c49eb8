"""Running mean of the trained weights; it is what previews show and files keep."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Exponential moving average (Polyak and Juditsky 1992), fp32.

    mean <- d mean + (1 - d) value with d = min(decay, (1 + n) / (10 + n)) after n steps, so that the random
    start is forgotten early. Every k-th step counts for k: d^k.

    Args:
        parameters: What is averaged.
        decay: 0 = off: the mean is the parameters themselves and costs nothing.
        device: Where the mean lies; None = where the parameters are. On a CPU beside a GPU it costs a
            transfer of all weights at each update, and no GPU memory.
        every: Steps between updates.
        written: Called when `applied` has written the parameters.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        decay: float,
        *,
        device: torch.device | None = None,
        every: int = 1,
        written: Callable[[], None] | None = None,
    ) -> None:
        self.parameters, self.decay, self.every, self.updates = list(parameters), decay, every, 0
        self.device, self.written = device, written
        self.means = [self._taken(p, torch.float32) for p in self.parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step; one fused call."""
        if self.decay and (self.updates + 1) % self.every == 0:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) ** self.every
            values = [
                p.detach().to(m.device, m.dtype) for p, m in zip(self.parameters, self.means, strict=True)
            ]
            get_ema_multi_avg_fn(decay)(self.means, values, self.updates)
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
        weights = [self._taken(p, p.dtype) for p in self.parameters]
        self._set(self.values())
        try:
            yield
        finally:
            self._set(weights)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
        if self.written:
            self.written()

    def _taken(self, parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
        return parameter.detach().to(self.device or parameter.device, dtype, copy=True)


class ScheduleFreeMean(Ema):
    """The mean that schedule-free AdamW keeps by itself (Defazio et al. 2024, "The Road Less Scheduled").

    While training, the parameters are y = (1 - beta1) z + beta1 x; z moves, x is the mean. So
    x = y + (1 - 1 / beta1) (z - y). It is read without the optimizer's eval() and train(), which write it
    into the weights and back: rounding would make a run depend on how often it is looked at.

    Args:
        parameters: The optimizer's, in its order.
        optimizer: AdamWScheduleFree in train mode.
        written: See `Ema`.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], optimizer: Any, written: Callable[[], None] | None = None
    ) -> None:
        super().__init__(parameters, 0.0, written=written)
        self.optimizer = optimizer
        self.decay = 1.0  # only says that the means are not the parameters

    @torch.no_grad()
    def update(self) -> None:
        """The optimizer did it."""
        self.updates += 1

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """x of every parameter; before the first step the parameter itself."""
        found: list[Tensor] = []
        for group in self.optimizer.param_groups:
            weight = 1 - 1 / group["betas"][0]
            for y in group["params"]:
                z = self.optimizer.state.get(y, {}).get("z")
                found.append(y.detach() if z is None else y.detach().lerp(z, weight))
        return found
