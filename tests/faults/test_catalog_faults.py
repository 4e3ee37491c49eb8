"""The catalog under kill -9 and a full disk: what was acknowledged is there, and it works again after."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from registry.records import Adapter, Base, Job, Run
from tests.support.records import open_catalog

pytestmark = pytest.mark.fault
KILLS = 50

WRITER = """
import os, sys
from registry.catalog import Catalog
from tests.support import records
while True:  # one child after another, forked from here: a start costs milliseconds, not a second
    word = sys.stdin.readline().split()
    if not word:
        break
    child = os.fork()
    if child == 0:
        catalog = Catalog.open(sys.argv[1])
        base = catalog.find(records.Base, "parent") or catalog.add(records.base(name="parent"))
        for n in range(10**9):
            name = f"{word[0]}-{n}"
            if n % 2:
                catalog.add(records.adapter(name=name, tensor_sha256=name, note="x" * 2000))
            else:
                catalog.add_run(records.run(base.id, name=name))
            os.write(1, f"{name}\\n".encode())  # acknowledged
    os.write(1, f"pid {child}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path):
    catalog = open_catalog(tmp_path)
    url = f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    parent = subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    chance = random.Random(0)
    acknowledged: set[str] = set()
    for kill in range(KILLS):
        parent.stdin.write(f"k{kill}\n".encode())
        said = b""
        while not (found := re.search(rb"pid (\d+)\n", said)):
            said += parent.stdout.read(65536)
        while b"-0\n" not in said:  # it is at work
            said += parent.stdout.read(65536)
        time.sleep(chance.uniform(0, 0.08))
        os.kill(int(found[1]), signal.SIGKILL)
        while not said.endswith(b"dead\n"):
            said += parent.stdout.read(65536)
        acknowledged |= set(re.findall(r"^(k\d+-\d+)$", said.decode(), re.MULTILINE))
    parent.stdin.close()
    assert parent.wait(10) == 0
    runs = {run.name: run.id for run in catalog.list(Run)}
    there = {adapter.name for adapter in catalog.list(Adapter)} | set(runs)
    assert len(acknowledged) >= KILLS
    assert acknowledged <= there, f"lost {sorted(acknowledged - there)[:5]}"
    assert len(there - acknowledged) <= KILLS, "at most the one that was being written at each kill"
    assert {job.subject_id for job in catalog.list(Job)} == set(runs.values()), (
        "a run and its job come together"
    )
    assert catalog.check() == "ok"
    sys.stdout.write(f"killed {KILLS} writers: {len(acknowledged)} commits acknowledged, 0 lost\n")


FULL = """
import resource, signal, sys
from pathlib import Path
from registry.errors import StudioError
from registry.catalog import Catalog
from tests.support import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit fails with EFBIG
path = Path(sys.argv[1])
catalog = Catalog.open(f"sqlite:///{path}")
catalog.add(records.base(name="before"))
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 8192, resource.RLIM_INFINITY))
refused = ""
for n in range(100):
    try:
        catalog.add(records.adapter(n, note="x" * 3000))
    except StudioError as error:
        refused = str(error)
        break
written = catalog.count(records.Adapter)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
try:
    catalog.backup(path.parent / "backups" / "catalog-x.sqlite")
    backup = "made"
except StudioError as error:
    backup = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
catalog.add(records.base(name="after"))
print(n, written, catalog.check(), refused, backup, sep="\\n")
"""


def test_a_file_that_cannot_grow_is_one_line_and_heals(tmp_path):
    path = tmp_path / "catalog.sqlite"
    open_catalog(tmp_path).close()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    tried, written, check, refused, backup = done.stdout.splitlines()
    assert int(tried) == int(written) >= 0, "what was refused is not there, what was not refused is"
    assert check == "ok"
    assert re.search(r"catalog.sqlite: (cannot be (written|used)).*(space|disk)", refused), refused
    assert "could not be made" in backup, backup
    assert [p.name for p in (tmp_path / "backups").iterdir()] == [], "no half backup is left"
    assert {base.name for base in open_catalog(tmp_path).list(Base)} == {"before", "after"}


TMPFS = """
import shutil, sys
from pathlib import Path
from registry.errors import StudioError
from registry.files import atomic_write
from registry.catalog import Catalog
from tests.support import records
folder = Path(sys.argv[1])
path = folder / "catalog.sqlite"
catalog = Catalog.open(f"sqlite:///{path}")
catalog.add(records.base(name="before"))
old = folder / "old.bin"
old.write_bytes(b"old")
filler = folder / "filler"
with filler.open("wb", buffering=0) as stream:
    try:
        while True:
            stream.write(b"x" * 4096)
    except OSError:
        pass
lines = []
for action in (
    lambda: atomic_write(old, b"n" * 100_000),
    lambda: catalog.add_all([records.adapter(n, note="x" * 3000) for n in range(50)]),
):
    try:
        action()
        lines.append("done")
    except StudioError as error:
        lines.append(str(error))
left = sorted(p.name for p in folder.iterdir())
filler.unlink()
catalog.add_all([records.adapter(n, note="x" * 3000) for n in range(50)])
print(*lines, left, old.read_bytes().decode(), catalog.count(records.Adapter), catalog.check(), sep="\\n")
"""


def test_a_full_disk_leaves_old_files_intact_and_everything_works_again(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=2m tmpfs {folder} && exec {sys.executable} -c "$0" {folder}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, TMPFS], capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs the right to mount")
    assert done.returncode == 0, done.stderr
    file_line, row_line, left, old, count, check = done.stdout.splitlines()
    assert "old.bin: cannot be written (no space left on device). free some space" in file_line
    assert re.search(r"catalog.sqlite: cannot be (written|used).*space", row_line), row_line
    assert ".partial" not in left
    assert (old, count, check) == ("old", "50", "ok")


def test_the_limit_on_files_is_not_ours():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


READERS_AND_WRITERS = """
import os, sys, time
from registry.catalog import Catalog
from registry.records import Adapter
from tests.support import records

def work(me, seconds):
    catalog = Catalog.open(sys.argv[1])
    until, slowest, count = time.monotonic() + seconds, 0.0, 0
    while time.monotonic() < until:
        started = time.monotonic()
        made = catalog.add(records.adapter(name=me, tensor_sha256=f"{me}-{count}"))
        catalog.update(Adapter, made.id, rating=count % 6)
        catalog.search_adapters(me)
        slowest, count = max(slowest, time.monotonic() - started), count + 1
    os.write(1, f"{count} {slowest}\\n".encode())

children = []
for n in range(8):  # forked from here: they begin together
    children.append(os.fork())
    if not children[-1]:
        work(f"w{n}", 2.5)
        sys.exit()
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_eight_readers_and_writers_meet_no_error(tmp_path):
    catalog = open_catalog(tmp_path)
    url = f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    done = subprocess.run(
        [sys.executable, "-c", READERS_AND_WRITERS, url],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    counts, times = zip(*(map(float, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert len(counts) == 8
    assert catalog.count(Adapter) == sum(counts)
    assert catalog.check() == "ok"
    sys.stdout.write(f"8 processes: {sum(counts):.0f} rounds, slowest {max(times):.2f} s\n")
