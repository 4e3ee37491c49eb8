"""Learning rate over the run: a function of the step without state, so that resuming cannot get it wrong."""

import math
from collections.abc import Callable

from trainers.recipe_fields import ScheduleSection

Shape = Callable[[ScheduleSection, float], float]


def _restarts(section: ScheduleSection, done: float) -> float:
    within = 1.0 if done == 1 else (done * section.cycles) % 1
    return (1 + math.cos(math.pi * within)) / 2


def _stable_decay(section: ScheduleSection, done: float) -> float:
    return min(1.0, (1 - done) / section.decay)


def _rex(section: ScheduleSection, done: float) -> float:
    del section
    return (1 - done) / (0.5 + 0.5 * (1 - done))


SHAPES: dict[str, Shape] = {  # share of the steps after the warmup, in (0, 1] -> height, 1 down to 0
    "constant": lambda *_: 1.0,
    "linear": lambda _, done: 1 - done,
    "polynomial": lambda section, done: (1 - done) ** section.power,
    "cosine": lambda _, done: (1 + math.cos(math.pi * done)) / 2,
    # Loshchilov and Hutter 2017, "SGDR"
    "cosine_with_restarts": _restarts,
    # Chen et al. 2022, "REX: Revisiting Budgeted Training with an Improved Schedule"
    "rex": _rex,
    # Hu et al. 2024, "MiniCPM", sec. 4 (warmup, stable, decay; the decay is linear here)
    "warmup_stable_decay": _stable_decay,
}


def lr_factor(section: ScheduleSection, step: int, max_steps: int) -> float:
    """Rate at `step` (1 .. max_steps) as a fraction of its peak.

    Linear from 0 over the first `warmup` share of the steps, then the named shape down to `min_lr` at the
    last step; "constant" stays at 1.
    """
    warmup = round(section.warmup * max_steps)
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - warmup) / (max_steps - warmup)
    return section.min_lr + (1 - section.min_lr) * SHAPES[section.name](section, done)
