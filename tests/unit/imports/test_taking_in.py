"""Files and folders become rows: what is taken, what is refused, what is known already."""

import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image as Pixels
from safetensors.numpy import save_file

from registry.errors import BadInput, NotFound
from registry.records import Adapter, FileState, Job
from studio.adapter_files import settled
from studio.adapters import export, restore, trash
from studio.imports import submit as imports
from studio.imports.describers import Describers
from studio.imports.scan import look
from studio.imports.task import perform
from tests.support.imports import bad_files, finish, take_in, write_adapter


def names(ws):
    return sorted(adapter.name for adapter in ws.catalog.list(Adapter))


def test_a_folder_is_taken_in_where_it_is(ws, folder):
    first = write_adapter(folder / "a.safetensors", 1)
    write_adapter(folder / "styles" / "b.safetensors", 2)
    write_adapter(folder / ".hidden" / "c.safetensors", 3)
    write_adapter(folder / "styles" / ".d.safetensors", 4)
    (folder / "styles" / "loop").symlink_to(folder)
    (folder / "readme.txt").write_text("hello")
    report = take_in(ws, folder, tags=["comfy"])
    assert (report.files, report.listed, report.hashed, report.known) == (2, 2, 2, 0)
    assert names(ws) == ["a", "b"]
    row = ws.catalog.get(Adapter, "a")
    assert (row.path, row.source, row.origin) == (str(first), str(first), "import")
    assert (row.family, row.method, row.rank, row.tags) == ("sd15", "lora", 4, ("comfy",))
    assert row.metadata["identified"] == {"confidence": "high", "reason": "cross-attention reads 768 values"}
    assert (row.file_state, len(row.tensor_sha256), len(row.file_sha256)) == (FileState.OK, 64, 64)
    assert row.checked_at is not None
    again = take_in(ws, folder, tags=["more"])
    assert (again.listed, again.known, again.hashed, again.bytes_total) == (0, 2, 0, 0)
    assert ws.catalog.get(Adapter, "a").tags == ("comfy", "more")


def test_rows_appear_before_anything_is_hashed(ws, folder, monkeypatch):
    write_adapter(folder / "a.safetensors")
    seen = []

    def look(path):
        seen.extend(ws.catalog.list(Adapter))
        raise BadInput(str(path), "stop here", "now")

    monkeypatch.setattr("studio.imports.taking.hash_adapter", look)
    take_in(ws, folder)
    assert [(row.name, row.file_state, row.tensor_sha256) for row in seen] == [("a", FileState.NEW, "")]


def test_a_copy_is_ours_and_the_original_may_go(ws, folder):
    source = write_adapter(folder / "a.safetensors")
    report = take_in(ws, source, copy=True)
    assert (report.listed, report.hashed) == (1, 1)
    row = ws.catalog.get(Adapter, "a")
    assert row.path == f"adapters/{row.id}.safetensors"
    assert ws.resolve(row.path).read_bytes() == source.read_bytes()
    assert row.source == str(source)
    again = take_in(ws, folder, copy=True)
    assert (again.listed, again.known) == (0, 1)
    shutil.rmtree(folder)
    assert settled(ws, row) == row


def test_an_upload_leaves_the_inbox_when_it_is_kept(ws, folder):
    data = write_adapter(folder / "a.safetensors").read_bytes()
    path = imports.upload(ws, "../../ink\u202e style.safetensors", io.BytesIO(data))
    assert path.is_relative_to(ws.home / "inbox")
    report = take_in(ws, path)
    row = ws.catalog.get(Adapter, "ink style")
    assert report.listed == 1
    assert ws.resolve(row.path).read_bytes() == data
    assert list((ws.home / "inbox").iterdir()) == []
    refused = take_in(ws, imports.upload(ws, "x.pt", io.BytesIO(b"PK\x03\x04" + b"0" * 60)))
    assert "can run code; not loaded" in refused.bad[0][1]
    assert len(ws.catalog.list(Adapter)) == 1


