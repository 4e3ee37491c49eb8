"""Weights of a base that rest in the main memory and come to the device when their layer is asked.

Layers are asked in the same order in every step: once on the way there, once or twice on the way back. So
the next ones are copied while the present ones compute, on a stream of their own, and what was copied stays
until the room is needed: with gradient checkpointing one copy serves a block's second pass and its way back.
Frozen weights never go back to the main memory. Nothing of this changes a number.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.stored import StoredLayer, store_part

SHARE = 0.1  # of the streamed weights is on the device: some blocks, of which one computes
LAYERS = 3  # of the largest size, at least
Place = tuple[StoredLayer | None, StoredLayer | None, bool]  # the two layers last asked, on the way back


@dataclass(slots=True)
class _Copy:
    codes: Tensor
    scales: Tensor
    size: int  # bytes
    arrived: Any = None  # CUDA event


class Stream:
    """What of the base is on the device.

    Args:
        device: Where layers compute.
        room: Bytes that copies may take; at least the largest layer's are taken.
    """

    def __init__(self, device: torch.device, room: int) -> None:
        self.device, self.room = device, room
        self.copied = self.taken = self.most = 0  # bytes: copied so far, there now, at the most
        self._side: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._here: OrderedDict[StoredLayer, _Copy] = OrderedDict()
        self._next: dict[Place, StoredLayer] = {}
        self._place: Place = (None, None, False)

    def fetch(self, layer: StoredLayer) -> tuple[Tensor, Tensor]:
        """Codes and scales of a layer on the device; copies of those that came after it last time begin."""
        self._next[self._place] = layer
        self._place = (self._place[1], layer, _on_the_way_back())
        found = self._bring(layer)
        if found.arrived is not None:
            main = torch.cuda.current_stream(self.device)
            main.wait_event(found.arrived)
            for tensor in (found.codes, found.scales):
                tensor.record_stream(main)  # not reused before what computes with it is done
        self._bring_ahead(found.size)
        return found.codes, found.scales

    def _bring(self, layer: StoredLayer) -> _Copy:
        if layer in self._here:
            self._here.move_to_end(layer)
            return self._here[layer]
        codes, scales = layer.resting
        size = layer.nbytes
        while self._here and self.taken + size > self.room:
            self.taken -= self._here.popitem(last=False)[1].size
        self._here[layer] = made = self._copy(codes, scales, size)
        self.taken += size
        self.copied += size
        self.most = max(self.most, self.taken)
        return made

    def _copy(self, codes: Tensor, scales: Tensor, size: int) -> _Copy:
        if self._side is None:
            return _Copy(codes.clone(), scales.clone(), size)
        with torch.cuda.stream(self._side):
            there = [tensor.to(self.device, non_blocking=True) for tensor in (codes, scales)]
            arrived = torch.cuda.Event()
            arrived.record()
        return _Copy(there[0], there[1], size, arrived)

    def _bring_ahead(self, size: int) -> None:
        """As many of the next layers as fill two thirds of the room; the rest is for what comes again."""
        for layer in self._following():
            size += layer.nbytes
            if size > self.room * 2 / 3:
                return
            self._bring(layer)

    def _following(self) -> Iterator[StoredLayer]:
        place, seen = self._place, set[StoredLayer]()
        while (layer := self._next.get(place)) is not None and layer not in seen:
            seen.add(layer)
            yield layer
            place = (place[1], layer, place[2])


def stream_part(part: nn.Module, device: torch.device) -> Stream:
    """Let the blocks of a part rest in the main memory; all else of it goes to `device`.

    Args:
        part: Loaded in the main memory; its blocks may be rounded.
        device: Where it computes.
    """
    store_part(part)
    layers = [layer for layer in part.modules() if isinstance(layer, StoredLayer)]
    sizes = [layer.nbytes for layer in layers]
    stream = Stream(device, int(max(SHARE * sum(sizes), LAYERS * max(sizes, default=0))))
    for layer in layers:
        layer.rest(stream.fetch, pinned=device.type == "cuda")
    part.to(device)
    return stream


def _on_the_way_back() -> bool:
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
