"""The worker's child takes files in; watched folders; the commands."""

import json
import os
import time

import pytest

from registry.errors import BadInput, NotFound
from registry.records import Adapter, FileState, Job, JobKind, JobState, Watch
from studio.cli import run
from studio.imports import submit as imports
from studio.imports import watch
from studio.imports.watch import Watcher
from studio.runs import chores
from studio.runs.chores import Chores
from tests.support.imports import finish, write_adapter
from tests.support.supervision import make_worker, until


def old(path):
    """As if it had been written a while ago."""
    os.utime(path, (time.time() - 60, time.time() - 60))
    return path


def test_the_worker_does_imports_and_checks(ws, folder):
    write_adapter(folder / "a.safetensors")
    job = imports.submit(ws, [folder])
    check = imports.submit_check(ws)
    make_worker(ws).run(once=True)
    report = imports.report(ws, job)
    assert (report.state, report.listed, report.hashed) == ("done", 1, 1)
    assert imports.check_report(ws, check).counts == {"ok": 1}
    assert not list((ws.home / "cache" / "imports").glob("*.json")), "progress is in the job now"


def test_a_worker_that_ends_gives_the_import_back(ws, folder):
    write_adapter(folder / "a.safetensors")
    job = imports.submit(ws, [folder])
    hands = Chores(ws, owner="me", lease=60)
    hands.tick((JobKind.IMPORT,))
    assert ws.catalog.get(Job, job.id).state is JobState.LEASED
    hands.close()
    assert ws.catalog.get(Job, job.id).state is JobState.QUEUED
    ws.catalog.update(Job, job.id, state=JobState.LEASED, owner="dead", attempts=9)
    make_worker(ws).run(once=True)
    assert imports.report(ws, job).listed == 1, "the deaths of workers are not the import's fault"


def test_an_import_is_called_off(ws, folder):
    job = imports.submit(ws, [folder])
    hands = Chores(ws, owner="me", lease=60)
    hands.tick((JobKind.IMPORT,))
    imports.cancel(ws, job)
    hands.tick((JobKind.IMPORT,))
    assert ws.catalog.get(Job, job.id).state is JobState.CANCELLED
    hands.close()


def test_a_child_that_always_dies_is_given_up(ws, folder, monkeypatch):
    monkeypatch.setattr(chores.sys, "executable", "/bin/false")
    job = imports.submit(ws, [folder])
    hands = Chores(ws, owner="me", lease=60)
    until(lambda: bool(hands.tick((JobKind.IMPORT,))) or imports.report(ws, job).state == "failed")
    assert ws.catalog.get(Job, job.id).state is JobState.FAILED


def test_a_killed_child_is_replaced(ws, folder):
    write_adapter(folder / "a.safetensors")
    job = imports.submit(ws, [folder])
    hands = Chores(ws, owner="me", lease=60)
    hands.tick((JobKind.IMPORT,))
    assert hands.pid is not None
    first = hands.pid
    os.kill(first, 9)
    until(lambda: bool(hands.tick((JobKind.IMPORT,))) or imports.report(ws, job).state == "done", 60)
    assert imports.report(ws, job).listed == 1


def test_a_watched_folder_is_looked_at_and_looked_at_again_when_it_changes(ws, folder):
    old(write_adapter(folder / "a.safetensors", 1))
    made = watch.add(ws, folder)
    watcher = Watcher(ws, every=0)

    def next_import():
        watcher.tick()
        waiting = ws.catalog.list(Job, kind=JobKind.IMPORT, state=JobState.QUEUED)
        return finish(ws, waiting[0]) if waiting else None

    assert next_import().listed == 1
    assert ws.catalog.get(Watch, made.id).scanned_at is not None
    assert next_import() is None, "nothing has changed"
    (folder / "deep").mkdir()
    assert next_import().files == 1
    write_adapter(folder / "deep" / "b.safetensors", 2)
    assert next_import().unsettled == 1, "it may still be growing"
    old(folder / "deep" / "b.safetensors")
    assert next_import().listed == 1
    assert next_import() is None
    folder.rename(folder.parent / "away")
    assert next_import() is None
    assert ws.catalog.get(Watch, made.id).note == "the folder is not there"
    (folder.parent / "away").rename(folder)
    assert next_import().known == 2
    assert ws.catalog.get(Watch, made.id).note == ""
    watch.remove(ws, folder)
    assert ws.catalog.list(Watch) == []


