"""The children that measure pictures: `python -m studio.datasets.measuring`, a line in, a line out.

Request:  JSON [file, where to keep what it measures] newline.
Answer:   JSON text newline: what is wrong with the picture, "" for nothing; or [thing, wrong, do] when the
          place cannot be written.
A child that dies of a picture is replaced, and the picture is said to be unreadable.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

from registry.errors import StudioError
from registry.files import atomic_write

CHILDREN = 4  # at most
DIED = "makes what reads it crash"


def measure_all(files: Mapping[str, tuple[Path, Path]], count: int = 0) -> Iterator[tuple[str, str]]:
    """Measure {name: (file, where to keep it)} in children; yields (name, what is wrong) as each is done.

    Args:
        files: What to measure.
        count: How many children; 0 = one for each processor, at most 4.

    Raises:
        StudioError: the disk is full.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = count or max(1, min(CHILDREN, cores))
    waiting: SimpleQueue[tuple[str, tuple[Path, Path]]] = SimpleQueue()
    done: SimpleQueue[tuple[str, str]] = SimpleQueue()
    for item in files.items():
        waiting.put(item)

    def work() -> None:
        child = _Child()
        try:
            with suppress(Empty):
                while True:
                    name, (source, target) = waiting.get_nowait()
                    problem = child.ask(source, target)
                    if problem is None:
                        child.close()
                        child, problem = _Child(), DIED
                    done.put((name, problem))
        finally:
            child.close()

    with ThreadPoolExecutor(count) as threads:
        ends = [threads.submit(work) for _ in range(count)]
        try:
            for _ in files:
                yield _next(done, ends)
        finally:
            with suppress(Empty):  # whoever stops listening wants no more
                while True:
                    waiting.get_nowait()


def measure_into(source: Path, target: Path) -> str:
    """Measure one picture and keep it; returns what is wrong with it, "" for nothing.

    Raises:
        StudioError: the disk is full.
    """
    from studio.datasets.measures import measure

    try:
        data = measure(source).to_bytes()
    except (OSError, SyntaxError, ValueError, MemoryError) as error:
        return str(error) or type(error).__name__
    atomic_write(target, data, durable=False)
    return ""


class _Child:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "studio.datasets.measuring"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )

    def ask(self, source: Path, target: Path) -> str | None:
        """What is wrong with a picture; None when the child died of it.

        Raises:
            StudioError: the disk is full.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps([str(source), str(target)]).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            return None
        if not line.endswith(b"\n"):
            return None
        said = json.loads(line)
        if isinstance(said, list):
            raise StudioError(*map(str, cast("list[Any]", said)))
        return str(said)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _next(done: "SimpleQueue[tuple[str, str]]", ends: "list[Future[None]]") -> tuple[str, str]:
    """The next answer; an error of a thread is raised instead of waited for."""
    while True:
        with suppress(Empty):
            return done.get(timeout=0.5)
        for end in ends:
            if end.done():
                end.result()


def main() -> None:
    """The child: answer until the requests end."""
    for line in sys.stdin.buffer:
        source, target = map(Path, json.loads(line))
        try:
            said: Any = measure_into(source, target)
        except StudioError as error:
            said = [error.thing, error.wrong, error.do]
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
