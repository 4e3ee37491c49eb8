"""Where the latents of a pass start, and which steps are left.

Random numbers come from the CPU, one generator a picture: the same on every device and for every count. From
a picture's generator come, in this order: the VAE's noise for the picture, the noise of the pass, the VAE's
noise for a masked picture. That is the order of diffusers' pipelines.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from studio.sampling.painting import Change, Pass
from studio.sampling.request import SampleRequest
from studio.sampling.steps import check_strength, first_step
from trainers.families.base import Family
from trainers.guidance import Guided, begin, first_latents, is_flow

NEARLY_PARALLEL = 0.9995  # mean cosine above which a variation goes straight


def generators(request: SampleRequest, indices: Sequence[int]) -> list[torch.Generator]:
    """A generator for each picture: picture i has seed `seed + i`, which wraps at 2^32.

    Variations all have the same seed; theirs is the subseed that counts.
    """
    varied = request.subseed_strength > 0
    return [
        torch.Generator("cpu").manual_seed((request.seed + (0 if varied else index)) % 2**32)
        for index in indices
    ]


def from_noise(
    guided: Guided,
    scheduler: Any,
    steps: int,
    noise: Tensor,
    sources: list[torch.Generator],
    changes: Sequence[Change] = (),
) -> Pass:
    """Text to image: all steps, from noise (B, C, h, w) alone."""
    scheduler = begin(guided.family, scheduler, steps, noise.shape)
    return Pass(guided, scheduler, scheduler.timesteps, first_latents(scheduler, noise), sources, changes)


def from_latents(
    guided: Guided,
    scheduler: Any,
    steps: int,
    strength: float,
    latents: Tensor,
    noise: Tensor,
    sources: list[torch.Generator],
    changes: Sequence[Change] = (),
) -> Pass:
    """Image to image: the last steps, from the latents (B, C, h, w) of a picture with noise on them."""
    check_strength(steps, strength, flow=is_flow(scheduler))
    scheduler = begin(guided.family, scheduler, steps, noise.shape)
    timesteps = remaining(scheduler, first_step(steps, strength, flow=is_flow(scheduler)))
    start = noised(scheduler, latents, noise, timesteps[0])
    return Pass(guided, scheduler, timesteps, start, sources, changes)


def remaining(scheduler: Any, start: int) -> Tensor:
    """Timesteps from step `start` on; the scheduler knows that it begins there."""
    at = start * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(at)
    return scheduler.timesteps[at:]


def noised(scheduler: Any, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Latents (B, C, h, w) with as much noise as there is at the sampler's timestep `t`."""
    times = t.reshape(1).repeat(len(latents))
    if is_flow(scheduler):
        return scheduler.scale_noise(latents, times, noise)
    return scheduler.add_noise(latents, noise, times)


def latents_of(family: Family, pixels: Tensor, sources: list[torch.Generator]) -> Tensor:
    """(1, 3, H, W) in [-1, 1] -> (B, C, h, w): drawn from what the VAE says, once from each source."""
    mean, deviation = family.encode_image(pixels)
    noise = torch.cat([torch.randn(mean.shape, generator=source) for source in sources])
    return mean + deviation * noise.to(mean)


def new_noise(family: Family, size: tuple[int, int], sources: list[torch.Generator]) -> Tensor:
    """(B, C, h, w) standard normal on the device, for pictures of `size` (height, width) in pixels."""
    channels = int(family.config("vae")["latent_channels"])
    factor = family.latent_factor
    shape = (1, channels, size[0] // factor, size[1] // factor)
    return torch.cat([torch.randn(shape, generator=source) for source in sources]).to(family.device)


def first_noise(
    family: Family,
    request: SampleRequest,
    indices: Sequence[int],
    size: tuple[int, int],
    sources: list[torch.Generator],
) -> Tensor:
    """The noise of the first pass: `new_noise`, turned towards that of the subseed for a variation."""
    noise = new_noise(family, size, sources)
    if not request.subseed_strength:
        return noise
    others = [torch.Generator("cpu").manual_seed((request.subseed + i) % 2**32) for i in indices]
    other = new_noise(family, size, others)
    turned = [slerp(a, b, request.subseed_strength) for a, b in zip(noise, other, strict=True)]
    return torch.stack(turned)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Between two noises (C, h, w) on the sphere: Shoemake 1985, "Animating rotation with quaternion curves".

    As A1111 does it, each column of each channel is a vector of h numbers; so its variations come out.
    """
    cosine = (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1, keepdim=True)
    if cosine.mean() > NEARLY_PARALLEL:
        return a * (1 - share) + b * share
    angle = torch.acos(cosine)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
