"""The main job as a person types it: pictures in, a trained adapter out, sampled, exported."""

import os

import pytest
from PIL import Image, ImageChops

from studio.pocket.pictures import demo_set
from tests.support.cli import Studio

pytestmark = pytest.mark.e2e
STEPS = 9


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio(tmp_path_factory.mktemp("home"), apart=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index, (picture, caption) in enumerate(demo_set("style", 6, seed=3)):
        picture.save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(studio, pictures):
    dataset = studio("datasets", "add", "strokes", pictures, "--trigger", "sks")
    assert dataset["image_count"] == 6
    assert dataset["uncaptioned"] == 0
    sets = [
        f"train.max_steps={STEPS}",
        "checkpoints.every=3",
        "preview.every=0",
        "adapter.rank=4",
        "adapter.alpha=2",
    ]
    options = [word for item in sets for word in ("--set", item)]
    run = studio("train", "--dataset", "strokes", "--base", "pocket", "--name", "strokes", *options, "--wait")
    return Studio(studio.home)("runs", "show", run["id"])


def test_a_run_ends_finished_with_one_adapter_and_its_history(studio, trained):
    assert trained["state"] == "finished"
    assert trained["step"] == trained["steps"] == STEPS
    assert len(trained["adapters"]) == 1
    assert trained["checkpoints"]
    adapter = Studio(studio.home)("adapters", "show", trained["adapters"][0])
    assert adapter["family"] == "sd15"
    assert (adapter["rank"], adapter["alpha"]) == (4, 2.0)
    assert adapter["run_id"] == trained["id"]
    assert "sks" in adapter["trigger_words"]


def test_sampling_shows_the_adapter_and_weight_zero_is_the_base(studio, trained, tmp_path):
    def draw(folder, *more, studio=studio):
        options = [
            "--prompt",
            "a red circle, sks ink drawing",
            "--seed",
            5,
            "--steps",
            6,
            "--out",
            tmp_path / folder,
        ]
        return Image.open(studio("sample", *options, *more)["files"][0]).convert("RGB")

    here = Studio(studio.home)
    with studio.working():
        base = draw("base", studio=here)
        off = draw("off", "--adapter", "strokes:0", studio=here)
        full = draw("on", "--adapter", "strokes:1")
    again = draw("again", "--adapter", "strokes:1", studio=here)  # nobody works: the call does
    assert ImageChops.difference(base, off).getbbox() is None
    assert ImageChops.difference(full, again).getbbox() is None
    assert ImageChops.difference(base, full).getbbox() is not None


@pytest.mark.parametrize("layout", ["auto", "kohya", "diffusers"])
def test_exports_are_proven(studio, trained, tmp_path, layout):
    out = tmp_path / f"{layout}.safetensors"
    studio = studio if layout == "auto" else Studio(studio.home)
    report = studio("adapters", "export", "strokes", "--format", layout, "--out", out)
    assert out.stat().st_size > 1000
    assert report["matched"] == report["modules"] > 0
    assert report["worst_error"] < 1e-6


def test_trash_and_restore(studio, trained):
    studio, adapter = Studio(studio.home), trained["adapters"][0]
    studio("adapters", "trash", adapter)
    assert [a["id"] for a in studio("adapters", "list", "--trashed")] == [adapter]
    assert studio("adapters", "list") == []
    studio("adapters", "restore", adapter)
    assert [a["id"] for a in studio("adapters", "list")] == [adapter]
    path = studio("adapters", "show", adapter)["path"]
    assert os.path.getsize(path) > 1000  # noqa: PTH202


def test_lists_hold_ids_and_names(studio, trained):
    studio = Studio(studio.home)
    for kind in ("bases", "datasets", "runs", "adapters", "recipes"):
        rows = studio(kind, "list")
        assert rows, kind
        assert all(row["id"] and row["name"] for row in rows), kind