@pytest.mark.parametrize("name", bad_files())
def test_a_bad_file_gets_its_line_and_no_row(ws, folder, name):
    data, wanted = bad_files()[name]
    file = folder / f"{name}.safetensors"
    file.write_bytes(data)
    write_adapter(folder / "z-good.safetensors")
    started = time.process_time()
    report = take_in(ws, folder)
    assert time.process_time() - started < 1.0
    assert [item[0] for item in report.bad] == [str(file)]
    assert wanted in report.bad[0][1]
    assert "\n" not in report.bad[0][1]
    assert names(ws) == ["z-good"], "one bad file never stops the rest"
    assert take_in(ws, folder).bad == report.bad, "it is refused again, and not read again"


MEMORY = """
import re, sys
from pathlib import Path
from studio.workspace import Workspace
from tests.support.imports import take_in
ws = Workspace.open(Path(sys.argv[1]))
report = take_in(ws, sys.argv[2])
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(report.count("bad"), report.listed, int(peak[1]) // 1024)
"""


def test_all_bad_files_together_stay_below_200_mb(tmp_path, folder):
    for name, (data, _) in bad_files().items():
        (folder / f"{name}.safetensors").write_bytes(data)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "home"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bad, listed, peak = map(int, done.stdout.split())
    assert (bad, listed) == (len(bad_files()), 0)
    assert peak < 200, f"{peak} MiB"


def test_weights_of_another_kind_are_refused_by_name_and_odd_files_are_told(ws, folder):
    (folder / "old.ckpt").write_bytes(b"PK\x03\x04" + b"\0" * 90)
    (folder / "old.pt").write_bytes(b"\x80\x02" + b"\0" * 90)
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    (folder / "round.safetensors").symlink_to(folder / "round.safetensors")
    (folder / "b\udcff.safetensors").write_bytes(b"")
    report = take_in(ws, folder)
    lines = " ".join(line for _, line in report.bad)
    assert report.count("bad") == 5
    for words in ("zip archive", "is a pickle", "is a link to nothing", "is a link in a circle", "not UTF-8"):
        assert words in lines
    with pytest.raises(NotFound, match="does not exist"):
        imports.submit(ws, [folder / "nothing"])
    with pytest.raises(BadInput, match="nothing to take in"):
        imports.submit(ws, [])


def test_what_is_refused_or_known_is_not_called_unidentified_as_well(ws, folder):
    for name, value in (("odd", 1.0), ("twin", 1.0), ("broken", np.nan)):
        up = np.full((100, 4), value, np.float32)
        file = folder / f"{name}.safetensors"
        save_file({"x.lora_down.weight": up.T.copy(), "x.lora_up.weight": up}, file)
    report = take_in(ws, folder)
    said = "1 taken in, 1 duplicate, 1 refused, 1 unidentified."
    assert (report.summary(), len(report.unidentified)) == (said, 1)
    assert "use another version of it" in report.bad[0][1]


def test_what_is_unidentified_is_taken_in_with_the_reason(ws, folder):
    down = np.ones((4, 100), np.float32)
    save_file({"x.lora_down.weight": down, "x.lora_up.weight": down.T.copy()}, folder / "odd.safetensors")
    report = take_in(ws, folder)
    row = ws.catalog.get(Adapter, "odd")
    assert (row.family, row.metadata["identified"]["confidence"]) == ("", "none")
    assert report.unidentified == [(str(folder / "odd.safetensors"), row.metadata["identified"]["reason"])]
    assert "unidentified" in report.unidentified[0][1]


