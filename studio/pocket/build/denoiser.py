"""Second and third network, trained together: the denoiser and the text encoder it listens to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTokenizer

from studio.pocket.build.networks import Network, make_scheduler
from studio.pocket.build.stage import Say, Stage, run_stage

EMPTY_CAPTIONS = 0.1  # share of pictures shown without words, for guidance (Ho and Salimans 2022)
SNR_GAMMA = 5.0  # min-SNR weighting (Hang et al. 2023, sec. 3.4)


@dataclass(frozen=True)
class DenoiserPlan:
    """How long to train it and on how many pictures at once."""

    state_file: Path
    batch: int
    steps: int = 0
    seconds: float = 0.0


def train_denoiser(
    denoiser: Network,
    text_encoder: Network,
    latents: Tensor,
    token_ids: Tensor,
    plan: DenoiserPlan,
    say: Say,
    *,
    resume: bool,
    at_mark: Callable[[int], None] | None = None,
) -> list[float]:
    """Epsilon prediction on scaled latents (N, 4, 16, 16) and token ids (N, captions, 77).

    The last row of `token_ids` along N is the empty caption.

    Returns:
        Losses of the steps done by this call.
    """
    scheduler: Any = make_scheduler()
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight = snr.clamp(max=SNR_GAMMA) / snr
    device, steps_of_noise = latents.device, len(snr)
    # Plain attention: its fused form is slower on a CPU at these sizes, and saves nothing.
    denoiser.set_attn_processor(AttnProcessor())
    denoiser.train()
    text_encoder.train()

    def loss_of(_step: int, _steps: int, generator: torch.Generator) -> Tensor:
        picks = torch.randint(len(latents), (plan.batch,), generator=generator)
        wordings = torch.randint(token_ids.shape[1], (plan.batch,), generator=generator)
        empty = torch.rand(plan.batch, generator=generator) < EMPTY_CAPTIONS
        tokens = torch.where(empty[:, None], token_ids[-1, 0], token_ids[picks, wordings])
        # Stratified timesteps: one in each B-th of the range, so that the loss jumps less.
        spread = torch.rand(1, generator=generator) + torch.arange(plan.batch) / plan.batch
        t = (spread % 1 * steps_of_noise).long()
        noise = torch.randn((plan.batch, *latents.shape[1:]), generator=generator).to(device)
        noisy = scheduler.add_noise(latents[picks.to(device)], noise, t.to(device))
        words = text_encoder(tokens.to(device)).last_hidden_state
        error = denoiser(noisy, t.to(device), words).sample - noise
        return (error.square().mean((1, 2, 3)) * weight[t].to(device)).mean()

    stage = Stage(
        "denoiser", [denoiser, text_encoder], plan.state_file, peak_lr=1.2e-3, beta2=0.99, weight_decay=0.01,
        hold=0.25, steps=plan.steps, seconds=plan.seconds, seed=2,
    )  # fmt: skip
    losses = run_stage(stage, loss_of, say, resume=resume, at_mark=at_mark)
    denoiser.eval()
    text_encoder.eval()
    return losses


def tokenize(tokenizer: CLIPTokenizer, captions: list[tuple[str, str, str]]) -> Tensor:
    """Token ids (N + 1, 3, 77); the last row is the empty caption."""
    rows = [*captions, ("", "", "")]
    flat = [text for row in rows for text in row]
    ids = tokenizer(
        flat, padding="max_length", truncation=True, max_length=tokenizer.model_max_length
    ).input_ids
    return torch.tensor(ids).reshape(len(rows), 3, -1)
