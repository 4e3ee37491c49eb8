"""Drawing pictures with a warm base and any number of adapters; only the sampler process imports this.

A picture depends on its own seed alone: its noise comes from a CPU generator seeded with `seed + i`, and on
the CPU every picture is drawn by itself, so it is the same bytes whatever `count` is. On a GPU pictures are
drawn `GPU_BATCH` at a time; there the same picture from another count differs by rounding noise only.
"""

import gc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image as Pixels
from torch import Tensor

from registry.errors import BadInput, StudioError, several
from registry.formats.peft_config import PeftConfig
from registry.hashing import hash_json
from studio.sampling.painting import paint
from studio.sampling.pixels import to_picture
from studio.sampling.preview import LatentPreview
from studio.sampling.progress import Progress, Watch
from studio.sampling.prompts.request_texts import RequestTexts, batches
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import make_scheduler
from studio.sampling.stack import AdapterStack, AdapterUseInStack, FollowSchedules, LoadReport
from studio.sampling.starts import from_noise, generators
from studio.sampling.task import SampleTask, TaskAdapter, TaskBase
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family
from trainers.guidance import Guided
from trainers.kernels import settle_kernels

GPU_BATCH = 4
SMALL_BASE = 100 * 2**20  # bytes; below it a second CPU thread costs more than it brings
CPU_SHARE = 0.5  # of the memory, for bases kept loaded
GPU_SHARE = 0.8


@dataclass(frozen=True)
class Drawn:
    """What came of a request beside the pictures."""

    reports: list[LoadReport]
    warnings: list[str] = field(default_factory=list[str])


@dataclass
class _Loaded:
    """A base in memory, with its adapters."""

    family: Family
    stack: AdapterStack
    scheduler_config: dict[str, Any]
    bytes: int
    preview: LatentPreview | None = None


class Engine:
    """Keeps bases and adapters loaded and draws requests, one at a time.

    Args:
        device: Default: the first GPU, else the CPU.
        budget: Bytes of bases to keep; default: a share of the device's memory.
    """

    def __init__(self, *, device: str | None = None, budget: int | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settle_kernels()
        self._budget = budget or _budget(self.device)
        self._threads = torch.get_num_threads()
        self._bases: OrderedDict[str, _Loaded] = OrderedDict()

    @torch.inference_mode()
    def draw(
        self,
        task: SampleTask,
        *,
        keep: Callable[[int, Pixels.Image, str], None],
        say: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Drawn:
        """Draw all pictures of a task.

        Args:
            task: The request with its files, all paths absolute.
            keep: Takes each finished picture: index, pixels, class of the base's own scheduler.
            say: Takes progress, after every step.
            cancelled: Asked before every step.

        Raises:
            Cancelled: `cancelled()` was true.
            BadInput: base, adapter or size do not fit.
            StudioError: out of memory, or the picture is not finite.
        """
        drawn: set[int] = set()

        def keep_once(index: int, picture: Pixels.Image, base_scheduler: str) -> None:
            drawn.add(index)
            keep(index, picture, base_scheduler)

        batch = GPU_BATCH if self.device.type == "cuda" else 1
        try:
            return self._draw(task, batch, keep_once, say, cancelled, drawn)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self._make_room(task.base)
        try:
            return self._draw(task, 1, keep_once, say, cancelled, drawn, tiled=True)
        except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.unload()
            size = f"{task.request.width}x{task.request.height}"
            raise StudioError(
                f"size {size}", "needs more memory than there is", "draw a smaller picture"
            ) from error

    def unload(self) -> None:
        """Give all memory back."""
        self._bases.clear()
        self._collect()

    # -- drawing

    def _draw(
        self,
        task: SampleTask,
        batch: int,
        keep: Callable[[int, Pixels.Image, str], None],
        say: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        done: set[int],
        *,
        tiled: bool = False,
    ) -> Drawn:
        request = task.request
        say(Progress("loading", steps=request.steps, pictures=request.count))
        loaded = self._base(task.base)
        family = loaded.family
        torch.set_num_threads(1 if loaded.bytes < SMALL_BASE else self._threads)
        _check_size(family, request)
        reports = loaded.stack.use([self._use(adapter) for adapter in task.adapters])
        if tiled:
            family.part("vae").enable_tiling()
        own_scheduler = str(loaded.scheduler_config["_class_name"])
        texts = RequestTexts(family, request, task.embeddings)
        left = [index for index in range(request.count) if index not in done]
        for indices in batches(left, batch, request.texts):
            scheduler = make_scheduler(
                request.scheduler, loaded.scheduler_config
            )  # they keep state: one a batch
            guided = Guided(family, *texts.of(indices[0]), request.cfg, (request.height, request.width))
            work = from_noise(guided, scheduler, request.steps, generators(request.seed, indices))
            watch = Watch(say, loaded.preview, indices[0] + 1, request.count, request.steps)
            total = len(work.timesteps)  # some samplers evaluate twice a step
            work.changes = [*work.changes, FollowSchedules(loaded.stack, total)]

            def seen(number: int, latents: Tensor, watch: Watch = watch, total: int = total) -> None:
                watch.seen(number * request.steps // total, latents)

            latents = paint(work, seen=seen, cancelled=cancelled)
            for row, index in enumerate(indices):
                picture = to_picture(family.decode_image(latents[row : row + 1]))
                keep(index, picture, own_scheduler)
        warnings = [_incomplete(report) for report in reports if not report.complete]
        return Drawn(reports, warnings + texts.warnings())

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

    # -- bases

    def _base(self, base: TaskBase) -> _Loaded:
        key = base.weight_hash or f"{base.location}@{base.revision}"
        if key in self._bases:
            self._bases.move_to_end(key)
            return self._bases[key]
        kind = cast(Literal["folder", "file", "hub"], base.kind)
        files = BaseFiles(base.location, kind, base.config, base.revision)
        family = FAMILIES[base.family].load_class()(
            files, dtype=_dtype(self.device, base.family), device=self.device
        )
        parts: list[Any] = [family.denoiser, *family.text_encoders.values(), family.part("vae")]
        size = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
        while self._bases and size + sum(item.bytes for item in self._bases.values()) > self._budget:
            self._bases.popitem(last=False)
            self._collect()
        loaded = _Loaded(family, AdapterStack(family), family.scheduler_config(), size, LatentPreview(family))
        self._bases[key] = loaded
        return loaded

    def _make_room(self, base: TaskBase) -> None:
        """After running out of memory: only the base in use stays, without adapters."""
        key = base.weight_hash or f"{base.location}@{base.revision}"
        for other in [name for name in self._bases if name != key]:
            del self._bases[other]
        if key in self._bases:
            self._bases[key].stack.clear()
        self._collect()

    def _collect(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's or Python's way of saying so."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return "DefaultCPUAllocator" in str(error) or "out of memory" in str(error).lower()


def _incomplete(report: LoadReport) -> str:
    said: list[str] = []
    if report.unmatched:
        modules = several(len(report.unmatched) + report.matched, "module")
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


def _dtype(device: torch.device, family: str) -> torch.dtype:
    """fp32 on the CPU; on a GPU fp16, finer than bf16 and what the bases with a UNet were published in.

    bf16 for those with T5, which overflows in fp16.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if FAMILIES[family].flow else torch.float16


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * GPU_SHARE)
    import psutil

    return int(psutil.virtual_memory().total * CPU_SHARE)
