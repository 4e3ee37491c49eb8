"""SIGKILL at the file operations of merge, edit and bake: what is there is whole, no row lacks its file.

Where a place in the code is passed many times, for each file of a model say, it dies there the first and the
last time.
"""

import multiprocessing
import os
import signal
import sys
import zlib
from pathlib import Path

import pytest

from registry.files import TEMPORARY, sweep_temporaries
from registry.formats.load import load_adapter
from registry.formats.operations.edit import Edit
from registry.formats.operations.sources import BaseWeights
from registry.hashing import hash_adapter
from registry.records import Adapter, Base
from studio.adapters import verify
from studio.bases import detect_base
from studio.operations import Use, bake, edit, merge
from studio.workspace import Workspace
from tests.support.sampling import add_adapter

pytestmark = pytest.mark.fault
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
OURS = tuple(str(Path(__file__).parents[2] / package) for package in ("registry", "studio"))

OPERATIONS = {
    "merge": lambda ws, out: merge(ws, [Use("a", 0.8), Use("b", weight_of(out))], name=f"made {out.name}"),
    "edit": lambda ws, out: edit(ws, "a", Edit(title=out.name)),
    "bake": lambda ws, out: bake(ws, "pocket", [Use("a")], out, add=out.name),
    "bake file": lambda ws, out: bake(ws, "pocket", [Use("a")], out.with_suffix(".safetensors")),
}


def weight_of(out):
    """Another one each time: the same weights are refused the second time."""
    return 0.5 + zlib.crc32(out.name.encode()) / 2**32


def place(event):
    """Where in our code a change comes from."""
    lines, frame = [event], sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_filename.startswith(OURS):
            lines.append((frame.f_code.co_filename, frame.f_lineno))
    return tuple(lines)


def work(home, name, out, last, say):
    """Do it; dies at file operation number `last` (0 = never), and says at which of them it is to die.

    Those that only read are told apart by the change before them: they leave the disk as it is.
    """
    seen, change, first, latest = 0, (), {}, {}

    def count(event, arguments):
        nonlocal seen, change
        if event not in EVENTS:
            return
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if last:
            return
        reads = event == "open" and arguments[2] & os.O_ACCMODE == os.O_RDONLY
        change = change if reads else place(event)
        latest[reads, change] = seen
        first.setdefault((reads, change), seen)

    ws = Workspace.open(home)
    _ = ws.catalog
    sys.addaudithook(count)
    OPERATIONS[name](ws, out)
    say.send(sorted({*first.values(), *latest.values()}))


def run(*arguments):
    """What `work` says; [] when it was killed."""
    context = multiprocessing.get_context("fork")
    ear, mouth = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(*arguments, mouth))
    child.start()
    mouth.close()
    child.join()
    return ear.recv() if ear.poll() and child.exitcode == 0 else []


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_half(tmp_path, name):
    home = tmp_path / "home"
    ws = Workspace.open(home)
    hashes = {item: add_adapter(ws, item, seed=n).tensor_sha256 for n, item in enumerate("ab")}
    points = run(home, name, tmp_path / "whole", 0)
    assert len(points) > 3
    killed = 0
    for last in points:
        out = tmp_path / f"out{last}"
        killed += not run(home, name, out, last)
        fresh = Workspace.open(home)
        for record in fresh.catalog.list(Adapter):
            assert verify(fresh, record.id).state in ({"ok", "edited"} if name == "edit" else {"ok"}), last
        for file in (home / "adapters").glob("*.safetensors"):
            load_adapter(file)
        for item, wanted in hashes.items():
            assert hash_adapter(home / f"adapters/{item}.safetensors").tensor_sha256 == wanted
        if out.exists():
            assert detect_base(str(out)).family == "sd15"
            BaseWeights(out, "sd15")
        for base in fresh.catalog.list(Base):
            assert fresh.resolve(base.location).exists()
        sweep_temporaries(home)
        assert not list(home.rglob(f"*{TEMPORARY}"))
    assert killed > len(points) - 5
    OPERATIONS[name](Workspace.open(home), tmp_path / "after")
