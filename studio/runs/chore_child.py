"""What the children of `studio.runs.chores` share: they end with the worker, and say how far they are.

A child is `python -m MODULE HOME JOB`. Its exit code is 0, or that of the error whose line it wrote last.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import StudioError
from registry.files import write_json
from registry.records import Job
from studio.imports.report import progress_file

if TYPE_CHECKING:
    from studio.workspace import Workspace

EVERY = 0.2  # seconds between two notes of progress
Say = Callable[[int, int], None]  # (done, total)


def end_with_parent() -> None:
    """End when the worker does, as suddenly: nothing is half written at any moment. Its stdin closes then."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(70)

    threading.Thread(target=wait, daemon=True).start()


def teller(ws: "Workspace", job: Job) -> Say:
    """Notes how far a job is, for whoever reads `read_report`; a disk that is full is no reason to fail."""
    path, told = progress_file(ws, job.id), [0.0]

    def say(done: int, total: int) -> None:
        if time.monotonic() - told[0] >= EVERY or done == total:
            told[0] = time.monotonic()
            with suppress(StudioError):
                write_json(path, {"done": done, "total": total}, durable=False)

    return say


def run_child(perform: Callable[["Workspace", Job], object]) -> int:
    """The whole of a child's `main`."""
    from studio.workspace import Workspace

    home, job_id = sys.argv[1:]
    end_with_parent()
    ws = Workspace.open(Path(home))
    try:
        perform(ws, ws.catalog.get(Job, job_id))
    except StudioError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0
