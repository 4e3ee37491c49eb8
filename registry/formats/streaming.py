"""safetensors files written tensor by tensor, so that a file may be larger than the memory.

Atomicity is the caller's, as with `tensors.save`: give it a path of `registry.files.atomic_path`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.errors import BadInput
from registry.formats.header import DTYPE_BITS, MAX_HEADER, Header, TensorInfo, read_header
from registry.formats.header import shown as quoted

CHUNK = 1 << 22  # bytes


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written.

    Args:
        name: In the file.
        dtype: As safetensors names it: "F16".
        shape: Of the tensor.
        content: Makes its bytes, in one or more pieces, when it is its turn.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], Iterable[bytes | memoryview]]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_streamed(path: Path, planned: Sequence[Planned], metadata: Mapping[str, str]) -> None:
    """Write a file of these tensors, in this order, one in memory at a time."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for item in planned:
        end = position + item.size
        table[item.name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [position, end]}
        position = end
    with path.open("wb") as stream:
        stream.write(_header_bytes(path, table))
        for item in planned:
            written = sum(stream.write(piece) for piece in item.content())
            assert written == item.size, f"{item.name}: {written} bytes, {item.size} were planned"


def rewrite_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy a file with other metadata; every byte after the header stays as it is.

    Raises:
        BadInput: `source` is unsound, or the metadata is too long for a header.
    """
    header = read_header(source)
    start = data_start(source)
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, info in sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        bounds = [info.start - start, info.end - start]
        table[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": bounds}
    with target.open("wb") as stream:
        stream.write(_header_bytes(source, table))
        for piece in pieces(source, start, source.stat().st_size):
            stream.write(piece)


def data_start(path: Path) -> int:
    """Where the data of the tensors begins."""
    with path.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def stored(path: Path, info: TensorInfo) -> Iterator[bytes]:
    """The bytes of a tensor as they are."""
    return pieces(path, info.start, info.end)


def pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Bytes [start, end) of a file, some at a time."""
    with path.open("rb") as stream:
        stream.seek(start)
        while start < end:
            piece = stream.read(min(CHUNK, end - start))
            if not piece:
                raise BadInput(str(path), "became shorter while it was read", "try again")
            start += len(piece)
            yield piece


def in_order(header: Header) -> list[tuple[str, TensorInfo]]:
    """The tensors of a file in the order in which they lie there."""
    return sorted(header.tensors.items(), key=lambda item: (item[1].start, item[1].end))


def _header_bytes(path: Path, table: Mapping[str, object]) -> bytes:
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        wrong = f"would get a header of {len(text)} bytes, the limit is {MAX_HEADER}"
        raise BadInput(quoted(path.name), wrong, "write less metadata")
    return len(text).to_bytes(8, "little") + text
