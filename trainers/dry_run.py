"""The dry run: the largest batch, tried before the first step, up the ladder until it fits.

Passes here leave no trace; `trainers.compiling` times them, too.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
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


def climb(
    setting: "Setting",
    objective: "Objective",
    source: BatchSource,
    learning: "Learning",
    rungs: Rungs,
    *,
    start: int,
    make: "Callable[[Setting, Rungs], Learning]",
) -> tuple["Learning", Rungs]:
    """Try the largest batch; while it does not fit, take a rung. Nothing of the run's state changes.

    Args:
        setting: The run.
        objective: What is asked.
        source: Batches.
        learning: Restored already.
        rungs: Of earlier attempts, in force in `learning`.
        start: Steps done.
        make: Makes what learns, on a base that is loaded anew.

    Returns:
        `learning`, with another optimizer after the second rung, made anew from the fourth on, and the rungs
        in force.

    Raises:
        Exception: what the last rung ran into.
    """
    if not wants_dry_run(setting):
        return learning, rungs
    setting.reporter.phase("loading")
    while True:
        batch, shared = largest_batch(source), rungs.keeping(setting).sharded
        base = BasePrediction(setting.family, learning.trainables, always=shared and bool(source.prior))
        error = attempt(setting, objective, batch, learning, rungs, base)
        if error is not None and shared:
            _keep_for_next(setting, rungs, start)
            raise error
        if not any_process(setting, error is not None):
            return learning, rungs
        step = next_rung(rungs, setting, fresh=start == 0)
        if step is None:
            raise error or MemoryError("another process of the run is out of memory")
        before, (rungs, said) = rungs, step
        height, width = batch.geometry[0].target
        setting.reporter.warn(
            f"the largest batch ({len(batch.names)} x {width}x{height}) does not fit into memory: {said}"
        )
        if rungs.checkpointing != before.checkpointing:
            enable_checkpointing(setting.family, learning.trainables, rungs.checkpointing)
        if rungs.optimizer != before.optimizer:
            section, seed = rungs.section(setting.recipe.optimizer), setting.recipe.train.seed
            fresh = make_optimizer(section, learning.flats, setting.family.device, seed)
            learning = replace(learning, optimizer=fresh)
        if rungs.keeping(setting) != before.keeping(setting):
            _let_go(setting.family)
            learning = make(setting, rungs)
        if setting.writes:
            keep_rungs(setting.rundir, rungs)


def _let_go(family: "Family") -> None:
    """Free the denoiser's memory, whoever still refers to it."""
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


def one_pass(
    setting: "Setting",
    objective: "Objective",
    batch: Batch,
    learning: "Learning",
    rungs: Rungs,
    base: BasePrediction,
) -> None:
    """Forward and backward pass that leaves no trace.

    Gradients are zero again afterwards. Draws come from a generator of their own, and the global ones
    (dropout) are put back, though each step seeds them anew.
    """
    family, flats = setting.family, learning.flats
    devices = [family.device] if family.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            generator, on_device = _generator(), batch.to(family.device)
            accelerator, even = setting.accelerator, rungs.keeping(setting).sharded
            backward(
                accelerator, family, objective, on_device, generator, rungs.pieces, base, flats, even=even
            )
    finally:
        for flat in flats:
            flat.drop()
        learning.optimizer.zero_grad(set_to_none=False)


def attempt(
    setting: "Setting",
    objective: "Objective",
    batch: Batch,
    learning: "Learning",
    rungs: Rungs,
    base: BasePrediction,
) -> BaseException | None:
    """`one_pass` beside what the optimizer will need; the error if memory did not suffice."""
    family, error = setting.family, None
    kind = optimizer_kind(rungs.section(setting.recipe.optimizer), family.device)
    missing = 0 if learning.optimizer.state else kind.state_bytes
    held: Any = None
    try:
        values = sum(flat.parameter.numel() for flat in learning.flats)
        size = missing * values + _spare(family.device)
        held = torch.empty(size, dtype=torch.uint8, device=family.device)
        one_pass(setting, objective, batch, learning, rungs, base)
    except (RuntimeError, MemoryError) as caught:
        if not is_memory(caught):
            raise
        error = caught.with_traceback(None)  # its frames hold the tensors
    del held
    gc.collect()
    if family.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(family.device)
    return error


def _keep_for_next(setting: "Setting", rungs: Rungs, start: int) -> None:
    """Said by whichever process it is: the others may wait for it, and cannot."""
    if said := after_failure(setting.rundir, setting, rungs, start):
        log.warning("the largest batch does not fit into memory; %s", said)


def _spare(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(SPARE * torch.cuda.get_device_properties(device).total_memory)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def any_process(setting: "Setting", failed: bool) -> bool:
    """Whether any process of the run says so: all of them have to take the same rung."""
    accelerator = setting.accelerator
    if accelerator.num_processes == 1:
        return failed
    votes: Any = accelerator.reduce(torch.tensor(float(failed), device=accelerator.device), "sum")
    return bool(votes > 0)
