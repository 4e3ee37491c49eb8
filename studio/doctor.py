"""The machine doctor: will training work here, and if not, what to fix.

What needs torch runs in a child process (`studio.doctor_torch`): the caller stays light, and a driver that
crashes takes only the child with it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import uuid4

from registry.errors import StudioError
from registry.files import TEMPORARY
from studio.settings import TOKENS, child_environment, tokens_present

if TYPE_CHECKING:
    from studio.workspace import Workspace

PACKAGE = "lora-studio"
PYTHON = ((3, 11), (3, 14))  # from, below
MIN_FREE = 5 * 2**30  # bytes of disk for a run with checkpoints and samples
MIN_RAM = 8 * 2**30  # bytes; SD1.5 in fp32 takes 4 while it loads
TORCH_SECONDS = 180  # a first CUDA start on a slow disk takes about a minute

Status = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Check:
    """One finding about this machine."""

    name: str
    status: Status
    value: str  # what was found
    fix: str = ""  # what to do; "" when nothing


def machine_report(ws: "Workspace | None" = None) -> list[Check]:
    """Everything that a run depends on; takes 5 to 20 seconds, most of it the child that loads torch.

    Args:
        ws: Its folder and catalog are checked too, when given.
    """
    checks = [_python(), _versions()]
    checks += torch_report()
    checks += [_memory(), _disk(ws.home if ws else Path.cwd())]
    if ws is not None:
        checks += [_writable(ws.home), _catalog(ws)]
    checks += [_sqlite(), *_tokens()]
    return checks


def torch_report(command: Iterable[str] = (), seconds: float = TORCH_SECONDS) -> list[Check]:
    """What the child found out about torch and the GPU; one bad check when it died.

    Args:
        command: What to run instead of the real child (tests).
        seconds: After which it is given up.
    """
    argv = [*command] or [sys.executable, "-m", "studio.doctor_torch"]
    environment = child_environment() | {"HF_HUB_OFFLINE": "1"}
    do = "run `python -m studio.doctor_torch` to see why"
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return [Check("torch", "bad", f"no answer within {seconds:.0f} s", do)]
    lines = done.stdout.strip().splitlines()
    try:
        found = cast("list[dict[str, Any]]", json.loads(lines[-1] if lines else ""))
        return [Check(**item) for item in found]
    except (ValueError, TypeError):
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [Check("torch", "bad", f"cannot be used ({said[:200]})", do)]


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    lowest, below = PYTHON
    if lowest <= sys.version_info[:2] < below:
        return Check("Python", "ok", found)
    wanted = f"{lowest[0]}.{lowest[1]} to {below[0]}.{below[1] - 1}"
    return Check("Python", "bad", found, f"install Python {wanted}")


def _versions() -> Check:
    """Installed packages against the ranges that this version was made for."""
    from packaging.requirements import Requirement

    wrong: list[str] = []
    for text in requires(PACKAGE) or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} is not {wanted.specifier}")
    if wrong:
        return Check("packages", "bad", "; ".join(wrong), f"install again: pip install -U {PACKAGE}")
    return Check("packages", "ok", f"{PACKAGE} {version(PACKAGE)}; all that it needs fits")


def _memory() -> Check:
    import psutil

    total = psutil.virtual_memory().total
    free = psutil.virtual_memory().available
    found = f"{total / 2**30:.0f} GiB, {free / 2**30:.0f} free; {os.cpu_count()} processors"
    if total < MIN_RAM:
        return Check("memory", "warn", found, "loading a real base takes 8 GiB; the pocket base works")
    return Check("memory", "ok", found)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.0f} GiB free at {folder}"
    if free < MIN_FREE:
        return Check("disk", "warn", found, f"free some space: a run wants {MIN_FREE // 2**30} GiB")
    return Check("disk", "ok", found)


def _writable(home: Path) -> Check:
    probe = home / f".doctor.{uuid4().hex[:8]}{TEMPORARY}"
    try:
        probe.write_bytes(b"ok")
        probe.unlink()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        found = f"{home} cannot be written ({reason})"
        return Check("workspace", "bad", found, "check its permissions, or use --home")
    return Check("workspace", "ok", str(home))


def _catalog(ws: "Workspace") -> Check:
    try:
        if ws.catalog.read_only:
            return Check("catalog", "bad", "opens read-only", ws.catalog.reason)
        found = ws.catalog.check()
    except StudioError as error:
        return Check("catalog", "bad", error.wrong, error.do)
    if found != "ok":
        return Check("catalog", "bad", found, f"restore the newest backup from {ws.home / 'backups'}")
    return Check("catalog", "ok", "every page and reference is sound")


def _sqlite() -> Check:
    import sqlite3

    from registry.journal import wal_is_safe

    mode = "write-ahead log" if wal_is_safe(sqlite3.sqlite_version_info) else "rollback journal"
    return Check("SQLite", "ok", f"{sqlite3.sqlite_version}, used with {mode}")


def _tokens() -> list[Check]:
    return [
        Check(name, "ok", "set" if present else f"not set; only needed for {TOKENS[name]}")
        for name, present in tokens_present().items()
    ]
