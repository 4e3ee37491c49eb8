"""Wishes from outside: the first SIGTERM or SIGINT asks for a stop, the second one ends the process."""

import os
import signal
import time
from types import FrameType


class Stopped(Exception):
    """Asked to stop before the first step."""


class StopFlag:
    """Counts signals.

    Args:
        grace: Seconds in which further signals count as the first one's echo: a launcher hands on the signal
            that its whole process group got already.
    """

    def __init__(self, grace: float = 0.3) -> None:
        self.grace = grace
        self._first: float | None = None

    def install(self) -> None:
        """Handle SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def __bool__(self) -> bool:
        return self._first is not None

    def check(self) -> None:
        """Between the parts of a long preparation.

        Raises:
            Stopped: a stop was asked for.
        """
        if self:
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > self.grace:
            os._exit(1)
