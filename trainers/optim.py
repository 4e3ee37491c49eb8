"""Optimizer and learning-rate schedule of a recipe.

The schedule is a function of the step and has no state, so that resuming cannot get it wrong.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from registry.errors import BadInput
from trainers.flat import Flat
from trainers.recipe_fields import OptimizerSection, ScheduleSection

PEAK = "peak_lr"  # key in a parameter group: the rate at a factor of 1


def optimizer_name(section: OptimizerSection, device: torch.device) -> str:
    """The optimizer behind "auto": 8-bit states where memory is dear, plain ones on a CPU."""
    if section.name != "auto":
        return section.name
    return "adamw8bit" if device.type == "cuda" else "adamw"


def make_optimizer(section: OptimizerSection, flats: Sequence[Flat], device: torch.device) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), its 8-bit form (Dettmers et al. 2022) or Prodigy (Mishchenko 2023).

    Args:
        section: The optimizer section of the recipe.
        flats: The denoiser's adapter and, if it is trained, the text encoders', which has a rate of its own.
        device: Decides what "auto" means.

    Raises:
        BadInput: Prodigy with two rates.
    """
    name = optimizer_name(section, device)
    rates = (section.lr, section.text_encoder_lr)
    groups: list[dict[str, Any]] = [
        {"params": [flat.parameter], "lr": rate, PEAK: rate} for flat, rate in zip(flats, rates, strict=False)
    ]
    options: dict[str, Any] = {
        "lr": section.lr,
        "betas": (section.beta1, section.beta2),
        "eps": section.eps,
        "weight_decay": section.weight_decay,
    }
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **options)
    if name == "prodigy":
        if len(flats) > 1 and section.text_encoder_lr != section.lr:
            raise BadInput("optimizer.text_lr", "prodigy has one rate for everything", "set it to none")
        from prodigyopt import Prodigy

        return Prodigy(groups, **options, use_bias_correction=True, safeguard_warmup=True)
    return torch.optim.AdamW(groups, **options, fused=True)


def lr_factor(section: ScheduleSection, step: int, max_steps: int) -> float:
    """Rate at `step` (1 .. max_steps) as a fraction of its peak.

    Linear from 0 over the first `warmup` share of the steps, then the named shape down to `min_lr` at the
    last step. Cosine restarts: Loshchilov and Hutter 2017, "SGDR".
    """
    warmup = round(section.warmup * max_steps)
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - warmup) / (max_steps - warmup)  # in (0, 1]
    match section.name:
        case "constant":
            return 1.0
        case "linear":
            height = 1 - done
        case "polynomial":
            height = (1 - done) ** section.power
        case "cosine":
            height = (1 + math.cos(math.pi * done)) / 2
        case "cosine_with_restarts":
            within = 1.0 if done == 1 else (done * section.cycles) % 1
            height = (1 + math.cos(math.pi * within)) / 2
    return section.min_lr + (1 - section.min_lr) * height


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Put `factor` times its peak rate into every group."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * factor
