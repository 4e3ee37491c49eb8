"""SIGKILL at every file operation of merge, edit and bake: what is there is whole, no row lacks its file."""

import multiprocessing
import os
import signal
import sys
import zlib

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
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
MOST = 60  # kills an operation

OPERATIONS = {
    "merge": lambda ws, out: merge(ws, [Use("a", 0.8), Use("b", weight_of(out))], name=f"made {out.name}"),
    "edit": lambda ws, out: edit(ws, "a", Edit(title=out.name)),
    "bake": lambda ws, out: bake(ws, "pocket", [Use("a")], out, add=out.name),
    "bake file": lambda ws, out: bake(ws, "pocket", [Use("a")], out.with_suffix(".safetensors")),
}


def weight_of(out):
    """Another one each time: the same weights are refused the second time."""
    return 0.5 + zlib.crc32(out.name.encode()) / 2**32


def work(home, name, out, last, say):
    """Do it; dies at file operation number `last` (0 = never), and says how many there were."""
    seen = 0

    def count(event, _arguments):
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    ws = Workspace.open(home)
    _ = ws.catalog
    sys.addaudithook(count)
    OPERATIONS[name](ws, out)
    say.send(seen)


def run(*arguments):
    context = multiprocessing.get_context("fork")
    ear, mouth = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(*arguments, mouth))
    child.start()
    mouth.close()
    child.join()
    return ear.recv() if ear.poll() and child.exitcode == 0 else 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_half(tmp_path, name):
    home = tmp_path / "home"
    ws = Workspace.open(home)
    hashes = {item: add_adapter(ws, item, seed=n).tensor_sha256 for n, item in enumerate("ab")}
    total = run(home, name, tmp_path / "whole", 0)
    assert total > 3
    killed = 0
    for last in range(1, total + 1, max(1, total // MOST)):
        out = tmp_path / f"out{last}"
        killed += run(home, name, out, last) == 0
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
    assert killed > total // max(1, total // MOST) - 5
    OPERATIONS[name](Workspace.open(home), tmp_path / "after")
