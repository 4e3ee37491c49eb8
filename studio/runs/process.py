"""Who a process is, beyond its pid: pids are reused, clocks are set, workers die before their trainers.

A process is named by pid, start time in kernel ticks since boot, and the id of that boot; setting the clock
touches none of the three. Its descendants are known by a token in their environment: launchers put their
ranks into sessions of their own, and an orphan has lost its parent.
"""

import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

TOKEN_VARIABLE = "STUDIO_TRAINER"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Id of the running boot; "" where the kernel offers none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def start_time(pid: int) -> float | None:
    """Start of a living process: on Linux in seconds since boot, elsewhere since 1970; None for zombies."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return _start_time_elsewhere(pid) if not Path("/proc/self/stat").exists() else None
    # The command, in parentheses, may itself hold spaces and parentheses: split after the last one.
    state, *fields = text[text.rindex(")") + 2 :].split()
    return None if state in "ZX" else int(fields[18]) / os.sysconf("SC_CLK_TCK")


def _start_time_elsewhere(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
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
    token: str = ""  # value of TOKEN_VARIABLE in its environment and in that of all its descendants

    @classmethod
    def of(cls, pid: int, processes: int = 1, token: str = "") -> Self | None:
        """Identity of the process that has `pid` now; None when there is none or it is a zombie."""
        started = start_time(pid)
        return None if started is None else cls(pid, started, boot_id(), processes, token)

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

    @property
    def called(self) -> str:
        """For a person."""
        return f"pid {self.pid}"

    def waits(self) -> str:
        """A process of this machine has no reason to be silent."""
        return ""

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return self.boot_id == boot_id() and start_time(self.pid) == self.started

    def members(self) -> list[int]:
        """Living pids of this process and its descendants, also after its own death."""
        if not self.token:
            return [self.pid] if self.alive() else []
        found: list[int] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # gone meanwhile, or another user's
                if (
                    process.environ().get(TOKEN_VARIABLE) == self.token
                    and start_time(process.pid) is not None
                ):
                    found.append(process.pid)
        return found

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
        """SIGKILL to all of them, so that nothing is left."""
        for pid in self.members():
            _send(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself in between
