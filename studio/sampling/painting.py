"""The denoising loop: one pass over a sampler's steps, for every mode and every family.

What a mode does is prepared before (where the latents start, which steps are left) or is a `Change`, which
acts within the loop. So modes add up: a mask, a ControlNet and a schedule of adapters know nothing of each
other.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from registry.errors import StudioError
from trainers.guidance import Guided


class Cancelled(Exception):
    """The request was called off; raised within one step of it."""


class Change(Protocol):
    """Something that acts on a pass. Steps are counted as the pass visits them, from 0."""

    def before(self, number: int, t: Tensor, x: Tensor) -> Mapping[str, Any]:
        """Before the denoiser is asked at step `number`.

        Args:
            number: Index into the pass's timesteps.
            t: The sampler's timestep, 0 to 1000, without axes.
            x: Latents (B, C, h, w), not yet scaled; `Guided.question` makes of them what the denoiser reads.

        Returns:
            Extra keyword arguments of the denoiser; no two changes of a pass may give the same one.
        """
        ...

    def after(self, number: int, t_next: Tensor | None, x: Tensor) -> Tensor:
        """After step `number`: the latents (B, C, h, w) to go on with; `t_next` is None after the last."""
        ...


@runtime_checkable
class Begins(Protocol):
    """A change that is told of its pass before the first step: what it asks depends on the sampler."""

    def begin(self, work: "Pass") -> None:
        """The pass, complete."""
        ...


@dataclass
class Pass:
    """One denoising pass, everything prepared.

    Args:
        guided: The denoiser with its prompts.
        scheduler: A sampler of diffusers that knows its timesteps, and where among them it begins.
        timesteps: Those to visit; some samplers visit one twice.
        latents: Where it starts, (B, C, h, w), at the noise of the first timestep.
        generators: One for each picture of the batch, for samplers that add noise.
        changes: In the order in which they act.
    """

    guided: Guided
    scheduler: Any
    timesteps: Tensor
    latents: Tensor
    generators: list[torch.Generator]
    changes: Sequence[Change] = field(default_factory=list[Change])


def paint(
    work: Pass,
    *,
    seen: Callable[[int, Tensor], None] = lambda _number, _latents: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Run a pass.

    Args:
        work: What to do.
        seen: Takes how many timesteps are done and the latents, after each.
        cancelled: Asked before each.

    Returns:
        (B, C, h, w) at the noise that follows the last timestep: none, unless the pass ends early.

    Raises:
        Cancelled: `cancelled()` was true.
        StudioError: the latents are not finite.
    """
    latents, options = work.latents, _step_options(work)
    for change in work.changes:
        if isinstance(change, Begins):
            change.begin(work)
    for number, t in enumerate(work.timesteps):
        if cancelled():
            raise Cancelled
        extra = _merged([change.before(number, t, latents) for change in work.changes])
        prediction = work.guided.predict(work.scheduler, latents, t, number=number, extra=extra)
        latents = work.scheduler.step(prediction, t, latents, return_dict=False, **options)[0]
        t_next = work.timesteps[number + 1] if number + 1 < len(work.timesteps) else None
        for change in work.changes:
            latents = change.after(number, t_next, latents)
        seen(number + 1, latents)
    if not bool(torch.isfinite(latents).all()):
        do = "lower the adapter weights or the guidance"
        raise StudioError("the picture", "has values that are not finite", do)
    return latents


def _step_options(work: Pass) -> dict[str, Any]:
    accepted = inspect.signature(work.scheduler.step).parameters
    return {"generator": work.generators} if "generator" in accepted else {}


def _merged(extras: list[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for extra in extras:
        assert not merged.keys() & extra.keys(), "two changes give the denoiser the same argument"
        merged |= extra
    return merged
