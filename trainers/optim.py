"""Optimizers of a recipe: one table, by name.

Trainable tensors lie in flat buffers (`trainers.flat`), one per group, and most optimizers see just these:
they treat every value by itself, so the shape means nothing to them. Adafactor keeps its second moment as
rows and columns of a matrix and therefore gets layer by layer. Weights in bf16 are updated through
`trainers.rounding`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from registry.errors import BadInput
from trainers.flat import Flat
from trainers.recipe_fields import OptimizerSection, ScheduleSection
from trainers.rounding import Rounded, any_bf16, pieces_of

PEAK = "peak_lr"  # key in a parameter group: the rate at a factor of 1

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, section: OptimizerSection) -> Optimizer:
    return torch.optim.AdamW(groups, **_adam_options(section, 0.999), fused=True)


def _adamw8bit(groups: Groups, section: OptimizerSection) -> Optimizer:
    return _bitsandbytes().AdamW8bit(groups, **_adam_options(section, 0.999))


def _paged_adamw8bit(groups: Groups, section: OptimizerSection) -> Optimizer:
    return _bitsandbytes().PagedAdamW8bit(groups, **_adam_options(section, 0.999))


def _lion(groups: Groups, section: OptimizerSection) -> Optimizer:
    return _bitsandbytes().Lion(groups, **_lion_options(section))


def _lion8bit(groups: Groups, section: OptimizerSection) -> Optimizer:
    return _bitsandbytes().Lion8bit(groups, **_lion_options(section))


def _adafactor(groups: Groups, section: OptimizerSection) -> Optimizer:
    from transformers.optimization import Adafactor

    # torch's own scales each update by the size of the weights, which is 0 for an adapter at its start.
    return Adafactor(
        groups,
        lr=section.lr,
        weight_decay=section.weight_decay,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def _prodigy(groups: Groups, section: OptimizerSection) -> Optimizer:
    from prodigyopt import Prodigy

    return Prodigy(groups, **_adam_options(section, 0.999), use_bias_correction=True, safeguard_warmup=True)


def _schedule_free(groups: Groups, section: OptimizerSection) -> Optimizer:
    from schedulefree import AdamWScheduleFree

    if not section.beta1:
        raise BadInput("optimizer.beta1", "is 0, which schedulefree cannot average with", "set it above 0")
    optimizer: Any = AdamWScheduleFree(groups, **_adam_options(section, 0.999))
    optimizer.train()  # and never eval(): `ema.ScheduleFreeMean` reads the mean without touching the weights
    return optimizer


@dataclass(frozen=True)
class Kind:
    """What must be known about an optimizer.

    Args:
        make: Parameter groups, section -> optimizer.
        state_bytes: Of its state, per trained value.
        bitsandbytes: Whether it needs that library, whose import costs a second.
        layers: Sees layer by layer instead of flat buffers.
        one_rate: Finds its rate itself, and has one for all groups.
        own_mean: Averages weights itself and takes no schedule.
        smaller: The same with 8-bit state.
    """

    make: Callable[[Groups, OptimizerSection], Optimizer]
    state_bytes: int
    bitsandbytes: bool = False
    layers: bool = False
    one_rate: bool = False
    own_mean: bool = False
    smaller: str = ""


OPTIMIZERS: dict[str, Kind] = {
    # Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"
    "adamw": Kind(_adamw, 8, smaller="adamw8bit"),
    # Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"
    "adamw8bit": Kind(_adamw8bit, 2, bitsandbytes=True),
    # The same; the state moves to system memory when the GPU's is short
    "paged_adamw8bit": Kind(_paged_adamw8bit, 2, bitsandbytes=True),
    # Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms"
    "lion": Kind(_lion, 4, bitsandbytes=True, smaller="lion8bit"),
    "lion8bit": Kind(_lion8bit, 1, bitsandbytes=True),
    # Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"
    "adafactor": Kind(_adafactor, 1, layers=True),
    # Mishchenko and Defazio 2023, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner"
    "prodigy": Kind(_prodigy, 16, one_rate=True),
    # Defazio et al. 2024, "The Road Less Scheduled"
    "schedulefree": Kind(_schedule_free, 8, own_mean=True),
}


def optimizer_name(section: OptimizerSection, device: torch.device) -> str:
    """The optimizer behind "auto": 8-bit states where memory is dear, plain ones on a CPU."""
    if section.name != "auto":
        return section.name
    return "adamw8bit" if device.type == "cuda" else "adamw"


def optimizer_kind(section: OptimizerSection, device: torch.device) -> Kind:
    """Its row of the table."""
    return OPTIMIZERS[optimizer_name(section, device)]


def make_optimizer(
    section: OptimizerSection, flats: Sequence[Flat], device: torch.device, seed: int = 0
) -> Optimizer:
    """The recipe's optimizer over all trainable tensors.

    Args:
        section: The optimizer section of the recipe.
        flats: What learns; the role of each decides its rate.
        device: Decides what "auto" means.
        seed: train.seed, for stochastic rounding of bf16 weights.

    Raises:
        BadInput: two rates where the optimizer has one; bf16 weights with an optimizer that has to see all
            values at once.
    """
    name = optimizer_name(section, device)
    kind = OPTIMIZERS[name]
    rates = [_rate(section, flat) for flat in flats]
    if kind.one_rate and len(set(rates)) > 1:
        raise BadInput("optimizer.text_lr", f"{name} has one rate for everything", "set it to none")
    options: Groups = [
        {"lr": rate, PEAK: rate, **({} if flat.decay else {"weight_decay": 0.0})}
        for rate, flat in zip(rates, flats, strict=True)
    ]
    if any_bf16(flats):
        if kind.one_rate or kind.own_mean:
            raise BadInput(
                "optimizer.name", f"{name} cannot train bf16 weights", "use adamw8bit or adafactor"
            )
        pieces = [pieces_of(flat, layers=kind.layers) for flat in flats]
        return Rounded(pieces, options, lambda groups: kind.make(groups, section), seed)
    for group, flat in zip(options, flats, strict=True):
        group["params"] = list(flat.named.values()) if kind.layers else [flat.parameter]
    return kind.make(options, section)


def _rate(section: OptimizerSection, flat: Flat) -> float:
    return (section.text_encoder_lr if flat.role == "text" else section.lr) * flat.factor


def schedule_in_force(
    optimizer: OptimizerSection, schedule: ScheduleSection, device: torch.device
) -> ScheduleSection:
    """The recipe's schedule, or constant after the warmup for an optimizer that takes none."""
    if optimizer_kind(optimizer, device).own_mean:
        return schedule.model_copy(update={"name": "constant"})
    return schedule


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Put `factor` times its peak rate into every group."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * factor


