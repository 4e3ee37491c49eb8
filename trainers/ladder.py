"""When memory is short: a ladder of savings, climbed by a dry run (`trainers.dry_run`) or after a failure.

    1  gradient checkpointing     activations are computed again: slower, far less memory; of a quarter of the
                                  blocks, a half, three quarters, all: as many as are needed
    2  8-bit optimizer            its state takes a quarter
    3  batches in pieces          2, 4, ... forward passes instead of one; same pictures, noise and mean
    4  the base shared            its blocks lie on the GPUs of several processes together (trainers.sharing)
    5  the base in 8, then 4 bits its blocks take a half, a quarter (trainers.stored)
    6  the base streamed          its blocks come from the main memory (trainers.streaming)

Each rung is said in the log and the status, and kept in memory.json, so that a resumed run is the same run.
Only the fifth changes what is learned beyond rounding. It and its neighbours are for before the first step.
Above the last rung the run fails with advice. So does an attempt with a shared base: a process cannot leave
it while others ask for its share. The next attempt takes the rung.
"""

import logging
from collections import deque
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

from registry.files import read_json, write_json
from trainers.base_weights import Keeping, choose, parameters
from trainers.fitting import BITS, CHECKPOINTED, first_checkpointing, only_denoiser
from trainers.optim import optimizer_kind
from trainers.recipe_fields import OptimizerSection, TrainSection
from trainers.rundir import MEMORY, UNTRIED, RunDir

if TYPE_CHECKING:
    from trainers.setup import Setting

log = logging.getLogger(__name__)

SETTLED = 5  # steps that do not count: kernels are chosen, and a GPU's queue fills
TYPICAL = 10  # steps after these, whose median is what a step should take
SLOW_FACTOR, SLOW_STEPS = 3.0, 10  # so many times as long, for so many steps in a row


@dataclass(frozen=True)
class Rungs:
    """Savings in force beyond the recipe's own.

    Args:
        checkpointing: Share of the blocks that gradient checkpointing computes again; 0 = as the recipe says.
        optimizer: Name of the optimizer in place of the recipe's; "" = the recipe's.
        pieces: Forward passes that a batch is cut into.
        base: How the base's weights are kept where the recipe leaves it open; "" = as that says.
        streamed: The base's blocks rest in the main memory.
        sharded: The processes hold the base's blocks together, as long as these are whole and not streamed.
    """

    checkpointing: float = 0.0
    optimizer: str = ""
    pieces: int = 1
    base: Literal["", "int8", "nf4"] = ""
    streamed: bool = False
    sharded: bool = False
    compiled: bool | None = None  # whether blocks are (trainers.compiling); None = not decided

    def checkpointed(self, train: "TrainSection") -> float:
        """Share of the blocks whose activations are computed again."""
        return max(self.checkpointing, train.checkpointed_blocks if train.gradient_checkpointing else 0.0)

    def section(self, section: OptimizerSection) -> OptimizerSection:
        """The optimizer section with the optimizer in force."""
        return section.model_copy(update={"name": self.optimizer}) if self.optimizer else section

    def keeping(self, setting: "Setting") -> Keeping:
        """How the denoiser's weights are kept; where the whole base learns, they are whole."""
        recipe = setting.recipe
        if recipe.adapter.method == "full":
            return Keeping()
        train = recipe.train
        # A branch has its parent's rungs, and may have a recipe that leaves less open.
        precision = (self.base or "whole") if train.base_weights == "auto" else train.base_weights
        streamed = train.base_streaming == "on" or (self.streamed and train.base_streaming == "auto")
        shares = train.shares == "on" or (self.sharded and train.shares == "auto")
        return Keeping(precision, streamed, shares and precision == "whole" and not streamed)


def read_rungs(rundir: RunDir) -> Rungs:
    """Those of earlier attempts."""
    path = rundir.file(MEMORY)
    kept = read_json(path) if path.exists() else {}
    return Rungs(**{name: value for name, value in kept.items() if name != UNTRIED})


def first_rungs(setting: "Setting") -> Rungs:
    """Those of earlier attempts, or what the room on this GPU asks for at once, said and kept.

    A run goes on as it began, also on another GPU.
    """
    rungs = _checkpointed_first(setting, read_rungs(setting.rundir))
    train = setting.recipe.train
    left_open = "auto" in (train.base_weights, train.base_streaming, train.shares)
    if setting.recipe.adapter.method == "full" or not left_open:
        return rungs
    kept = choose(setting.family, setting.family.denoiser_name, train)
    if kept.sharded and train.shares == "auto" and not rungs.base:
        settled, said = _shared_first(rungs, train)
    elif kept.precision != "whole" and train.base_weights == "auto":
        settled = replace(rungs, base=rungs.base or kept.precision, streamed=rungs.streamed or kept.streamed)
        more = " and come from the main memory (steps take longer)" if settled.streamed else ""
        said = f"its weights are rounded to {BITS.get(settled.base, 0)} bits{more}"
    elif kept.streamed and train.base_streaming == "auto":
        settled, said = replace(rungs, streamed=True), _streamed_words("its")
    else:
        return rungs
    if settled == rungs:
        return rungs
    setting.reporter.warn(f"the GPU has no room for the whole base: {said}")
    if setting.writes:
        keep_rungs(setting.rundir, settled)
    return settled


