"""The SDXL refiner: a second base that takes over the same latents for the last steps.

Podell et al. 2023, "SDXL", sec. 2.5. Both visit the timesteps of one schedule: the base those above the
point of the hand-over, the refiner those below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from studio.sampling.inpainting import PasteBack
from studio.sampling.painting import Pass
from trainers.families.base import Conditioning
from trainers.guidance import Guided, Prompted, begin

SCORES = (6.0, 2.5)  # aesthetic score of the prompt and of what to avoid, as diffusers' pipeline has them


@dataclass(frozen=True)
class Scored:
    """A prompt with the aesthetic score that the refiner reads."""

    prompt: Conditioning | Prompted
    score: float

    def at(self, number: int) -> Conditioning:
        """Conditioning at step `number` with "aesthetic" (B,)."""
        now: Mapping[str, Tensor] = self.prompt if isinstance(self.prompt, dict) else self.prompt.at(number)
        like = next(iter(now.values()))
        return {**now, "aesthetic": torch.full((len(like),), self.score, device=like.device)}


def scored(guided: Guided) -> Guided:
    """The refiner's prompts with their scores."""
    return replace(guided, cond=Scored(guided.cond, SCORES[0]), negative=Scored(guided.negative, SCORES[1]))


def until(work: Pass, at: float) -> Pass:
    """The pass up to the hand-over: timesteps at or above it."""
    kept = int((work.timesteps >= _cutoff(work.scheduler, at)).sum())
    return replace(work, timesteps=work.timesteps[:kept])


def after(first: Pass, at: float, guided: Guided, scheduler: Any, steps: int, latents: Tensor) -> Pass:
    """The refiner's pass.

    Args:
        first: The whole pass of the base, as it was before `until`.
        at: Part of the way after which the refiner takes over.
        guided: The refiner with its prompts.
        scheduler: A fresh one for the refiner.
        steps: Of the whole way.
        latents: What came of the base's part, (B, C, h, w).
    """
    scheduler = begin(guided.family, scheduler, steps, latents.shape)
    all_of_them = scheduler.timesteps
    left = int((all_of_them < _cutoff(scheduler, at)).sum())
    if scheduler.order == 2 and left % 2 == 0:
        left += 1  # never between the two evaluations of one step
    # Image-to-image that begins below the hand-over leaves all its steps to the refiner.
    begun = int((all_of_them > first.timesteps[0]).sum())
    start = min(max(len(all_of_them) - left, begun), len(all_of_them))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    changes = [
        replace(change, scheduler=scheduler) for change in first.changes if isinstance(change, PasteBack)
    ]
    return Pass(scored(guided), scheduler, all_of_them[start:], latents, first.generators, changes)


def _cutoff(scheduler: Any, at: float) -> int:
    """The timestep of the hand-over, of those that were trained on."""
    trained = int(scheduler.config.num_train_timesteps)
    return round(trained - at * trained)
