"""Watched folders: when something in one has changed, an import of it is queued.

A look costs one `stat` a folder. Which files are new is for the import to find out: what has a row, or was
read before, costs it a lookup.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput, NotFound
from registry.records import Job, JobKind, JobState, Watch, now
from studio.imports.report import ImportReport
from studio.imports.scan import absolute, folders_of
from studio.imports.submit import submit

if TYPE_CHECKING:
    from studio.workspace import Workspace

EVERY = 15.0  # seconds between looks
_GONE = "the folder is not there"


def add(ws: "Workspace", folder: str | Path) -> Watch:
    """Watch a folder; its files are taken in where they are.

    Raises:
        BadInput: it is no folder, holds the workspace or lies in it, or is watched already.
    """
    path = absolute(folder)
    if not path.is_dir():
        raise BadInput(str(path), "is not a folder", "watch the folder it is in")
    if ws.home.is_relative_to(path) or path.is_relative_to(ws.home):
        raise BadInput(str(path), "is part of the workspace, or holds it", "watch another folder")
    if ws.catalog.list(Watch, path=str(path)):
        raise BadInput(str(path), "is watched already", "see studio adapters watch list")
    return ws.catalog.add(Watch(path=str(path)))


def remove(ws: "Workspace", folder: str | Path) -> Watch:
    """Stop watching a folder; the adapters stay in the catalog.

    Raises:
        NotFound: it is not watched.
    """
    for name in (str(folder), os.path.abspath(folder)):  # noqa: PTH100
        for watch in ws.catalog.list(Watch, path=name) or ws.catalog.list(Watch, id=name):
            ws.catalog.delete(Watch, watch.id)
            return watch
    raise NotFound(str(folder), "is not watched", "see studio adapters watch list")


@dataclass
class _Seen:
    """A watched folder at the last look."""

    times: dict[Path, int] = field(default_factory=dict[Path, int])  # of its folders; {}: look again
    job: str = ""  # the import that was queued then


class Watcher:
    """Looks at the watched folders of a workspace now and then; the worker owns one."""

    def __init__(self, ws: "Workspace", every: float = EVERY) -> None:
        self._ws, self._every = ws, every
        self._seen: dict[str, _Seen] = {}
        self._at = float("-inf")

    def tick(self) -> None:
        """Look when it is time; queues an import for each folder that changed since the last look."""
        if time.monotonic() - self._at < self._every:
            return
        self._at = time.monotonic()
        watches = self._ws.catalog.list(Watch)
        self._seen = {w.id: self._seen.get(w.id, _Seen()) for w in watches}
        for watch in watches:
            self._look(watch, self._seen[watch.id])

    def _look(self, watch: Watch, seen: _Seen) -> None:
        root = Path(watch.path)
        if not root.is_dir():
            if watch.note != _GONE:
                self._ws.catalog.update(Watch, watch.id, note=_GONE, scanned_at=now())
            seen.times = {}
            return
        if seen.job and not self._is_over(seen):
            return
        if not seen.times and (waiting := self._waiting(watch)):
            seen.job = waiting
            return
        if seen.times and all(_time(folder) == at for folder, at in seen.times.items()):
            return
        seen.times = {folder: _time(folder) for folder in folders_of(root)}  # before the import reads them
        seen.job = submit(self._ws, [root], watch=watch.id).id

    def _waiting(self, watch: Watch) -> str:
        """The import of this folder that an earlier worker has queued."""
        live = (JobState.QUEUED, JobState.LEASED)
        jobs = self._ws.catalog.list(Job, kind=JobKind.IMPORT, state=live)
        return next((job.id for job in jobs if job.payload.get("watch") == watch.id), "")

    def _is_over(self, seen: _Seen) -> bool:
        """Whether the last import has ended; one that met files being written, or failed, is not the last."""
        job = self._ws.catalog.find(Job, seen.job)
        if job is not None and job.state in {JobState.QUEUED, JobState.LEASED}:
            return False
        if job is None or job.state is not JobState.DONE or ImportReport.of(job.result).unsettled:
            seen.times = {}
        seen.job = ""
        return True


def _time(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1
