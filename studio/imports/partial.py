"""A download that is not whole yet, kept in the cache so that the next try goes on where this one ended.

Beside the bytes stands what they are the beginning of (ETag or Last-Modified) and how many of them are on the
disk for certain; what came after that is forgotten, as a power cut may leave a hole there. Safe to delete.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from registry.errors import StudioError
from registry.files import read_json, storage_error, write_json

if TYPE_CHECKING:
    from studio.workspace import Workspace

FOLDER = "downloads"  # in cache/
EVERY = 32 * 2**20  # bytes between two syncs
OLDEST = 7 * 24 * 3600.0  # seconds after which a beginning is given up


class Partial:
    """The beginning of the file behind one address.

    Args:
        ws: The workspace.
        address: As the person gave it.
    """

    def __init__(self, ws: "Workspace", address: str) -> None:
        folder = ws.home / "cache" / FOLDER
        self.path = folder / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.part"
        self._note = self.path.with_suffix(".json")
        self.done, self.validator = 0, ""
        _forget_old(folder)
        with suppress(OSError, StudioError):
            said: Any = read_json(self._note)
            done, validator = int(said["done"]), str(said["validator"])
            if 0 < done <= self.path.stat().st_size and validator:
                self.done, self.validator = done, validator

    def restart(self, validator: str) -> None:
        """Begin anew; what has no `validator` cannot be gone on with, and is dropped when it ends early."""
        self.done, self.validator = 0, validator

    def open(self) -> IO[bytes]:
        """The file, to be written on from byte `done`.

        Raises:
            StudioError: it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = self.path.open("r+b" if self.done else "wb")
            stream.seek(self.done)
            stream.truncate()
        except OSError as error:
            raise storage_error(self.path, error) from error
        return stream

    def keep(self, stream: IO[bytes]) -> None:
        """Put what was written on the disk, and remember how much it is."""
        if not self.validator:
            return
        stream.flush()
        os.fsync(stream.fileno())
        self.done = stream.tell()
        write_json(self._note, {"validator": self.validator, "done": self.done})

    def drop(self) -> None:
        """Forget it."""
        self.done, self.validator = 0, ""
        for path in (self._note, self.path):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _forget_old(folder: Path) -> None:
    for path in folder.glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > OLDEST:
                path.unlink()
