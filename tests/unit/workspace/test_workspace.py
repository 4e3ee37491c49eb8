"""The workspace: made, moved, held by one, reconciled."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from registry.errors import BadInput, Damaged, StudioError, WorkspaceBusy
from registry.records import Adapter, AdapterUse, Base, Run, Sample, now
from studio.maintenance import Backups
from studio.reconcile import orphans
from studio.workspace import FOLDERS, POCKET, Workspace
from tests.support import records


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def ws(home: Path) -> Workspace:
    return Workspace.open(home)


def test_it_is_made_where_it_is_asked_for(home, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "from environment"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert Workspace.open(home).home == home
    assert sorted(p.name for p in home.iterdir()) == sorted(FOLDERS)
    assert Workspace.open().home == tmp_path / "from environment"
    monkeypatch.delenv("STUDIO_HOME")
    assert Workspace.open().home.name == "lora-studio"


def test_a_place_that_cannot_be_a_workspace_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"is a file, not a folder. give another --home"):
        Workspace.open(tmp_path / "file")
    with pytest.raises(BadInput, match=r"cannot be used as a workspace .not a directory.. give a folder"):
        Workspace.open(tmp_path / "file" / "below")
    with pytest.raises(BadInput, match=r"cannot be used as a workspace"):
        Workspace.open(Path("/proc/nothing"))


def test_the_pocket_base_is_there_and_moves_with_the_package(ws):
    pocket = ws.catalog.get(Base, POCKET)
    assert (pocket.family, pocket.kind, pocket.builtin, len(pocket.weight_hash)) == (
        "sd15",
        "folder",
        True,
        64,
    )
    assert not pocket.location.startswith("/")
    assert (ws.resolve(pocket.location) / "model_index.json").is_file()
    again = Workspace.open(ws.home).catalog.list(Base)
    assert [base for base in again if base.name == POCKET] == [pocket], "registered once"


def test_pocket_bases_of_other_families_are_there_when_their_files_are(home, tmp_path, monkeypatch):
    for name in ("pocket-xl", "pocket-flux"):
        (tmp_path / name).mkdir()
    (tmp_path / "pocket-xl" / "model_index.json").write_text("{}")
    packaged = {name: tmp_path / name for name in ("pocket-xl", "pocket-flux")}
    monkeypatch.setattr("studio.workspace.PACKAGED", packaged)
    (base,) = Workspace.open(home).catalog.list(Base)
    assert (base.name, base.family, base.builtin, base.location) == (
        "pocket-xl",
        "sdxl",
        True,
        "package:pocket-xl",
    )


def test_an_update_of_the_package_brings_its_new_weights(ws, tmp_path, monkeypatch):
    old = ws.catalog.get(Base, POCKET)
    shutil.copytree(ws.resolve(old.location), tmp_path / "new")
    (tmp_path / "new" / "unet" / "config.json").write_text("{}")
    monkeypatch.setattr("studio.workspace.PACKAGED", {POCKET: tmp_path / "new"})
    new = Workspace.open(ws.home).catalog.get(Base, POCKET)
    assert new.id == old.id
    assert new.weight_hash != old.weight_hash


def test_a_pocket_that_a_person_replaced_is_left_alone(ws):
    catalog = ws.catalog
    catalog.update(Base, catalog.get(Base, POCKET).id, builtin=False, location="/mine")
    assert Workspace.open(ws.home).catalog.get(Base, POCKET).location == "/mine"


def test_paths_are_written_so_that_the_workspace_can_move(ws, home, tmp_path):
    assert ws.relative(home / "adapters" / "x.safetensors") == "adapters/x.safetensors"
    assert ws.relative(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")
    assert ws.resolve("adapters/x.safetensors") == home / "adapters" / "x.safetensors"
    assert ws.resolve("/models/base") == Path("/models/base")
    for path in ("../other", "a/../../other"):
        with pytest.raises(BadInput, match=r"leaves the workspace"):
            ws.resolve(path)
    made = ws.catalog.add(records.adapter(path=ws.relative(home / "adapters" / "x")))
    ws.catalog.close()
    moved = Workspace.open(home.rename(tmp_path / "moved"))
    assert moved.resolve(moved.catalog.get(Adapter, made.id).path) == tmp_path / "moved" / "adapters" / "x"
    assert moved.run_dir("abc").path == tmp_path / "moved" / "runs" / "abc"


def test_a_linked_folder_is_still_inside(ws, home, tmp_path):
    (tmp_path / "disk").mkdir()
    (home / "bases").rmdir()
    (home / "bases").symlink_to(tmp_path / "disk")
    assert ws.relative(home / "bases" / "b") == "bases/b"
    assert ws.resolve("bases/b") == home / "bases" / "b"


def test_the_key_is_made_once_and_is_its_owners_alone(ws, home):
    assert len(ws.key) == 32
    assert Workspace.open(home).key == ws.key
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    assert Workspace.open(home.parent / "other").key != ws.key
    (home / "key").write_text("short")
    with pytest.raises(Damaged, match=r"is not the key that was written"):
        _ = Workspace.open(home).key


def test_many_who_come_at_once_get_one_key_and_one_pocket(home):
    found: list[tuple[bytes, str]] = []
    start = threading.Barrier(6)

    def arrive():
        start.wait()
        ws = Workspace.open(home)
        found.append((ws.key, ws.catalog.get(Base, POCKET).id))

    threads = [threading.Thread(target=arrive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_two_holders_are_refused_with_the_name_of_the_first(ws, home):
    assert ws.holder() is None
    with ws.hold("worker"):
        holder = Workspace.open(home).holder()
        assert holder is not None
        assert (holder["owner"], holder["pid"]) == ("worker", os.getpid())
        with (
            pytest.raises(
                WorkspaceBusy, match=rf"is held by worker \(process {os.getpid()} on .* UTC\). stop"
            ),
            Workspace.open(home).hold("second"),
        ):
            pass
    assert ws.holder() is None
    with Workspace.open(home).hold("second"):
        pass


HOLDS = """
import sys, time
from pathlib import Path
from studio.workspace import Workspace
with Workspace.open(Path(sys.argv[1])).hold("first"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.fault
def test_the_lock_of_a_killed_holder_is_free_at_once(ws, home):
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(home)], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"held\n"
    assert ws.holder()["pid"] == first.pid
    with pytest.raises(WorkspaceBusy, match=r"is held by first"), ws.hold("second"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert ws.holder() is None, "what is written in the file does not count"
    assert json.loads((home / "workspace.lock").read_text())["pid"] == first.pid
    with ws.hold("second"):
        assert ws.holder()["owner"] == "second"


def test_asking_for_the_holder_never_gets_in_the_way(ws, home):
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            ws.holder()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(20):
            with ws.hold("worker"):
                pass
    finally:
        stop.set()
        asker.join()


def test_holding_sweeps_empties_old_trash_and_backs_up(ws, home):
    left = home / "adapters" / ".a.safetensors.999999-0123abcd.partial"
    left.write_text("half")
    os.utime(left, (1, 1))
    (home / "runs" / "r" / "checkpoints" / "step-000001.partial").mkdir(parents=True)
    (home / "doomed").write_text("x")
    ws.trash.put(home / "doomed", "old")
    slip = home / "trash" / "old" / "trashed.json"
    slip.write_text(json.dumps({"name": "doomed", "time": (now() - timedelta(days=31)).isoformat()}))
    with ws.hold("worker"):
        assert not left.exists()
        assert not (home / "trash" / "old").exists()
        assert (home / "runs" / "r" / "checkpoints" / "step-000001.partial").exists(), (
            "a trainer may be writing it"
        )
        wait_for(lambda: list((home / "backups").glob("catalog-*.sqlite")))
    with ws.hold("worker"):
        time.sleep(0.1)
    assert len(list((home / "backups").iterdir())) == 1, "once an hour"


def test_backups_go_on_and_old_ones_go(ws, home):
    folder = home / "backups"
    with Backups(ws.catalog, folder, keep=2, every=timedelta(seconds=0.05)):
        wait_for(lambda: len(list(folder.iterdir())) == 2)
        first = min(folder.iterdir())
        wait_for(lambda: not first.exists())
    assert not list(folder.glob("*.partial"))


def test_a_backup_that_fails_is_said_and_stops_nothing(ws, home, caplog):
    shutil.rmtree(home / "backups")
    (home / "backups").write_text("in the way")
    with Backups(ws.catalog, home / "backups", keep=2, every=timedelta(seconds=0.02)):
        wait_for(lambda: "no backup was made" in caplog.text)


def wait_for(condition, seconds=10):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def test_rows_and_files_that_do_not_match_are_found(ws, home):
    assert orphans(ws) == []
    catalog = ws.catalog
    base = catalog.add(records.base(location="bases/gone"))
    run = catalog.add(records.run(base.id))
    lost = catalog.add(records.adapter(1, run_id=run.id))
    kept = catalog.add(records.adapter(2))
    trashed = catalog.add(records.adapter(3, trashed_at=now()))
    stray = home / "adapters" / "stray.safetensors"
    for path in (home / kept.path, stray):
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    (home / "adapters" / "young.safetensors").write_bytes(b"its row is on the way")
    sample = catalog.add(Sample(base_id=base.id, request={}, files=("samples/s/000.png",),
                                adapters=(AdapterUse(adapter_id=lost.id),)))  # fmt: skip
    (home / "samples" / "stray").mkdir()
    os.utime(home / "samples" / "stray", (1, 1))
    dataset = catalog.add_dataset(
        records.Dataset(name="d"), [records.image(blob=ws.blobs.put(b"here")), records.image(7)]
    )
    found = {(o.kind, o.id if o.kind != "picture" else o.path.name) for o in orphans(ws)}
    assert found == {
        ("base", base.id),
        ("run", run.id),
        ("adapter", lost.id),
        ("adapter", "stray"),
        ("sample", sample.id),
        ("sample", "stray"),
        ("picture", f"{7:064x}"),
    }
    assert trashed.id
    assert dataset.image_count == 2
    assert stray.exists(), "nothing is deleted"
    assert catalog.count(Run) == 1


def test_a_workspace_on_a_read_only_disk_can_be_read(home, tmp_path):
    ws = Workspace.open(home)
    ws.catalog.add(records.adapter(name="kept"))
    ws.catalog.close()
    script = f"""
from pathlib import Path
from registry.errors import StudioError
from registry.records import Adapter
from studio.workspace import Workspace
import os
try:
    open({str(home / "x")!r}, "w")
except OSError as error:
    assert error.errno == 30, error
else:
    raise SystemExit("the disk can be written")
ws = Workspace.open(Path({str(home)!r}))
assert ws.catalog.read_only
assert ws.catalog.get(Adapter, "kept").name == "kept"
for action in (lambda: ws.catalog.delete(Adapter, "x"), lambda: ws.key, lambda: ws.hold("w").__enter__()):
    try:
        action()
    except StudioError as error:
        print(error)
"""
    mount = f'mount --bind {home} {home} && mount -o remount,ro,bind {home} && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, script],
        capture_output=True,
        text=True,
        cwd=Path.cwd(),
        check=False,
    )
    if (done.returncode and "unshare" in done.stderr) or "mount:" in done.stderr:
        pytest.skip("needs the right to mount")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "is read-only" in lines[0]
    assert all("read-only" in line for line in lines), lines
    with pytest.raises(StudioError):
        ws.catalog.get(Adapter, "nobody")
