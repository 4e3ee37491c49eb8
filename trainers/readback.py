"""Figures of a step, read a few steps later: asking a GPU for a number at once would stop it every step."""

import math
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainers.guards import NotFinite
from trainers.ladder import SlowWatch
from trainers.metrics import Reporter

LAG = 4  # steps between computing a figure and reading it; a NaN is seen at most that late
TRACK_EVERY = 10  # steps between points of TensorBoard and Weights & Biases


@dataclass(frozen=True)
class _Figures:
    step: int
    values: Tensor  # (3,) on the CPU: loss, gradient norm, stop vote
    arrived: Any  # CUDA event, or None
    names: Sequence[str]
    rates: Mapping[str, float]
    seconds: float


class ReadBack:
    """Queue of the last steps' figures; checks them, reports them, and knows whether to stop.

    Args:
        reporter: Takes the metric lines.
        device: Where figures are made; on a CPU there is nothing to wait for.
        track: Takes a line for the trackers.
        scaled: fp16: the gradient scaler skips a step whose gradient overflows, which is no failure.
    """

    def __init__(
        self,
        reporter: Reporter,
        device: torch.device,
        track: Callable[[dict[str, Any]], None],
        *,
        scaled: bool,
    ) -> None:
        self.reporter, self.device, self.track, self.scaled = reporter, device, track, scaled
        self.stop = False
        self._slow = SlowWatch(on_gpu=device.type == "cuda")
        self._waiting: deque[_Figures] = deque()
        self._clock = time.perf_counter()

    def restart_clock(self) -> None:
        """After a pause (preview, checkpoint) that should not count as the next step's time."""
        self._clock = time.perf_counter()

    def push(
        self,
        step: int,
        loss: Tensor,
        norm: Any,
        stop: Tensor,
        names: Sequence[str],
        rates: Mapping[str, float],
    ) -> None:
        """Queue a step's figures and read those of `LAG` steps ago."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        values = torch.stack([loss.float(), torch.as_tensor(norm, device=loss.device).float(), stop])
        arrived = None
        if self.device.type == "cuda":
            pinned = torch.empty(3, pin_memory=True)
            values, arrived = pinned.copy_(values, non_blocking=True), torch.cuda.Event()
            arrived.record()
        self._waiting.append(_Figures(step, values, arrived, names, rates, seconds))
        while len(self._waiting) > (1 if self.device.type == "cpu" else LAG):
            self._read(self._waiting.popleft())

    def drain(self, extra: Mapping[str, float] | None = None) -> None:
        """Read everything; `extra` goes to the last line. Waits for the device."""
        while self._waiting:
            figures = self._waiting.popleft()
            self._read(figures, None if self._waiting else extra)

    def _read(self, figures: _Figures, extra: Mapping[str, float] | None = None) -> None:
        if figures.arrived is not None:
            figures.arrived.synchronize()
        loss, norm, stop = figures.values.tolist()
        self.stop = self.stop or stop > 0
        if not math.isfinite(loss):
            raise NotFinite("loss", figures.step, figures.names)
        if not math.isfinite(norm) and not self.scaled:
            raise NotFinite("gradient", figures.step, figures.names)
        line = {
            "step": figures.step,
            "loss": loss,
            **figures.rates,
            "grad_norm": norm if math.isfinite(norm) else None,
            "seconds": round(figures.seconds, 6),
            "peak_memory": peak_memory(self.device),
            **(extra or {}),
        }
        self.reporter.step(line)
        if warning := self._slow.see(figures.seconds):
            self.reporter.warn(warning)
        if figures.step % TRACK_EVERY == 0 or figures.step == 1 or extra:
            self.track(line)


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point so far: of the GPU when there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
