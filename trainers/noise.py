"""Noise that pictures are mixed with, and its variants. What is switched off draws no random number.

Shapes: (B, C, h, w) latents. All draws come from the given CPU generator, on the CPU.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.recipe_fields import ObjectiveSection


@dataclass(frozen=True)
class NoiseLaw:
    """Standard normal noise, with what the recipe adds to it.

    Args:
        offset: Standard deviation of a constant added to each channel (Guttenberg 2023, "Diffusion with
            Offset Noise"); lets pictures become very dark or bright. 0 = off.
        offset_varies: The standard deviation is drawn evenly from 0 to `offset` for each picture.
        pyramid_discount: Multi-resolution noise (Whitaker 2023, "Multi-Resolution Noise for Diffusion Model
            Training"): level i is noise on a grid coarser by r^i, enlarged and weighted by discount^i, with r
            drawn from 2 to 4; the sum is scaled back to unit deviation. 0 = off.
        pyramid_levels: Most levels of the pyramid; it ends earlier where a side of the grid is 1.
        perturbation: gamma of `perturb`. 0 = off.
    """

    offset: float = 0.0
    offset_varies: bool = False
    pyramid_discount: float = 0.0
    pyramid_levels: int = 6
    perturbation: float = 0.0

    def sample(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B, C, h, w) fp32."""
        noise = torch.randn(shape, generator=generator)
        if self.offset:
            constant = torch.randn(*shape[:2], 1, 1, generator=generator)
            if self.offset_varies:
                constant = constant * torch.rand(shape[0], 1, 1, 1, generator=generator)
            noise += self.offset * constant
        if self.pyramid_discount:
            noise = self._pyramid(noise, generator)
        return noise

    def perturb(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Noise that x_t is made with, while the target keeps `noise`: noise + gamma xi, xi standard normal.

        The denoiser learns to work on inputs as far off as its own earlier steps leave them (Ning et al.
        2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models", alg. 1).
        """
        if not self.perturbation:
            return noise
        return noise + self.perturbation * torch.randn(noise.shape, generator=generator)

    def _pyramid(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        count, channels, height, width = noise.shape
        for level in range(self.pyramid_levels):
            ratio = 2 + 2 * float(torch.rand((), generator=generator))
            size = max(1, int(height / ratio**level)), max(1, int(width / ratio**level))
            coarse = torch.randn(count, channels, *size, generator=generator)
            fine = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
            noise = noise + self.pyramid_discount**level * fine
            if 1 in size:
                break
        # Of each picture by itself, so that it does not matter what else is in the batch.
        return noise / noise.flatten(1).std(1).view(-1, 1, 1, 1)


def make_noise(section: ObjectiveSection) -> NoiseLaw:
    """The recipe's noise."""
    return NoiseLaw(
        section.noise_offset,
        section.noise_offset_varies,
        section.pyramid_discount,
        section.pyramid_levels,
        section.input_perturbation,
    )
