"""How a base is asked while a picture is drawn: times, scaling and guidance, for previews and the sampler.

A sampler of diffusers counts its timesteps from 0 to 1000 whatever the base is trained on, and wants to be
told how far to shift them; the family knows both. Guidance takes one of three ways, which the base decides: a
second call with the negative prompt, an input of the denoiser, or none at all.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trainers.families.base import NOTHING, Conditioning, Family
from trainers.plan import Geometry

# Key of a conditioning whose rows are prompts that are asked at once: (k,), their shares of the guidance.
SHARE = "share"


class Prompted(Protocol):
    """A prompt that changes on the way."""

    def at(self, number: int) -> Conditioning:
        """What the denoiser reads at step `number` of a pass, counted from 0."""
        ...


@dataclass(frozen=True)
class Question:
    """What the denoiser is asked in one call; arguments of `Family.predict`.

    Args:
        x_t: (N, C, h, w), scaled as the sampler wants it; with a second call without prompt first, then with,
            all pictures of the batch for each prompt.
        time: (N,), as the family counts it.
        cond: (N, ...).
        geometry: N times the size.
        shares: Of the prompts that are asked at once; of the usual one, 1.
        against: Whether the first rows are those without prompt.
    """

    x_t: Tensor
    time: Tensor
    cond: Conditioning
    geometry: list[Geometry]
    shares: tuple[float, ...] = (1.0,)
    against: bool = False

    @property
    def with_prompt(self) -> slice:
        """Rows that have a prompt."""
        return slice(len(self.x_t) // (len(self.shares) + 1) if self.against else 0, None)


@dataclass(frozen=True)
class Guided:
    """The denoiser with guidance, for one batch.

    Args:
        family: Asked through `predict`.
        cond: Of the prompts, (B, ...), or (1, ...) for the same one throughout; (k, ...) with `SHARE` for k
            prompts that are composed.
        negative: Of what to avoid, likewise; unused where guidance takes no second call.
        scale: Guidance scale; up to 1 there is no second call, unless prompts are composed.
        size: (height, width) of the pictures in pixels.
        rescale: How much of the deviation that guidance adds is taken back, 0 to 1.
        true_scale: Guidance by a second call where the base itself takes none; 1 = none.
        beside: (B, C', h, w), channels that the denoiser reads beside the latents, see `Family.beside`.
    """

    family: Family
    cond: Conditioning | Prompted
    negative: Conditioning | Prompted
    scale: float
    size: tuple[int, int]
    rescale: float = 0.0
    true_scale: float = 1.0
    beside: Tensor | None = None

    @property
    def calls(self) -> int:
        """Pictures that go through the denoiser for one of the batch: 2 with a negative prompt, else 1."""
        return 2 if self._weight > 1 else 1

    @property
    def _weight(self) -> float:
        """Of the second call; where guidance is an input or distilled, a second call is something else."""
        return self.scale if self.family.second_call else self.true_scale

    def question(self, scheduler: Any, x: Tensor, t: Tensor, number: int = 0) -> Question:
        """What the denoiser is asked at the sampler's timestep `t` of latents `x` (B, C, h, w).

        `number` is the place of `t` in the pass; samplers of second order visit two timesteps a step.
        """
        step = number // getattr(scheduler, "order", 1)
        asked = _now(self.cond, step)
        shares = tuple(asked[SHARE].tolist()) if SHARE in asked else (1.0,)
        cond = _rows(asked, len(x) * len(shares), len(x))
        against = self.calls == 2 or (self.family.second_call and shares != (1.0,))
        if against:
            avoid = _rows(_now(self.negative, step), len(x), len(x))
            cond = {key: torch.cat([avoid[key], value]) for key, value in cond.items()}
        x_t = x if is_flow(scheduler) else scheduler.scale_model_input(x, t)
        x_t = torch.cat([x_t] * (len(shares) + against))
        if self.family.guidance_input:
            cond["guidance"] = torch.full((len(x_t),), self.scale, device=x.device)
        if self.beside is not None:
            cond["beside"] = self.beside.repeat(len(x_t) // len(self.beside), 1, 1, 1)
        time = self.family.sampler_time(t.expand(len(x_t)))
        geometry = [Geometry(self.size, (0, 0), self.size)] * len(x_t)
        return Question(x_t, time, cond, geometry, shares, against)

    def predict(
        self, scheduler: Any, x: Tensor, t: Tensor, *, number: int = 0, extra: Mapping[str, Any] = NOTHING
    ) -> Tensor:
        """What the sampler wants to know at its timestep `t` (0 to 1000) of latents `x` (B, C, h, w); fp32.

        `number` is the place of `t` in the pass; `extra` goes to the denoiser as it is, with N rows.
        Classifier-free guidance is u + scale (c - u): Ho and Salimans 2022, arXiv:2207.12598, eq. 6. With
        several prompts c is what `composed` makes of them.
        """
        asked = self.question(scheduler, x, t, number)
        prediction = self.family.predict(asked.x_t, asked.time, asked.cond, asked.geometry, extra).float()
        rows = prediction.chunk(len(asked.shares) + asked.against)
        if not asked.against:
            return composed(rows, asked.shares)
        without, with_prompt = rows[0], composed(rows[1:], asked.shares, rows[0])
        guided = without + self._weight * (with_prompt - without)
        return rescaled(guided, with_prompt, self.rescale) if self.rescale else guided


def rescaled(guided: Tensor, with_prompt: Tensor, share: float) -> Tensor:
    """Guidance without the contrast it adds: Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16.

    Args:
        guided: (B, C, h, w).
        with_prompt: Prediction without guidance, whose standard deviation each picture is brought to.
        share: 0 = as it is, 1 = all of the deviation.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = with_prompt.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return share * (guided * ratio) + (1 - share) * guided


def composed(rows: Sequence[Tensor], shares: Sequence[float], without: Tensor | None = None) -> Tensor:
    """What several prompts say together: u + sum_i share_i (c_i - u), Liu et al. 2022, arXiv:2206.01714.

    Without u it is the mean by shares: the same thing for shares that add up to 1.

    Args:
        rows: c_i, (B, C, h, w) each.
        shares: As many.
        without: u, what is said without a prompt.
    """
    if tuple(shares) == (1.0,):
        return rows[0]
    if without is None:
        parts = [share * row for share, row in zip(shares, rows, strict=True)]
        return torch.stack(parts).sum(0) / sum(shares)
    parts = [share * (row - without) for share, row in zip(shares, rows, strict=True)]
    return without + torch.stack(parts).sum(0)


def _now(cond: Conditioning | Prompted, step: int) -> Conditioning:
    return cond if isinstance(cond, dict) else cond.at(step)


def _rows(cond: Conditioning, wanted: int, batch: int) -> Conditioning:
    """As many rows as wanted: each is there once for every picture of the batch."""
    return {
        key: value if len(value) == wanted else value.repeat_interleave(batch, dim=0)
        for key, value in cond.items()
        if key != SHARE
    }


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
