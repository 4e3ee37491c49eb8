"""Adapters of a workspace: from a run into the catalog, into the trash and back, and out to other tools."""

import json

import numpy as np
import pytest
from PIL import Image as Pixels
from safetensors.numpy import load_file, save_file

from registry.errors import BadInput, Damaged, NotFound, StudioError
from registry.formats.header import read_header
from registry.records import Adapter, Base, Dataset, Image, Run, RunState
from studio import adapter_files as module
from studio.adapter_files import verify
from studio.adapters import export, register_run_adapter, restore, show, trash
from studio.workspace import Workspace
from tests.support.adapters import UNET, make_form, write_run_file
from trainers.rundir import ManifestItem

CAPTION = "inkstyle, my aunt Agatha"
RECIPE = {
    "data": {"trigger": ""},
    "train": {"max_steps": 100, "seed": 3},
    "preview": {"prompts": [CAPTION]},
}


@pytest.fixture
def ws(tmp_path):
    return Workspace.open(tmp_path / "home")


@pytest.fixture
def run(ws):
    base = ws.catalog.get(Base, "pocket")
    dataset = ws.catalog.add_dataset(
        Dataset(name="aunt-pictures", trigger="inkstyle"),
        [Image(blob="a" * 64, pixel_hash="b" * 64, name="a.png", width=64, height=64, caption=CAPTION)],
    )
    record = Run(
        name="ink", state=RunState.RUNNING, family="sd15", base_id=base.id, dataset_id=dataset.id,
        recipe=RECIPE, recipe_hash="c" * 64, dataset_hash=dataset.content_hash, base_hash=base.weight_hash,
        seed=3, steps=100, versions={"torch": "2.13.0"},
    )  # fmt: skip
    made = ws.catalog.add_run(record)
    folder = ws.run_dir(made.id)
    (folder.path / "previews").mkdir(parents=True)
    item = ManifestItem(image="x", pixel_hash="b" * 64, width=64, height=64, caption=CAPTION)
    folder.file("manifest.jsonl").write_text(json.dumps(item.__dict__) + "\n")
    lines = []
    for step, name, base_picture in (
        (0, "base-p0.png", True),
        (0, "s0.png", False),
        (50, "s50.png", False),
        (100, "s100.png", False),
    ):
        Pixels.new("RGB", (4, 4), (step, 0, 0)).save(folder.path / "previews" / name)
        lines.append(
            json.dumps({"step": step, "prompt": "p", "file": f"previews/{name}", "base": base_picture})
        )
    folder.file("previews/previews.jsonl").write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture
def file(ws, run):
    return write_run_file(
        make_form(rank=4, alpha=2.0, conv_rank=2, conv_alpha=1.0), ws.run_dir(run.id).adapter
    )


@pytest.fixture
def adapter(ws, run, file):
    return register_run_adapter(ws, run, file, 100)


def _files(ws):
    return sorted(path.name for path in (ws.home / "adapters").iterdir())


def test_what_the_catalog_knows_of_a_run_s_adapter(ws, run, file, adapter):
    assert (adapter.name, adapter.family, adapter.method) == ("ink", "sd15", "lora")
    assert (adapter.rank, adapter.alpha, adapter.targets) == (4, 2.0, ("unet", "text_encoder"))
    assert (adapter.trigger_words, adapter.origin, adapter.run_id) == (("inkstyle",), "run", run.id)
    assert (adapter.step, adapter.base_id, adapter.size) == (100, run.base_id, file.stat().st_size)
    assert adapter.path == f"adapters/{adapter.id}.safetensors"
    assert ws.resolve(adapter.path).read_bytes() == file.read_bytes()
    assert Pixels.open(ws.resolve(adapter.preview)).getpixel((0, 0)) == (100, 0, 0)
    assert adapter.metadata == {
        "modules": len(make_form().modules), "dtype": "fp32", "ranks": [2, 4], "alphas": [1.0, 2.0],
    }  # fmt: skip


def test_registering_again_changes_nothing(ws, run, file, adapter):
    before = _files(ws)
    assert register_run_adapter(ws, run, file, 100) == adapter
    assert ws.catalog.count(Adapter) == 1
    assert _files(ws) == before


def test_registering_again_brings_a_lost_file_back(ws, run, file, adapter):
    ws.resolve(adapter.path).unlink()
    assert register_run_adapter(ws, run, file, 100) == adapter
    assert verify(ws, adapter.id).state == "ok"


def test_the_preview_is_of_the_step_or_before(ws, run, tmp_path):
    file = write_run_file(make_form(seed=5), tmp_path / "a.safetensors")
    early = register_run_adapter(ws, run, file, 60)
    assert Pixels.open(ws.resolve(early.preview)).getpixel((0, 0)) == (50, 0, 0)


def test_the_base_s_picture_of_step_0_is_no_preview_of_what_has_learned(ws, run, tmp_path):
    files = [write_run_file(make_form(seed=s), tmp_path / f"{s}.safetensors") for s in (5, 6)]
    assert register_run_adapter(ws, run, files[0], 20).preview == ""
    assert register_run_adapter(ws, run, files[1], 0).preview


