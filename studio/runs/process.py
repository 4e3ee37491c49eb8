"""Who a process is, beyond its pid: pids are reused, clocks are set, workers die before their trainers.

A process is named by pid, start time in kernel ticks since boot, and the id of that boot. Setting the
clock touches none of the three.
"""

import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Id of the running boot; "" where the kernel offers none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class _Stat:
    """The fields of /proc/<pid>/stat that matter here."""

    state: str
    session: int
    started: float


def _stat(pid: int) -> _Stat | None:
    """State, session and start time (on Linux since boot, elsewhere since the epoch); None when gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return _stat_elsewhere(pid) if not Path("/proc/self/stat").exists() else None
    # The command, in parentheses, may itself hold spaces and parentheses: split after the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(fields[0], int(fields[3]), int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def _stat_elsewhere(pid: int) -> _Stat | None:
    try:
        process = psutil.Process(pid)
        state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "R"
        return _Stat(state, os.getsid(pid), process.create_time())
    except (psutil.Error, ProcessLookupError, PermissionError):
        return None


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be taken for another one.

    `processes` > 1 says that it is a launcher and its children are the ranks that understand signals.
    """

    pid: int
    started: float  # seconds since boot (Linux)
    boot_id: str
    processes: int = 1

    @classmethod
    def of(cls, pid: int, processes: int = 1) -> Self | None:
        """Identity of the process that has `pid` now; None when there is none or it is a zombie."""
        stat = _stat(pid)
        return None if stat is None or stat.state in "ZX" else cls(pid, stat.started, boot_id(), processes)

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Self | None:
        """Inverse of `to_json`; None for anything that is no identity."""
        try:
            return cls(**value) if value else None
        except TypeError:
            return None

    def to_json(self) -> dict[str, Any]:
        """For process.json and the run's row."""
        return asdict(self)

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        if self.boot_id != boot_id():
            return False
        stat = _stat(self.pid)
        return stat is not None and stat.state not in "ZX" and stat.started == self.started

    def members(self) -> list[int]:
        """Living pids of the session that this process leads, also after its own death.

        The kernel gives a pid to nobody while a session of that number has members, so they are ours.
        """
        stat = _stat(self.pid)
        if self.boot_id != boot_id() or (stat is not None and stat.started != self.started):
            return []
        return [pid for pid in psutil.pids() if _in_session(pid, self.pid)]

    def ask_to_stop(self) -> None:
        """SIGTERM, once, to each process that trains.

        With one process that is the process itself: a data loader's helper must not get it. With several it
        is the launcher's children: the launcher would pass it on, and a second SIGTERM means "exit at once".
        """
        if not self.alive():
            return
        targets = [self.pid]
        if self.processes > 1:
            targets = [child.pid for child in psutil.Process(self.pid).children()] or targets
        for pid in targets:
            _send(pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole session, so that nothing of it is left."""
        for pid in self.members():
            _send(pid, signal.SIGKILL)


def _in_session(pid: int, session: int) -> bool:
    stat = _stat(pid)
    return stat is not None and stat.session == session and stat.state not in "ZX"


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself in between