def test_everything_that_the_metadata_says(ws, folder):
    frequency = {"10_cat": {"red hat": 3, "cat\x1b[31m": 9}, "5_dog": {"red hat": 9}, "odd": [1]}
    write_adapter(
        folder / "x.safetensors", 1,
        **{
            "modelspec.title": "Ink / wash\u202e", "modelspec.license": "CC-BY-4.0", "ss_output_name": "no",
            "modelspec.tags": "style, ink", "modelspec.trigger_phrase": "inkwash, <lora>",
            "modelspec.description": "<b>Soft</b> edges<br>and <script>x</script>wet",
            "ss_tag_frequency": json.dumps(frequency), "ss_sd_model_name": "base.safetensors",
        },
    )  # fmt: skip
    take_in(ws, folder)
    row = ws.catalog.get(Adapter, "Ink wash")
    assert (row.licence, row.tags) == ("CC-BY-4.0", ("style", "ink"))
    assert row.trigger_words == ("inkwash", "<lora>")
    assert row.keywords == "red hat, cat [31m"
    assert row.metadata["base_name"] == "base.safetensors"
    assert row.note.startswith("Soft edges")
    assert "<" not in row.note


@pytest.mark.parametrize("value", ["{", "[1]", "{}", json.dumps({"a": {"t": "x"}}), "[" * 100_000])
def test_damaged_metadata_costs_nothing(ws, folder, value):
    write_adapter(folder / "x.safetensors", 1, ss_tag_frequency=value, ss_datasets=value)
    assert take_in(ws, folder).listed == 1


def test_names_are_made_different(ws, folder):
    for number in range(3):
        write_adapter(folder / str(number) / "same.safetensors", number)
    for number, stem in enumerate(("pytorch_lora_weights", "adapter_model")):
        write_adapter(folder / f"folder {number}" / f"{stem}.safetensors", 10 + number)
    write_adapter(folder / "CON.safetensors", 20)
    take_in(ws, folder)
    assert names(ws) == ["_CON", "folder 0", "folder 1", "same", "same 2", "same 3"]


def test_the_same_weights_are_one_adapter(ws, folder):
    write_adapter(folder / "a.safetensors", 1)
    write_adapter(folder / "b.safetensors", 1, ss_comment="other metadata")
    report = take_in(ws, folder, tags=["x"])
    assert names(ws) == ["a"]
    assert report.duplicates == [(str(folder / "b.safetensors"), "a")]
    assert (report.listed, report.hashed) == (1, 1)
    again = take_in(ws, folder, tags=["y"])
    assert (again.known, again.listed, again.bytes_total) == (2, 0, 0), "the duplicate is not read again"


def test_a_file_whose_adapter_had_lost_its_own_is_taken_for_it(ws, folder):
    old = write_adapter(folder / "a.safetensors", 1)
    take_in(ws, folder)
    row = ws.catalog.update(Adapter, ws.catalog.get(Adapter, "a").id, rating=5)
    (folder / "new").mkdir()
    moved = old.rename(folder / "new" / "renamed.safetensors")
    report = take_in(ws, folder)
    assert report.moved == [(str(moved), "a")]
    assert [(a.id, a.rating, a.path) for a in ws.catalog.list(Adapter)] == [(row.id, 5, str(moved))]


def test_what_lies_in_the_trash_is_said(ws, folder):
    file = write_adapter(folder / "a.safetensors", 1)
    take_in(ws, folder)
    data = file.read_bytes()
    trash(ws, "a")
    assert not file.exists()
    file.write_bytes(data)
    report = take_in(ws, folder)
    assert "studio adapters restore" in report.notes[0][1]
    assert (report.listed, report.count("duplicates")) == (0, 1)
    file.unlink()
    assert restore(ws, "a").trashed_at is None
    trash(ws, "a")
    ws.trash.empty()
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    assert take_in(ws, folder).moved == [(str(file), "a")]
    assert ws.catalog.get(Adapter, "a").trashed_at is None


def test_a_listed_adapter_is_hashed_when_it_is_wanted(ws, folder, monkeypatch):
    write_adapter(folder / "a.safetensors", 1)
    job = imports.submit(ws, [folder])
    with monkeypatch.context() as patch:
        patch.setattr("studio.imports.task.Taker.take", lambda _self, _item: None)
        perform(ws, job)
    assert ws.catalog.get(Adapter, "a").file_state is FileState.NEW
    assert export(ws, "a", "auto", folder / "out.safetensors").matched == 1
    assert ws.catalog.get(Adapter, "a").file_state is FileState.OK


