"""Imports that are killed, at random moments and at every system call that changes something.

After each kill: every row has its file, what is said to be hashed has that hash, and the next import ends
with the catalog that an undisturbed one gives.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry.hashing import hash_adapter
from registry.records import Adapter, FileState, Job, JobState
from studio.datasets import decode_child
from studio.imports import submit as imports
from studio.workspace import Workspace
from tests.support.debian import need
from tests.support.imports import finish, sparse_adapter, take_in, write_adapter
from tests.support.supervision import ROOT, until

pytestmark = pytest.mark.fault


def check_rows(ws: Workspace) -> None:
    """A row stands on a file, and a hashed row on the file that it names."""
    for adapter in ws.catalog.list(Adapter):
        path = ws.resolve(adapter.path)
        assert path.is_file(), f"row {adapter.name} ({adapter.file_state}) without file {path}"
        if adapter.preview:
            assert ws.resolve(adapter.preview).stat().st_size > 0
        if adapter.tensor_sha256:
            hashes = hash_adapter(path)
            assert (hashes.tensor_sha256, hashes.sha256) == (adapter.tensor_sha256, adapter.file_sha256)
        else:
            assert adapter.file_state is FileState.NEW
    assert ws.catalog.check() == "ok"


class ForkedDecoder:
    """The child that decodes pictures, forked: Python's start was half of what a point of the sweep takes.

    What `subprocess.Popen` is to `studio.datasets.decode`.
    """

    def __init__(self, *_command: object, **_options: object) -> None:
        (asked, ask), (told, tell) = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                os.dup2(asked, 0)
                os.dup2(tell, 1)
                for number in (asked, ask, told, tell):
                    os.close(number)
                sys.stdin = os.fdopen(0, encoding="utf-8")
                decode_child.main()
                code = 0
            finally:
                os._exit(code)
        os.close(asked)
        os.close(tell)
        self.stdin, self.stdout = os.fdopen(ask, "wb"), os.fdopen(told, "rb")

    def wait(self, timeout: float | None = None) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


class Child:
    """`studio.imports.task` as the worker starts it."""

    def __init__(self, ws: Workspace, job: Job) -> None:
        command = [sys.executable, "-m", "studio.imports.task", str(ws.home), job.id]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()


def test_a_killed_import_goes_on_and_repeats_no_finished_file(tmp_path):
    ws = Workspace.open(tmp_path / "home")
    count, size = 40, 4_000_000
    for number in range(count):
        sparse_adapter(tmp_path / "in" / f"{number:03}.safetensors", size, number)
    sparse_adapter(tmp_path / "in" / "twin.safetensors", size, 0)
    job = imports.submit(ws, [tmp_path / "in"])
    finished: dict[str, object] = {}
    for hashed in (5, 20, 35):
        child = Child(ws, job)
        until(lambda n=hashed, c=child: len(done_rows(ws)) >= n or c.process.poll() is not None, 60)
        child.kill()
        rows = done_rows(ws)
        assert all(rows[name] == at for name, at in finished.items()), "a finished file was read again"
        finished = rows
        check_rows(ws)
    report = finish(ws, job)
    assert len(finished) >= 20
    assert all(done_rows(ws)[name] == at for name, at in finished.items())
    assert (report.listed, report.hashed, report.known, report.count("duplicates")) == (count, count, 0, 1)
    assert report.bytes_total < (count + 1 - len(finished)) * size * 1.01
    check_rows(ws)


def done_rows(ws: Workspace) -> dict[str, object]:
    """Name -> when it was hashed."""
    return {a.name: a.checked_at for a in ws.catalog.list(Adapter) if a.tensor_sha256}


def test_the_child_ends_with_its_worker(tmp_path):
    ws = Workspace.open(tmp_path / "home")
    for number in range(30):
        sparse_adapter(tmp_path / "in" / f"{number}.safetensors", 8_000_000, number)
    child = Child(ws, imports.submit(ws, [tmp_path / "in"]))
    until(lambda: bool(ws.catalog.count(Adapter)), 60)
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(20) == 70
    check_rows(ws)


# --- the sweep: one process that has everything loaded forks a child for each system call of an import

CALLS = (
    "openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "mkdir", "ftruncate", "link",
)  # fmt: skip
UNIQUE = re.compile(r"[0-9a-z]{10}(?=\.)|(?<=\.)\d+-[0-9a-f]{8}(?=\.partial)|(?<=pipe:\[)\d+")


@pytest.fixture
def template(tmp_path, monkeypatch) -> Path:
    """A workspace with one adapter, and an import that lists, copies, previews, drops and relinks."""
    from PIL import Image as Pixels

    Pixels.init()  # all formats now, not once in each child
    names = ("PIPE", "DEVNULL", "TimeoutExpired")
    stand_in = SimpleNamespace(Popen=ForkedDecoder, **{name: getattr(subprocess, name) for name in names})
    monkeypatch.setattr("studio.datasets.decode.subprocess", stand_in)
    monkeypatch.setattr(decode_child, "limit_process", lambda: None)  # this process has more address space
    ws = Workspace.open(tmp_path / "template")
    take_in(ws, write_adapter(tmp_path / "in" / "old.safetensors", 1))
    take_in(ws, write_adapter(tmp_path / "gone" / "lost.safetensors", 2))
    write_adapter(tmp_path / "in" / "found.safetensors", 2)
    write_adapter(tmp_path / "in" / "twin.safetensors", 1)
    write_adapter(tmp_path / "in" / "new.safetensors", 3)
    Pixels.new("RGB", (64, 48), (9, 99, 9)).save(tmp_path / "in" / "new.png")
    ws.catalog.close()
    return ws.home


def import_again(home: Path, folder: Path) -> None:
    """The work under test: what is there already, a new one, a twin, and one that was missing."""
    ws = Workspace.open(home)
    waiting = ws.catalog.list(Job, state=JobState.QUEUED)
    job = waiting[0] if waiting else imports.submit(ws, [folder], copy=True)
    finish(ws, job)
    ws.catalog.close()


def traced(work, inject: str, tmp_path: Path) -> tuple[int, str]:
    """Run `work` in a forked child under strace with an injection; its wait status and the trace."""
    go, ready = os.pipe(), tmp_path / "trace"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(go[1])
            os.read(go[0], 1)
            work()
            code = 0
        finally:
            os._exit(code)
    os.close(go[0])
    command = ["strace", "-f", "-y", "-o", str(ready), "-p", str(child), "-e", f"trace={','.join(CALLS)}"]
    tracer = subprocess.Popen(
        [*command, *(["-e", f"inject={inject}"] if inject else [])], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    os.close(go[1]) if "attached" in line else os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    tracer.communicate(timeout=30)
    if "attached" not in line:
        pytest.skip(f"strace cannot attach here: {line.strip()}")
    return status, ready.read_text(errors="replace")


@dataclass(frozen=True)
class Point:
    """One system call of an import."""

    call: str
    file: str  # what it writes, without what differs from import to import
    number: int  # among the calls of that name; the first is 1


def points(template: Path, tmp_path: Path) -> list[Point]:
    """The changing system calls of one undisturbed import, in their order."""
    home = tmp_path / "counted"
    shutil.copytree(template, home)
    status, trace = traced(lambda: import_again(home, tmp_path / "in"), "", tmp_path)
    assert status == 0
    ws = Workspace.open(home)
    assert ws.catalog.get(Adapter, "new").preview
    ws.catalog.close()
    counts: dict[str, int] = {}
    found: list[Point] = []
    pid = trace.partition(" ")[0]  # strace counts the calls of each process by themselves
    for line in re.findall(rf"^{pid} +(\w+\(.*)", trace, re.MULTILINE):
        call, _, rest = line.partition("(")
        counts[call] = counts.get(call, 0) + 1
        path = re.search(r'\d<([^>]*)>|"([^"]*)"', rest)
        assert path is not None, line
        name = (path[1] or path[2]).rpartition("/")[2]
        found.append(Point(call, UNIQUE.sub("*", name), counts[call]))
    return [point for point in found if point.call != "openat"]  # most of them read


def grouped(points: Iterable[Point], place: Callable[[Point], Any]) -> list[list[Point]]:
    """The points of each place."""
    places: dict[Any, list[Point]] = {}
    for point in points:
        places.setdefault(place(point), []).append(point)
    return list(places.values())


def sampled(points: list[Point], fault: str) -> list[Point]:
    """What stands for all: what lies between goes the same way.

    An error: the first of each call on each file, and the last call on it. A kill: the first and last time
    that a call on a file follows the same one; of pages written in a row the first and the last page.
    """
    if fault != "signal=KILL":
        firsts = [found[0] for found in grouped(points, lambda p: (p.call, p.file))]
        lasts = [found[-1] for found in grouped(points, lambda p: p.file)]
        return list(dict.fromkeys(firsts + lasts))
    before, done, ends = "", "", dict[Point, tuple[str, bool]]()
    for _, group in groupby(points, key=lambda p: (p.call, p.file)):
        series = list(group)
        before, done = done, f"{series[0].call} {series[0].file}"
        ends |= {series[-1]: (before, False), series[0]: (before, True)}
    places = grouped(ends, lambda p: (p.call, p.file, *ends[p]))
    return list(dict.fromkeys(point for found in places for point in (found[0], found[-1])))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC", "error=EIO"])
def test_the_sweep_over_every_changing_system_call(template, tmp_path, fault, capsys, pytestconfig):
    need("strace")
    shutil.rmtree(tmp_path / "gone")
    every = pytestconfig.getoption("--all-points")
    found = points(template, tmp_path)
    tried = 0
    expected = None
    for point in found if every else sampled(found, fault):
        home = tmp_path / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(template, home)
        inject = f"{point.call}:{fault}:when={point.number}"
        traced(lambda home=home: import_again(home, tmp_path / "in"), inject, tmp_path)
        ws = Workspace.open(home)
        check_rows_but_lost(ws)
        import_again(home, tmp_path / "in")
        check_rows(ws)
        names = sorted(a.name for a in ws.catalog.list(Adapter))
        expected = expected or names
        assert names == expected == ["lost", "new", "old"], inject
        assert not list((home / "adapters").glob("*.safetensors.partial"))
        ws.catalog.close()
        tried += 1
    with capsys.disabled():
        sys.stdout.write(f"\nimport, {fault}: {tried} points, rows without file 0, torn files 0\n")
    assert tried >= 10


def check_rows_but_lost(ws: Workspace) -> None:
    """As `check_rows`; the file of `lost` was removed by the test."""
    for adapter in ws.catalog.list(Adapter):
        path = ws.resolve(adapter.path)
        if adapter.name == "lost" and "gone" in path.parts:
            continue
        assert path.is_file(), f"row {adapter.name} without file {path}"
        if adapter.tensor_sha256:
            assert hash_adapter(path).sha256 == adapter.file_sha256, "a torn file"
    assert ws.catalog.check() == "ok"
