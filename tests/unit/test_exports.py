"""Exports are remembered, and a file is known again by its content."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from registry.errors import BadInput, NotFound, StudioError
from registry.formats.header import read_header
from registry.records import Adapter, Export
from studio.adapters import export
from studio.exports import exports_of, which
from studio.notes import set_note
from tests.support.adapters import make_form, write_run_file


@pytest.fixture
def ws(chained):
    return chained


@pytest.fixture
def ink(ws):
    return ws.catalog.get(Adapter, "ink")


def test_an_export_is_remembered_with_its_proof(ws, ink, tmp_path):
    report = export(ws, "ink", "kohya", tmp_path / "out", dtype="fp16", publish=True)
    (row,) = ws.catalog.list(Export)
    assert (row.adapter_id, row.layout, row.dtype, row.publish) == (ink.id, "kohya", "fp16", True)
    assert (row.path, row.sha256, row.report) == (report.path, report.sha256, report.to_dict())
    assert json.dumps(row.report)
    (shown,) = exports_of(ws, ink)
    assert (shown["path"], shown["present"]) == (str(tmp_path / "out.safetensors"), True)
    (tmp_path / "out.safetensors").unlink()
    assert exports_of(ws, ink)[0]["present"] is False


def test_the_same_file_again_is_one_export(ws, ink, tmp_path):
    for _ in range(2):
        export(ws, "ink", "kohya", tmp_path / "out", overwrite=True)
    export(ws, "ink", "kohya", tmp_path / "out", dtype="bf16", overwrite=True)
    export(ws, "ink", "peft", tmp_path / "folder")
    export(ws, "ink", "peft", tmp_path / "folder", overwrite=True)
    listed = [(e["layout"], e["dtype"], e["present"]) for e in exports_of(ws, ink)]
    assert listed == [("peft", "fp32", True), ("kohya", "bf16", True), ("kohya", "fp32", False)]


def test_what_was_refused_is_not_remembered(ws, tmp_path):
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    with pytest.raises(BadInput, match="exists already"):
        export(ws, "ink", "kohya", tmp_path / "out")
    assert ws.catalog.count(Export) == 0


def test_a_row_that_cannot_be_written_leaves_the_file(ws, tmp_path, monkeypatch):
    def fail(_record):
        raise StudioError("catalog", "cannot be written (the disk is full)", "")

    monkeypatch.setattr(ws.catalog, "add", fail)
    with pytest.raises(StudioError, match="the disk is full"):
        export(ws, "ink", "kohya", tmp_path / "out")
    assert which(ws, tmp_path / "out.safetensors")["how"] in {"weights", "claim"}
    assert ws.catalog.count(Export) == 0


def test_inside_the_workspace_paths_are_relative(ws, ink):
    export(ws, "ink", "kohya", ws.home / "exports" / "out")
    assert ws.catalog.list(Export)[0].path == "exports/out.safetensors"
    assert exports_of(ws, ink)[0]["present"]


def test_a_file_is_known_by_its_bytes_its_tensors_or_as_an_export(ws, ink, tmp_path):
    path = ws.resolve(ink.path)
    copy = tmp_path / "download(1).bin.safetensors"
    shutil.copyfile(path, copy)
    assert which(ws, copy)["how"] == "file"
    save_file(load_file(path), copy, {"format": "pt", "who": "me"})
    found = which(ws, copy)
    assert (found["how"], found["adapters"][0]["id"]) == ("weights", ink.id)
    assert "with other metadata" in found["line"]
    out = tmp_path / "out.safetensors"
    export(ws, "ink", "kohya", out, dtype="fp16")
    exported = which(ws, out)
    assert (exported["how"], exported["exports"][0]["layout"]) == ("export", "kohya")
    assert f"an export of ink ({ink.id}) (kohya, fp16," in exported["line"]
    save_file(load_file(out), out, {"who": "me"})
    assert which(ws, out)["how"] == "export weights"
    export(ws, "ink", "peft", tmp_path / "folder", dtype="fp16")
    assert which(ws, tmp_path / "folder")["how"] == "export weights"


def test_what_a_file_only_says_of_itself_is_called_that(ws, ink, tmp_path):
    out = tmp_path / "out.safetensors"
    export(ws, "ink", "kohya", out, dtype="fp16")
    ws.catalog.delete(Export, ws.catalog.list(Export)[0].id)
    found = which(ws, out)
    assert (found["how"], found["adapters"][0]["id"]) == ("claim", ink.id)
    assert "by its own metadata a copy of ink" in found["line"]


def test_an_export_of_an_adapter_that_is_gone(ws, ink, tmp_path):
    out = tmp_path / "out.safetensors"
    export(ws, "ink", "kohya", out, dtype="fp16")
    ws.catalog.delete(Adapter, ink.id)
    found = which(ws, out)
    assert (found["how"], found["adapters"]) == ("export", [])
    assert f"an export of adapter {ink.id}, which is gone" in found["line"]


def test_a_file_that_is_not_ours_is_described(ws, tmp_path):
    foreign = write_run_file(make_form(seed=77, rank=6), tmp_path / "foreign.safetensors")
    found = which(ws, foreign)
    assert (found["how"], found["adapters"], found["facts"]["rank"]) == ("none", [], 6)
    assert "no adapter of this workspace. It is a lora of rank 6 for sd15" in found["line"]
    import numpy as np

    save_file({"x": np.zeros((2, 2), np.float32)}, tmp_path / "other.safetensors")
    found = which(ws, tmp_path / "other.safetensors")
    assert found["facts"] is None
    assert found["line"].endswith("and no adapter at all.")


@pytest.mark.parametrize("content", [b"", b"seven b", b"\x00" * 100, b"<html>log in</html>"])
def test_a_file_that_is_unsound_is_one_line(ws, tmp_path, content):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(content)
    with pytest.raises(BadInput, match=r"bad\.safetensors"):
        which(ws, bad)
    with pytest.raises(NotFound, match="is not there"):
        which(ws, tmp_path / ("x" * 300))
    with pytest.raises(BadInput, match="is a folder without"):
        which(ws, tmp_path)


def test_licence_and_consent_in_a_written_file(ws, ink, tmp_path):
    set_note(ws, ink, "licence", "CC BY 4.0")
    set_note(ws, ink, "consent", "Agatha agreed")
    export(ws, "ink", "kohya", tmp_path / "own")
    own = read_header(tmp_path / "own.safetensors").metadata
    assert (own["modelspec.license"], own["studio.consent"]) == ("CC BY 4.0", "Agatha agreed")
    export(ws, "ink", "kohya", tmp_path / "public", publish=True)
    public = read_header(tmp_path / "public.safetensors").metadata
    assert public["modelspec.license"] == "CC BY 4.0"
    assert b"Agatha" not in (tmp_path / "public.safetensors").read_bytes()


def test_the_person_s_licence_stands_over_the_file_s_own(ws, tmp_path):
    file = write_run_file(make_form(seed=5), ws.home / "adapters/x.safetensors", **{"modelspec.license": "?"})
    from registry.hashing import hash_adapter

    hashes = hash_adapter(file)
    foreign = ws.catalog.add(
        Adapter(
            name="foreign", tensor_sha256=hashes.tensor_sha256, file_sha256=hashes.sha256,
            path="adapters/x.safetensors", family="sd15", rank=4, alpha=1.0, origin="import",
        )
    )  # fmt: skip
    export(ws, "foreign", "kohya", tmp_path / "one")
    assert read_header(tmp_path / "one.safetensors").metadata["modelspec.license"] == "?"
    set_note(ws, foreign, "licence", "mine")
    export(ws, "foreign", "kohya", tmp_path / "two")
    assert read_header(tmp_path / "two.safetensors").metadata["modelspec.license"] == "mine"


def test_a_written_file_names_its_parents_by_what_is_in_them(ws, ink, tmp_path):
    file = write_run_file(make_form(seed=6), ws.home / "adapters/m.safetensors")
    from registry.hashing import hash_adapter

    hashes = hash_adapter(file)
    gone = {"id": "0000000000", "name": "gone", "tensor_sha256": "e" * 64, "weight": 1.0}
    ws.catalog.add(
        Adapter(
            name="m", tensor_sha256=hashes.tensor_sha256, file_sha256=hashes.sha256, family="sd15", rank=4,
            path="adapters/m.safetensors", alpha=1.0, origin="merge", parents=(ink.id, "0000000000"),
            metadata={"made": {"operation": "merge", "parents": [gone], "settings": {}}},
        )
    )  # fmt: skip
    export(ws, "m", "kohya", tmp_path / "m")
    metadata = read_header(tmp_path / "m.safetensors").metadata
    assert metadata["modelspec.merged_from"] == f"{ink.tensor_sha256}, {'e' * 64}"
