"""Weights of an adapter file as numpy arrays, and back; no torch."""

import math
import mmap
import struct
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.formats.header import Header, TensorInfo, read_header, shown

Array = NDArray[np.float32]

_NUMPY: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
DTYPES: dict[str, np.dtype] = {"fp32": _NUMPY["F32"], "fp16": _NUMPY["F16"], "bf16": _NUMPY["BF16"]}
_STRUCT = {"F32": "<f", "F16": "<e", "F64": "<d"}  # a thousand alphas, without an array for each
SAMPLE = 64  # scalars that are read of many
_NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def read_tensors(path: Path, header: Header | None = None) -> dict[str, Array]:
    """All tensors of `path` as float32.

    Raises:
        BadInput: the header is unsound, a tensor cannot be weights, or has a value that is not finite.
    """
    header = header or read_header(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {name: _read(path, name, info, data) for name, info in header.tensors.items()}


def read_tensor(path: Path, name: str, info: TensorInfo) -> Array:
    """One tensor of `path` as float32; reads nothing else.

    Raises:
        BadInput: it cannot be weights, or has a value that is not finite.
    """
    with path.open("rb") as stream:
        stream.seek(info.start)
        return _read(path, name, info, stream.read(info.end - info.start), 0)


def read_scalars(path: Path, header: Header, suffix: str) -> list[float]:
    """Values of the one-element tensors whose name ends with `suffix`, without reading any other weight.

    Of many, `SAMPLE` that are spread over the file, when these are equal: each costs an access to the disk.
    """
    named = [name for name in header.tensors if name.endswith(suffix)]
    found = [name for name in named if math.prod(header.tensors[name].shape) == 1]
    some = found[:: -(-len(found) // SAMPLE)] if found else []
    with path.open("rb", buffering=0) as stream:  # a mapping would read 128 KiB around each
        values = [_scalar(path, name, header.tensors[name], stream) for name in some]
        if len(set(values)) > 1:
            values = [_scalar(path, name, header.tensors[name], stream) for name in found]
    return values


def _scalar(path: Path, name: str, info: TensorInfo, stream: FileIO) -> float:
    stream.seek(info.start)
    data = stream.read(info.end - info.start)
    code = (
        _STRUCT.get(info.dtype) if len(data) == info.end - info.start else None
    )  # else it was cut meanwhile
    value = struct.unpack(code, data)[0] if code else math.nan
    # The slow way also refuses what is not finite.
    return value if math.isfinite(value) else float(_read(path, name, info, data, 0).item())


def stored_dtype(header: Header) -> str:
    """The export dtype (`fp32`, `fp16`, `bf16`) that holds most of the file's bytes; fp32 for any other."""
    sizes = dict.fromkeys(header.dtypes, 0)
    for dtype, _, start, end in header.tensors.values() if len(sizes) > 1 else ():
        sizes[dtype] += end - start
    return _NAMES.get(max(sizes, key=lambda name: sizes[name]), "fp32") if sizes else "fp32"


def cast(tensors: Mapping[str, Array], dtype: str) -> dict[str, NDArray[np.generic]]:
    """Weights in `dtype`; scalars (alpha) stay float32, where they cost nothing and lose nothing.

    Raises:
        BadInput: the dtype is unknown, or a value does not fit it.
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype {shown(dtype)}", "is unknown", f"use one of {', '.join(DTYPES)}")
    done: dict[str, NDArray[np.generic]] = {}
    for name, values in tensors.items():
        with np.errstate(over="ignore"):
            stored = np.asarray(values, DTYPES["fp32"] if values.ndim == 0 else DTYPES[dtype], order="C")
        if not np.isfinite(stored).all():
            largest = float(np.abs(values).max())
            raise BadInput(
                f"dtype {dtype}",
                f"cannot hold tensor {shown(name)} (up to {largest:.3g})",
                "use fp32 or bf16",
            )
        done[name] = stored
    return done


def save(path: Path, tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Atomicity is the caller's: give it a path of `registry.files.atomic_path`.

    Serialised in memory and written by Python, because the library hides why a write failed.
    """
    path.write_bytes(safetensors.numpy.save(dict(tensors), dict(metadata)))


def _read(
    path: Path, name: str, info: TensorInfo, data: mmap.mmap | bytes, start: int | None = None
) -> Array:
    if info.dtype not in _NUMPY:
        raise BadInput(
            str(path), f"tensor {shown(name)} of {info.dtype} cannot be weights", "ask for fp32, fp16 or bf16"
        )
    offset = info.start if start is None else start
    count = (info.end - info.start) // _NUMPY[info.dtype].itemsize
    values = np.frombuffer(data, _NUMPY[info.dtype], count, offset).astype(np.float32).reshape(info.shape)
    if not np.isfinite(values).all():
        raise BadInput(
            str(path), f"has values that are not finite in tensor {shown(name)}", "use an earlier checkpoint"
        )
    return values
