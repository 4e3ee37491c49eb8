"""Files are the old ones or the new ones, whatever fails in between."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import files
from registry.errors import BadInput, Damaged, StudioError
from registry.files import (
    append_line,
    atomic_folder,
    atomic_path,
    atomic_write,
    check_name,
    file_stem,
    inside,
    read_json,
    require_space,
    sweep_temporaries,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, code):
    target = tmp_path / "f.json"
    write_json(target, {"old": 1})

    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    owner = {"open": Path, "fsync": os, "replace": Path}[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(StudioError, match=rf"f.json: cannot be written \({os.strerror(code).lower()}\)"):
            write_json(target, {"new": 1})
    assert read_json(target) == {"old": 1}
    assert names(tmp_path) == ["f.json"]
    write_json(target, {"new": 1})
    assert read_json(target) == {"new": 1}


def test_a_writer_that_raises_leaves_the_old_file(tmp_path):
    target = tmp_path / "f"
    atomic_write(target, "old")

    def writer():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        writer()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_folder_is_whole_or_not_there(tmp_path):
    target = tmp_path / "step-1"
    with atomic_folder(target) as work:
        (work / "sub").mkdir()
        (work / "sub" / "a").write_text("1")

    def writer():
        with atomic_folder(target) as work:
            (work / "a").write_text("2")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StudioError, match=r"no space left on device"):
        writer()
    assert (target / "sub" / "a").read_text() == "1"
    with atomic_folder(target) as work:
        (work / "b").write_text("3")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["step-1"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StudioError, match=r"cannot be written .file exists|not a directory."):
        atomic_write(tmp_path / "file" / "x", "1")


DIES = """
import os, sys
from pathlib import Path
from registry.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_the_sweep_takes_what_the_dead_left_and_spares_what_is_being_written(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", DIES, str(tmp_path / "deep" / "f")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout.readline() == b"ready\n"
    assert sweep_temporaries(tmp_path) == 0, "its writer lives"
    writer.communicate()
    (tmp_path / "step-1.partial").mkdir()
    (tmp_path / "step-1.partial" / "x").write_text("half")
    (tmp_path / "kept").write_text("1")
    assert sweep_temporaries(tmp_path) == 2
    assert names(tmp_path) == ["deep", "kept"]
    assert names(tmp_path / "deep") == []


def test_a_process_with_the_number_of_a_dead_one_does_not_protect_its_files(tmp_path):
    old = tmp_path / f".f.{os.getpid()}-0123abcd.partial"
    old.write_text("half")
    os.utime(old, (1, 1))  # older than this process
    assert sweep_temporaries(tmp_path) == 1


def test_lines_are_appended_whole(tmp_path):
    for n in range(3):
        append_line(tmp_path / "m.jsonl", {"step": n, "text": "ä\n"})
    assert (tmp_path / "m.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize("content", [b"\xff{", b"[" * 100_000, b"9" * 10_000])
def test_json_that_is_none_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"x.json: is not JSON"):
        read_json(tmp_path / "x.json")


def test_space_is_asked_for_before_the_start(tmp_path):
    require_space(tmp_path / "not" / "yet", 1, "a run")
    with pytest.raises(StudioError, match=r"a run needs \d+ MiB, the disk has \d+ MiB free. free some space"):
        require_space(tmp_path, 2**60, "a run")


def test_a_little_that_is_needed_is_not_called_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("registry.files.shutil.disk_usage", lambda _: SimpleNamespace(free=2**20 - 1))
    with pytest.raises(StudioError, match="the export needs 2 MiB, the disk has 0 MiB free"):
        require_space(tmp_path, 2**20 + 1, "the export")


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../evil", "link/x"])
def test_nothing_leaves_its_folder(tmp_path, path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(BadInput, match=r"leaves its folder"):
        inside(tmp_path / "root", path)
    assert inside(tmp_path / "root", "a/../b") == tmp_path / "root" / "b"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "a/b",
        "a\\b",
        "CON",
        "nul.txt",
        "x" * 300,
        "a\u202eb",
        "a\nb",
        "a\0b",
        "\ud800",
        "a ",
        " a",
    ],
)
def test_bad_names_are_refused(name):
    with pytest.raises(BadInput, match=r"use 1 to 100|another name|leave the space out"):
        check_name(name)


@pytest.mark.parametrize("name", ["Lena", "my style 2.0", "Ärger-ж_東", "{__class__}", "100%"])
def test_good_names_pass(name):
    assert check_name(name) == name


@given(st.text())
def test_a_stem_is_safe_whatever_the_name(name):
    stem = file_stem(name)
    assert 0 < len(stem.encode()) <= 101
    assert set(stem) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert stem.strip(".")
    assert file_stem(stem) == stem
    assert stem.split(".")[0].upper() not in files._RESERVED