def test_an_import_that_an_earlier_worker_queued_is_not_queued_twice(ws, folder):
    watch.add(ws, folder)
    Watcher(ws, every=0).tick()
    Watcher(ws, every=0).tick()
    assert len(ws.catalog.list(Job, kind=JobKind.IMPORT)) == 1


def test_what_cannot_be_watched(ws, folder):
    with pytest.raises(BadInput, match="is not a folder"):
        watch.add(ws, write_adapter(folder / "a.safetensors"))
    with pytest.raises(BadInput, match="part of the workspace"):
        watch.add(ws, ws.home / "adapters")
    with pytest.raises(BadInput, match="or holds it"):
        watch.add(ws, ws.home.parent)
    with pytest.raises(NotFound, match="does not exist"):
        watch.add(ws, folder / "no")
    watch.add(ws, folder)
    with pytest.raises(BadInput, match="is watched already"):
        watch.add(ws, folder)
    with pytest.raises(NotFound, match="is not watched"):
        watch.remove(ws, folder / "other")


def studio(capsys, ws, *words):
    code = run(["--home", str(ws.home), *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_import_at_the_command_line(capsys, ws, folder):
    write_adapter(folder / "a.safetensors", 1)
    write_adapter(folder / "twin.safetensors", 1)
    (folder / "x.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 60)
    code, out, err = studio(capsys, ws, "adapters", "import", folder, "--tag", "comfy", "--wait")
    assert (code, out) == (0, "1 taken in, 1 duplicate, 1 refused.\n")
    assert f"refused {folder / 'x.ckpt'}: is a zip archive" in err
    assert f"duplicate {folder / 'twin.safetensors'}: is a" in err
    code, out, _ = studio(capsys, ws, "--json", "adapters", "show", "a")
    shown = json.loads(out)
    assert (shown["file_state"], shown["tags"]) == ("ok", ["comfy"])
    assert shown["identified"]["confidence"] == "high"
    code, out, err = studio(capsys, ws, "--json", "adapters", "import", folder / "x.ckpt")
    assert (code, json.loads(out)["counts"]) == (2, {"bad": 1})
    code, _, err = studio(capsys, ws, "adapters", "import", "")
    assert (code, err) == (2, "error: path: is empty. name a file or a folder.\n")
    code, _, err = studio(capsys, ws, "adapters", "import", folder / "none")
    assert code == 2
    assert err.startswith("error: ")


def test_verify_all_and_set_family_at_the_command_line(capsys, ws, folder):
    file = write_adapter(folder / "a.safetensors", 1)
    studio(capsys, ws, "adapters", "import", folder)
    assert studio(capsys, ws, "adapters", "verify", "--all")[:2] == (0, "1 looked at: 1 ok.\n")
    file.unlink()
    code, out, err = studio(capsys, ws, "adapters", "verify", "--all")
    assert (code, out) == (1, "1 looked at: 1 missing.\n")
    assert f"missing a: {file}" in err
    assert ws.catalog.get(Adapter, "a").file_state is FileState.MISSING
    assert studio(capsys, ws, "adapters", "verify")[0] == 2
    assert studio(capsys, ws, "adapters", "verify", "a", "--all")[0] == 2, "which of the two is meant?"
    assert studio(capsys, ws, "adapters", "set-family", "a", "sdxl")[0] == 0
    row = ws.catalog.get(Adapter, "a")
    assert (row.family, row.metadata["identified"]["reason"]) == ("sdxl", "set by hand")
    assert studio(capsys, ws, "adapters", "set-family", "a", "sd99")[0] == 2


def test_watch_at_the_command_line(capsys, ws, folder):
    assert studio(capsys, ws, "adapters", "watch", "add", folder)[0] == 0
    _, out, _ = studio(capsys, ws, "--json", "adapters", "watch", "list")
    assert [item["path"] for item in json.loads(out)] == [str(folder)]
    assert studio(capsys, ws, "adapters", "watch", "remove", folder)[0] == 0
    assert studio(capsys, ws, "adapters", "watch", "remove", folder)[0] == 2
