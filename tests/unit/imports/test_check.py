"""Files that were moved, deleted, edited or damaged: found, and said."""

import os
import shutil

import pytest

from registry.formats.header import read_header
from registry.formats.tensors import read_tensors, save
from registry.records import Adapter, FileState
from studio.adapter_files import verify
from studio.imports import submit as imports
from studio.imports.task import perform
from studio.workspace import Workspace
from tests.support.imports import look_after, take_in, write_adapter


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "loras"


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def states(ws):
    return {adapter.name: str(adapter.file_state) for adapter in ws.catalog.list(Adapter)}


def test_moved_deleted_flipped_edited(ws, folder):
    for number, name in enumerate(("moved", "deleted", "flipped", "edited", "fine")):
        write_adapter(folder / f"{name}.safetensors", number)
    take_in(ws, folder)
    elsewhere = folder.parent / "elsewhere" / "deep" / "other name.safetensors"
    elsewhere.parent.mkdir(parents=True)
    (folder / "moved.safetensors").rename(elsewhere)
    (folder / "deleted.safetensors").unlink()
    flip_a_bit(folder / "flipped.safetensors")
    edited = folder / "edited.safetensors"
    save(edited, read_tensors(edited), read_header(edited).metadata | {"ss_comment": "new"})
    report = look_after(ws, folders=[folder.parent / "elsewhere"])
    assert states(ws) == {
        "moved": "ok", "deleted": "missing", "flipped": "changed", "edited": "edited", "fine": "ok",
    }  # fmt: skip
    assert report.relinked == [("moved", str(elsewhere))]
    assert report.missing == [("deleted", str(folder / "deleted.safetensors"))]
    assert report.changed[0][0] == "flipped"
    assert report.counts == {"missing": 1, "changed": 1, "edited": 1, "ok": 1, "relinked": 1}
    assert ws.catalog.get(Adapter, "moved").path == str(elsewhere)
    assert all(adapter.checked_at is not None for adapter in ws.catalog.list(Adapter))


def test_the_whole_workspace_moves(ws, folder):
    for number in range(3):
        write_adapter(folder / f"{number}.safetensors", number)
    take_in(ws, folder, copy=True)
    ws.catalog.close()
    shutil.rmtree(folder)
    moved = Workspace.open(ws.home.rename(ws.home.parent / "new home"))
    report = look_after(moved, full=True)
    assert report.counts == {"ok": 3}
    assert all(verify(moved, adapter.id).state == "ok" for adapter in moved.catalog.list(Adapter))


def test_a_flip_that_keeps_the_time_is_seen_by_a_full_look_only(ws, folder):
    file = write_adapter(folder / "a.safetensors")
    take_in(ws, folder)
    time = file.stat().st_mtime_ns
    flip_a_bit(file)
    os.utime(file, ns=(time, time))
    assert look_after(ws).counts == {"ok": 1}
    assert look_after(ws, full=True).counts == {"changed": 1}
    again = look_after(ws)
    assert again.counts == {"changed": 1}, "what is known to be changed stays so, without reading"
    assert "its weights are not those that were registered" in again.changed[0][1]
    assert "put the original back" in again.changed[0][1]
    flip_a_bit(file)
    os.utime(file, ns=(time + 1, time + 1))
    assert look_after(ws).counts == {"ok": 1}, "the original is back"


def test_only_what_was_touched_is_read(ws, folder, monkeypatch):
    for number in range(3):
        write_adapter(folder / f"{number}.safetensors", number)
    take_in(ws, folder)
    os.utime(folder / "1.safetensors", ns=(7, 7))
    read = []
    from studio import adapter_files

    real = adapter_files.hash_adapter
    monkeypatch.setattr(adapter_files, "hash_adapter", lambda path: (read.append(path.name), real(path))[1])
    assert look_after(ws).counts == {"ok": 3}
    assert read == ["1.safetensors"]
    assert look_after(ws).counts == {"ok": 3}
    assert read == ["1.safetensors"]


def test_only_files_of_the_right_size_are_read_in_the_search(ws, folder, monkeypatch):
    from studio.imports import check

    file = write_adapter(folder / "a.safetensors")
    take_in(ws, folder)
    shop = folder.parent / "shop"
    shop.mkdir()
    file.rename(shop / "there.safetensors")
    (shop / "larger.safetensors").write_bytes(b"0" * 999_999)
    read = []
    real = check.hash_adapter
    monkeypatch.setattr(check, "hash_adapter", lambda path: (read.append(path.name), real(path))[1])
    assert look_after(ws, folders=[shop]).counts["relinked"] == 1
    assert read == ["there.safetensors"]


def test_a_missing_file_that_comes_back_is_ok(ws, folder):
    file = write_adapter(folder / "a.safetensors")
    take_in(ws, folder)
    kept = file.rename(folder.parent / "kept")
    assert look_after(ws).counts["missing"] == 1
    kept.rename(file)
    assert look_after(ws).counts == {"ok": 1}
    assert ws.catalog.get(Adapter, "a").file_state is FileState.OK


def test_one_adapter_is_verified_and_its_row_says_so(ws, folder):
    file = write_adapter(folder / "a.safetensors")
    take_in(ws, folder)
    file.unlink()
    assert verify(ws, "a").state == "missing"
    assert ws.catalog.get(Adapter, "a").file_state is FileState.MISSING


def test_listed_ones_that_are_unsound_are_told_and_nobody_is_left_out(ws, folder, monkeypatch):
    for number in range(5):
        write_adapter(folder / f"{number}.safetensors", number)
    job = imports.submit(ws, [folder])
    with monkeypatch.context() as patch:
        patch.setattr("studio.imports.task.Taker.take", lambda _self, _item: None)
        perform(ws, job)
    (folder / "0.safetensors").write_bytes(b"no longer an adapter")
    monkeypatch.setattr("studio.imports.check.PAGE", 2)
    report = look_after(ws)
    assert states(ws) == {str(number): "ok" for number in range(1, 5)}
    assert report.done == 5
    assert report.changed[0][0] == "0"
    assert "taken out of the catalog" in report.changed[0][1]
