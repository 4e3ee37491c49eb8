"""Drawing pictures with a warm base and any number of adapters; only the sampler process imports this.

A picture depends on its own seed alone: its noise comes from a CPU generator seeded with `seed + i`, and on
the CPU every picture is drawn by itself, so it is the same bytes whatever `count` is. On a GPU pictures are
drawn `GPU_BATCH` at a time; there the same picture from another count differs by rounding noise only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image as Pixels

from registry.errors import BadInput, StudioError, several
from registry.formats.peft_config import PeftConfig
from registry.hashing import hash_json
from studio.sampling.canvas import canvas_of
from studio.sampling.control.acting import Controls, forget_models
from studio.sampling.control.nets import Nets
from studio.sampling.drawing import Drawing, Order, Ready
from studio.sampling.media.loading import load_pipeline
from studio.sampling.media.made import Made
from studio.sampling.media.making import Making
from studio.sampling.progress import Progress
from studio.sampling.prompts.request_texts import RequestTexts, batches
from studio.sampling.quicker import Speed
from studio.sampling.request import SIDE, SampleRequest
from studio.sampling.shelf import Loaded, Shelf
from studio.sampling.stack import AdapterUseInStack, LoadReport
from studio.sampling.task import SampleTask, TaskAdapter
from trainers.families.base import Family
from trainers.kernels import settle_kernels
from trainers.stored import Precision

GPU_BATCH = 4
SMALL_BASE = 100 * 2**20  # bytes; below it a second CPU thread costs more than it brings


@dataclass(frozen=True)
class How:
    """What a request left open and a picture has to say.

    Args:
        scheduler: Class of the base's own.
        precision: How the base's weights were kept.
        speed: How its denoiser computed.
    """

    scheduler: str
    precision: Precision
    speed: Speed


@dataclass(frozen=True)
class Drawn:
    """What came of a request beside the pictures."""

    reports: list[LoadReport]
    warnings: list[str] = field(default_factory=list[str])


class Engine:
    """Keeps bases and adapters loaded and draws requests, one at a time.

    Args:
        device: Default: the first GPU, else the CPU.
        budget: Bytes of bases to keep; default: a share of the device's memory.
    """

    def __init__(self, *, device: str | None = None, budget: int | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settle_kernels()
        self._threads = torch.get_num_threads()
        self._shelf = Shelf(self.device, budget)
        self._nets = Nets()

    @torch.inference_mode()
    def draw(
        self,
        task: SampleTask,
        *,
        keep: Callable[[int, Pixels.Image, How], None],
        say: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        keep_map: Callable[[int, Pixels.Image], None] = lambda _index, _map: None,
    ) -> Drawn:
        """Draw all pictures of a task.

        Args:
            task: The request with its files, all paths absolute.
            keep: Takes each finished picture: index, pixels, how it was drawn.
            say: Takes progress, after every step.
            cancelled: Asked before every step.
            keep_map: Takes the map of each control: index, pixels.

        Raises:
            Cancelled: `cancelled()` was true.
            BadInput: base, adapter or size do not fit.
            StudioError: out of memory, or the picture is not finite.
        """
        drawn: set[int] = set()

        def keep_once(index: int, picture: Pixels.Image, how: How) -> None:
            drawn.add(index)
            keep(index, picture, how)

        batch = GPU_BATCH if self.device.type == "cuda" else 1
        try:
            return self._draw(task, batch, keep_once, keep_map, say, cancelled, drawn)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self._nets.clear()
        self._shelf.make_room(task.base)
        try:
            return self._draw(task, 1, keep_once, keep_map, say, cancelled, drawn, tiled=True)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.unload()
            size = f"{task.request.width}x{task.request.height}"
            raise StudioError(
                f"size {size}", "needs more memory than there is", "draw a smaller picture"
            ) from error

    def make(
        self,
        task: SampleTask,
        *,
        keep: Callable[[int, Made], None],
        say: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Drawn:
        """Make all videos, sounds or things of a task; `request.kind` says which.

        Args:
            task: The request with its files, all paths absolute.
            keep: Takes each when it is finished: index, what it is.
            say: Takes progress, after every step.
            cancelled: Asked before every step, and more often.

        Raises:
            Cancelled, BadInput, StudioError: as `draw` does.
        """
        done: set[int] = set()

        def keep_once(index: int, made: Made) -> None:
            done.add(index)
            keep(index, made)

        try:
            return self._make(task, keep_once, say, cancelled, done)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self.unload()
        try:
            return self._make(task, keep_once, say, cancelled, done, pieces=True)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.unload()
            do = "make it smaller or shorter, or try --memory sequential"
            raise StudioError(f"sample {task.id}", "needs more memory than there is", do) from error

    def _make(
        self,
        task: SampleTask,
        keep: Callable[[int, Made], None],
        say: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        done: set[int],
        *,
        pieces: bool = False,
    ) -> Drawn:
        request = task.request
        say(Progress("loading", steps=request.steps, pictures=request.count))
        loaded = self._shelf.pipeline(
            task, lambda: load_pipeline(task, self.device), memory=request.memory, pieces=pieces
        )
        torch.set_num_threads(1 if loaded.bytes < SMALL_BASE else self._threads)
        making = Making(task, loaded, self.device, say, cancelled)
        for index in range(request.count):
            if index not in done:
                keep(index, making.make(index))
        return Drawn([], making.warnings())

    def unload(self) -> None:
        """Give all memory back."""
        self._nets.clear()
        forget_models()
        self._shelf.clear()

    # -- drawing

    def _draw(
        self,
        task: SampleTask,
        batch: int,
        keep: Callable[[int, Pixels.Image, How], None],
        keep_map: Callable[[int, Pixels.Image], None],
        say: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        done: set[int],
        *,
        tiled: bool = False,
    ) -> Drawn:
        request = task.request
        say(Progress("loading", steps=request.steps, pictures=request.count))
        loaded = self._shelf.get(
            task.base, memory=request.memory, precision=request.precision, pixels=largest(request)
        )
        family = loaded.family
        torch.set_num_threads(1 if loaded.bytes < SMALL_BASE else self._threads)
        _check_size(family, request)
        canvas = canvas_of(task, math.lcm(family.side_multiple, SIDE))
        slower = loaded.quicken(request.speed)
        reports = loaded.stack.use([self._use(adapter) for adapter in task.adapters])
        if tiled:
            family.part("vae").enable_tiling()
        refiner = None
        if task.refiner is not None:
            second = self._shelf.get(task.refiner, memory=request.memory, precision=request.precision)
            second.quicken(request.speed)
            refiner = self._ready(second, task)
        order = Order(
            request,
            self._ready(loaded, task),
            refiner,
            canvas,
            Controls(task, family, self._nets, canvas, keep_map).changes,
            say=say,
            cancelled=cancelled,
        )
        how = How(str(loaded.scheduler_config["_class_name"]), loaded.precision, loaded.speed)
        left = [index for index in range(request.count) if index not in done]
        for indices in batches(left, batch, request.texts):
            for index, picture in zip(indices, Drawing(order, indices).pictures(), strict=True):
                keep(index, picture, how)
        settled = [slower] if slower else []
        return Drawn(reports, settled + _rounded(request, loaded) + _warnings(order, reports))

    def _ready(self, loaded: Loaded, task: SampleTask) -> Ready:
        """A base with the prompts."""
        texts = RequestTexts(loaded.family, task.request, task.embeddings)
        return Ready(loaded.family, loaded.scheduler_config, texts, loaded.stack, loaded.preview)

    def _use(self, adapter: TaskAdapter) -> AdapterUseInStack:
        return AdapterUseInStack(
            name=adapter.name,
            path=Path(adapter.path),
            key=hash_json([adapter.tensor_sha256, adapter.peft]) if adapter.peft else adapter.tensor_sha256,
            weight=adapter.weight,
            text_weight=adapter.text_weight,
            peft=PeftConfig.from_json(adapter.peft),
            blocks=adapter.blocks,
            schedule=adapter.schedule,
        )


def largest(request: SampleRequest) -> int:
    """Pixels of the largest picture that is drawn and decoded at once."""
    scale = request.hires.scale if request.hires else 1.0
    return round(request.width * request.height * scale**2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's or Python's way of saying so."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return "DefaultCPUAllocator" in str(error) or "out of memory" in str(error).lower()


def _rounded(request: SampleRequest, loaded: Loaded) -> list[str]:
    """That weights were rounded, when nobody asked for it."""
    if request.precision != "auto" or loaded.precision == "whole":
        return []
    short = "The base's weights were rounded"
    return [f"{short} ({loaded.precision}), for whole ones would take longer: ask for precision whole."]


def _warnings(order: Order, reports: list[LoadReport]) -> list[str]:
    """What a person should know about the pictures, though they were made."""
    request, family = order.request, order.base.family
    warnings = [_incomplete(report) for report in reports if not report.complete]
    if not family.second_call and request.true_cfg == 1 and request.guidance_rescale:
        warnings.append("guidance_rescale has no effect: this base takes no second call for guidance.")
    if family.second_call and request.true_cfg > 1:
        warnings.append("true_cfg has no effect: cfg is what this base's guidance goes by.")
    return warnings + order.base.texts.warnings()


def _incomplete(report: LoadReport) -> str:
    said: list[str] = []
    if report.unmatched:
        modules = several(report.total, "module")
        first = f"the first is {report.unmatched[0]}"
        said.append(f"{len(report.unmatched)} of {modules} without a place in this base, {first}")
    if report.dropped:
        keys = several(len(report.dropped), "key")
        said.append(f"{keys} not understood, the first is {report.dropped[0]}")
    return f"Adapter {report.name}: {'; '.join(said)}."


def _check_size(family: Family, request: SampleRequest) -> None:
    """Sides must be whole latent cells, or patches of them where the denoiser reads patches."""
    step = family.side_multiple
    if request.width % step or request.height % step:
        size = f"size {request.width}x{request.height}"
        raise BadInput(size, f"does not fit: sides are multiples of {step} for this base", "change the size")
