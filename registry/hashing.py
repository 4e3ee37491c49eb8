"""Hashes that name contents: files, JSON values, adapters, base models. One streaming pass each.

The adapter hashes are those of the other tools (kohya sd-scripts, A1111, Civitai):

    sha256         of the whole file; AutoV2 = its first 10 digits
    AutoV1         sha256 of the 64 KiB at offset 1 MiB, first 8 digits
    tensor_sha256  of everything after the safetensors header, so it survives edits of the metadata and is
                   our identity of an adapter; AutoV3 = its first 12 digits
"""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from registry.errors import BadInput, StudioError
from registry.files import write_json

CHUNK = 2**20  # bytes per read; also the offset of the AutoV1 window
_WINDOW = slice(0x100000, 0x110000)  # AutoV1
_HASHED = {".safetensors", ".bin", ".json", ".txt", ".model"}  # weights, configs, vocabularies
_SETTLED = 2.0  # seconds: a file changed more recently may change again within one tick of its clock


@dataclass(frozen=True)
class AdapterHashes:
    """All names that tools use for one adapter file; lower-case hex."""

    sha256: str
    autov1: str
    autov2: str
    tensor_sha256: str
    autov3: str


class FileHasher(Protocol):
    """Something that knows the sha256 of files; `HashMemo` remembers them."""

    def sha256(self, path: Path) -> str:
        """Hex digest of the file's bytes."""
        ...


def sha256_file(path: Path) -> str:
    """Hex sha256 of the bytes of `path`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys, no spaces and no NaN: equal values give equal text.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_json(value: Any) -> str:
    """Hex sha256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def hash_adapter(path: Path) -> AdapterHashes:
    """All hashes of a safetensors file, reading it once.

    Raises:
        BadInput: the file is shorter than its header says, so there are no tensors to hash.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        data_start = 8 + int.from_bytes(prefix, "little")
        if len(prefix) < 8 or data_start > size:
            raise BadInput(str(path), f"is no safetensors file ({size} bytes)", "give an adapter file")
        stream.seek(0)
        whole, tensors, window = _digest(stream, data_start)
    return AdapterHashes(
        sha256=whole, autov1=window[:8], autov2=whole[:10], tensor_sha256=tensors, autov3=tensors[:12]
    )


def _digest(stream: IO[bytes], data_start: int) -> tuple[str, str, str]:
    whole, tensors, window = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    offset = 0
    with ThreadPoolExecutor(1) as other:  # two digests of every byte, and hashlib lets go of the interpreter
        while chunk := stream.read(CHUNK):
            view = memoryview(chunk)
            done = other.submit(whole.update, view)
            tensors.update(view[max(0, data_start - offset) :])
            window.update(view[max(0, _WINDOW.start - offset) : max(0, _WINDOW.stop - offset)])
            offset += len(chunk)
            done.result()
    return whole.hexdigest(), tensors.hexdigest(), window.hexdigest()


def hash_folder(path: Path, memo: FileHasher | None = None) -> str:
    """Hash of a diffusers folder: its weights, configs and vocabularies, wherever the folder lies.

    sha256 over one line `<relative posix path>\\0<sha256 of the file>\\n` per file, sorted by path. Hidden
    files and folders (download caches), readmes and pictures do not count.

    Args:
        path: The folder.
        memo: Remembers the hashes of large files between calls; None reads every file.

    Raises:
        BadInput: the folder holds nothing to hash.
    """
    digest = hashlib.sha256()
    names: list[str] = []
    for file in path.rglob("*"):
        relative = file.relative_to(path)
        if file.suffix in _HASHED and not any(part.startswith(".") for part in relative.parts):
            names.append(relative.as_posix())
    if not names:
        raise BadInput(str(path), "holds no weights or configs", "give a folder in diffusers layout")
    for name in sorted(names):
        file = path / name
        digest.update(f"{name}\0{memo.sha256(file) if memo else sha256_file(file)}\n".encode())
    return digest.hexdigest()


class HashMemo:
    """Remembers file hashes between processes, keyed on (path, size, mtime, inode).

    A cache and nothing more: a damaged, missing or unwritable memo only costs the time to hash again. Two
    processes that write at the same time lose one of the two entries, never more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def sha256(self, path: Path) -> str:
        """Hex sha256 of `path`, read only when the file changed since it was last hashed."""
        status = path.stat()
        name = str(path.resolve())
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._read().get(name)
        if known and known[:3] == stamp:
            return str(known[3])
        digest = sha256_file(path)
        if time.time() - status.st_mtime > _SETTLED:
            with suppress(StudioError, OSError):  # a read-only workspace hashes again next time
                write_json(self.path, self._read() | {name: [*stamp, digest]}, durable=False)
        return digest

    def _read(self) -> dict[str, list[Any]]:
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return cast("dict[str, list[Any]]", value) if isinstance(value, dict) else {}
