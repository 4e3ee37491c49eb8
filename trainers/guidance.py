"""How a base is asked while a picture is drawn: times, scaling and guidance, for previews and the sampler.

A sampler of diffusers counts its timesteps from 0 to 1000 whatever the base is trained on, and wants to be
told how far to shift them; the family knows both. Guidance takes one of three ways, which the base decides: a
second call with the negative prompt, an input of the denoiser, or none at all.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainers.families.base import Conditioning, Family
from trainers.plan import Geometry


@dataclass(frozen=True)
class Guided:
    """The denoiser with guidance, for one batch.

    Args:
        family: Asked through `predict`.
        cond: Of the prompts, (B, ...).
        negative: Of what to avoid, (B, ...); unused where guidance takes no second call.
        scale: Guidance scale; up to 1 there is no second call.
        size: (height, width) of the pictures in pixels.
    """

    family: Family
    cond: Conditioning
    negative: Conditioning
    scale: float
    size: tuple[int, int]

    @property
    def calls(self) -> int:
        """Pictures that go through the denoiser for one of the batch: 2 with a negative prompt, else 1."""
        return 2 if self.family.second_call and self.scale > 1 else 1

    def predict(self, scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
        """What the sampler wants to know at its timestep `t` (0 to 1000) of latents `x` (B, C, h, w); fp32.

        Classifier-free guidance is u + scale (c - u): Ho and Salimans 2022, arXiv:2207.12598, eq. 6.
        """
        x_t = x if is_flow(scheduler) else scheduler.scale_model_input(x, t)
        cond = dict(self.cond)
        if self.calls == 2:
            x_t = torch.cat([x_t, x_t])
            cond = {key: torch.cat([self.negative[key], value]) for key, value in cond.items()}
        if self.family.guidance_input:
            cond["guidance"] = torch.full((len(x_t),), self.scale, device=x.device)
        time = self.family.sampler_time(t.expand(len(x_t)))
        geometry = [Geometry(self.size, (0, 0), self.size)] * len(x_t)
        prediction = self.family.predict(x_t, time, cond, geometry).float()
        if self.calls == 1:
            return prediction
        without, with_prompt = prediction.chunk(2)
        return without + self.scale * (with_prompt - without)


def begin(family: Family, scheduler: Any, steps: int, shape: Sequence[int]) -> Any:
    """The sampler, set to `steps` steps for latents of `shape` (B, C, h, w) as the pipeline does it."""
    options = family.sampler_options(steps, tuple(shape))
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    if "mu" in options and "mu" not in accepted:
        # It shifts by a factor it is made with: the law of the dynamic shift with that factor = e^mu.
        scheduler = type(scheduler).from_config(scheduler.config, shift=math.exp(options["mu"]))
    fitting = {name: value for name, value in options.items() if name in accepted}
    scheduler.set_timesteps(steps, device=family.device, **fitting)
    return scheduler


def first_latents(scheduler: Any, noise: Tensor) -> Tensor:
    """Standard normal noise at the strength that the sampler starts from."""
    return noise if is_flow(scheduler) else noise * float(scheduler.init_noise_sigma)


def is_flow(sampler: Any) -> bool:
    """Whether a sampler, or the class that it is named after, is one of flow matching.

    These scale neither the noise nor what the denoiser is given.
    """
    return (sampler if isinstance(sampler, str) else type(sampler).__name__).startswith("FlowMatch")
