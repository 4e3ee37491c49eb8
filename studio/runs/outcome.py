"""What became of a trainer that is gone: its own last word if it left one, else what the system knows."""

import re
from dataclasses import dataclass
from pathlib import Path

from registry.records import RunState
from trainers.rundir import LOG, RunDir, Status

# Exit codes of a trainer; docs/architecture.md.
EXIT_KINDS = {2: "input", 3: "nan", 4: "oom", 5: "disk"}
KILLED_BY_SHELL = 137  # 128 + SIGKILL: how launchers and containers report a memory kill
SIGKILL, SIGTERM = -9, -15
ATTEMPT = "--- attempt of "  # begins the line of log.txt that separates a resumed run from what was before

_OOM = re.compile(
    r"OutOfMemoryError|out of memory|DefaultCPUAllocator: (?:can't|not enough) (?:allocate )?memory|"
    r"Cannot allocate memory|^MemoryError|std::bad_alloc|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE | re.MULTILINE,
)
_DISK = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_NAN = re.compile(r"\b(?:loss|gradient)s? (?:is|are|became) (?:nan|inf|not finite)", re.IGNORECASE)

LESS_MEMORY = "lower train.batch_size or train.resolution, or set train.gradient_checkpointing=true"


@dataclass(frozen=True)
class Outcome:
    """The state a run ends in and why, in one line.

    `retry`: the trainer died before its first step without a word, or knowing how to need less memory;
    starting it once more may help.
    """

    state: RunState
    reason: str = ""
    kind: str = ""  # "nan", "oom", "input", "disk", "error", "killed", "hung", ""
    retry: bool = False


def judge(
    status: Status | None, exit_code: int | None, *, log: str, memory_killed: bool, started: bool
) -> Outcome:
    """Outcome of a trainer that ended without being asked to.

    Args:
        status: Its last status.json, if any.
        exit_code: As subprocess gives it (negative: signal); None for an adopted process.
        log: The last lines of its log.
        memory_killed: Whether the kernel killed a process for memory while it ran.
        started: Whether it had trained at least one step in this attempt.
    """
    if status is not None and status.state == "finished":
        return Outcome(RunState.FINISHED)
    if status is not None and status.state == "failed" and status.kind != "killed":
        return Outcome(RunState.FAILED, _with_advice(status.reason, status.kind), status.kind or "error")
    if status is not None and status.state == "stopped":
        return Outcome(RunState.STOPPED)
    kind = _kind(exit_code, log, memory_killed=memory_killed)
    if kind in _REASONS:
        return Outcome(RunState.FAILED, _REASONS[kind], kind.removeprefix("host-"))
    if status is not None and status.state == "failed":  # the log does not say how the other process ended
        return Outcome(RunState.INTERRUPTED, status.reason, status.kind)
    if exit_code == KILLED_BY_SHELL:
        return Outcome(RunState.FAILED, _REASONS["host-oom"], "oom")
    how = _how(exit_code)
    if exit_code == SIGKILL or started:
        return Outcome(RunState.INTERRUPTED, f"the trainer {how}", "killed")
    last = _last_line(log)
    said = f"; its last line: {last}" if last else ""
    return Outcome(RunState.FAILED, f"the trainer {how} before its first step{said}", "error", retry=True)


def log_tail(rundir: RunDir, size: int = 16384) -> str:
    """The last `size` bytes of log.txt as text, but nothing of an earlier attempt."""
    return tail(rundir.file(LOG), size).rpartition(ATTEMPT)[2]


def tail(path: Path, size: int) -> str:
    """The last `size` bytes of a text file; "" when there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - size))
            return stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


_REASONS = {
    "oom": f"the device ran out of memory; {LESS_MEMORY}",
    "host-oom": f"the system killed the trainer, most likely for memory; close other programs, {LESS_MEMORY}",
    "disk": "the disk is full; free some space and resume",
    "nan": "the loss stopped being finite; lower optimizer.lr, or set train.precision=fp32",
    "input": "the trainer refused its input; see the log",
}


def _kind(exit_code: int | None, log: str, *, memory_killed: bool) -> str:
    if exit_code in EXIT_KINDS:
        return EXIT_KINDS[exit_code]
    if memory_killed and exit_code in {SIGKILL, None, 1}:
        return "host-oom"
    if exit_code in {SIGKILL, SIGTERM}:
        return ""  # killed from outside: what the log complains of was not the end of it
    for kind, pattern in (("oom", _OOM), ("disk", _DISK), ("nan", _NAN)):
        if pattern.search(log):
            return kind
    return ""


def _with_advice(reason: str, kind: str) -> str:
    """The trainer's own reason; for memory our advice is added when it gave none."""
    reason = reason.strip()
    if not reason:
        return _REASONS.get(kind, "the trainer failed without saying why; see the log")
    if kind == "oom" and "batch_size" not in reason:
        return f"{reason.rstrip('.')}; {LESS_MEMORY}"
    return reason


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "is gone"
    if exit_code < 0:
        return f"was killed (signal {-exit_code})"
    return f"ended with exit code {exit_code}"


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines()[1:] if line.strip()]  # the first one is the attempt's
    return lines[-1][:200] if lines else ""
