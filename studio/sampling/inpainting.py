"""Inpainting: a plain base has what stays pasted back after each step; others read the mask themselves.

Bases made for it (Stable Diffusion with nine channels, FLUX.1 Fill) are given the mask and the picture
without its masked part beside the latents, and what they draw outside the mask is their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.sampling.painting import Change, Pass
from studio.sampling.starts import from_latents, from_noise, latents_of, new_noise, noised
from trainers.families.base import NOTHING, Family
from trainers.guidance import Guided, is_flow


@dataclass
class PasteBack:
    """After each step the unmasked latents are the picture's again, with the noise of the next timestep.

    Args:
        scheduler: Of the pass.
        picture: (B, C, h, w), without noise.
        noise: (B, C, h, w), the one that the pass began with.
        mask: (1, 1, h, w), 1 = drawn anew.
    """

    scheduler: Any
    picture: Tensor
    noise: Tensor
    mask: Tensor

    def before(self, number: int, t: Tensor, x: Tensor) -> Mapping[str, Any]:
        """Nothing."""
        del number, t, x
        return NOTHING

    def after(self, number: int, t_next: Tensor | None, x: Tensor) -> Tensor:
        """Masked part of `x`, the rest of the picture."""
        del number
        kept = self.picture if t_next is None else noised(self.scheduler, self.picture, self.noise, t_next)
        return (1 - self.mask) * kept + self.mask * x


@dataclass(frozen=True)
class Inpaint:
    """What is to be inpainted.

    Args:
        pixels: (1, 3, H, W) in [-1, 1].
        mask: (1, 1, H, W), 1 = drawn anew.
        content: "original" or "fill" (the pixels say which), "noise", "nothing".
        strength: From 0 to 1.
    """

    pixels: Tensor
    mask: Tensor
    content: str
    strength: float

    def prepare(
        self,
        guided: Guided,
        scheduler: Any,
        steps: int,
        noise: Any,
        sources: list[torch.Generator],
        changes: list[Change],
    ) -> Pass:
        """The pass; `noise` is called for the noise (B, C, h, w) when its turn at the generators comes."""
        family = guided.family
        # A UNet made for it starts from noise alone at full strength, and then never sees the whole picture.
        unseen = family.inpaints and self.strength == 1 and not is_flow(scheduler)
        picture = None if unseen else latents_of(family, self.pixels, sources)
        first: Tensor = noise()
        cells = latent_mask(self.mask, family).to(first)
        if family.inpaints:
            guided = replace(guided, beside=beside(family, self.pixels, self.mask, sources))
        else:  # drawn in any case, as by the pipelines: samplers that add noise go on from there
            new_noise(family, guided.size, sources)
        if picture is None:
            return from_noise(guided, scheduler, steps, first, sources, changes)
        start = self._content(picture, first, cells)
        if self.strength == 1:
            work = from_noise(guided, scheduler, steps, first, sources, changes)
            # As image-to-image has it: later noise is then that of the step, not of a timestep looked up.
            if hasattr(work.scheduler, "set_begin_index"):
                work.scheduler.set_begin_index(0)
        else:
            work = from_latents(guided, scheduler, steps, self.strength, start, first, sources, changes)
        if not family.inpaints:
            work.changes = [*changes, PasteBack(work.scheduler, picture, first, cells)]
        return work

    def _content(self, picture: Tensor, noise: Tensor, cells: Tensor) -> Tensor:
        if self.content == "noise":
            return (1 - cells) * picture + cells * noise
        return (1 - cells) * picture if self.content == "nothing" else picture


def everything(guided: Guided, sources: list[torch.Generator]) -> Guided:
    """A base made for inpainting without a mask: all of an empty picture is masked."""
    height, width = guided.size
    empty = torch.zeros(1, 3, height, width)
    return replace(guided, beside=beside(guided.family, empty, torch.ones(1, 1, height, width), sources))


def beside(family: Family, pixels: Tensor, mask: Tensor, sources: list[torch.Generator]) -> Tensor:
    """(B, C', h, w): what a base made for inpainting reads beside the latents."""
    masked = latents_of(family, pixels * (mask < 0.5), sources)
    return family.beside(mask.to(masked), masked)


def latent_mask(mask: Tensor, family: Family) -> Tensor:
    """(1, 1, H, W) -> (1, 1, h, w): each cell has the value of its first pixel."""
    factor = family.latent_factor
    return F.interpolate(mask, size=(mask.shape[-2] // factor, mask.shape[-1] // factor))