def test_names_that_are_taken_get_a_number(ws, run, adapter, tmp_path):
    names = [
        register_run_adapter(
            ws, run, write_run_file(make_form(seed=s), tmp_path / f"{s}.safetensors"), s
        ).name
        for s in (1, 2)
    ]
    assert names == ["ink 2", "ink 3"]


def test_the_recipe_s_trigger_wins(ws, run, file):
    recipe = {**run.recipe, "data": {"trigger": "ohwx"}}
    own = ws.catalog.update(Run, run.id, recipe=recipe)
    assert register_run_adapter(ws, own, file, 100).trigger_words == ("ohwx",)


def test_a_value_that_is_not_finite_is_never_registered(ws, run, tmp_path):
    path = write_run_file(make_form(), tmp_path / "a.safetensors")
    tensors = load_file(path)
    tensors["unet.conv_in.lora_A.weight"][0, 0, 0, 0] = np.nan
    save_file(tensors, path, read_header(path).metadata)
    with pytest.raises(BadInput, match=r"not finite in tensor 'unet\.conv_in\.lora_A\.weight'"):
        register_run_adapter(ws, run, path, 100)
    assert ws.catalog.count(Adapter) == 0
    assert _files(ws) == []


def test_a_row_that_cannot_be_written_leaves_no_file(ws, run, file, monkeypatch):
    def fail(_record):
        raise StudioError("catalog", "is read-only", "")

    monkeypatch.setattr(ws.catalog, "register_adapter", fail)
    with pytest.raises(StudioError, match="is read-only"):
        register_run_adapter(ws, run, file, 100)
    assert _files(ws) == []


def test_the_file_is_there_before_the_row(ws, run, file, monkeypatch):
    seen = []
    register = ws.catalog.register_adapter

    def watch(record):
        seen.append(ws.resolve(record.path).read_bytes() == file.read_bytes())
        return register(record)

    monkeypatch.setattr(ws.catalog, "register_adapter", watch)
    register_run_adapter(ws, run, file, 100)
    assert seen == [True]


def test_trash_and_restore(ws, adapter):
    path = ws.resolve(adapter.path)
    data = path.read_bytes()
    assert trash(ws, "ink").trashed_at is not None
    assert not path.exists()
    assert verify(ws, adapter.id).state == "trashed"
    with pytest.raises(BadInput, match="is in the trash already"):
        trash(ws, adapter.id)
    with pytest.raises(BadInput, match=f"is in the trash. studio adapters restore {adapter.id}"):
        export(ws, adapter.id, "auto", ws.home / "out")
    assert restore(ws, adapter.id) == adapter
    assert path.read_bytes() == data
    with pytest.raises(BadInput, match="is not in the trash"):
        restore(ws, adapter.id)


def test_a_trashing_cut_short_can_be_undone_and_finished(ws, adapter, monkeypatch):
    monkeypatch.setattr(
        type(ws.trash), "put", lambda *_: (_ for _ in ()).throw(StudioError("disk", "is full"))
    )
    with pytest.raises(StudioError):
        trash(ws, adapter.id)
    assert restore(ws, adapter.id) == adapter
    assert verify(ws, adapter.id).state == "ok"


def test_another_file_in_its_place_stops_a_restore(ws, adapter):
    path = ws.resolve(adapter.path)
    kept = path.read_bytes()
    trash(ws, adapter.id)
    write_run_file(make_form(seed=9), path)
    with pytest.raises(BadInput, match=r"is another file than that of adapter ink\. move it away first"):
        restore(ws, adapter.id)
    assert verify(ws, adapter.id).state == "trashed"
    path.unlink()
    restore(ws, adapter.id)
    assert path.read_bytes() == kept


def test_an_emptied_trash_is_said_to_be_empty(ws, adapter):
    trash(ws, adapter.id)
    ws.trash.empty()
    with pytest.raises(NotFound):
        restore(ws, adapter.id)
    assert ws.catalog.get(Adapter, adapter.id).trashed_at is not None


def test_verify_tells_missing_changed_and_edited(ws, adapter):
    path = ws.resolve(adapter.path)
    whole = path.read_bytes()
    assert verify(ws, adapter.id).state == "ok"
    tensors, metadata = load_file(path), read_header(path).metadata
    save_file(tensors, path, metadata | {"note": "mine"})
    assert verify(ws, adapter.id).state == "edited"
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    again = "download or copy it again"
    for damaged, do in (
        (bytes(flipped), "put the original back"), (whole[:-9], again), (whole[:5], again), (b"", again),
    ):  # fmt: skip
        path.write_bytes(damaged)
        assert verify(ws, adapter.id).state == "changed", len(damaged)
        with pytest.raises(Damaged, match=rf"of adapter ink has changed.* {do}"):
            export(ws, adapter.id, "auto", ws.home / "out")
    path.unlink()
    assert verify(ws, adapter.id).state == "missing"
    with pytest.raises(NotFound, match=r"of adapter ink is not there"):
        export(ws, adapter.id, "auto", ws.home / "out")


