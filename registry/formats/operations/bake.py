"""Adapters put into the weights of a base: W' = W + sum_i w_i (W'_i - W), layer by layer.

The result is a base: of the kind it was (a diffusers folder or a published file), or the single file of a
Stable Diffusion folder. One tensor is in memory at a time; what does not change is copied byte by byte.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import BadInput
from registry.files import atomic_folder, atomic_path, atomic_write, read_json, require_space, write_json
from registry.formats.checkpoints import weight_files
from registry.formats.factors import Factors, change_of, shape_of
from registry.formats.header import Header, TensorInfo, read_header, shown
from registry.formats.internal import LoraFactors
from registry.formats.operations.merge import Ingredient, one_family
from registry.formats.operations.report import left_out
from registry.formats.operations.sources import BaseWeights, Place, VectorPlace, swapped
from registry.formats.operations.vectors import matrices_of, norms_of
from registry.formats.single_file import PREFIXES, Piece, pieces_of
from registry.formats.streaming import Planned, in_order, pieces, stored, write_streamed
from registry.formats.tensors import DTYPES, Array, cast, read_tensor

NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_OURS = {name: dtype for dtype, name in NAMES.items()}
_FLOATS = {*_OURS, "F64", "F8_E4M3", "F8_E5M2"}
_COPIED = {".json", ".txt", ".model"}  # configs and vocabularies


@dataclass(frozen=True)
class BakeReport:
    """What was written."""

    path: str
    kind: str  # "folder" or "file"
    dtype: str  # "" = as the base's
    bytes: int
    modules: int  # layers that changed
    notes: tuple[str, ...] = field(default=())


Progress = Callable[[int, int], None]


class Oven:
    """The tensors of a base with adapters in them.

    Args:
        base: The base.
        parts: Adapters and their strengths.
        dtype: "fp32", "fp16", "bf16", or "" = as each tensor is stored.

    Raises:
        BadInput: an adapter is for another family or weights of another size, or nothing of it fits.
    """

    def __init__(self, base: BaseWeights, parts: Sequence[Ingredient], dtype: str) -> None:
        if dtype and dtype not in DTYPES:
            raise BadInput(f"dtype {shown(dtype)}", "is unknown", f"use one of {', '.join(DTYPES)}")
        self.base, self.parts, self.dtype = base, parts, dtype
        self.notes: list[str] = []
        self._changed: dict[tuple[Path, str], list[tuple[str, Place]]] = {}
        self._added: dict[tuple[Path, str], list[tuple[VectorPlace, Array]]] = {}  # to norms and biases
        self._matrices = [matrices_of(part.form) for part in parts]
        fitting = [(m, v) for part, matrices in zip(parts, self._matrices, strict=True)
                   for m, v in self._fitting(part, matrices)]  # fmt: skip
        for module in dict.fromkeys(module for module, is_vector in fitting if not is_vector):
            place = base.places[module]
            self._changed.setdefault((place.file, place.layer.tensor), []).append((module, place))
        self.modules = len({module for module, _ in fitting})

    def dtype_of(self, info: TensorInfo) -> str:
        """The safetensors dtype that a tensor is written in; whole numbers stay what they are."""
        return NAMES[self.dtype] if self.dtype and info.dtype in _FLOATS else info.dtype

    def planned(self, file: Path, name: str, info: TensorInfo) -> Planned:
        """A tensor of a file of the base under its own name."""
        return Planned(name, self.dtype_of(info), info.shape, lambda: self._content(file, name, info))

    def piece(self, piece: Piece) -> Planned:
        """A tensor of the single file."""
        first = piece.parts[0][2]
        return Planned(piece.name, self.dtype_of(first), piece.shape, lambda: self._stacked(piece))

    def _stacked(self, piece: Piece) -> Iterator[bytes | memoryview]:
        if not piece.transposed:
            for part in piece.parts:
                yield from self._content(*part)
            return
        file, name, info = piece.parts[0]
        yield _bytes(name, np.ascontiguousarray(self._values(file, name, info).T), self.dtype_of(info))

    def _content(self, file: Path, name: str, info: TensorInfo) -> Iterable[bytes | memoryview]:
        untouched = (file, name) not in self._changed and (file, name) not in self._added
        if untouched and self.dtype_of(info) == info.dtype:
            return stored(file, info)
        return iter([_bytes(name, self._values(file, name, info), self.dtype_of(info))])

    def _values(self, file: Path, name: str, info: TensorInfo) -> Array:
        values = read_tensor(file, name, info)
        for module, place in self._changed.get((file, name), ()):
            weight = values[place.rows]
            weight = swapped(weight) if place.layer.halves else weight
            total: Array | None = None  # each adapter's change is that of the same weight
            for part, matrices in zip(self.parts, self._matrices, strict=True):
                factors = matrices.get(module)
                strength = part.strength.of(part.form.family, module) if factors is not None else 0.0
                if factors is not None and strength:
                    change = change_of(factors, weight)
                    if strength != 1:
                        change = np.multiply(change, strength, dtype=np.float32)
                    total = change if total is None else np.add(total, change, dtype=np.float32)
            if total is not None:
                values[place.rows] += swapped(total) if place.layer.halves else total
        for place, added in self._added.get((file, name), ()):
            values[place.rows] += swapped(added) if place.halves else added
        return values

    def _fitting(
        self, part: Ingredient, matrices: Mapping[str, LoraFactors | Factors]
    ) -> Iterator[tuple[str, bool]]:
        """Modules of an adapter that change something, all checked to fit, and which of them are vectors."""
        missing: list[str] = []
        beside: list[str] = []
        for module, factors in matrices.items():
            if part.strength.of(part.form.family, module) == 0:
                continue
            if module not in self.base:
                missing.append(module)
                continue
            if not self._is_written(self.base.places[module].file):
                beside.append(module)
                continue
            shape = self.base.shape(module)
            rows, columns = shape_of(factors)
            if (rows and rows != shape[0]) or (columns and columns != int(np.prod(shape[1:]))):
                ours, theirs = " x ".join(map(str, shape)), f"{rows or '?'} x {columns or '?'}"
                wrong = f"does not fit: {module} is {theirs} in the adapter and {ours} in the base"
                raise BadInput(f"adapter {part.name}", wrong, "use the base it was trained on")
            yield module, False
        for module in self._vectors(part, missing, beside):
            yield module, True
        if missing and {*missing} == {*part.form.everything, *part.form.biases}:
            raise BadInput(f"adapter {part.name}", "has no module of this base", "choose another base")
        if beside:
            lost = (
                f"{len(beside)} modules lie in the folder beside the file, which is not baked: {_few(beside)}"
            )
            self.notes.append(f"{part.name}: {lost}")
        if missing:
            lost = f"{len(missing)} modules are not in this base, the first is {missing[0]}"
            self.notes.append(f"{part.name}: {lost}")
        self.notes += [f"{part.name}: {note}" for note in left_out(part.form)]
        if part.form.words:
            lost = f"its new words ({', '.join(part.form.words)}) cannot be baked; export them as embeddings"
            self.notes.append(f"{part.name}: {lost}")

    def _vectors(self, part: Ingredient, missing: list[str], beside: list[str]) -> Iterator[str]:
        """Norms and biases of an adapter, noted to be added; what is not in the base goes into the lists.

        Raises:
            BadInput: they are for other channels, for a layer without a bias, or for a file whose names of
                norms we do not know.
        """
        for leaf, vectors in (("weight", norms_of(part.form)), ("bias", part.form.biases)):
            for module, change in vectors.items():
                strength = part.strength.of(part.form.family, module)
                if strength == 0:
                    continue
                place = self.base.vector(module, leaf)
                if place is None:
                    self._require_absent(part, module, leaf)
                    missing.append(module)
                    continue
                if not self._is_written(place.file):
                    beside.append(module)
                    continue
                rows = len(range(*place.rows.indices(place.info.shape[0])))
                if len(change) != rows:
                    sides = f"{len(change)} channels in the adapter and {rows} in the base"
                    wrong = f"does not fit: {module} has {sides}"
                    raise BadInput(f"adapter {part.name}", wrong, "use the base it was trained on")
                row = self._added.setdefault((place.file, place.tensor), [])
                row.append((place, change * np.float32(strength)))
                yield module

    def _require_absent(self, part: Ingredient, module: str, leaf: str) -> None:
        """Refuse what the base has, but not in a way that the change could be added to."""
        there = module in self.base or self.base.vector(module, "weight") is not None
        if there and leaf == "bias":
            wrong = f"changes the bias of {module}, which has none in this base"
        elif not there and not self.base.knows_norms(module):
            family = self.base.family
            wrong = f"changes {module}, whose place in a single file of {family} is not known"
        else:
            return
        do = "leave norms and biases out: export it with --convert lora and import that"
        raise BadInput(f"adapter {part.name}", wrong, do)

    def _is_written(self, file: Path) -> bool:
        """Whether a file of the base is part of the result: the folder beside a single file is not."""
        return not self.base.is_file or file == self.base.path


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def bake(
    base: BaseWeights,
    parts: Sequence[Ingredient],
    out: Path,
    *,
    dtype: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BakeReport:
    """Write the base with the adapters in it.

    Args:
        base: The base.
        parts: Adapters and their strengths, of its family.
        out: A name that ends in .safetensors for a single file, else a folder.
        dtype: See `Oven`.
        overwrite: Replace a file, or a folder that is a diffusers model.
        progress: Told (bytes written, bytes) after each tensor.

    Raises:
        BadInput: something does not fit or stands in the way; nothing is written then.
        StudioError: the disk is full.
    """
    if one_family(parts) != base.family:
        wrong = f"is for {parts[0].form.family}, the base is {base.family}"
        raise BadInput(f"adapter {parts[0].name}", wrong, "choose a base of its family")
    oven = Oven(base, parts, dtype)
    if not oven.modules:
        raise BadInput("bake", "would change nothing: all weights are 0", "give a weight other than 0")
    to_file = out.suffix == ".safetensors"
    _refuse(base, out, overwrite, to_file)
    if to_file:
        _write_file(oven, out, progress)
    else:
        _write_folder(oven, out, progress)
    size = sum(file.stat().st_size for file in ([out] if to_file else out.rglob("*")) if file.is_file())
    kind = "file" if to_file else "folder"
    return BakeReport(str(out), kind, dtype, size, oven.modules, tuple(oven.notes))


def _refuse(base: BaseWeights, out: Path, overwrite: bool, to_file: bool) -> None:
    if base.is_file and not to_file:
        do = "end the name in .safetensors"
        raise BadInput(str(out), "would be a folder, and a single-file base is baked into a file", do)
    if to_file and not base.is_file and base.family not in PREFIXES:
        wrong = f"{base.family} has no single file that we write from a folder"
        raise BadInput(str(out), wrong, "name a folder")
    place, origin = (Path(os.path.realpath(path)) for path in (out, base.path))  # also of a link to itself
    if place.is_relative_to(origin) or origin.is_relative_to(place):
        raise BadInput(str(out), "is the base itself or lies in it", "choose another place")
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() == to_file or out.is_symlink():
        raise BadInput(str(out), "is something else", "choose another name")
    if not overwrite:
        raise BadInput(str(out), "exists already", "choose another name, or add --overwrite")
    if not to_file and any(out.iterdir()) and not (out / "model_index.json").is_file():
        raise BadInput(str(out), "is a folder that is no model", "name a new folder")


def _write_file(oven: Oven, out: Path, progress: Progress | None) -> None:
    if oven.base.is_file:
        header = read_header(oven.base.path)
        planned = [oven.planned(oven.base.path, name, info) for name, info in in_order(header)]
        metadata = header.metadata
    else:
        planned = [oven.piece(piece) for piece in pieces_of(oven.base.path, oven.base.family)]
        metadata = {"format": "pt"}
    require_space(out.parent, sum(item.size for item in planned), "the baked model")
    with atomic_path(out) as temporary:
        write_streamed(temporary, _counted(planned, progress), metadata)


def _write_folder(oven: Oven, out: Path, progress: Progress | None) -> None:
    source = oven.base.path
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    weights = {file: read_header(file) for folder in folders for file in weight_files(folder)}
    total = sum(oven.planned(f, n, i).size for f, h in weights.items() for n, i in h.tensors.items())
    require_space(out.parent, total, "the baked model")
    done = 0
    with atomic_folder(out) as made:
        index: dict[str, Any] = read_json(source / "model_index.json")
        for folder in folders:
            if _only_pickles(folder):  # they can run code
                index[folder.name] = [None, None]
                oven.notes.append(f"{folder.name} is left out: its weights are pickles")
        write_json(made / "model_index.json", index, durable=False)
        for folder in folders:
            if _only_pickles(folder):
                continue
            (made / folder.name).mkdir()
            _copy_configs(folder, made / folder.name)
        for file, header in weights.items():
            target = made / file.parent.name / file.name.replace(".fp16.", ".")
            planned = [oven.planned(file, name, info) for name, info in in_order(header)]
            write_streamed(target, _counted(planned, progress, done, total), _plain(header))
            done += sum(item.size for item in planned)


def _only_pickles(folder: Path) -> bool:
    return not weight_files(folder) and any(folder.glob("*.bin"))


def _plain(header: Header) -> dict[str, str]:
    return header.metadata or {"format": "pt"}


def _copy_configs(folder: Path, target: Path) -> None:
    several = len(weight_files(folder)) > 1
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.suffix not in _COPIED:
            continue
        if ".safetensors.index" not in file.name:
            _copy(file, target / file.name)
        elif several:
            text = file.read_text(encoding="utf-8").replace(".fp16.", ".")
            atomic_write(target / file.name.replace(".fp16.", ".").replace(".fp16", ""), text, durable=False)


def _copy(source: Path, target: Path) -> None:
    with target.open("xb") as stream:
        for piece in pieces(source, 0, source.stat().st_size):
            stream.write(piece)


def _counted(
    planned: Sequence[Planned], progress: Progress | None, before: int = 0, total: int = 0
) -> Sequence[Planned]:
    """The same, telling how far it is."""
    if progress is None:
        return planned
    total = total or sum(item.size for item in planned)
    position = before
    told: list[Planned] = []
    for item in planned:
        told.append(Planned(item.name, item.dtype, item.shape, _telling(item, progress, position, total)))
        position += item.size
    return told


def _telling(
    item: Planned, progress: Progress, position: int, total: int
) -> Callable[[], Iterable[bytes | memoryview]]:
    def content() -> Iterator[bytes | memoryview]:
        progress(position, total)
        yield from item.content()

    return content


def _bytes(name: str, values: Array, dtype: str) -> bytes:
    if dtype not in _OURS:
        do = "write it in another with --dtype"
        raise BadInput(f"tensor {shown(name)}", f"is stored as {dtype}, which cannot be changed", do)
    if values.ndim == 0:
        return values.astype(DTYPES[_OURS[dtype]]).tobytes()
    return cast({name: values}, _OURS[dtype])[name].tobytes()
