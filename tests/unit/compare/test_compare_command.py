"""`studio compare` and `studio comparisons`, with a sampler that paints plain pictures."""

import json
from pathlib import Path

import pytest

from registry.records import Sample
from studio.runs import worker
from studio.workspace import Workspace
from tests.support.cli import Studio
from tests.support.painter import Painter
from tests.support.sampling import add_adapter


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setattr(worker, "SamplerClient", Painter)
    add_adapter(Workspace.open(tmp_path / "home"), "ink")
    return Studio(tmp_path / "home")


def test_a_grid_from_the_command_line_grows_and_goes(studio: Studio, tmp_path: Path):
    out = tmp_path / "out"
    words = ["compare", "--prompt", "a, b", "--prompt", "c", "--size", "32x32", "--steps", "2", "--out", out]
    made = studio(*words, "--adapters", "none,ink", "--weights", "0.5,1", "--seeds", "1", "--name", "inks")
    assert [Path(file).name for file in made["files"]] == ["inks.png", "inks.html", "inks.json"]
    assert all(Path(file).is_file() for file in made["files"])
    assert Workspace.open(studio.home).catalog.count(Sample) == 6
    again = studio(*words, "--adapters", "ink", "--weights", "1", "--seeds", "1,2", "--name", "inks")
    assert again["id"] == made["id"]
    assert Workspace.open(studio.home).catalog.count(Sample) == 12
    (listed,) = studio("comparisons", "list")
    assert (listed["name"], listed["cells"], listed["drawn"]) == ("inks", 16, 16)
    assert "adapter 2 x weight 2 x prompt 2 x seed 2" in listed["axes"]
    shown = studio("comparisons", "show", "inks")
    assert {cell["values"]["prompt"] for cell in shown["cells"]} == {"a, b", "c"}
    turned = studio(
        "comparisons", "export", "inks", "--out", out / "turned", "--columns", "seed", "--rows", "weight"
    )
    assert json.loads(Path(turned["files"][2]).read_text())["id"] == made["id"]
    assert studio("comparisons", "stop", "inks")["stopped"] == 0
    assert studio("comparisons", "continue", "inks")["name"] == "inks"
    assert studio("comparisons", "remove", "inks")["pictures"] == 12
    assert studio("comparisons", "list") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "1"], "--prompt"),
        (["--prompt", "x", "--adapters", "nobody"], "adapter 'nobody': does not exist"),
        (["--prompt", "x", "--checkpoints", "run:all"], "run 'run': does not exist"),
        (["--prompt", "x", "--seeds", "1,two"], "seed 'two': is not a whole number"),
        (["--prompt", "x", "--cfg", "99"], "cfg"),
        (["--prompt", "x", "--schedulers", "Eular"], "scheduler 'Eular'"),
        (["--prompt", "x", "--seeds", "1,2", "--rows", "colour"], "axis 'colour': is not part"),
        (["--prompt", "x", "--adapters", "ink", "--weights", "9"], "weight"),
        (["--from", "nothing.png", "--size", "8x8"], "--size: does not go with --from"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_queued(studio: Studio, tmp_path: Path, words, said: str):
    assert said in studio("compare", *words, "--out", tmp_path / "out" / "deeper", code=2)
    assert not (tmp_path / "out").exists()
    assert Workspace.open(studio.home).catalog.count(Sample) == 0
