"""Pictures and other small files, stored once under the hash of their bytes."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from registry.errors import BadInput, StudioError
from registry.files import atomic_write, storage_error, sync_folder, temporary_beside
from registry.hashing import CHUNK

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """A folder of files named by their sha256: `<root>/ab/abcd...`.

    Putting the same bytes twice keeps one file. A blob never changes, so its path can be cached for ever.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, source: bytes | Path) -> str:
        """Store bytes, or a copy of a file, durably; returns the sha256.

        Raises:
            StudioError: the disk is full or the folder cannot be written; nothing is left behind.
        """
        return self._put_bytes(source) if isinstance(source, bytes) else self._put_file(source)

    def path(self, sha256: str) -> Path:
        """Where the blob is, or would be.

        Raises:
            BadInput: not the hex form of a sha256, so no path either.
        """
        if not _SHA256.fullmatch(sha256):
            raise BadInput(f"blob {sha256[:80]!r}", "is not a sha256", "use 64 lower-case hex digits")
        return self.root / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether the blob is stored."""
        return self.path(sha256).is_file()

    def _put_bytes(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if not self._complete(digest, len(data)):
            atomic_write(self.path(digest), data)
        return digest

    def _put_file(self, source: Path) -> str:
        """Copy and hash in one pass: the file may change or be removed by its owner meanwhile."""
        digest, size = hashlib.sha256(), 0
        try:
            original = source.open("rb")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise StudioError(str(source), f"cannot be read ({reason})", "check the path") from error
        temporary = temporary_beside(self.root / "new")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with original, temporary.open("xb") as copy:
                while chunk := original.read(CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
            name = digest.hexdigest()
            if not self._complete(name, size):
                target = self.path(name)
                target.parent.mkdir(exist_ok=True)
                temporary.replace(target)
                sync_folder(target.parent)
        except OSError as error:
            raise storage_error(self.root, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        return name

    def _complete(self, digest: str, size: int) -> bool:
        """Whether the blob is there at full length; one that was cut off by hand is written again."""
        path = self.path(digest)
        return path.is_file() and path.stat().st_size == size
