"""The workspace lock: one process at a time does the work.

`flock` decides, never a process id: the kernel lets go of the lock when its holder dies, however it dies, so
a lock is never stale. What is written in the file only says to people who the holder is.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from registry.errors import WorkspaceBusy
from registry.files import storage_error
from registry.records import now

_PATIENCE = 0.5  # seconds: `read_holder` takes the lock for an instant, which must not look like a holder


@contextmanager
def hold_lock(path: Path, owner: str) -> Generator[None]:
    """Hold the lock at `path` during the block.

    Raises:
        WorkspaceBusy: another process holds it; names that.
        StudioError: the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        if not _take(descriptor, fcntl.LOCK_EX, _PATIENCE):
            raise _busy(path)
        facts = {
            "owner": owner,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": now().isoformat(),
        }
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(facts).encode(), 0)
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)  # lets go of the lock


def read_holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock now: {"owner", "pid", "host", "started"}; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _take(descriptor, fcntl.LOCK_SH, 0):
            return None
        for _ in range(10):  # a new holder writes its name just after it got the lock
            try:
                facts = json.loads(os.pread(descriptor, 4096, 0))
            except ValueError:
                time.sleep(0.01)
            else:
                return facts
        return {"owner": "unknown", "pid": 0, "host": "", "started": ""}
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int, patience: float) -> bool:
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        else:
            return True


def _busy(path: Path) -> WorkspaceBusy:
    holder = read_holder(path) or {"owner": "another process", "pid": 0, "host": "", "started": ""}
    since = f" since {datetime.fromisoformat(holder['started']):%H:%M:%S} UTC" if holder["started"] else ""
    who = f"{holder['owner']} (process {holder['pid']} on {holder['host']}{since})"
    return WorkspaceBusy(str(path.parent), f"is held by {who}", "stop that first, or use another --home")
