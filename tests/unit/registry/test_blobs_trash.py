"""Blobs are kept once; the trash gives back what it was given."""

import errno
import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import trash as trash_module
from registry.blobs import Blobs
from registry.errors import BadInput, NotFound, StudioError
from registry.records import now
from registry.trash import Trash


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(data=st.binary(max_size=100))
def test_bytes_and_files_come_back_by_hash(tmp_path, data):
    blobs = Blobs(tmp_path / "blobs")
    name = blobs.put(data)
    assert name == hashlib.sha256(data).hexdigest()
    assert blobs.has(name)
    assert blobs.path(name).read_bytes() == data
    source = tmp_path / "source"
    source.write_bytes(data)
    assert blobs.put(source) == name
    assert list((tmp_path / "blobs").rglob("*.partial")) == []


def test_a_large_file_is_copied_and_the_source_stays(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"ab" * 2_000_000)
    blobs = Blobs(tmp_path / "blobs")
    name = blobs.put(source)
    assert blobs.path(name).read_bytes() == source.read_bytes()
    assert blobs.path(name).parent.name == name[:2]


def test_a_blob_that_was_cut_off_is_written_again(tmp_path):
    blobs = Blobs(tmp_path)
    path = blobs.path(blobs.put(b"12345"))
    path.write_bytes(b"123")
    blobs.put(b"12345")
    assert path.read_bytes() == b"12345"


@pytest.mark.parametrize("name", ["", "..", "a" * 63, "A" * 64, "../" + "a" * 61, "g" * 64])
def test_only_hashes_are_names_of_blobs(tmp_path, name):
    with pytest.raises(BadInput, match=r"is not a sha256"):
        Blobs(tmp_path).path(name)


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(StudioError, match=r"gone.png: cannot be read"):
        Blobs(tmp_path / "blobs").put(tmp_path / "gone.png")


@pytest.fixture
def trash(tmp_path: Path) -> Trash:
    return Trash(tmp_path / "trash")


def test_a_file_goes_and_comes_back(trash, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_text("1")
    kept = trash.put(file, "id1")
    assert not file.exists()
    assert kept.read_text() == "1"
    assert trash.restore("id1", tmp_path / "new" / "b.safetensors").read_text() == "1"
    with pytest.raises(NotFound, match=r"is not there"):
        trash.restore("id1", tmp_path / "c")


def test_a_folder_goes_and_comes_back(trash, tmp_path):
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "f").write_text("1")
    trash.put(folder, "id1")
    trash.restore("id1", folder)
    assert (folder / "sub" / "f").read_text() == "1"
    assert list(trash.root.iterdir()) == []


def test_restore_does_not_overwrite(trash, tmp_path):
    file = tmp_path / "a"
    file.write_text("old")
    trash.put(file, "id1")
    file.write_text("new")
    with pytest.raises(BadInput, match=r"exists already"):
        trash.restore("id1", file)
    assert file.read_text() == "new"
    assert trash.restore("id1", tmp_path / "b").read_text() == "old"


def test_a_relative_link_goes_and_comes_back(trash, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("1")
    link = tmp_path / "links" / "a"
    link.parent.mkdir()
    link.symlink_to("../real/a")
    trash.put(link, "id1")
    assert not link.is_symlink()
    assert trash.restore("id1", link).read_text() == "1"
    assert link.is_symlink()


def test_a_second_delete_of_the_same_record_replaces_the_first(trash, tmp_path):
    for text in ("1", "2"):
        (tmp_path / "a").write_text(text)
        trash.put(tmp_path / "a", "id1")
    assert trash.restore("id1", tmp_path / "a").read_text() == "2"


def test_what_is_not_there_leaves_the_entry_alone(trash, tmp_path):
    (tmp_path / "a").write_text("1")
    trash.put(tmp_path / "a", "id1")
    with pytest.raises(NotFound, match=r"nothing was moved"):
        trash.put(tmp_path / "a", "id1")
    assert trash.restore("id1", tmp_path / "a").read_text() == "1"


def test_only_old_entries_are_emptied(trash, tmp_path, monkeypatch):
    for name, age in (("old", 40), ("young", 1)):
        (tmp_path / name).write_text(name)
        monkeypatch.setattr(trash_module, "now", lambda age=age: now() - timedelta(days=age))
        trash.put(tmp_path / name, name)
    monkeypatch.undo()
    assert trash.empty(older_than=timedelta(days=30)) == 1
    assert trash.restore("young", tmp_path / "young")
    (tmp_path / "young").rename(tmp_path / "again")
    trash.put(tmp_path / "again", "again")
    assert trash.empty() == 1
    assert list(trash.root.iterdir()) == []


def test_across_disks_the_copy_is_complete_before_the_original_goes(trash, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "f").write_text("1")
    rename = Path.rename

    def within(self, target):
        if self == folder and target.parent != self.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    def disk_is_full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(Path, "rename", within)
    with monkeypatch.context() as patch:
        patch.setattr(trash_module.shutil, "copytree", disk_is_full)
        with pytest.raises(StudioError, match=r"cannot be written .no space left.. free some space"):
            trash.put(folder, "id1")
    assert (folder / "f").read_text() == "1", "still where it was"
    assert list(trash.root.iterdir()) == []

    trash.put(folder, "id1")
    assert not folder.exists()
    assert (trash.restore("id1", folder) / "f").read_text() == "1"


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a" * 65])
def test_only_ids_are_names_of_entries(trash, tmp_path, name):
    with pytest.raises(BadInput, match=r"is no record id"):
        trash.put(tmp_path, name)
