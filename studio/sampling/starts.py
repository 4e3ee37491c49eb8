"""Where the latents of a pass start, and which steps are left.

Noise comes from the CPU, one generator a picture: the same on every device and for every count.
"""

from typing import Any

import torch
from torch import Tensor

from studio.sampling.painting import Pass
from trainers.families.base import Family
from trainers.guidance import Guided, begin, first_latents


def generators(seed: int, indices: list[int]) -> list[torch.Generator]:
    """A generator for each picture of a request: picture i has seed `seed + i`, which wraps at 2^32."""
    return [torch.Generator("cpu").manual_seed((seed + i) % 2**32) for i in indices]


def from_noise(guided: Guided, scheduler: Any, steps: int, sources: list[torch.Generator]) -> Pass:
    """Text to image: all steps, from noise alone."""
    noise = new_noise(guided.family, guided.size, sources)
    scheduler = begin(guided.family, scheduler, steps, noise.shape)
    latents = first_latents(scheduler, noise)
    return Pass(guided, scheduler, scheduler.timesteps, latents, sources)


def new_noise(family: Family, size: tuple[int, int], sources: list[torch.Generator]) -> Tensor:
    """(B, C, h, w) standard normal on the device, for pictures of `size` (height, width) in pixels."""
    channels = int(family.config("vae")["latent_channels"])
    factor = family.latent_factor
    shape = (1, channels, size[0] // factor, size[1] // factor)
    return torch.cat([torch.randn(shape, generator=source) for source in sources]).to(family.device)
