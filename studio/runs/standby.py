"""One trainer that has loaded its libraries and waits for a run (`trainers.standby`): the worker's side.

It is only ever a shortcut. A run takes it when it is ready and would have the very same environment;
whatever goes wrong with it, the run gets a trainer the usual way. Of one that was given the run and did not
take it, the run's log says so.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil

from studio.runs.process import TOKEN_VARIABLE
from trainers.rundir import READY, TAKEN

MODULE = "trainers.standby"
REFUSED = b"the trainer that waited does not take this run: a new one is started\n"
QUIET = 2.0  # seconds after the last run before one is prepared
ANSWER = 5.0  # seconds that it has to take a run
LOOK_EVERY = 2.0  # seconds between looks at the memory
ENOUGH, SHORT = 4 << 30, 2 << 30  # free bytes: to prepare one, and below which it goes; it holds 0.4 GiB
MOST_DEATHS = 2  # of those prepared after one run


class Standby:
    """Prepares a trainer when the machine is idle, hands a run to it, ends it.

    Args:
        mode: "auto" looks at the memory, "on" does not, "off" prepares none.
        minutes: How long one waits for a run.
    """

    def __init__(self, mode: str = "off", minutes: float = 10.0) -> None:
        self._mode, self._seconds = mode, 60 * minutes
        self._like: Path | None = None  # the last run: the next one will be like it
        self._environment: dict[str, str] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._token, self._said = "", b""
        self._needed_at = self._busy_at = self._looked_at = 0.0
        self._deaths = 0

    @property
    def pid(self) -> int | None:
        """Of the waiting process."""
        return self._child.pid if self._child is not None else None

    @property
    def ready(self) -> bool:
        """Whether it has loaded everything."""
        if self._control is not None and not self._said:
            with suppress(OSError):  # nothing said yet, or gone
                self._said = self._control.recv(len(READY), socket.MSG_DONTWAIT)
        return self._control is not None and self._said == READY

    def remember(self, folder: Path, environment: Mapping[str, str]) -> None:
        """A run was started with this environment: the next one is expected to be like it."""
        self._like, self._deaths = folder, 0
        self._needed_at = self._busy_at = time.monotonic()
        if self._environment != environment:
            self.close()
            self._environment = dict(environment)

    def tick(self, *, training: bool, idle: bool) -> None:
        """Prepare one, or end one that has died, waited too long or holds memory that is short.

        Args:
            training: Whether a run is going on: the time that one may wait begins when it ends.
            idle: Whether there are processors to spare.
        """
        if self._child is not None and self._child.poll() is not None:
            self.close()
            self._deaths += 1
        now = time.monotonic()
        self._needed_at = now if training else self._needed_at
        self._busy_at = self._busy_at if idle else now
        if self._like is None or self._mode == "off" or now - self._looked_at < LOOK_EVERY:
            return
        self._looked_at = now
        if now - self._needed_at > self._seconds or self._deaths >= MOST_DEATHS:
            self.close()
            self._like = None
            return
        free = psutil.virtual_memory().available if self._mode == "auto" else ENOUGH
        if self._child is None and free >= ENOUGH and now - self._busy_at >= QUIET:
            self._prepare(self._like)
        elif free < SHORT:
            self.close()

    def take(self, environment: Mapping[str, str]) -> "Waiting | None":
        """The trainer for a run with this environment, if there is one; it is the caller's from now on."""
        child, control = self._child, self._control
        if child is None or control is None:
            return None
        if not self.ready or child.poll() is not None or environment != self._environment:
            self.close()
            return None
        self._child = self._control = None
        return Waiting(child, control, self._token)

    def close(self) -> None:
        """End it: it holds nothing that would have to be kept."""
        child, control = self._child, self._control
        self._child, self._control = None, None
        if control is not None:
            control.close()
        if child is not None:
            child.kill()
            child.wait()

    def _prepare(self, like: Path) -> None:
        ours, theirs = socket.socketpair()
        self._token, self._said = uuid4().hex, b""
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", MODULE, "-" * len(str(like))],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=self._environment | {TOKEN_VARIABLE: self._token},
                    start_new_session=True,
                )
                ours.sendall(_line(like))
                self._control = ours
            except OSError:
                ours.close()
                self._deaths += 1


class Waiting:
    """A trainer that is ready.

    Args:
        child: Its process.
        control: Our end of its standard input.
        token: Value of TOKEN_VARIABLE in its environment.
    """

    def __init__(self, child: subprocess.Popen[bytes], control: socket.socket, token: str) -> None:
        self.child, self._control, self.token = child, control, token

    def become(self, folder: Path, lock: int, log: int) -> bool:
        """Let it train the run in `folder`; False when it does not: it is dead then, and the log says so.

        Args:
            folder: The run directory.
            lock: Descriptor of its lock, which is held.
            log: Descriptor of its log.
        """
        answer = b""
        with self._control as control, suppress(OSError):
            control.settimeout(ANSWER)
            line = _line(folder)
            sent = socket.send_fds(control, [line], [lock, log])
            control.sendall(line[sent:])
            answer = control.recv(len(TAKEN))
        if answer == TAKEN:
            return True
        self.child.kill()
        self.child.wait()
        with suppress(OSError):  # a full disk is for the trainer that comes to say
            os.write(log, REFUSED)
        return False


def _line(folder: Path) -> bytes:
    return json.dumps(str(folder)).encode() + b"\n"
