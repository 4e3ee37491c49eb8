"""Headers read by several processes: describing a file of two thousand tensors is 7 ms of Python.

The helpers are forks, so they start at once and have everything loaded. They end with the import, and within
a second when that is killed.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import TracebackType
from typing import Self

from registry.errors import BadInput, StudioError
from registry.records import Adapter
from studio.imports.facts import describe
from studio.imports.scan import Found
from studio.imports.sidecars import Sidecar

WORTH = 24  # files: fewer are described before the helpers have started
MOST = 8  # helpers

Described = tuple[Adapter, Sidecar] | str  # or the line that refuses the file


class Describers:
    """Describes files, in order; use it in a `with` block.

    Args:
        tags: Put on every row.
        job_id: The import.
        count: Helpers; default: one for each processor.
    """

    def __init__(self, tags: tuple[str, ...], job_id: str, count: int | None = None) -> None:
        self._one = partial(describe_or_refuse, tags=tags, job_id=job_id)
        forks = sys.platform == "linux"  # elsewhere a fork is not safe, or there is none
        self._count = min(MOST, count or (len(os.sched_getaffinity(0)) if forks else 1))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def describe(self, files: Sequence[Found], sources: Sequence[str]) -> list[Described]:
        """Rows of `files`, each from its source ("" = its path), or lines that refuse them."""
        if self._count > 1 and len(files) >= WORTH:
            try:
                return list(self._helpers().map(self._one, files, sources, chunksize=4))
            except BrokenProcessPool:  # one was killed, for memory perhaps: more carefully then
                self._count, self._pool = 1, None
        return [self._one(file, source) for file, source in zip(files, sources, strict=True)]

    def _helpers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(self._count, context, _end_with, (os.getpid(),))
        return self._pool


def describe_or_refuse(file: Found, source: str, *, tags: tuple[str, ...], job_id: str) -> Described:
    """`facts.describe`, with the error line instead of the error."""
    try:
        return describe(file, tags=tags, job_id=job_id, source=source)
    except BadInput as error:
        return str(error)
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError) as error:  # a header beyond us
        wrong = f"cannot be understood ({type(error).__name__})"
        return str(StudioError(str(file.path), wrong, "please report the file"))


def _end_with(parent: int) -> None:
    """A helper ends when its parent is gone; the queue alone would keep it waiting."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
