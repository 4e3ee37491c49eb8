"""First network: pictures <-> latents."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from studio.pocket.build.material import to_unit
from studio.pocket.build.networks import Network
from studio.pocket.build.stage import Say, Stage, run_stage
from studio.pocket.render import SIDE

CROP = 32  # pixels: four crops cost what one picture costs, and blur shows as well in them
CROPPED_SHARE = 0.8  # of the steps; the last ones see whole pictures, borders included
EDGE_WEIGHT, SQUARE_WEIGHT, KL_WEIGHT = 0.5, 0.25, 1e-4


@dataclass(frozen=True)
class AutoencoderPlan:
    """How long to train it and on how many pictures at once."""

    state_file: Path
    batch: int
    steps: int = 0
    seconds: float = 0.0


def train_autoencoder(
    vae: Network, pixels: Tensor, plan: AutoencoderPlan, say: Say, *, resume: bool
) -> list[float]:
    """Train on (N, 3, 64, 64) uint8 pixels; sets the scaling factor so that latents have unit spread.

    Loss: mean absolute error + 0.5 of its gradient's (edges) + 0.25 of the squared error + a little KL
    (Rombach et al. 2022, without the adversary and the learnt perceptual part).

    Returns:
        Losses of the steps done by this call.
    """
    device = vae.device
    vae.train()

    def loss_of(step: int, steps: int, generator: torch.Generator) -> Tensor:
        cropped = step < CROPPED_SHARE * steps
        count = plan.batch if cropped else max(1, plan.batch // 4)
        pictures = pixels[torch.randint(len(pixels), (count,), generator=generator)]
        if cropped:
            top, left = torch.randint(SIDE - CROP + 1, (2,), generator=generator).tolist()
            pictures = pictures[:, :, top : top + CROP, left : left + CROP]
        target = to_unit(pictures.to(device))
        target = target.flip(-1) if step % 2 else target
        return reconstruction_loss(vae, target, generator)

    stage = Stage(
        "autoencoder", [vae], plan.state_file, peak_lr=2.5e-3, beta2=0.98, weight_decay=1e-4,
        steps=plan.steps, seconds=plan.seconds, seed=1,
    )  # fmt: skip
    losses = run_stage(stage, loss_of, say, resume=resume)
    vae.eval()
    latents = encode(vae, pixels[:512])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return losses


def reconstruction_loss(vae: Network, target: Tensor, generator: torch.Generator) -> Tensor:
    """Loss of (B, 3, H, W) pictures in -1..1, see `train_autoencoder`."""
    posterior = vae.encode(target).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(target)
    error = vae.decode(posterior.mean + posterior.std * noise).sample - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return (
        error.abs().mean()
        + EDGE_WEIGHT * edges
        + SQUARE_WEIGHT * error.square().mean()
        + KL_WEIGHT * divergence
    )


@torch.no_grad()
def encode(vae: Network, pixels: Tensor, batch: int = 64) -> Tensor:
    """(N, 3, 64, 64) uint8 -> (N, 4, 16, 16) latents, not scaled, on the autoencoder's device."""
    parts = [vae.encode(to_unit(part.to(vae.device))).latent_dist.mean for part in pixels.split(batch)]
    return torch.cat(parts)


@torch.no_grad()
def round_trip_psnr(vae: Network, pixels: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of (N, 3, 64, 64) uint8 pictures through the autoencoder."""
    target = to_unit(pixels.to(vae.device))
    back = vae.decode(vae.encode(target).latent_dist.mean).sample.clamp(-1, 1)
    error = (back - target).square().mean((1, 2, 3)) / 4  # the range of -1..1 is 2
    return float((-10 * error.log10()).mean())
