"""First network: pictures <-> latents."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from studio.pocket.build.networks import LATENT_SIDE, Network
from studio.pocket.build.replay import Inputs
from studio.pocket.build.stage import Say, Stage, run_stage
from studio.pocket.render import SIDE

EDGE_WEIGHT, SQUARE_WEIGHT, KL_WEIGHT = 1.0, 0.5, 3e-5
HATCHINGS, LINE = 32, 2  # test pictures, and the width of their lines and gaps in pixels


@dataclass(frozen=True)
class AutoencoderPlan:
    """How long to train it and on how many pictures at once; see `Stage` for the rest."""

    state_file: Path
    batch: int
    steps: int = 0
    until: float = 0.0
    rate: float = 1.0  # times the usual learning rate
    plain: bool = False


def train_autoencoder(
    vae: Network, pixels: Tensor, plan: AutoencoderPlan, say: Say, *, resume: bool
) -> list[float]:
    """Train on (N, 3, 64, 64) uint8 pixels; sets scaling (and shift, with 16 channels) for unit spread.

    Loss: mean absolute error + its gradient's (edges: hatching is nothing else) + half of the squared error
    + a little KL (Rombach et al. 2022, without the adversary and the learnt perceptual part).

    Returns:
        Mean losses of every 20 steps done by this call.
    """
    device = vae.device
    pixels = pixels.to(device)
    channels = vae.config.latent_channels
    vae.train()

    def draw(generator: torch.Generator) -> Inputs:
        picks = torch.randint(len(pixels), (plan.batch,), generator=generator, device=device)
        noise_of = (plan.batch, channels, LATENT_SIDE, LATENT_SIDE)
        return {
            "pictures": pixels[picks],
            "flipped": torch.rand(plan.batch, generator=generator, device=device) < 0.5,
            "noise": torch.randn(noise_of, generator=generator, device=device),
        }

    stage = Stage(
        f"autoencoder-{channels}", [vae], plan.state_file, peak_lr=2e-3 * plan.rate, beta2=0.99,
        weight_decay=1e-4, hold=0.3, steps=plan.steps, until=plan.until, seed=1, plain=plan.plain,
    )  # fmt: skip
    losses = run_stage(stage, draw, lambda inputs: reconstruction_loss(vae, inputs), say, resume=resume)
    vae.eval()
    latents = encode(vae, pixels[:2048])
    shift = float(latents.mean()) if channels == 16 else None
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=shift)
    return losses


def reconstruction_loss(vae: Network, inputs: Inputs) -> Tensor:
    """Loss of "pictures" (B, 3, H, W) uint8, some "flipped" (B,), with "noise" like the latents."""
    target = to_unit(inputs["pictures"])
    target = torch.where(inputs["flipped"][:, None, None, None], target.flip(-1), target)
    posterior = vae.encode(target).latent_dist
    error = vae.decode(posterior.mean + posterior.std * inputs["noise"]).sample - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return (
        error.abs().mean()
        + EDGE_WEIGHT * edges
        + SQUARE_WEIGHT * error.square().mean()
        + KL_WEIGHT * divergence
    )


@torch.no_grad()
def encode(vae: Network, pixels: Tensor) -> Tensor:
    """(N, 3, 64, 64) uint8 -> (N, C, 16, 16) latents, neither shifted nor scaled, on the VAE's device.

    On a CPU a few at a time, the channels of a pixel side by side: 2.4 times as fast as 256 at a time.
    """
    on_cpu = vae.device.type == "cpu"
    layout = torch.channels_last if on_cpu else torch.contiguous_format
    parts = [
        vae.encode(to_unit(part.to(vae.device)).contiguous(memory_format=layout)).latent_dist.mean
        for part in pixels.split(8 if on_cpu else 256)
    ]
    return torch.cat([part.contiguous() for part in parts])


@torch.no_grad()
def round_trip(vae: Network, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, 64, 64) uint8 pictures in -1..1, and what comes back from the autoencoder."""
    target = to_unit(pixels.to(vae.device))
    return target, vae.decode(vae.encode(target).latent_dist.mean).sample.clamp(-1, 1)


def round_trip_psnr(vae: Network, pixels: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of (N, 3, 64, 64) uint8 pictures through the autoencoder."""
    target, back = round_trip(vae, pixels)
    error = (back - target).square().mean((1, 2, 3)) / 4  # the range of -1..1 is 2
    return float((-10 * error.clamp(min=1e-10).log10()).mean())


def hatching_kept(vae: Network) -> float:
    """Share of the contrast of lines two pixels wide that comes back, 0 to 1: the part that is in phase."""
    target, back = round_trip(vae, hatchings())
    lines, seen = (side - side.mean((-2, -1), keepdim=True) for side in (target, back))
    return float(((lines * seen).sum((1, 2, 3)) / lines.square().sum((1, 2, 3))).mean())


def hatchings() -> Tensor:
    """(32, 3, 64, 64) uint8: lines two pixels wide, two pixels apart, at any angle, ink on paper."""
    rng, scale = random.Random(5), 4
    side = SIDE * scale
    pictures: list[np.ndarray] = []
    for _ in range(HATCHINGS):
        paper = tuple(rng.randint(190, 250) for _ in range(3))
        ink = tuple(rng.randint(0, 90) for _ in range(3))
        stripes = Image.new("RGB", (2 * side, 2 * side), paper)
        draw = ImageDraw.Draw(stripes)
        for y in range(0, 2 * side, 2 * LINE * scale):
            draw.rectangle([0, y, 2 * side, y + LINE * scale - 1], fill=ink)
        turned = stripes.rotate(rng.uniform(0, 180), Image.Resampling.BILINEAR)
        cut = turned.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))
        pictures.append(np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: Tensor) -> Tensor:
    """Uint8 0..255 -> float -1..1."""
    return pixels.float() / 127.5 - 1
