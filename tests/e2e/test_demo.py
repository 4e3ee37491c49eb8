"""`studio demo` start to end with a recipe that takes seconds: every part is the real one."""

import pytest
from PIL import Image
from safetensors import safe_open

from registry.errors import BadInput
from registry.records import Adapter, Dataset, Run, RunState
from studio.demo.run import OWN_PICTURES, run_demo
from studio.workspace import Workspace
from trainers.recipe import apply_sets, preset_by_name

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def short_recipe():
    sets = ["train.max_steps=8", "preview.every=0", "checkpoints.every=8", "adapter.rank=4"]
    return apply_sets(preset_by_name("pocket-style"), sets)


def test_the_demo_leaves_adapter_pictures_and_report(tmp_path, short_recipe):
    ws, out = Workspace.open(tmp_path / "home"), tmp_path / "out"
    said = []
    result = run_demo(ws, out, progress=said.append, recipe=short_recipe, steps=8)
    run = ws.catalog.get(Run, result.run_id)
    assert run.state is RunState.FINISHED
    assert ws.catalog.get(Adapter, result.adapter_id).trigger_words == ("neonsign",)
    for layout, prefix in (("kohya", "lora_unet_"), ("diffusers", "unet.")):
        with safe_open(result.exports[layout], framework="numpy") as file:
            assert all(name.startswith(prefix) for name in file.keys())  # noqa: SIM118  not a dict
    with Image.open(result.sheet) as sheet:
        assert sheet.width > 2000
    assert result.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert len(result.pictures) == 18
    assert len(list((out / "pictures").glob("*.png"))) == OWN_PICTURES
    assert result.style.base.total > result.style.floor.total
    assert result.style.adapter != result.style.base
    assert list(result.seconds) == ["pictures", "training", "sampling", "export", "report"]
    assert any("step" in line or "caching" in line for line in said)
    assert result.to_dict()["style"]["closed"] == result.style.closed


def test_a_folder_of_ones_own_needs_usable_pictures(tmp_path, short_recipe):
    ws = Workspace.open(tmp_path / "home")
    with pytest.raises(BadInput, match="is not there"):
        run_demo(ws, tmp_path / "out", pictures=tmp_path / "none", recipe=short_recipe)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    with pytest.raises(BadInput):
        run_demo(ws, tmp_path / "out", pictures=tmp_path / "texts", recipe=short_recipe)
    (tmp_path / "one").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "one" / "a.png")
    with pytest.raises(BadInput, match="fewer than two"):
        run_demo(ws, tmp_path / "out", pictures=tmp_path / "one", recipe=short_recipe)
    assert ws.catalog.list(Dataset) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pictures", "base", "adapter"])
def test_files_that_no_demo_made_are_not_deleted(tmp_path, short_recipe, name):
    ws = Workspace.open(tmp_path / "home")
    mine = tmp_path / "out" / name / "holiday.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"holds holiday\.png, which no demo made"):
        run_demo(ws, tmp_path / "out", recipe=short_recipe)
    assert mine.read_bytes() == b"mine"
    with pytest.raises(BadInput, match="is a file, not a folder"):
        run_demo(ws, mine, recipe=short_recipe)
    assert ws.catalog.list(Dataset) == []
