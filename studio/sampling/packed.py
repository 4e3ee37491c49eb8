"""LoRA factors where they can be switched in milliseconds: packed in memory, copied beside each other.

An adapter rests in one piece of host memory (`Blob`), for a GPU pinned and in the dtype of its layers.
To act on a GPU, the blobs of all active adapters are copied into one arena so that in each layer their
factors lie rank beside rank: any number of adapters is one pair of products. Strengths are one small vector
for all layers, so changing them copies some ten thousand numbers and nothing else.

Where factors lie depends on the active adapters alone, never on what was active before, so the same request
gives the same bits whatever was drawn before it.
"""

import mmap
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studio.sampling.layers import Pair
from studio.sampling.spots import Spot

LAYOUTS = 16  # remembered; one of SDXL has some 5,000 small objects
LARGE = 2**20  # bytes; less is not worth a call of its own
TENSOR_CORE = 8  # ranks that are multiples of it are the fast ones on a GPU


@dataclass(frozen=True)
class LoraPart:
    """The factors of one layer, as they lie in the file.

    Args:
        down: (r, in kh kw), of any dtype.
        up: (out, r).
        scale: alpha / r.
    """

    down: Tensor
    up: Tensor
    scale: float


class Blob:
    """All factors of one adapter for layers of one dtype: A and B of each layer in turn.

    For the CPU they rest in the 16 bits that most files have, and layers widen them as they read them, which
    is exact: memory that was never touched before is most of what loading takes, and this is half of it.

    Args:
        parts: (name of the module in the adapter, its place, its factors).
        dtype: Of the layers.
        device: That they compute on.
    """

    def __init__(
        self, parts: Sequence[tuple[str, Spot, LoraPart]], dtype: torch.dtype, device: torch.device
    ) -> None:
        step = TENSOR_CORE if device.type == "cuda" else 1
        self.modules = [module for module, _, _ in parts]
        self.spots = [spot for _, spot, _ in parts]
        self.ranks = np.array([-(-part.down.shape[0] // step) * step for _, _, part in parts])
        self.scales = np.array([part.scale for _, _, part in parts])
        self.moving = np.array([spot.moving for spot in self.spots])
        self.sizes: list[int] = []
        for spot, rank in zip(self.spots, self.ranks.tolist(), strict=True):
            self.sizes += (rank * prod(spot.inputs), rank * spot.shape[0])
        self.dtype = dtype
        self.data = _taken(sum(self.sizes), _resting(parts, dtype, device))
        self.alone: _Layout | None = None  # where layers read it when it acts by itself on the CPU
        self._fill([part for _, _, part in parts])

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """What two blobs have in common whose factors lie in the same places."""
        return tuple(zip(map(id, self.spots), self.ranks.tolist(), strict=True))

    @property
    def nbytes(self) -> int:
        """Of host memory."""
        return self.data.numel() * self.data.element_size()

    def is_finite(self) -> bool:
        """Whether all values are numbers, also in the layers' dtype."""
        low, high = torch.aminmax(self.data)
        return bool(low.isfinite() & high.isfinite())

    def pin(self) -> None:
        """Move to pinned memory, from where a copy to a GPU takes a fifth of the time.

        On another thread: to get the memory takes as long as all the rest of loading, and the first copy is
        made without it.
        """
        Thread(target=self._pin, daemon=True).start()

    def _pin(self) -> None:
        try:
            pinned = torch.empty_like(self.data, pin_memory=True)
        except RuntimeError:  # the system's limit of locked memory: slower, but it goes on
            return
        self.data = pinned.copy_(self.data)

    def halves(self, data: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """All A (r, in kh kw), and all B (out, r), of the blob's data or a copy of it."""
        pieces, ranks = data.split(self.sizes), self.ranks.tolist()
        downs = [piece.view(rank, -1) for piece, rank in zip(pieces[::2], ranks, strict=True)]
        return downs, [piece.view(-1, rank) for piece, rank in zip(pieces[1::2], ranks, strict=True)]

    def _fill(self, parts: list[LoraPart]) -> None:
        downs, ups = self.halves(self.data)
        for number, part in enumerate(parts):
            own = part.down.shape[0]
            if own < downs[number].shape[0]:  # ranks of zeros add nothing
                downs[number][own:].zero_()
                ups[number][:, own:].zero_()
                downs[number], ups[number] = downs[number][:own], ups[number][:, :own]
        _copy_all(downs, [part.down for part in parts])
        _copy_all(ups, [part.up for part in parts])


def _taken(count: int, dtype: torch.dtype) -> Tensor:
    """Memory for so many values, from the system in one go: page by page, as it is touched, takes longer.

    Linux alone offers it; elsewhere, and where it is refused, torch takes the memory as it does.
    """
    at_once, size = getattr(mmap, "MAP_POPULATE", 0), count * dtype.itemsize
    if at_once and size >= LARGE:
        with suppress(OSError):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | at_once
            return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=dtype)
    return torch.empty(count, dtype=dtype)


def _resting(
    parts: Sequence[tuple[str, Spot, LoraPart]], dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    """What the factors are kept in: as in the file where that is 16 bits and the CPU computes in 32."""
    held = {half.dtype for _, _, part in parts for half in (part.down, part.up)}
    short = held in ({torch.float16}, {torch.bfloat16})
    return held.pop() if short and device.type == "cpu" and dtype == torch.float32 else dtype


@dataclass
class _Layout:
    """Where the factors of some blobs lie beside each other.

    Args:
        spots: Their layers.
        pairs: What each layer is given.
        scales: (total rank,) fp32 on the device; parts of it are in `pairs`.
        columns: Of each blob, the position of its layers among `spots`.
        rows: Of each blob, the position of its ranks in `scales`.
        halves: Of each blob, where its A and B are copied to.
    """

    spots: list[Spot]
    pairs: list[Pair]
    scales: Tensor
    columns: list[NDArray[np.int64]]
    rows: list[NDArray[np.int64]]
    halves: list[tuple[list[Tensor], list[Tensor]]]


class Pack:
    """The active LoRAs of all layers of one dtype.

    Args:
        device: That they compute on.
        dtype: Of the layers.
        copied: Whether factors are copied to an arena on the device; on the CPU layers can read them where
            they are, each adapter by itself, which takes no time and no second memory.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, copied: bool | None = None) -> None:
        self._device, self._dtype = device, dtype
        self._copied = device.type != "cpu" if copied is None else copied
        self._arena: Tensor | None = None
        self._known: OrderedDict[Any, _Layout] = OrderedDict()
        self._shown: list[tuple[_Layout, list[Blob]]] = []
        self._strengths: list[NDArray[np.float64]] = []

    def show(self, blobs: Sequence[Blob], strengths: Sequence[NDArray[np.float64]]) -> None:
        """Let exactly these act, each with a strength for each of its layers; `at` makes it so."""
        self._rest()
        self._strengths = list(strengths)
        before = [blob for _, held in self._shown for blob in held]
        if len(blobs) == len(before) and all(a is b for a, b in zip(blobs, before, strict=True)):
            return
        self._shown = []  # nothing is shown until all is copied
        if not self._copied:
            self._shown = [(_alone(blob), [blob]) for blob in blobs]
        elif blobs:
            layout = self._make_layout(blobs)
            self._copy(blobs, layout)
            self._shown = [(layout, list(blobs))]

    def at(self, factors: Sequence[float]) -> None:
        """Set the strengths, with a factor for each blob's layers that are asked in every step.

        A layer where nothing is left acts as if it had no adapter.
        """
        self._rest()
        todo = iter(zip(self._strengths, factors, strict=True))
        for layout, blobs in self._shown:
            host = np.zeros(len(layout.scales), np.float32)
            live = np.zeros(len(layout.spots), np.bool_)
            for blob, columns, rows in zip(blobs, layout.columns, layout.rows, strict=True):
                strength, factor = next(todo)
                now = strength * np.where(blob.moving, factor, 1.0)
                host[rows] = np.repeat(now * blob.scales, blob.ranks)
                live[columns] |= now != 0
            layout.scales.copy_(torch.from_numpy(host))
            for spot, pair, acts in zip(layout.spots, layout.pairs, live.tolist(), strict=True):
                if acts:
                    spot.acts.pairs = (*spot.acts.pairs, pair)

    def clear(self) -> None:
        """Give the memory back."""
        self.show([], [])
        self._known.clear()
        self._arena = None

    def _rest(self) -> None:
        for layout, _ in self._shown:
            for spot in layout.spots:
                spot.acts.pairs = ()

    def _make_layout(self, blobs: Sequence[Blob]) -> _Layout:
        size = sum(len(blob.data) for blob in blobs)
        if self._arena is None or len(self._arena) < size:
            self._known.clear()  # they lie in the old one
            self._arena = None
            self._arena = torch.empty(size, dtype=self._dtype, device=self._device)
        key = tuple(blob.structure for blob in blobs)
        if key not in self._known:
            self._known[key] = _beside(blobs, self._arena)
            if len(self._known) > LAYOUTS:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _copy(self, blobs: Sequence[Blob], layout: _Layout) -> None:
        if len(blobs) == 1 and self._arena is not None:  # the same order: one copy
            data = blobs[0].data
            self._arena[: len(data)].copy_(data, non_blocking=True)
            return
        for blob, (downs, ups) in zip(blobs, layout.halves, strict=True):
            # Over the bus in one piece; some thousand small ones take longer.
            here = blob.halves(blob.data.to(self._device, non_blocking=True))
            _copy_all(downs, here[0])
            _copy_all(ups, here[1])


def _alone(blob: Blob) -> _Layout:
    """Where layers read an adapter in its own memory."""
    blob.alone = blob.alone or _beside([blob], blob.data)
    return blob.alone


def _beside(blobs: Sequence[Blob], arena: Tensor) -> _Layout:
    """Of each layer, A of all blobs below each other, then B of all side by side."""
    places: dict[Spot, list[tuple[int, int]]] = {}  # -> (blob, number of the layer in it)
    for number, blob in enumerate(blobs):
        for index, spot in enumerate(blob.spots):
            places.setdefault(spot, []).append((number, index))
    spots, ranks = list(places), [blob.ranks.tolist() for blob in blobs]
    total = [sum(ranks[number][index] for number, index in held) for held in places.values()]
    sizes: list[int] = []
    for spot, rank in zip(spots, total, strict=True):
        sizes += (rank * prod(spot.inputs), rank * spot.shape[0])
    pieces = arena[: sum(sizes)].split(sizes)
    scales = torch.zeros(sum(total), dtype=torch.float32, device=arena.device)
    pairs = [
        (
            down.view(rank, *spot.inputs),
            up.view(-1, rank),
            scale if len(spot.inputs) == 1 else scale.view(-1, 1, 1),
        )
        for spot, rank, down, up, scale in zip(
            spots, total, pieces[::2], pieces[1::2], scales.split(total), strict=True
        )
    ]
    columns, rows = _positions(blobs, places, ranks, total)
    halves: list[tuple[list[Tensor], list[Tensor]]] = []
    if len(blobs) > 1:
        halves = [([arena] * len(blob.spots), [arena] * len(blob.spots)) for blob in blobs]
        for held, (down, up, _) in zip(places.values(), pairs, strict=True):
            start = 0
            for number, index in held:
                stop = start + ranks[number][index]
                halves[number][0][index] = down[start:stop].flatten(1)
                halves[number][1][index] = up[:, start:stop]
                start = stop
    return _Layout(spots, pairs, scales, columns, rows, halves)


def _positions(
    blobs: Sequence[Blob],
    places: dict[Spot, list[tuple[int, int]]],
    ranks: list[list[int]],
    total: list[int],
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Of each blob, the positions of its layers and of their ranks."""
    columns = [np.zeros(len(blob.spots), np.int64) for blob in blobs]
    starts = [np.zeros(len(blob.spots), np.int64) for blob in blobs]
    begin = 0
    for column, (held, rank) in enumerate(zip(places.values(), total, strict=True)):
        start = begin
        for number, index in held:
            columns[number][index], starts[number][index] = column, start
            start += ranks[number][index]
        begin += rank
    rows = [
        np.repeat(first - np.cumsum(blob.ranks) + blob.ranks, blob.ranks) + np.arange(blob.ranks.sum())
        for blob, first in zip(blobs, starts, strict=True)
    ]
    return columns, rows


def _copy_all(into: list[Tensor], values: list[Tensor]) -> None:
    """One call for all pairs."""
    torch._foreach_copy_(into, values)  # pyright: ignore[reportPrivateUsage]  it has no public name