def test_a_growing_file_of_a_watched_folder_waits(ws, folder):
    file = write_adapter(folder / "a.safetensors", 1)
    report = take_in(ws, folder, watch="w")
    assert (report.listed, report.unsettled) == (0, 1)
    os.utime(file, (time.time() - 60, time.time() - 60))
    assert take_in(ws, folder, watch="w").listed == 1


def test_a_file_that_changes_while_it_is_read_waits(ws, folder, monkeypatch):
    from studio.imports import taking

    file = write_adapter(folder / "a.safetensors", 1)
    real = taking.hash_adapter

    def slow(path):
        hashes = real(path)
        write_adapter(file, 2)
        os.utime(file, ns=(5, 5))
        return hashes

    monkeypatch.setattr(taking, "hash_adapter", slow)
    assert take_in(ws, folder).unsettled == 1
    monkeypatch.undo()
    assert ws.catalog.get(Adapter, "a").file_state is FileState.NEW
    assert take_in(ws, folder).hashed == 1
    assert ws.catalog.get(Adapter, "a").file_sha256 == taking.hash_adapter(file).sha256


def test_the_whole_workspace_is_not_taken_in(ws, folder):
    take_in(ws, write_adapter(folder / "a.safetensors", 1), copy=True)
    report = take_in(ws, ws.home.parent)
    assert report.files == 1


def test_the_report_is_there_while_and_after(ws, folder):
    write_adapter(folder / "a.safetensors", 1)
    job = imports.submit(ws, [folder])
    assert imports.report(ws, job).phase == "waiting"
    finish(ws, job)
    report = imports.report(ws, job.id)
    assert (report.state, report.phase, report.listed) == ("done", "done", 1)
    assert report.summary() == "1 taken in."
    queued = imports.submit(ws, [folder])
    imports.cancel(ws, queued)
    assert imports.report(ws, queued).state == "cancelled"
    assert ws.catalog.list(Job, state="queued") == []


def test_a_picture_that_is_none_costs_only_the_picture(ws, folder):
    write_adapter(folder / "a.safetensors", 1)
    (folder / "a.png").write_bytes(b"no picture")
    write_adapter(folder / "b.safetensors", 2)
    Pixels.new("RGB", (2000, 1000), (200, 30, 30)).save(folder / "b.preview.png")
    report = take_in(ws, folder)
    assert report.listed == 2
    assert "a.png" in report.notes[0][1]
    row = ws.catalog.get(Adapter, "b")
    with Pixels.open(ws.resolve(row.preview)) as small:
        assert (small.size, small.format) == ((768, 384), "WEBP")
    assert ws.catalog.get(Adapter, "a").preview == ""


def test_many_files_are_described_by_several_processes_with_the_same_result(ws, folder, monkeypatch):
    for number in range(30):
        write_adapter(folder / f"{number:02}.safetensors", number)
    (folder / "x.safetensors").write_bytes(b"")
    with Describers(("t",), "j", count=2) as several, Describers(("t",), "j", count=1) as one:
        files = [look(path) for path in sorted(folder.iterdir())]
        sources = [""] * len(files)
        found, expected = several.describe(files, sources), one.describe(files, sources)
        assert several._pool is not None
    assert [f if isinstance(f, str) else (f[0].name, f[0].family, f[1]) for f in found] == [
        f if isinstance(f, str) else (f[0].name, f[0].family, f[1]) for f in expected
    ]
    assert isinstance(found[-1], str)
    assert "is empty" in found[-1]


def test_a_helper_that_is_killed_stops_nothing(folder):
    for number in range(30):
        write_adapter(folder / f"{number:02}.safetensors", number)
    files = [look(path) for path in sorted(folder.iterdir())]
    with Describers((), "j", count=2) as several:
        several.describe(files, [""] * 30)
        assert several._pool is not None
        for process in several._pool._processes.values():
            os.kill(process.pid, 9)
        assert len(several.describe(files, [""] * 30)) == 30
