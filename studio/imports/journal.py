"""Files that have been read and got no row: duplicates, and those whose weights were refused.

Rows remember themselves what was hashed; this remembers the rest, so that a restarted import, or a watched
folder's next one, does not read gigabytes again to find out the same. Safe to delete.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from registry.files import append_line, atomic_file
from studio.imports.scan import Found

FILE = "imports/read.jsonl"  # in cache/
_SLACK = 1000  # outdated lines before the file is written anew


@dataclass(frozen=True)
class Entry:
    """What reading a file brought: the hash of its tensors, or the line that refuses it."""

    path: str
    size: int
    mtime_ns: int
    tensor_sha256: str = ""
    error: str = ""
    kind: str = ""  # "duplicates", "moved", or "copied": it became a row with a file of its own
    job: str = ""  # the import that read it


class Journal:
    """The file in memory, and lines appended to it; for the one import that runs."""

    def __init__(self, cache: Path) -> None:
        self._path = cache / FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._entries: dict[str, Entry] = {}
        lines = 0
        for line in self._lines():
            lines += 1
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):  # torn by a kill
                continue
            self._entries[entry.path] = entry
        if lines > len(self._entries) + _SLACK:
            self._compact()

    def find(self, file: Found) -> Entry | None:
        """What is known of exactly this file."""
        entry = self._entries.get(str(file.path))
        same = entry is not None and (entry.size, entry.mtime_ns) == (file.size, file.mtime_ns)
        return entry if same else None

    def remember(self, file: Found, **facts: Any) -> None:
        """One more file that has been read."""
        entry = Entry(str(file.path), file.size, file.mtime_ns, **facts)
        self._entries[entry.path] = entry
        append_line(self._path, asdict(entry))

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def _compact(self) -> None:
        with atomic_file(self._path) as stream:
            for entry in self._entries.values():
                stream.write(json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n")
