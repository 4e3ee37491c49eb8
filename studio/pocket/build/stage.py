"""One stage of the build: so many optimizer steps, saved on the way, resumed to the bit.

Random numbers of a step depend on (seed, step) alone, and the number of steps is fixed before the first, so
a stage that was ended and resumed gives the weights of one that ran through.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from registry.errors import Damaged
from registry.files import atomic_path

Say = Callable[[str], None]
StepLoss = Callable[[int, int, torch.Generator], Tensor]  # step, steps, randomness -> loss

PROBE_STEPS = 20  # timed to turn minutes into steps; the first fifth is left out as warm-up
SAVE_SECONDS = 60.0
SAY_STEPS = 100
EMA_DECAY = 0.9985


@dataclass(frozen=True)
class Stage:
    """What to train, where its state lies, and how the rate moves.

    `steps` = 0 means: as many as `seconds` allow, found by timing a few steps.
    """

    name: str
    modules: list[nn.Module]
    state_file: Path
    peak_lr: float
    beta2: float
    weight_decay: float
    hold: float = 0.0  # fraction of the steps before the rate falls
    steps: int = 0
    seconds: float = 0.0
    seed: int = 0


def run_stage(
    stage: Stage, step_loss: StepLoss, say: Say, *, resume: bool, at_mark: Callable[[int], None] | None = None
) -> list[float]:
    """Train to the end and leave the averaged (EMA) weights in the modules.

    Args:
        stage: See `Stage`.
        step_loss: Loss of a step, drawn with the generator it is given.
        say: Told the mean loss every 100 steps.
        resume: Go on from the state file when there is one.
        at_mark: Called at every tenth of the way with the step; sees the averaged weights.

    Returns:
        Losses of the steps done by this call.
    """
    parameters = [p for module in stage.modules for p in module.parameters()]
    averaged = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.peak_lr, betas=(0.9, stage.beta2), weight_decay=stage.weight_decay
    )
    start, steps = 0, stage.steps
    if resume and stage.state_file.exists():
        start, steps = _load(stage, optimizer, parameters, averaged)
        say(f"{stage.name}: goes on at step {start} of {steps}")
    if not steps:
        steps = _steps_in(stage.seconds, parameters, step_loss)
    losses: list[float] = []
    saved_at = time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.peak_lr * rate(step, steps, stage.hold)
        loss = step_loss(step, steps, _randomness(stage.seed, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (20 + step))
        for mean, parameter in zip(averaged, parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        losses.append(loss.item())  # waits for the device; nothing beside the step itself is slower here
        done = step + 1
        if done % SAY_STEPS == 0:
            recent = losses[-SAY_STEPS:]
            say(f"{stage.name}: step {done} of {steps}, loss {sum(recent) / len(recent):.4f}")
        if done == steps or time.monotonic() - saved_at > SAVE_SECONDS:
            _save(stage, optimizer, parameters, averaged, done, steps)
            saved_at = time.monotonic()
        if at_mark and done % max(1, steps // 10) == 0:
            with _borrowed(parameters, averaged):
                at_mark(done)
    _fill(parameters, averaged)
    return losses


def rate(step: int, steps: int, hold: float) -> float:
    """Learning rate as a fraction of its peak: 50 steps up, hold, then half a cosine down to 2 %."""
    falling = min(1.0, max(0.0, step / steps - hold) / (1 - hold))
    return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling)))


@contextmanager
def _borrowed(parameters: list[nn.Parameter], values: list[Tensor]) -> Generator[None]:
    """Within the block the parameters hold `values`; afterwards their own again."""
    own = [p.detach().clone() for p in parameters]
    _fill(parameters, values)
    yield
    _fill(parameters, own)


def _fill(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _randomness(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _steps_in(seconds: float, parameters: list[nn.Parameter], step_loss: StepLoss) -> int:
    """How many steps `seconds` allow, from the time that a few forward and backward passes take."""
    started = 0.0
    for step in range(PROBE_STEPS):
        if step == PROBE_STEPS // 5:
            started = time.perf_counter()
        step_loss(step, PROBE_STEPS, _randomness(0, step)).backward()
        for parameter in parameters:
            parameter.grad = None
    each = (time.perf_counter() - started) / (PROBE_STEPS - PROBE_STEPS // 5)
    return max(PROBE_STEPS, int(seconds / (1.15 * each)))  # the optimizer takes about a seventh more


def _save(
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    averaged: list[Tensor],
    step: int,
    steps: int,
) -> None:
    state = {
        "step": step,
        "steps": steps,
        "weights": [p.detach() for p in parameters],
        "averaged": averaged,
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(stage.state_file) as temporary:
        torch.save(state, temporary)


def _load(
    stage: Stage, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], averaged: list[Tensor]
) -> tuple[int, int]:
    """Step and steps of the saved state; weights, averages and optimizer are filled."""
    device = parameters[0].device
    try:
        state = torch.load(stage.state_file, map_location=device, weights_only=True)
        _fill(parameters, state["weights"])
        for mine, saved in zip(averaged, state["averaged"], strict=True):
            mine.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), int(state["steps"])
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise Damaged(
            str(stage.state_file), "is no state of this stage", "delete it or build without --resume"
        ) from error
