"""Bases kept in memory, with their adapters; the longest unused leave when the room is needed."""

import gc
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from studio.sampling.media.loading import LoadedPipeline, place
from studio.sampling.memory import (
    QUICK,
    RESIDENT,
    Mode,
    Sizes,
    arrange,
    bytes_of,
    free_bytes,
    in_pieces,
    needed_bytes,
    settle,
    sizes_of,
)
from studio.sampling.preview import LatentPreview
from studio.sampling.quicker import Speed, quicken
from studio.sampling.stack import AdapterStack
from studio.sampling.task import SampleTask, TaskBase
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles, Family
from trainers.stored import Precision, compress

CPU_SHARE = 0.5  # of the memory, for bases kept loaded
GPU_SHARE = 0.8


@dataclass
class Loaded:
    """A base in memory, with its adapters.

    Args:
        family: The base.
        stack: Its adapters.
        scheduler_config: Of its own sampler.
        sizes: What its parts take, however they are kept.
        bytes: What they take as they are.
        mode: Where they lie.
        precision: How their weights are kept.
        preview: Draws the latents.
        speed: How the denoiser computes.
    """

    family: Family
    stack: AdapterStack
    scheduler_config: dict[str, Any]
    sizes: Sizes
    bytes: int
    mode: Mode
    precision: Precision
    preview: LatentPreview | None = None
    speed: Speed = "plain"

    def quicken(self, speed: Speed) -> str:
        """Have the denoiser compute so; returns one line when that cannot be."""
        if speed == self.speed:
            return ""
        if self.mode in QUICK:
            self.speed, said = quicken(self.family, self.stack, speed)
            return said
        return f"{speed} has no effect while the base's weights come and go (memory {self.mode})."


class Shelf:
    """Loaded bases by what they are.

    Args:
        device: Where they compute.
        budget: Bytes of bases to keep; default: a share of the device's memory.
    """

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        self._device = device
        self._budget = budget or _budget(device)
        self.bases: OrderedDict[str, Loaded] = OrderedDict()
        self.pipelines: OrderedDict[str, LoadedPipeline] = OrderedDict()  # of video, sound and 3D

    def get(
        self, base: TaskBase, *, memory: str = "auto", precision: str = "auto", pixels: int = 0
    ) -> Loaded:
        """A base, loaded if need be.

        Args:
            base: Which.
            memory: The request's `memory`.
            precision: The request's `precision`.
            pixels: Of the largest picture that is decoded at once; what is computed needs room, too.

        Raises:
            BadInput: it is gone or damaged.
        """
        key = _key(base)
        if key in self.bases:
            self.bases.move_to_end(key)
            loaded = self.bases[key]
            if self._kept_so(loaded, memory, precision, pixels) and self._rearranged(loaded, memory, pixels):
                return loaded
            del self.bases[key], loaded  # what its parts are and where they wait is settled when it is loaded
            self.collect()
        kind = cast(Literal["folder", "file", "hub"], base.kind)
        files = BaseFiles(base.location, kind, base.config, base.revision)
        family = FAMILIES[base.family].load_class()(
            files, dtype=_dtype(self._device, base.family), device=self._device
        )
        family.home = torch.device("cpu")  # until it is known where everything goes
        sizes = sizes_of(family)
        size = sum(sizes["whole"].values())
        self._clear_for(size, self.pipelines, self.bases)
        there = size if self._device.type == "cpu" else 0
        mode, kept = self._settle(sizes, memory, precision, pixels, there)
        compress(family, kept)
        size = sum(bytes_of(family).values())
        arrange(family, mode)
        loaded = Loaded(
            family,
            AdapterStack(family),
            family.scheduler_config(),
            sizes,
            size,
            mode,
            kept,
            LatentPreview(family),
        )
        self.bases[key] = loaded
        return loaded

    def pipeline(
        self,
        task: SampleTask,
        load: Callable[[], LoadedPipeline],
        *,
        memory: str = "auto",
        pieces: bool = False,
    ) -> LoadedPipeline:
        """What makes a task's video, sound or thing, loaded if need be.

        Args:
            task: Its base and motion adapter say which.
            load: Loads it into the main memory.
            memory: The request's `memory`.
            pieces: Decode in small pieces.

        Raises:
            BadInput: it is gone or damaged.
        """
        key = "+".join(_key(part) for part in (task.base, task.motion) if part is not None)
        found = self.pipelines.pop(key, None)
        if found is not None:
            if found.pieces == pieces and memory in ("auto", found.mode):
                self.pipelines[key] = found
                return found
            del found  # where its parts wait is settled when it is loaded
            self.collect()
        loaded = load()
        self._clear_for(loaded.bytes, self.bases, self.pipelines)
        place(loaded, memory, self._device, free_bytes(self._device), pieces=pieces)
        self.pipelines[key] = loaded
        return loaded

    def _clear_for(self, size: int, *kept: OrderedDict[str, Any]) -> None:
        """Let bases go, the first kind first and the longest unused of it, until `size` more bytes fit."""
        while any(kept) and size + self._bytes() > self._budget:
            next(filter(None, kept)).popitem(last=False)
            self.collect()

    def _bytes(self) -> int:
        return sum(item.bytes for item in (*self.bases.values(), *self.pipelines.values()))

    def make_room(self, base: TaskBase) -> None:
        """After running out of memory: only the base in use stays, without adapters."""
        key = _key(base)
        self.pipelines.clear()
        for other in [name for name in self.bases if name != key]:
            del self.bases[other]
        if key in self.bases:
            self.bases[key].stack.clear()
        self.collect()

    def clear(self) -> None:
        """Give all memory back."""
        self.bases.clear()
        self.pipelines.clear()
        self.collect()

    def collect(self) -> None:
        """Give what is no longer referred to back to the device."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _rearranged(self, loaded: Loaded, memory: str, pixels: int) -> bool:
        """Whether a loaded base can go on: parts that wait elsewhere do so until another way is asked for."""
        if loaded.mode not in RESIDENT:
            return memory in ("auto", loaded.mode)
        mode, _ = self._settle(loaded.sizes, memory, loaded.precision, pixels, loaded.bytes)
        if memory == "auto" and mode not in RESIDENT:
            mode = "slicing"  # it is there already: what it takes to draw decides
        if mode not in RESIDENT:
            return False
        if mode != loaded.mode:
            in_pieces(loaded.family, mode == "slicing")
            loaded.mode = mode
        return True

    def _kept_so(self, loaded: Loaded, memory: str, precision: str, pixels: int) -> bool:
        """Whether a loaded base has its weights as they are wanted: rounded ones never become whole again."""
        if precision != "auto" or loaded.precision == "whole":
            return precision in ("auto", loaded.precision)
        there = loaded.bytes if loaded.mode in RESIDENT else 0
        return self._settle(loaded.sizes, memory, precision, pixels, there)[1] == loaded.precision

    def _settle(
        self, sizes: Sizes, memory: str, precision: str, pixels: int, there: int
    ) -> tuple[Mode, Precision]:
        """How a base is to lie in memory, and what its weights are; `there`: bytes of it that are loaded."""
        free = free_bytes(self._device) + there
        on_cpu = self._device.type == "cpu"
        return settle(memory, precision, sizes, needed_bytes(pixels), free, on_cpu=on_cpu)


def _key(base: TaskBase) -> str:
    return base.weight_hash or f"{base.location}@{base.revision}"


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
