"""Whether all values of a file are finite, by their bits and without turning them into numbers.

A value is NaN or infinite when all bits of its exponent are set, so an integer mask decides: 16 bits are two
bytes of memory traffic where a float32 copy would be six.
"""

from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import BadInput
from registry.formats.header import Header, shown

_CHUNK = 2**22  # bytes in memory at a time
# dtype -> (integers of its width, bits of the exponent); F8_E4M3 has no infinities and one NaN per sign
_EXPONENTS: dict[str, tuple[str, int]] = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}


def require_finite(path: Path, header: Header) -> None:
    """Read every weight of `path` once.

    Raises:
        BadInput: a value is not finite; names the tensor.
        OSError: the file cannot be read.
    """
    buffer = bytearray(_CHUNK)
    with path.open("rb", buffering=0) as stream:
        for name, info in header.tensors.items():
            if info.dtype not in _EXPONENTS:
                continue
            stream.seek(info.start)
            left = info.end - info.start
            while left:
                view = memoryview(buffer)[: min(left, _CHUNK)]
                read = _fill(stream, view)
                if read < len(view):
                    raise BadInput(str(path), "became shorter while it was read", "import it again")
                if not _finite(view, *_EXPONENTS[info.dtype]):
                    raise BadInput(
                        str(path),
                        f"has values that are not finite in tensor {shown(name)}",
                        "use another version of it, or an earlier checkpoint of its run",
                    )
                left -= read


def _finite(data: memoryview, integers: str, exponent: int) -> bool:
    values: Any = np.frombuffer(data, integers)
    mask = np.asarray(exponent, values.dtype)
    return not bool(((values & mask) == mask).any())


def _fill(stream: Any, view: memoryview) -> int:
    done = 0
    while done < len(view) and (read := stream.readinto(view[done:])):
        done += read
    return done
