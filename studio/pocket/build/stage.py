"""One stage of the build: optimizer steps until so many are done or the time is up, saved on the way.

Random numbers of a step depend on (seed, step) alone. With a fixed number of steps a stage that was ended and
resumed gives the weights of one that ran through. With a time limit the learning rate follows the clock: how
long a step takes changes when other stages share the device, so no number of steps could be kept to.
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
from studio.pocket.build.replay import Inputs, Replay

Say = Callable[[str], None]
Draw = Callable[[torch.Generator], Inputs]  # randomness -> what a step reads, the same shapes each time
LossOf = Callable[[Inputs], Tensor]  # deterministic; draws nothing

SAVE_SECONDS = 60.0
READ_STEPS = 20  # the loss is read so often: reading waits for the device
EMA_DECAY = 0.999
WARM_SHARE = 0.02  # of the way, while the rate rises
CLIP_NORM = 1.0


class Diverged(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Stage:
    """What to train, where its state lies, how long, and how the rate moves.

    Args:
        name: For messages.
        modules: Trained, all on one device.
        state_file: Where the state is saved.
        peak_lr: Highest learning rate.
        beta2: Of AdamW.
        weight_decay: Of AdamW.
        hold: Share of the way before the rate falls.
        steps: How many; 0 = until the time is up.
        until: When that is, in seconds since the epoch. A resumed stage gets the time that it had left.
        seed: Of the random numbers.
        marks: So many times on the way the caller has a look.
        plain: No recording and no fused optimizer on a GPU: slower, for when they fail.
    """

    name: str
    modules: list[nn.Module]
    state_file: Path
    peak_lr: float
    beta2: float
    weight_decay: float
    hold: float = 0.0
    steps: int = 0
    until: float = 0.0
    seed: int = 0
    marks: int = 10
    plain: bool = False


@dataclass(frozen=True)
class Mark:
    """Where a stage is: steps done, seconds spent, mean loss since the last reading."""

    step: int
    seconds: float
    loss: float


def run_stage(
    stage: Stage,
    draw: Draw,
    loss_of: LossOf,
    say: Say,
    *,
    resume: bool,
    at_mark: Callable[[Mark], None] | None = None,
) -> list[float]:
    """Train to the end and leave the averaged (EMA) weights in the modules.

    Args:
        stage: See `Stage`.
        draw: What a step reads, drawn on the modules' device.
        loss_of: Loss of that.
        say: Told of the progress.
        resume: Go on from the state file when there is one.
        at_mark: Called `stage.marks` times on the way; sees the averaged weights in the modules.

    Returns:
        Mean losses of every 20 steps done by this call.

    Raises:
        Diverged: the loss is no number; the state of the last minute is still there.
        NotRecorded: see `Replay`.
    """
    run = _Run(stage, loss_of)
    if resume and stage.state_file.exists():
        run.load()
        say(f"{stage.name}: goes on at step {run.step}")
    generator = torch.Generator(run.device)
    losses: list[float] = []
    share = run.share() if run.step else 0.0  # one step at least, however late it begins
    saved_at, unread = time.monotonic(), 0
    while share < 1:
        run.do(draw(generator.manual_seed(stage.seed * 1_000_003 + run.step)), share)
        unread += 1
        before, share = share, run.share()
        marked = int(share * stage.marks + 1e-9) > int(before * stage.marks + 1e-9)
        if unread < READ_STEPS and not marked and share < 1:
            continue
        losses.append(run.read_loss(unread))
        unread = 0
        if share >= 1 or time.monotonic() - saved_at > SAVE_SECONDS:
            run.save()
            saved_at = time.monotonic()
        if marked:
            say(f"{stage.name}: {share:.0%}, step {run.step}, loss {losses[-1]:.4f}")
        if marked and at_mark:
            with _borrowed(run.weights, run.averaged):
                at_mark(Mark(run.step, run.spent(), losses[-1]))
            share = run.share()
    _fill(run.weights, run.averaged)
    return losses


def steps_in(state_file: Path) -> int:
    """Steps that a stage had done when it was saved."""
    return int(torch.load(state_file, map_location="cpu", weights_only=True)["step"])


def rate(share: float, hold: float) -> float:
    """Learning rate as a fraction of its peak: up in 2 % of the way, hold, half a cosine down to 2 %."""
    falling = min(1.0, max(0.0, share - hold) / (1 - hold))
    rising = min(1.0, 0.02 + share / WARM_SHARE)
    return rising * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling)))


class _Run:
    """Weights, averages, optimizer and clock of a stage."""

    def __init__(self, stage: Stage, loss_of: LossOf) -> None:
        self._stage, self._loss_of = stage, loss_of
        self._parameters = [p for module in stage.modules for p in module.parameters()]
        self.device = self._parameters[0].device
        self.weights = [p.detach() for p in self._parameters]  # the same memory
        self.averaged = [p.clone() for p in self.weights]
        self.step, self._earlier = 0, 0.0
        self._steps = stage.steps
        self._started = time.time()
        self._budget = max(1e-3, stage.until - self._started)
        self._total = torch.zeros((), device=self.device)
        self._optimizer = self._make_optimizer()
        on_gpu = self.device.type == "cuda"
        self._replay = Replay(self._work, record=on_gpu and not stage.plain)

    def share(self) -> float:
        """How much of the way is behind, from 0."""
        return self.step / self._steps if self._steps else self.spent() / self._budget

    def spent(self) -> float:
        """Seconds, those of earlier calls included."""
        return self._earlier + time.time() - self._started

    def do(self, inputs: Inputs, share: float) -> None:
        """One step; does not wait for the device."""
        value = self._stage.peak_lr * rate(share, self._stage.hold)
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)  # in place: the recording reads it there
            else:
                group["lr"] = value
        self._replay(inputs)
        decay = min(EMA_DECAY, (1 + self.step) / (20 + self.step))
        torch._foreach_lerp_(self.averaged, self.weights, 1 - decay)  # pyright: ignore[reportPrivateUsage]
        self.step += 1

    def read_loss(self, steps: int) -> float:
        """Mean loss of the last `steps` steps; waits for the device."""
        loss = self._total.item() / steps
        self._total.zero_()
        if not math.isfinite(loss):
            raise Diverged(f"{self._stage.name}: the loss is {loss} at step {self.step}")
        return loss

    def save(self) -> None:
        """Write the state file."""
        state = {
            "step": self.step,
            "steps": self._steps,
            "spent": self.spent(),
            "budget": self._budget,
            "weights": self.weights,
            "averaged": self.averaged,
            "optimizer": self._optimizer.state_dict(),
        }
        with atomic_path(self._stage.state_file, durable=False) as temporary:
            torch.save(state, temporary)

    def load(self) -> None:
        """Fill everything from the state file; must come before the first step.

        Raises:
            Damaged: it is no state of this stage.
        """
        file = self._stage.state_file
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
            _fill(self.weights, state["weights"])
            _fill(self.averaged, state["averaged"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.step, self._steps = int(state["step"]), int(state["steps"])
            self._earlier, self._budget = float(state["spent"]), float(state["budget"])
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            do = "delete it or build without --resume"
            raise Damaged(str(file), "is no state of this stage", do) from error

    def _work(self, inputs: Inputs) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss_of(inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        self._optimizer.step()
        self._total.add_(loss.detach())

    def _make_optimizer(self) -> torch.optim.Optimizer:
        stage = self._stage
        options: dict[str, object] = {"betas": (0.9, stage.beta2), "weight_decay": stage.weight_decay}
        if stage.plain:
            return torch.optim.AdamW(self._parameters, lr=stage.peak_lr, **options)  # pyright: ignore[reportArgumentType]
        options |= {"fused": True, "lr": stage.peak_lr}
        if self.device.type == "cuda":
            options |= {"lr": torch.tensor(stage.peak_lr, device=self.device), "capturable": True}
        return torch.optim.AdamW(self._parameters, **options)  # pyright: ignore[reportArgumentType]


@contextmanager
def _borrowed(weights: list[Tensor], values: list[Tensor]) -> Generator[None]:
    """Within the block the weights hold `values`; afterwards their own again."""
    own = [w.clone() for w in weights]
    _fill(weights, values)
    yield
    _fill(weights, own)


def _fill(weights: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
