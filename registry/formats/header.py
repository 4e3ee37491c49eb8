"""The header of a safetensors file, checked before anything else opens the file.

Layout: 8 bytes little-endian header length n, n bytes of JSON, then the data of the tensors without a gap
(https://github.com/huggingface/safetensors#format). The library accepts duplicate names and hundreds of
thousands of tensors; we do not, and each fault gets its own line.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import itemgetter, sub
from pathlib import Path
from typing import Any, NamedTuple, cast

from registry.errors import BadInput, NotFound

MAX_HEADER = 8 * 2**20  # bytes; a FLUX.1 adapter with every module has about 0.2 MiB
MAX_TENSORS = 20_000
MAX_AXES = 16  # of a tensor; convolutions have four
MAX_NUMBER = 2**63 - 1  # sizes and offsets beyond it overflow in the readers of other tools

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
METADATA = "__metadata__"
# A header as tools write it: what stands before its first tensor, and a tensor. Of a tensor no group reaches
# past the next quote, so that a text made to be searched again and again takes no longer than others.
_FIRST = re.compile(r'\{(?:"__metadata__": ?(\{.*\}), ?)?', re.DOTALL)
_TENSOR = re.compile(
    r'"([^"]*)": ?\{"dtype": ?"([^"]*)", ?"shape": ?\[([^]"]*)\], ?'
    r'"data_offsets": ?\[(0|[1-9][0-9]*), ?(0|[1-9][0-9]*)\]\}'
)
_ESCAPED = bytes(range(0x20)) + b"\\"  # what stands in no text of JSON as it is
_BINARY = re.compile(rb"[^\t\n\r\x20-\x7e\x80-\xff]")
AGAIN = "download or copy it again"


class TensorInfo(NamedTuple):  # a file has thousands, and a frozen dataclass takes twice as long to make
    """Where a tensor lies: bytes [start, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


# Of its four fields, at half the price of a call.
_INFO = partial(tuple.__new__, TensorInfo)  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True)
class Header:
    """What a file says it holds; offsets are proven to cover the file exactly."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """Those that occur, each once."""
        return tuple(dict.fromkeys(map(itemgetter(0), self.tensors.values())))


def read_header(path: Path) -> Header:
    """Header of the safetensors file at `path`; reads at most 8 MiB and never the weights.

    Raises:
        NotFound: there is no such file.
        BadInput: the file is not a sound safetensors file; the message names the fault and the tensor.
    """
    file = str(path)
    if not path.exists():
        raise NotFound(file, "does not exist", "check the path")
    if not path.is_file():
        raise BadInput(file, "is not a file", "name a .safetensors file")
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
            length = _header_length(file, start, size)
            stream.seek(8)
            text = stream.read(length).decode("utf-8")
    except OSError as error:
        raise BadInput(file, f"cannot be read ({error.strerror})", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise BadInput(file, f"has a header that is not UTF-8 (byte {error.start})", AGAIN) from error
    return _parse(file, text, size - 8 - length, data_start=8 + length)


def shown(name: str) -> str:
    """A foreign name, quoted and cut, without characters that drive a terminal."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return f"'{text if len(text) <= 100 else text[:97] + '...'}'"


def _header_length(file: str, start: bytes, size: int) -> int:
    if size == 0:
        raise BadInput(file, "is empty (0 bytes)", AGAIN)
    if len(start) < 9 or start[8:9] != b"{":
        _refuse_other_formats(file, start)
    if size < 8:
        raise BadInput(file, f"has {size} bytes, too few for a safetensors file", AGAIN)
    length = int.from_bytes(start[:8], "little")
    if length > MAX_NUMBER or length > size - 8 or length > MAX_HEADER:
        limit = f"the file has {size} bytes" if length > size - 8 else f"the limit is {MAX_HEADER} bytes"
        raise BadInput(file, f"claims a header of {length} bytes, {limit}", AGAIN)
    if length < 2:
        raise BadInput(file, f"claims a header of {length} bytes, too few for JSON", AGAIN)
    return length


