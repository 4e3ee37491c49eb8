"""Runs that are trained in the process of the test, where it may change a family."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainers.families.sd import StableDiffusion15
from trainers.metrics import Reporter
from trainers.run import run
from trainers.rundir import RunDir
from trainers.signals import StopFlag


def set_here(patch: pytest.MonkeyPatch) -> None:
    """Let runs be trained in this process."""
    patch.setenv("ACCELERATE_USE_CPU", "true")
    patch.setattr("trainers.run.spare_bitsandbytes", lambda _: None)


def train_here(rundir: RunDir) -> Reporter:
    """Train it; what was said of it."""
    reporter = Reporter(rundir)
    assert run(reporter, StopFlag()) == 0
    return reporter


def tensors(rundir: RunDir) -> dict[str, Tensor]:
    """Of its adapter."""
    return load_file(rundir.adapter)


def losses(rundir: RunDir) -> list[float]:
    """Of every step."""
    return [line["loss"] for line in rundir.read_metrics()]


def equal(left: RunDir, right: RunDir) -> bool:
    """Whether two runs ended with the same adapter, to the bit."""
    found = tensors(left)
    return all(torch.equal(found[key], value) for key, value in tensors(right).items())


def share_of(denoiser: nn.Module) -> float:
    """Share of the blocks that are checkpointed."""
    found: set[float] = {
        getattr(module, "_gradient_checkpointing_func").share  # noqa: B009 # a module's attribute, to pyright
        for module in denoiser.modules()
        if getattr(module, "gradient_checkpointing", False)
    }
    return found.pop() if found else 0.0


class ShortMemory:
    """A device on which each picture of a forward pass takes `1`, or a half with all blocks checkpointed.

    Args:
        patch: Puts it in the place of Stable Diffusion's denoiser.
        room: What fits.
        after: Calls that all fit, whatever they take.
    """

    def __init__(self, patch: pytest.MonkeyPatch, room: float, after: int = 0) -> None:
        self.room, self.after, self.calls, self.refused = room, after, 0, 0
        real = StableDiffusion15.predict

        def predict(family, x_t, t, cond, geometry):
            self.calls += 1
            each = 1 - share_of(family.denoiser) / 2
            if torch.is_grad_enabled() and len(x_t) * each > self.room and self.calls > self.after:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(family, x_t, t, cond, geometry)

        patch.setattr(StableDiffusion15, "predict", predict)