def page_state(optimizer: Any) -> None:
    """Put loaded state back where a paged optimizer keeps it; others stay as they are.

    bitsandbytes loads state into ordinary GPU memory, so that a resumed run would need more than its first
    attempt did.
    """
    optimizer = getattr(optimizer, "inner", optimizer)
    if not getattr(optimizer, "is_paged", False):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name in {"state1", "state2"} & state.keys():
                if parameter.is_cuda and parameter.shape == state[name].shape:
                    buffer = optimizer.get_state_buffer(parameter, dtype=state[name].dtype)
                    state[name] = buffer.copy_(state[name])


def _adam_options(section: OptimizerSection, beta2: float) -> dict[str, Any]:
    return {**_lion_options(section, beta2), "eps": section.eps}


def _lion_options(section: OptimizerSection, beta2: float = 0.99) -> dict[str, Any]:
    betas = (section.beta1, beta2 if section.beta2 is None else section.beta2)
    return {"lr": section.lr, "betas": betas, "weight_decay": section.weight_decay}


def _bitsandbytes() -> Any:
    """The library's optimizers, also where `run.spare_bitsandbytes` hid it from those who import it on
    sight."""
    if "bitsandbytes" in sys.modules and sys.modules["bitsandbytes"] is None:  # pyright: ignore[reportUnnecessaryComparison]
        del sys.modules["bitsandbytes"]
    import bitsandbytes.optim as optimizers

    return optimizers
