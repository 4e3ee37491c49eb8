"""The dry run: the largest batch, tried before the first step, up the ladder until it fits.

Passes here leave no trace; `trainers.compiling` times them, too.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from trainers.checkpointing import enable_checkpointing
from trainers.data import Batch, BatchSource
from trainers.guards import is_memory
from trainers.ladder import Rungs, after_failure, keep_rungs, next_rung
from trainers.loop import backward
from trainers.optim import make_optimizer, optimizer_kind
from trainers.plan import Item
from trainers.preservation import BasePrediction
from trainers.stored import StoredLayer

if TYPE_CHECKING:
    from trainers.checkpoints import Learning
    from trainers.families.base import Family
    from trainers.objectives import Objective
    from trainers.setup import Setting

log = logging.getLogger(__name__)

SPARE = 0.02  # of a GPU's memory stays free: buckets of other shapes leave other gaps


def wants_dry_run(setting: "Setting") -> bool:
    """On a GPU, whose memory ends suddenly; on a CPU only when the recipe asks for it."""
    wanted = setting.recipe.train.dry_run
    return wanted == "on" or (wanted == "auto" and setting.family.device.type != "cpu")


@dataclass(frozen=True)
class Rehearsal:
    """The largest batch of a run, and passes over it that leave no trace.

    Args:
        setting: The run.
        objective: What is asked.
        source: Batches.
        learning: Restored already.
        rungs: In force in `learning`.
    """

    setting: "Setting"
    objective: "Objective"
    source: BatchSource
    learning: "Learning"
    rungs: Rungs

    @cached_property
    def batch(self) -> Batch:
        """In the main memory."""
        return largest_batch(self.source)

    @cached_property
    def _base(self) -> BasePrediction:
        shared = self.rungs.keeping(self.setting).sharded
        trainables, always = self.learning.trainables, shared and bool(self.source.prior)
        return BasePrediction(self.setting.family, trainables, always=always)

    def run(self) -> None:
        """Forward and backward pass.

        Gradients are zero again afterwards. Draws come from a generator of their own, and the global ones
        (dropout) are put back, though each step seeds them anew.
        """
        family, flats, rungs = self.setting.family, self.learning.flats, self.rungs
        devices = [family.device] if family.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                generator, batch = torch.Generator().manual_seed(0), self.batch.to(family.device)
                accelerator, even = self.setting.accelerator, rungs.keeping(self.setting).sharded
                backward(
                    accelerator, family, self.objective, batch, generator, rungs.pieces, self._base, flats,
                    even=even,
                )  # fmt: skip
        finally:
            for flat in flats:
                flat.drop()
            self.learning.optimizer.zero_grad(set_to_none=False)

    def attempt(self) -> BaseException | None:
        """`run` beside what the optimizer will need; the error if memory did not suffice."""
        device, learning, error = self.setting.family.device, self.learning, None
        kind = optimizer_kind(self.rungs.section(self.setting.recipe.optimizer), device)
        missing = 0 if learning.optimizer.state else kind.state_bytes
        held: Any = None
        try:
            values = sum(flat.parameter.numel() for flat in learning.flats)
            held = torch.empty(missing * values + _spare(device), dtype=torch.uint8, device=device)
            self.run()
        except (RuntimeError, MemoryError) as caught:
            if not is_memory(caught):
                raise
            error = caught.with_traceback(None)  # its frames hold the tensors
        del held
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        return error


def climb(first: Rehearsal, *, start: int, make: "Callable[[Setting, Rungs], Learning]") -> Rehearsal:
    """Try the largest batch; while it does not fit, take a rung. Nothing of the run's state changes.

    Args:
        first: With the rungs of earlier attempts.
        start: Steps done.
        make: Makes what learns, on a base that is loaded anew.

    Returns:
        What fits: with another optimizer after the second rung, what learns made anew from the fourth on.

    Raises:
        Exception: what the last rung ran into.
    """
    setting, now = first.setting, first
    if not wants_dry_run(setting):
        return first
    setting.reporter.phase("loading")
    while True:
        error = now.attempt()
        if error is not None and now.rungs.keeping(setting).sharded:
            _keep_for_next(setting, now.rungs, start)
            raise error
        if not any_process(setting, error is not None):
            return now
        step = next_rung(now.rungs, setting, fresh=start == 0)
        if step is None:
            raise error or MemoryError("another process of the run is out of memory")
        rungs, said = step
        height, width = now.batch.geometry[0].target
        setting.reporter.warn(
            f"the largest batch ({len(now.batch.names)} x {width}x{height}) does not fit into memory: {said}"
        )
        now = replace(now, learning=_with_rungs(now, rungs, make), rungs=rungs)
        if setting.writes:
            keep_rungs(setting.rundir, rungs)


def _with_rungs(now: Rehearsal, rungs: Rungs, make: "Callable[[Setting, Rungs], Learning]") -> "Learning":
    """What learns when `rungs` are in force."""
    setting, before, learning = now.setting, now.rungs, now.learning
    if rungs.checkpointing != before.checkpointing:
        enable_checkpointing(setting.family, learning.trainables, rungs.checkpointing)
    if rungs.optimizer != before.optimizer:
        section, seed = rungs.section(setting.recipe.optimizer), setting.recipe.train.seed
        fresh = make_optimizer(section, learning.flats, setting.family.device, seed)
        learning = replace(learning, optimizer=fresh)
    if rungs.keeping(setting) != before.keeping(setting):
        let_go(setting.family)
        learning = make(setting, rungs)
    return learning


def let_go(family: "Family") -> None:
    """Free the denoiser's memory, whoever still refers to it."""
    for module in family.denoiser.modules():
        if isinstance(module, StoredLayer):
            module.leave()
    family.denoiser.to_empty(device="meta")
    family.free(family.denoiser_name)


def largest_batch(source: BatchSource) -> Batch:
    """The batch of an epoch with the most pixels; epochs differ in their order only."""
    plan = source.plan(0)

    def pixels(position: int) -> int:
        items: list[Item] = [source.items[slot.item] for slot in plan[position]]
        return sum(item.geometry.target[0] * item.geometry.target[1] for item in items)

    position = max(range(len(plan)), key=pixels)
    return source.load(plan[position], 0, position)


def _keep_for_next(setting: "Setting", rungs: Rungs, start: int) -> None:
    """Said by whichever process it is: the others may wait for it, and cannot."""
    if said := after_failure(setting.rundir, setting, rungs, start):
        log.warning("the largest batch does not fit into memory; %s", said)


def _spare(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(SPARE * torch.cuda.get_device_properties(device).total_memory)


def any_process(setting: "Setting", failed: bool) -> bool:
    """Whether any process of the run says so: all of them have to take the same rung."""
    accelerator = setting.accelerator
    if accelerator.num_processes == 1:
        return failed
    votes: Any = accelerator.reduce(torch.tensor(float(failed), device=accelerator.device), "sum")
    return bool(votes > 0)
