"""How far a prediction is from its target, value by value: squares, absolute values, or between the two.

Squares are what the theory asks for; the others grow more slowly for large errors, so that single odd
pictures pull less. One helper for all objectives: `make_penalty(section)` fits flow matching as it is, and
discrete diffusion tells it what its timesteps mean.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainers.recipe_fields import ObjectiveSection

Kind = Literal["l2", "l1", "huber", "smooth_l1"]
Schedule = Literal["constant", "exponential", "snr"]


def _as_it_is(t: Tensor) -> Tensor:
    return t.float()


def _flow_sigma(t: Tensor) -> Tensor:
    return t.float() / (1 - t.float())


@dataclass(frozen=True)
class Penalty:
    """Elementwise error d = prediction - target, scored as

        l2          d^2
        l1          |d|
        huber       2 c (sqrt(d^2 + c^2) - c)     near d^2 for |d| << c, near 2 c |d| for |d| >> c
        smooth_l1   2 (sqrt(d^2 + c^2) - c)       the same divided by c: slope 2 far out, whatever c is

    (pseudo-Huber, Charbonnier et al. 1997), where c follows the timestep (Khrapov et al. 2024, "Improving
    Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss"):

        constant      c = huber_c
        exponential   c = huber_c^p, p = 0 (clean) .. 1 (noise): squares where there is little noise
        snr           c = huber_c + (1 - huber_c) / (1 + sigma)^2, sigma = noise / signal

    Args:
        kind: Of the four above.
        c: huber_c, in units of the target (standard deviation about 1), above 0.
        schedule: Of the three above.
        progress: (B,) timesteps -> (B,) share of the way to pure noise, 0 to 1.
        sigma: (B,) timesteps -> (B,) noise / signal, 0 to infinity.
    """

    kind: Kind = "l2"
    c: float = 0.1
    schedule: Schedule = "constant"
    progress: Callable[[Tensor], Tensor] = _as_it_is
    sigma: Callable[[Tensor], Tensor] = _flow_sigma

    def __call__(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """(B, ...) fp32 errors, shaped like `prediction`; t is (B,)."""
        difference = prediction - target
        if self.kind == "l2":
            return difference.square()
        if self.kind == "l1":
            return difference.abs()
        c = self.threshold(t).view(-1, *(1,) * (difference.ndim - 1))
        height = 2 * ((difference.square() + c * c).sqrt() - c)
        return c * height if self.kind == "huber" else height

    def threshold(self, t: Tensor) -> Tensor:
        """(B,) fp32, the c in force at each timestep."""
        if self.schedule == "exponential":
            return torch.exp(math.log(self.c) * self.progress(t))
        if self.schedule == "snr":
            return self.c + (1 - self.c) / (1 + self.sigma(t)).square()
        return torch.full(t.shape, self.c, dtype=torch.float32, device=t.device)


def make_penalty(
    section: ObjectiveSection,
    *,
    progress: Callable[[Tensor], Tensor] = _as_it_is,
    sigma: Callable[[Tensor], Tensor] = _flow_sigma,
) -> Penalty:
    """The recipe's penalty.

    Args:
        section: The objective section of the recipe.
        progress: See `Penalty`; as it stands for flow matching, where t runs from 0 (clean) to 1 (noise).
        sigma: See `Penalty`; as it stands for flow matching, t / (1 - t).
    """
    return Penalty(section.loss, section.huber_c, section.huber_schedule, progress, sigma)