def _refuse_other_formats(file: str, start: bytes) -> None:
    """Name the common things that are saved under a .safetensors name. Content decides, not the extension."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"PK\x03\x04"):
        raise BadInput(
            file,
            "is a zip archive (a PyTorch .ckpt or .pt under another name), which can run code; not loaded",
            "ask its author for a .safetensors file",
        )
    if start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        raise BadInput(
            file, "is a pickle, which can run code; not loaded", "ask its author for a .safetensors file"
        )
    if text.startswith(b"version https://git-lfs"):
        raise BadInput(file, "is a Git LFS pointer, not the weights", "run git lfs pull in its repository")
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise BadInput(
            file, "is a web page, not weights", "log in at the site it came from and download it again"
        )
    if start.startswith(b"GGUF"):
        raise BadInput(file, "is a GGUF file", "get the .safetensors version")
    if len(start) > 8 and not _BINARY.search(start):  # a length of 8 bytes has zeros in it
        raise BadInput(file, "is text, not weights", "name a .safetensors file")


def _parse(file: str, text: str, data_size: int, *, data_start: int) -> Header:
    # Within a text the quotes would be escaped, so each of these is a tensor: 200,000 objects are never made.
    if (count := text.count('"data_offsets"')) > MAX_TENSORS:
        raise BadInput(file, f"has {count} tensors, the limit is {MAX_TENSORS}", "use a sound adapter")
    header = _at_once(file, text, data_size, data_start) or _one_by_one(file, text, data_size, data_start)
    if "\\" in text:  # there are escapes
        _check_texts(file, [*header.tensors, *header.metadata, *header.metadata.values()])
    return header


def _at_once(file: str, text: str, data_size: int, data_start: int) -> Header | None:
    """The header, if it is sound and written as tools write it; else None: `_one_by_one` says what is wrong.

    Its tensors are read in columns. Thousands of them have a few dtypes and shapes: one of each is checked.
    """
    pieces = _TENSOR.split(text)
    between, names, dtypes, shapes, starts, ends = (pieces[column::6] for column in range(6))
    head = _FIRST.fullmatch(between[0])
    tidy = {*between[1:-1]} <= {",", ", "} and between[-1].rstrip(" ") == "}"
    covered = starts == ["0", *ends[:-1]] and ends[-1] == str(data_size)
    written = "".join(names).encode()
    if head is None or not tidy or not covered or written != written.translate(None, _ESCAPED):
        return None
    try:
        metadata = _metadata(file, json.loads(head[1], object_pairs_hook=_Pairs)) if head[1] else {}
        sizes = {shape: json.loads(f"[{shape}]") for shape in {*shapes}}
        lasts = [data_start + int(end) for end in ends]
        firsts = [data_start, *lasts[:-1]]
        for dtype, shape, length in {*zip(dtypes, shapes, map(sub, lasts, firsts), strict=True)}:
            entry = {"dtype": dtype, "shape": sizes[shape], "data_offsets": [0, length]}
            _tensor(file, "", _Pairs(entry.items()), 0)
    except (BadInput, ValueError, RecursionError):
        return None
    plain = {shape: tuple(found) for shape, found in sizes.items()}
    infos = map(_INFO, zip(dtypes, map(plain.__getitem__, shapes), firsts, lasts, strict=True))
    tensors = dict(zip(names, infos, strict=True))
    return Header(tensors, metadata) if len(tensors) == len(names) and METADATA not in tensors else None


def _one_by_one(file: str, text: str, data_size: int, data_start: int) -> Header:
    """The header of whatever form.

    Raises:
        BadInput: its first fault.
    """
    try:
        pairs: Any = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise BadInput(file, f"has a header that is not JSON ({reason})", AGAIN) from error
    if not isinstance(pairs, _Pairs):
        raise BadInput(file, "has a header that is not a JSON object", AGAIN)
    if len(pairs) > MAX_TENSORS + 1:
        raise BadInput(file, f"has {len(pairs)} tensors, the limit is {MAX_TENSORS}", "use a sound adapter")
    metadata: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    for name, value in pairs:
        if name in tensors or (name == METADATA and metadata):
            raise BadInput(file, f"holds tensor {shown(name)} twice", "ask its author for a sound file")
        if name == METADATA:
            metadata = _metadata(file, value)
        else:
            tensors[name] = _tensor(file, name, value, data_start)
    _check_cover(file, tensors, data_start, data_start + data_size)
    return Header(tensors, metadata)


def _check_texts(file: str, texts: list[str]) -> None:
    """Half a surrogate pair can be written as an escape; it is no text, and the library refuses it."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        wrong = "has half a character (an escape from \\ud800 to \\udfff alone) in its header"
        raise BadInput(file, wrong, "ask its author for a sound file") from error


