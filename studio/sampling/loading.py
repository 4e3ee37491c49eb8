"""Adapter files as what the sampler packs and attaches; plain LoRA without a detour over numpy.

A file of plain LoRA is mapped into memory and its tensors are views of it, in the file's own dtype: nothing
is read until it is copied to where it stays. All other files come through `registry.formats.load`.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from registry.errors import BadInput
from registry.formats.diffusers import Strengths
from registry.formats.factors import Factors
from registry.formats.header import Header, TensorInfo, read_header, shown
from registry.formats.internal import LoraFactors
from registry.formats.load import load_adapter
from registry.formats.peft_config import PeftConfig, peft_config
from registry.formats.plain import PlainLayout, PlainModule, plain_layout
from registry.formats.reading import lora_strengths, peft_configs
from registry.formats.rows import divided
from registry.formats.tensors import Array, read_tensor
from registry.formats.words import Words, split
from studio.sampling.packed import LoraPart

_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_SCALARS = {"F32": "<f", "F16": "<e", "F64": "<d"}


@dataclass(frozen=True)
class Loaded:
    """What a file holds, by the names of our modules.

    Args:
        loras: Plain LoRA.
        others: Every other method.
        biases: What is added to biases, (out,).
        words: New words of text encoders.
        ignored: Keys that nobody understands.
        checked: Whether all values of `loras` are known to be finite.
    """

    loras: Mapping[str, LoraPart]
    others: Mapping[str, Factors] = field(default_factory=dict[str, Any])
    biases: Mapping[str, Array] = field(default_factory=dict[str, Array])
    words: Words = field(default_factory=dict[str, Any])
    ignored: tuple[str, ...] = ()
    checked: bool = True

    @property
    def modules(self) -> list[str]:
        """All that it changes."""
        return list(dict.fromkeys((*self.loras, *self.others, *self.biases)))


def load_parts(path: Path, family: str, peft: PeftConfig | None = None) -> Loaded:
    """The adapter in `path`, for a base of `family`; `peft` as in `load.load_adapter`.

    Raises:
        BadInput: the file is unsound, or holds nothing that we can read.
    """
    header = read_header(path)
    peft = peft or peft_config(path, header.tensors, header.metadata)
    if peft is not None:
        tensors = {peft.name(key): info for key, info in header.tensors.items()}
        header = Header(tensors, header.metadata | peft.metadata(family))
    layout = plain_layout(family, tuple(header.tensors))
    plain = None
    if layout is not None:
        with suppress(BadInput):  # the long way says it with the file's name
            plain = _plain(path, header, layout)
    return plain or load_exactly(path, family, peft)


def load_exactly(path: Path, family: str, peft: PeftConfig | None = None) -> Loaded:
    """The same the long way, which reads every method and names each fault.

    Raises:
        BadInput: as above; or a value is not finite.
    """
    form, _, _ = load_adapter(path, family, peft)
    loras = {module: _part(factors) for module, factors in form.modules.items()}
    return Loaded(loras, form.others, form.biases, form.words, form.ignored)


def _part(factors: LoraFactors) -> LoraPart:
    down, up = (torch.from_numpy(np.ascontiguousarray(half)) for half in (factors.down, factors.up))
    return LoraPart(down.flatten(1), up.flatten(1), factors.scale)


def _plain(path: Path, header: Header, layout: PlainLayout) -> Loaded | None:
    """The parts as views of the file; None where something is odd, for the long way to name it."""
    strengths = lora_strengths(header.metadata)
    peft_configs(header.metadata)  # refused when broken, whatever the method
    with path.open("rb") as stream:
        # Private and writable, for torch warns of tensors that cannot be written; nothing writes to them.
        file = _File(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), header)
    loras: dict[str, LoraPart] = {}
    for item in layout.modules:
        shapes = header.tensors[item.down].shape, header.tensors[item.up].shape
        down, up = file.flat.get(item.down), file.flat.get(item.up)
        if down is None or up is None or not _fit(*shapes):
            return None
        rank = shapes[0][0]
        alpha = _alpha(item, file, strengths, rank)
        if not math.isfinite(alpha):
            return None
        if item.place.special:
            wide, high = (half.float().view(shape) for half, shape in zip((down, up), shapes, strict=True))
            factors = LoraFactors(wide.numpy(), high.numpy(), alpha)
            parts = divided(item.component, item.place, factors, f"module {shown(item.name)}")
            loras |= {name: _part(part) for name, part in parts.items() if isinstance(part, LoraFactors)}
        else:
            loras[item.module] = LoraPart(down.view(rank, -1), up.view(-1, rank), alpha / rank)
    words, _ = split({key: read_tensor(path, key, header.tensors[key]) for key in layout.words})
    return Loaded(loras, words=words, ignored=layout.ignored, checked=False)


def _fit(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """As `make_factors` has it."""
    sides = len(down) in (2, 4) and len(up) in (2, 4) and all(side == 1 for side in up[2:])
    return sides and down[0] == up[1] and math.prod(down) > 0 and math.prod(up) > 0


def _alpha(item: PlainModule, file: "_File", strengths: Strengths, rank: int) -> float:
    """Strength of a module: its own, else the metadata's, else the rank; NaN when it is no number."""
    if item.alpha:
        return file.number(item.alpha)
    alpha = strengths.alpha(item.module, rank)
    return float(rank) if alpha is None else alpha


class _File:
    """A mapped file.

    Attributes:
        flat: Its tensors, (n,), of every dtype that can be weights.
    """

    def __init__(self, data: mmap.mmap, header: Header) -> None:
        self._data, self._tensors = data, header.tensors
        self.flat: dict[str, Tensor] = {}
        run: list[str] = []
        for key in sorted(header.tensors, key=lambda key: header.tensors[key].start):
            if run and header.tensors[run[0]].dtype != header.tensors[key].dtype:
                self._add(run)
                run = []
            run.append(key)
        self._add(run)

    def _add(self, keys: list[str]) -> None:
        """Tensors of one dtype that lie one after the other, as views of one: a tenth of the time."""
        infos = [self._tensors[key] for key in keys]
        counts = [math.prod(info.shape) for info in infos]
        dtype = _DTYPES.get(infos[0].dtype) if infos else None
        if dtype is not None and sum(counts):
            whole = torch.frombuffer(self._data, dtype=dtype, count=sum(counts), offset=infos[0].start)
            self.flat.update(zip(keys, whole.split(counts), strict=True))

    def number(self, key: str) -> float:
        """A tensor of one value; NaN when it is none."""
        info: TensorInfo = self._tensors[key]
        if math.prod(info.shape) != 1:
            return math.nan
        if code := _SCALARS.get(info.dtype):
            return struct.unpack_from(code, self._data, info.start)[0]
        return float(self.flat[key]) if key in self.flat else math.nan
