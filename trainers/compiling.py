"""The denoiser's repeated blocks compiled (regional compile), where that pays: tried once on a machine, then
remembered, and kept for the run.

A step of the usual batch is some ten thousand small operations, which a GPU does faster than Python asks for
them; compiled, a block is a few dozen. Compiling takes a minute or more for every shape, so what matters is
how many steps are left. Passes without gradients (previews, the probe, the base's own prediction) go on
uncompiled: each would be another shape. So do rounded bases, whose weights a compiled block would keep whole
until the way back, and streamed ones.

What was decided is kept in memory.json beside the rungs of the ladder: numbers are rounded in another order,
so a run goes on as it began. What passes took is kept in compiled.json of the cache, by machine and setting.
A resumed run may meet its sizes of pictures in another order, and torch compiles by what it has met: such a
run is the same but for rounding, not to the bit.
"""

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from registry.errors import StudioError
from registry.files import read_json, write_json
from trainers.base_weights import Keeping
from trainers.dry_run import Rehearsal, any_process
from trainers.kernels import in_short, repeated, why_not
from trainers.ladder import Rungs, keep_rungs

if TYPE_CHECKING:
    from trainers.setup import Setting

log = logging.getLogger(__name__)

BACKEND: Any = "inductor"  # of torch's compiler; another one in tests
SETTLING, TIMED = 3, 5  # passes that do not count, and that do
MOST_GAIN = 0.6  # of a pass; published gains of whole steps are 0.1 to 0.5
USUAL = 60.0  # seconds of compiling, until this machine has shown it
VARIANTS = 64  # that torch may compile of a block, whose default is for functions: widths and buckets
PLACE = "compiled.json"


@dataclass(frozen=True)
class Pace:
    """What a machine has shown.

    Args:
        plain: Seconds of a forward and backward pass of the largest batch, all of its pieces.
        compiled: The same with compiled blocks.
        compiling: Seconds that the first such pass took.
        fault: Why nothing could be compiled; "" = it could.
        lasting: Whether the next attempt would meet the same fault. Memory that others hold, or a missing
            C++ compiler, may be otherwise then.
    """

    plain: float
    compiled: float = 0.0
    compiling: float = 0.0
    fault: str = ""
    lasting: bool = True

    def pays(self, passes: int, shapes: int) -> bool:
        """Whether `passes` make up for compiling `shapes`."""
        return not self.fault and (self.plain - self.compiled) * passes > self.compiling * shapes

    def words(self) -> str:
        """For the log."""
        return self.fault or (
            f"a pass takes {1000 * self.compiled:.0f} ms compiled and {1000 * self.plain:.0f} ms as it is, "
            f"compiling {self.compiling:.0f} s"
        )


@dataclass(frozen=True)
class Fault:
    """Why blocks were not compiled, and whether the next attempt would meet the same."""

    words: str
    lasting: bool = False