class _Pairs(list[tuple[str, Any]]):
    """A JSON object that keeps duplicates."""


def _metadata(file: str, value: Any) -> dict[str, str]:
    if not isinstance(value, _Pairs):
        raise BadInput(file, "has metadata that is not a JSON object", AGAIN)
    for key, item in value:
        if not isinstance(item, str):
            raise BadInput(
                file, f"has metadata {shown(key)} that is not text", "ask its author for a sound file"
            )
    return dict(value)


def _tensor(file: str, name: str, value: Any, data_start: int) -> TensorInfo:
    entry: dict[str, Any] = dict(value) if isinstance(value, _Pairs) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list:  # objects are `_Pairs`
        raise _unsound(file, name, "has no dtype, shape or offsets")
    if dtype not in DTYPE_BITS:
        raise _unsound(file, name, f"has the unknown dtype {shown(dtype)}", "ask for fp32, fp16 or bf16")
    sizes, bounds = cast("list[Any]", shape), cast("list[Any]", offsets)
    for size in sizes:
        if type(size) is not int or size < 0:
            raise _unsound(file, name, "has a shape that is not made of sizes")
    if len(sizes) > MAX_AXES:  # their product could take minutes
        raise _unsound(file, name, f"has {len(sizes)} axes, the limit is {MAX_AXES}")
    if len(bounds) != 2 or type(bounds[0]) is not int or type(bounds[1]) is not int:
        raise _unsound(file, name, "has offsets that are not two whole numbers")
    begin, end = bounds
    if begin < 0 or end < 0:
        raise _unsound(file, name, "has a negative offset")
    elements = math.prod(sizes)
    large = elements > MAX_NUMBER // 8 or begin > MAX_NUMBER or end > MAX_NUMBER
    if large or (not elements and max(sizes) > MAX_NUMBER):
        raise _unsound(file, name, "has a shape that overflows")
    needed = elements * DTYPE_BITS[dtype] // 8
    if end - begin != needed:
        dims = "x".join(map(str, sizes)) or "scalar"
        wrong = f"of {dims} {dtype} needs {needed} bytes, its offsets give {end - begin}"
        raise _unsound(file, name, wrong)
    return TensorInfo(dtype, tuple(sizes), data_start + begin, data_start + end)


def _unsound(file: str, name: str, wrong: str, do: str = AGAIN) -> BadInput:
    return BadInput(file, f"tensor {shown(name)} {wrong}", do)


def _check_cover(file: str, tensors: Mapping[str, TensorInfo], start: int, end: int) -> None:
    """The tensors must lie one after the other, from the header to the last byte of the file."""
    position, before = start, ""
    for name, (_, _, first, last) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if first < position:
            other = f"tensor {shown(before)}" if before else "the header"
            raise _unsound(file, name, f"overlaps {other}", "ask its author for a sound file")
        if first > position:
            wrong = f"has a hole of {first - position} bytes before tensor {shown(name)}"
            raise BadInput(file, wrong, "ask its author for a sound file")
        position, before = last, name
    if position > end:
        raise BadInput(file, f"is cut off: {end} of {position} bytes", AGAIN)
    if position < end:
        raise BadInput(file, f"has {end - position} bytes too many after its last tensor", AGAIN)