def _checkpointed_first(setting: "Setting", rungs: Rungs) -> Rungs:
    """Where nothing is tried, for lack of a GPU; numbers stay the same, so resumed runs may have it, too."""
    family, train = setting.family, setting.recipe.train
    if family.device.type != "cpu" or rungs.checkpointed(train) == 1.0:
        return rungs
    share = first_checkpointing(train, parameters(family, family.denoiser_name), gpu=False)
    if not share:
        return rungs
    log.info(
        "gradient checkpointing is on (steps take longer): so large a base fills the main memory without"
    )
    settled = replace(rungs, checkpointing=share)
    if setting.writes:
        keep_rungs(setting.rundir, settled)
    return settled


def _shared_first(rungs: Rungs, train: TrainSection) -> tuple[Rungs, str]:
    """With gradient checkpointing at once: a rung that is needed later costs such a run a start."""
    more = not (train.gradient_checkpointing or rungs.checkpointing)
    said = _shared_words("its", train.processes, ", and gradient checkpointing is on" if more else "")
    return replace(rungs, sharded=True, checkpointing=more or rungs.checkpointing), said


def _shared_words(whose: str, processes: int, more: str = "") -> str:
    return f"{whose} weights are shared by the {processes} processes{more} (steps take longer)"


def _streamed_words(whose: str) -> str:
    return f"{whose} weights come from the main memory (steps take longer)"


def keep_rungs(rundir: RunDir, rungs: Rungs, *, untried: bool = False) -> None:
    """For later attempts; `untried`: the next one is the first with them, so it is worth being made."""
    write_json(rundir.file(MEMORY), asdict(rungs) | ({UNTRIED: True} if untried else {}))


def next_rung(
    rungs: Rungs, setting: "Setting", *, fresh: bool, tried: bool = True
) -> tuple[Rungs, str] | None:
    """One step up and what to say about it; None at the top.

    Args:
        rungs: In force now.
        setting: The run.
        fresh: No step is done yet; later the optimizer's state would be lost with it.
        tried: Whether it is tried at once; where it is not, blocks are checkpointed all or not at all.
    """
    recipe = setting.recipe
    in_force = rungs.checkpointed(recipe.train)
    if more := [share for share in CHECKPOINTED if share > in_force]:
        share = more[0] if tried else more[-1]
        said = f"gradient checkpointing is on{CHECKPOINTED[share]} (steps take longer)"
        return replace(rungs, checkpointing=share), said
    smaller = optimizer_kind(rungs.section(recipe.optimizer), setting.family.device).smaller
    if fresh and smaller:
        return replace(rungs, optimizer=smaller), f"the optimizer is {smaller}"
    if rungs.pieces < recipe.train.batch_size:
        pieces = min(2 * rungs.pieces, recipe.train.batch_size)
        return replace(rungs, pieces=pieces), f"batches are computed in {pieces} pieces"
    return _base_rung(rungs, setting) if fresh and only_denoiser(recipe) else None


def _base_rung(rungs: Rungs, setting: "Setting") -> tuple[Rungs, str] | None:
    """The next way to keep the base, as far as the recipe leaves it open."""
    train, keeping = setting.recipe.train, rungs.keeping(setting)
    if train.shares == "auto" and keeping == Keeping():
        return replace(rungs, sharded=True), _shared_words("the base's", train.processes)
    if train.base_weights == "auto" and keeping.precision != "nf4":
        coarser = "int8" if keeping.precision == "whole" else "nf4"
        return replace(rungs, base=coarser), f"the base's weights are rounded to {BITS[coarser]} bits"
    if train.base_streaming == "auto" and not keeping.streamed:
        return replace(rungs, streamed=True), _streamed_words("the base's")
    return None


def after_failure(rundir: RunDir, setting: "Setting", rungs: Rungs, step: int) -> str:
    """Memory ran out at `step` all the same: keep the next rung for the next attempt, and say so."""
    step_up = next_rung(rungs, setting, fresh=step == 0, tried=False)
    if step_up is None:
        return ""
    keep_rungs(rundir, step_up[0], untried=True)
    return f"when resumed, {step_up[1]}"


class SlowWatch:
    """Notices steps that take three times as long as the first ones, and says so once.

    Drivers that move GPU memory into system memory instead of failing (Windows, above all) make training
    crawl without an error.

    Args:
        on_gpu: Whether steps run there.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self._seen, self._said, self._on_gpu = 0, False, on_gpu
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=SLOW_STEPS)

    def see(self, seconds: float) -> str:
        """Take the seconds of a step; a warning, or ""."""
        self._seen += 1
        if self._seen <= SETTLED or self._said:
            return ""
        if len(self._first) < TYPICAL:
            self._first.append(seconds)
            return ""
        self._last.append(seconds)
        typical, now = median(self._first), median(self._last)
        if len(self._last) < SLOW_STEPS or min(self._last) < SLOW_FACTOR * typical:
            return ""
        self._said = True
        said = (
            f"steps take {now:.2g} s, {now / typical:.1f} times as long as at the start ({typical:.2g} s): "
        )
        if not self._on_gpu:
            return said + "another program is busy, or memory is short; close what you can spare"
        return (
            said
            + "GPU memory may have moved to system memory, or another program is busy; close it, or start "
            "again with train.gradient_checkpointing=true or a smaller train.batch_size"
        )
