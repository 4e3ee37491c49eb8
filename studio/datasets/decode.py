"""Foreign pictures are decoded here, in children that a crafted file may kill but not leave.

A few long-lived children (`decode_child`) share the work: starting one costs 0.2 s, a picture 1 to 50 ms.
One that dies is replaced and its picture refused by name.

Example:
    with Decoders() as decoders:
        for item in decoders.decode_all(sources):
            ...
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from registry.errors import BadInput

MAX_BYTES = 256 * 2**20  # of one picture file
WALL_SECONDS = 90.0  # a child that says nothing for so long is ended
MASK_RATIO = 0.02  # by how much a mask's shape may differ from its picture's: one of another crop is caught
AHEAD = 2  # pictures read ahead for each child: keeps all busy, memory flat

T = TypeVar("T")
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "PYTHONHOME")
_ROOT = str(Path(__file__).resolve().parents[2])  # where the package `studio` is importable from


@dataclass(frozen=True)
class Decoded:
    """A picture that is safe to store: `data` decodes to 8-bit RGB, upright, without EXIF."""

    data: bytes
    pixel_hash: str  # sha256 of mode, size and pixels
    width: int
    height: int
    note: str  # what was converted, "" for nothing
    mask: bytes = b""  # grey PNG, white counts
    mask_error: BadInput | None = None  # why the mask that came with it cannot be used


@dataclass(frozen=True)
class Source:
    """A picture to decode; `read` is called when its turn comes, so that only a few are in memory."""

    name: str
    read: Callable[[], bytes]
    caption: str = ""
    mask: Callable[[], bytes] | None = None
    mask_name: str = ""
    alpha: bool = False  # transparency becomes the mask where no mask came with it
    repeats: int = 1  # showings an epoch
    weight: float = 1.0  # of its loss


class _Child:
    """One decoding process and the two pipes to it."""

    def __init__(self) -> None:
        environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
        environment |= {"PYTHONPATH": _ROOT, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
        # -P: a data folder as working directory must not lend us its modules; -B: it may not write files
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "studio.datasets.decode_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )

    def ask(self, data: bytes, name: str, kind: str) -> tuple[dict[str, Any], bytes, bytes]:
        """Header, payload and mask of the answer.

        Raises:
            EOFError: the child died. TimeoutError: it says nothing.
        """
        stdin, stdout = _pipes(self.process)
        try:
            stdin.write(json.dumps({"name": name, "size": len(data), "as": kind}).encode() + b"\n")
            stdin.write(data)
            stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        if not select.select([stdout], [], [], WALL_SECONDS)[0]:
            raise TimeoutError
        line = stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        head: dict[str, Any] = json.loads(line)
        size, more = int(head.get("size", 0)), int(head.get("mask", 0))
        payload = stdout.read(size + more)
        if len(payload) != size + more:
            raise EOFError
        return head, payload[:size], payload[size:]

    def close(self) -> int:
        """End the child; returns its exit status, negative for a signal."""
        stdin, stdout = _pipes(self.process)
        with suppress(BrokenPipeError):  # it is gone already
            stdin.close()
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        stdout.close()
        return status


class Decoders:
    """A small pool of decoding children; use it in a `with` block.

    Args:
        count: How many; default: one for each processor, at most 4.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or max(1, min(4, _processors()))
        self._free: SimpleQueue[_Child | None] = SimpleQueue()  # None: a place whose child is not started
        for _ in range(self.count):
            self._free.put(None)
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for _ in range(self.count):
            child = self._free.get()
            if child is not None:
                child.close()

    def decode(self, data: bytes, name: str, kind: str = "picture") -> Decoded:
        """Decode one picture.

        Args:
            data: The file.
            name: For messages.
            kind: "picture", "alpha" (transparency becomes its mask) or "mask" (grey pixels are what counts).

        Raises:
            BadInput: in one line what is wrong with it.
        """
        if len(data) > MAX_BYTES:
            raise too_large(name, len(data))
        child = self._free.get()
        try:
            child = child or _Child()
            head, payload, mask = child.ask(data, name, kind)
        except (EOFError, TimeoutError) as error:
            status = child.close() if child else 0
            child = None
            raise _death(name, status, isinstance(error, TimeoutError)) from error
        except BaseException:
            if child is not None:
                child.close()  # in the middle of an answer: it cannot be asked again
                child = None
            raise
        finally:
            self._free.put(child)
        if "error" in head:
            raise BadInput(*(str(part) for part in head["error"]))
        facts = head["picture"]
        return Decoded(
            data=data if facts["kept"] else payload,
            pixel_hash=str(facts["pixel_hash"]),
            width=int(facts["width"]),
            height=int(facts["height"]),
            note=str(facts["note"]),
            mask=mask,
        )

    def decode_mask(self, data: bytes, name: str, size: tuple[int, int]) -> bytes:
        """A mask as it is stored, a grey PNG.

        Args:
            data: The file.
            name: For messages.
            size: Width and height of its picture in pixels; the mask may be larger or smaller, of that shape.

        Raises:
            BadInput: in one line what is wrong with it.
        """
        mask, (width, height) = self.decode(data, name, "mask"), size
        if abs((width / height) / (mask.width / mask.height) - 1) > MASK_RATIO:
            wrong = f"is {mask.width}x{mask.height} pixels, its picture {width}x{height}"
            raise BadInput(name, wrong, "give a mask of the picture's shape")
        return mask.data

    def decode_all(
        self, sources: Iterable[Source], then: Callable[[Decoded], T]
    ) -> Iterator[tuple[Source, T | BadInput]]:
        """Decode many, in order, a few at a time; a refused one comes with its error instead.

        `then` runs in the pool's threads on each decoded picture (to store it there, for example); what it
        returns is what comes out. The source files are read in those threads, too.
        """
        waiting: deque[tuple[Source, Future[T]]] = deque()
        try:
            for source in sources:
                waiting.append((source, self._threads.submit(self._one, source, then)))
                if len(waiting) >= self.count * AHEAD:
                    yield _settled(*waiting.popleft())
            while waiting:
                yield _settled(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _one(self, source: Source, then: Callable[[Decoded], T]) -> T:
        decoded = self.decode(source.read(), source.name, "alpha" if source.alpha else "picture")
        if source.mask is not None:
            decoded = self._with_mask(decoded, source.mask, source.mask_name)
        return then(decoded)

    def _with_mask(self, picture: Decoded, read: Callable[[], bytes], name: str) -> Decoded:
        """The picture with its mask, or with what is wrong with that: a bad mask costs no picture."""
        try:
            return replace(picture, mask=self.decode_mask(read(), name, (picture.width, picture.height)))
        except BadInput as error:
            return replace(picture, mask_error=error)


def decode(data: bytes | Path, name: str = "") -> Decoded:
    """Decode a single picture in a child of its own (0.2 s); for many use `Decoders`.

    Raises:
        BadInput: in one line what is wrong with it.
    """
    if isinstance(data, Path):
        name = name or data.name
        data = read_file(data, name)
    with Decoders(1) as decoders:
        return decoders.decode(data, name or "picture")


def read_file(path: Path, name: str, limit: int = MAX_BYTES) -> bytes:
    """Content of a regular file of at most `limit` bytes.

    Raises:
        BadInput: too large, not a plain file, unreadable.
    """
    try:
        if not path.is_file():  # a pipe or device would block or never end
            raise BadInput(name, "is not a plain file", "give a picture, a folder or a zip")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(name, f"cannot be read ({reason})", "check the file and its permissions") from error
    if len(data) > limit:
        raise too_large(name, path.stat().st_size, limit)
    return data


def too_large(name: str, size: int, limit: int = MAX_BYTES) -> BadInput:
    """The refusal of a file by its size in bytes."""
    if limit < 2**20:  # a caption
        return BadInput(name, f"has {size / 2**10:.0f} kB, more than {limit / 2**10:.0f} kB", "shorten it")
    return BadInput(name, f"has {size / 2**20:.0f} MiB, more than {limit / 2**20:.0f} MiB", "scale it down")


def _settled(source: Source, future: Future[T]) -> tuple[Source, T | BadInput]:
    try:
        return source, future.result()
    except BadInput as error:
        return source, error


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _death(name: str, status: int, silent: bool) -> BadInput:
    if silent or status == -signal.SIGXCPU:
        return BadInput(name, "takes too long to decode", "open and save it again")
    return BadInput(name, "made the decoder crash", "open and save it again")
