"""Backups of the catalog while a process holds the workspace."""

import logging
import threading
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from registry.catalog import Catalog
from registry.errors import StudioError
from registry.schema import backup_is_due, backup_name, prune_backups

EVERY = timedelta(hours=1)
_log = logging.getLogger(__name__)


class Backups:
    """A backup at the start when the newest is an hour old, then one an hour; the newest `keep` stay.

    A backup that fails (a full disk) is said in the log and tried again an hour later: it never stops a run.
    """

    def __init__(self, catalog: Catalog, folder: Path, *, keep: int, every: timedelta = EVERY) -> None:
        self._catalog, self._folder, self._keep, self._every = catalog, folder, keep, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="catalog-backups", daemon=True)

    def __enter__(self) -> "Backups":
        if self._catalog.is_file and not self._catalog.read_only:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._back_up()
            if self._stop.wait(self._every.total_seconds()):
                return

    def _back_up(self) -> None:
        try:
            if backup_is_due(self._folder, self._every):
                self._catalog.backup(self._folder / backup_name())
                prune_backups(self._folder, self._keep)
        except StudioError as error:
            _log.warning("no backup was made: %s", error)
