"""Checkpoints are written while training goes on: the loop waits for a copy in memory, not for the disk.

Writing lets go of Python's lock nearly all the time: hashing, fsync and safetensors do without it.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from trainers.checkpoints import Snapshot, Store

log = logging.getLogger(__name__)


class Saver:
    """Writes one checkpoint at a time in a thread of its own, by the same steps as ever.

    Args:
        store: Where to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, take: Callable[[], Snapshot], best: int | None, written: Callable[[], None]) -> None:
        """Take a snapshot and begin to write it, once the one before is written.

        Args:
            take: Asked when there is room for it: two at a time could be too much for the memory.
            best: As for `Store.write`.
            written: Called when it is on the disk, in the thread.

        Raises:
            StudioError, Damaged: the one before was not written; see `Store.write`.
        """
        self.finish()
        self._writing = self._thread.submit(self._write, take(), best, written)

    def check(self) -> None:
        """Between two steps: notice the end of a write.

        Raises:
            StudioError, Damaged: it failed.
        """
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until what was begun is on the disk.

        Raises:
            StudioError, Damaged: it failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait for the last write at any end of the run; a failure beside another one is only logged."""
        try:
            self.finish()
        except Exception:
            log.warning("the last checkpoint was not written", exc_info=True)
        self._thread.shutdown()

    def _write(self, taken: Snapshot, best: int | None, written: Callable[[], None]) -> None:
        self._store.write(taken, best)
        written()
