"""From a picture to what holds it, and a run once more, as a person types it."""

from pathlib import Path

import pytest

from tests.support.cli import Studio
from tests.support.provenance import CAPTIONS, picture

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index, caption in enumerate(CAPTIONS):
        (folder / f"{index}.png").write_bytes(picture(index))
        (folder / f"{index}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def ink(studio, pictures):
    studio("datasets", "add", "herons", pictures, "--trigger", "inkstyle")
    studio("datasets", "licence", "herons", "CC BY 4.0")
    sets = ("train.max_steps=2", "preview.every=0", "adapter.rank=2", "adapter.alpha=1")
    options = [word for item in sets for word in ("--set", item)]
    return studio("train", "--dataset", "herons", "--name", "ink", *options, "--wait")


def test_the_whole_chain(studio, pictures, ink, tmp_path):
    adapter = studio("adapters", "show", "ink")
    assert adapter["licence"] == "CC BY 4.0"
    assert "heron" in adapter["keywords"].split()
    drawing = ("--prompt", "a lighthouse", "--steps", 2, "--out", tmp_path / "drawn")
    sample = studio("sample", "--base", "pocket", "--adapter", "ink", *drawing)
    assert [found["id"] for found in studio("adapters", "list", "lighthouse")] == [adapter["id"]]
    found = studio("datasets", "uses", pictures / "1.png")
    for kind, name in (("datasets", "herons"), ("runs", "ink"), ("adapters", "ink")):
        assert [record["name"] for record in found[kind]] == [name]
    assert [s["prompt"] for s in found["samples"]] == ["a lighthouse"]
    assert len(sample["files"]) == 1
    told = studio("datasets", "uses", found["pixel_hash"][:12], text=True)
    assert "herons" in told
    assert "a lighthouse" in told
    story = studio("adapters", "origin", "ink")
    assert [p["caption"] for p in story["run"]["pictures"]] == list(CAPTIONS)
    tree = studio("adapters", "origin", "ink", text=True)
    assert f"run ink ({ink['id']}): style, 2 steps" in tree
    assert "data set herons: 3 pictures" in tree


def test_exports_are_listed_and_known_again(studio, ink, tmp_path):
    out = tmp_path / "out.safetensors"
    report = studio("adapters", "export", "ink", "--format", "kohya", "--out", out, "--publish")
    (kept,) = [e for e in studio("adapters", "exports", "ink") if e["path"] == str(out)]
    assert (kept["sha256"], kept["publish"], kept["present"]) == (report["sha256"], True, True)
    assert kept["report"]["matched"] == report["matched"]
    out.rename(tmp_path / "v2_final.safetensors")
    which = studio("adapters", "which", tmp_path / "v2_final.safetensors")
    assert (which["how"], which["adapters"][0]["name"]) == ("export", "ink")
    assert "v2_final.safetensors is an export of ink" in studio(
        "adapters", "which", tmp_path / "v2_final.safetensors", text=True
    )
    assert "is not there" in studio("adapters", "which", tmp_path / "none", code=2)


def test_again_and_diff(studio, ink):
    other = studio("runs", "again", "ink", "--set", "train.seed=99", "--name", "other", "--wait")
    assert (other["state"], other["seed"]) == ("finished", 99)
    found = studio("runs", "diff", "ink", "other")
    assert (found["a"]["name"], found["b"]["name"]) == ("ink", "other")
    recipe = [d for d in found["differences"] if d["part"] == "recipe"]
    assert [(d["key"], d["b"]) for d in recipe] == [("train.seed", 99)]
    assert not [d for d in found["differences"] if d["part"] in {"pictures", "base", "versions"}]
    assert {d["key"] for d in found["differences"] if d["part"] == "results"} & {"loss", "seconds_per_step"}
    assert "train.seed" in studio("runs", "diff", "ink", "other", text=True)


def test_what_the_run_saw_stays_when_the_data_set_goes(studio, pictures, ink):
    studio("datasets", "caption", "herons", "0.png", "quite another caption")
    refused = studio("runs", "again", "ink", code=2)
    assert refused.startswith("error: data set herons: has changed since run ink (1 caption changed).")
    assert "--present" in refused
    studio("datasets", "remove", "herons")
    assert "trained on a data set that is gone" in studio("runs", "again", "ink", "--present", code=2)
    assert studio("runs", "again", "ink", "--name", "anew", "--wait")["state"] == "finished"
    same = studio("runs", "diff", "ink", "anew")["differences"]
    assert not [d for d in same if d["part"] in {"pictures", "recipe", "base"}]
    assert studio("adapters", "show", "anew")["trigger_words"] == ["inkstyle"]
    found = studio("datasets", "uses", pictures / "0.png")
    assert found["datasets"] == []
    assert "ink" in [a["name"] for a in found["adapters"]]
    assert studio("adapters", "origin", "ink")["run"]["pictures"][0]["caption"] == CAPTIONS[0]
    assert Path(studio("runs", "show", ink["id"])["path"]).is_dir()