def test_a_moved_file_is_taken_back_by_its_hash(ws, adapter, tmp_path):
    moved = tmp_path / "elsewhere.safetensors"
    ws.resolve(adapter.path).rename(moved)
    other = write_run_file(make_form(seed=9), tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="is not adapter ink: its weights differ"):
        verify(ws, adapter.id, other)
    assert verify(ws, adapter.id, moved).state == "ok"
    assert verify(ws, adapter.id).state == "ok"
    with pytest.raises(NotFound, match="does not exist"):
        verify(ws, adapter.id, tmp_path / "gone")


def test_export_knows_the_whole_history(ws, run, adapter, tmp_path):
    report = export(ws, "ink", "auto", tmp_path / "ink")
    metadata = read_header(tmp_path / "ink.safetensors").metadata
    assert report.matched == report.modules
    assert json.loads(metadata["studio.recipe"]) == run.recipe
    assert metadata["studio.tensor_sha256"] == adapter.tensor_sha256
    assert (metadata["studio.run_id"], metadata["studio.dataset_hash"]) == (run.id, run.dataset_hash)
    assert metadata["ss_sd_model_name"] == "pocket"
    assert json.loads(metadata["ss_tag_frequency"]) == {"aunt-pictures": {"inkstyle": 1, "my aunt Agatha": 1}}
    sidecar = json.loads((tmp_path / "ink.json").read_text())
    assert (sidecar["activation text"], sidecar["preferred weight"]) == ("inkstyle", 1.0)
    assert (tmp_path / "ink.png").is_file()
    with pytest.raises(BadInput, match="exists already"):
        export(ws, "ink", "auto", tmp_path / "ink")
    assert export(ws, "ink", "auto", tmp_path / "ink", overwrite=True).sha256


def test_publishing_names_no_aunt(ws, adapter, tmp_path):
    ws.catalog.update(Adapter, adapter.id, note="Agatha liked it")
    export(ws, "ink", "auto", tmp_path / "ink", publish=True)
    for name in ("ink.safetensors", "ink.json", "ink.png"):
        data = (tmp_path / name).read_bytes()
        assert b"gatha" not in data, name
        assert b"aunt" not in data, name
    assert json.loads(read_header(tmp_path / "ink.safetensors").metadata["studio.trigger_words"]) == [
        "inkstyle"
    ]


def test_export_into_a_folder_uses_the_name(ws, adapter, tmp_path):
    ws.catalog.update(Adapter, adapter.id, name="Tinte & Feder ü")
    assert export(ws, adapter.id, "diffusers", tmp_path, dtype="bf16").path == str(
        tmp_path / "Tinte-Feder-u.safetensors"
    )


def test_an_adapter_without_run_keeps_what_its_file_says(ws, adapter, tmp_path):
    path = write_run_file(
        make_form(UNET, seed=3), ws.home / "adapters/imported.safetensors",
        ss_network_module="lycoris.kohya", ss_steps="1234",
    )  # fmt: skip
    from registry.hashing import hash_adapter

    hashes = hash_adapter(path)
    ws.catalog.add(
        Adapter(
            name="foreign",
            tensor_sha256=hashes.tensor_sha256,
            file_sha256=hashes.sha256,
            origin="import",
            path=ws.relative(path),
            family="sd15",
            rank=4,
            alpha=1.0,
        )
    )
    export(ws, "foreign", "auto", tmp_path / "f")
    metadata = read_header(tmp_path / "f.safetensors").metadata
    assert (metadata["ss_network_module"], metadata["ss_steps"]) == ("lycoris.kohya", "1234")
    assert metadata["studio.tensor_sha256"] == hashes.tensor_sha256
    assert "lora_adapter_metadata" not in metadata


def test_show_tells_the_whole_story(ws, run, adapter):
    story = show(ws, "ink")
    assert (story["base_name"], story["run_name"], story["dataset_name"]) == (
        "pocket",
        "ink",
        "aunt-pictures",
    )
    assert story["path"] == str(ws.resolve(adapter.path))
    assert (story["file"]["state"], story["recipe"]) == ("ok", run.recipe)


def test_importing_the_module_costs_no_torch():
    import subprocess
    import sys

    code = "import sys, studio.adapters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert module.FOLDER == "adapters"


def test_new_words_alone_are_an_adapter_too(ws, run, tmp_path):
    rows = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    file = tmp_path / "words.safetensors"
    save_file({"text_encoder.new_tokens.zork": rows}, file)
    adapter = register_run_adapter(ws, run, file, 10)
    assert (adapter.method, adapter.family, adapter.targets) == ("embedding", "sd15", ("text_encoder",))
    report = export(ws, adapter.id, "auto", tmp_path / "zork.safetensors", sidecar=False)
    assert report.layout == "embedding"
    assert np.array_equal(load_file(tmp_path / "zork.safetensors")["emb_params"], rows)