class Trial:
    """Passes of the largest batch that leave no trace but compiled blocks."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.setting, self._rehearsal = rehearsal.setting, rehearsal
        self.denoiser, self._device = self.setting.family.denoiser, self.setting.family.device

    def compile(self) -> Fault | None:
        """Compile the blocks and try them; why they are as they were, or None."""
        missing = why_not(self._device) if BACKEND == "inductor" else ""
        fault = Fault(missing) if missing else self._tried()
        if any_process(self.setting, fault is not None):
            fault = fault or Fault("another process of the run could not")
            self.undo()
        return fault

    def undo(self) -> None:
        """Let the blocks compute as they were made."""
        for block in repeated(self.denoiser):
            block._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]  it has no public undoing
        torch.compiler.reset()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self) -> float:
        """Of a pass; the mean over all processes, so that they decide alike."""
        times: list[float] = []
        for _ in range(SETTLING + TIMED):
            if self.setting.accelerator.num_processes == 1:  # else the others would wait for this one
                self.setting.stop.check()
            begun = time.perf_counter()
            self._rehearsal.run()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(time.perf_counter() - begun)
        return self.shared(median(times[SETTLING:]))

    def shared(self, seconds: float) -> float:
        """The mean over all processes."""
        accelerator = self.setting.accelerator
        if accelerator.num_processes == 1:
            return seconds
        mean: Any = accelerator.reduce(torch.tensor(seconds, device=accelerator.device), "mean")
        return float(mean)

    def _tried(self) -> Fault | None:
        compile_blocks(self.denoiser)
        try:
            error = self._rehearsal.attempt()
        except StudioError:
            raise
        except Exception as caught:  # noqa: BLE001  a compiler can fail in any way, and the run does not need it
            return Fault(f"torch cannot compile its blocks ({in_short(caught)})", lasting=True)
        return Fault("that takes more memory than there is") if error else None


def settle_compiling(rehearsal: Rehearsal, *, start: int) -> Rungs:
    """Compile the blocks if the recipe says so, or if it leaves it open and that pays.

    Args:
        rehearsal: Of the run, as it fits into memory.
        start: Steps done.

    Returns:
        The rungs with what was decided, which are kept.
    """
    setting, rungs = rehearsal.setting, rehearsal.rungs
    wanted = setting.recipe.train.compile
    if wanted == "off" or (wanted == "auto" and not _open(setting, rungs, start)):
        if rungs.compiled:
            setting.reporter.warn("blocks are not compiled any more: numbers round otherwise than before")
        return rungs
    if why := excluded(setting, rungs):
        if rungs.compiled:
            setting.reporter.warn(f"blocks are not compiled any more, numbers round otherwise: {why}")
        elif wanted == "on":
            setting.reporter.warn(f"train.compile has no effect: {why}")
        return rungs
    if rungs.compiled is False:  # an earlier attempt decided so, or could not
        log.info("blocks are not compiled, as this run began")
        return rungs
    setting.stop.check()
    trial = Trial(rehearsal)
    setting.reporter.phase("compiling")
    if wanted == "on" or rungs.compiled:
        fault = trial.compile()
        if fault:
            setting.reporter.warn(f"blocks are not compiled: {fault.words}")
        return _kept(setting, rungs, compiled=not fault)
    train = setting.recipe.train
    passes = (train.max_steps - start) * train.accumulate
    shapes = len({item.geometry.target for item in rehearsal.source.items})
    compiled, why = decide(trial, passes, shapes, setting.cache / PLACE, key_of(setting, rungs))
    log.info("blocks are %s: %s", "compiled" if compiled else "not compiled", why)
    return _kept(setting, rungs, compiled=compiled)


def _open(setting: "Setting", rungs: Rungs, start: int) -> bool:
    """Whether "auto" may compile: on a GPU, where that was decided, or no step is done."""
    return on_gpu(setting) and (rungs.compiled is not None or start == 0)


def on_gpu(setting: "Setting") -> bool:
    """Whether the denoiser computes on one that torch compiles for."""
    return setting.family.device.type == "cuda"


def excluded(setting: "Setting", rungs: Rungs) -> str:
    """Why this denoiser is not compiled; "" = it can be."""
    keeping = rungs.keeping(setting)
    if keeping.streamed:
        return "the base's weights come from the main memory, layer by layer"
    if keeping.sharded:
        return "the processes share the base's weights"
    if keeping != Keeping():
        return "the base's weights are rounded"
    return "" if repeated(setting.family.denoiser) else "this base has no repeated blocks that torch knows"


def decide(trial: Trial, passes: int, shapes: int, place: Path, key: str) -> tuple[bool, str]:
    """Whether blocks are compiled, which they then are, and why.

    Args:
        trial: Tries it.
        passes: Forward and backward passes of whole batches that are left.
        shapes: Different sizes of pictures among them.
        place: Where paces are kept.
        key: Of this machine and setting.
    """
    paces = _seen(place)
    if key in paces:
        pace, seen = Pace(**paces[key]), "seen before: "
        compiled = pace.pays(passes, shapes)
        fault = trial.compile() if compiled else None
        return compiled and not fault, fault.words if fault else seen + pace.words()
    if MOST_GAIN * passes < 2 * (SETTLING + TIMED):
        return False, f"{passes} passes are too few to make up for a trial"
    plain = trial.seconds()
    if plain * MOST_GAIN * passes < USUAL * shapes:
        return False, f"{passes} passes of {1000 * plain:.0f} ms are too few to make up for compiling"
    pace = _probed(trial, plain)
    compiled = pace.pays(passes, shapes - 1)  # one is done
    if not compiled:
        trial.undo()
    if trial.setting.writes and pace.lasting:
        write_json(place, paces | {key: asdict(pace)})
    return compiled, pace.words()


def _seen(place: Path) -> dict[str, Any]:
    """Paces by key; what cannot be read is seen anew."""
    try:
        return read_json(place) if place.exists() else {}
    except StudioError:
        return {}


def _probed(trial: Trial, plain: float) -> Pace:
    begun = time.perf_counter()
    if fault := trial.compile():
        return Pace(plain, fault=fault.words, lasting=fault.lasting)
    compiling = trial.shared(time.perf_counter() - begun)
    return Pace(plain, trial.seconds(), compiling)


def compile_blocks(denoiser: nn.Module) -> int:
    """Have the repeated blocks compiled at their next call with gradients; returns how many there are."""
    dynamo: Any = import_module("torch._dynamo").config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    blocks: list[Any] = repeated(denoiser)  # pyright: ignore[reportAssignmentType]
    for block in blocks:
        plain = block._call_impl  # as nn.Module.compile does
        block._compiled_call_impl = _with_gradients(torch.compile(plain, backend=BACKEND), plain)
    return len(blocks)


def _with_gradients(compiled: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Tensor]:
    def call(*args: Any, **options: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*args, **options)

    return call


def key_of(setting: "Setting", rungs: Rungs) -> str:
    """What paces depend on, as far as we distinguish."""
    recipe, family = setting.recipe, setting.family
    device = torch.cuda.get_device_name(family.device) if family.device.type == "cuda" else "cpu"
    train, adapter = recipe.train, recipe.adapter
    shape = (train.sizes[-1], train.batch_size, rungs.pieces, rungs.checkpointed(train))
    kept = recipe.preservation.rows if recipe.preservation.mode == "base_prediction" else 0
    way = (adapter.method, adapter.rank, adapter.dropout > 0, kept)
    # Bases of a family differ in size, and so do adapters of a rank in what they act on.
    size = sum(parameter.numel() for parameter in family.denoiser.parameters())
    machine = (platform.node(), device, torch.__version__)
    return " ".join(str(part) for part in (*machine, recipe.family, size, family.dtype, *shape, *way))


def _kept(setting: "Setting", rungs: Rungs, *, compiled: bool) -> Rungs:
    settled = replace(rungs, compiled=compiled)
    if settled != rungs and setting.writes:
        keep_rungs(setting.rundir, settled)
    return settled
