"""What `studio train` and its forecast refuse before anything is queued: in one line, with exit code 2."""

import json
from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.records import Base, Run
from studio.runs.checks import check_fit, traits_of
from studio.runs.forecast import forecast
from studio.runs.layers import check_patterns
from studio.workspace import Workspace
from tests.support.cli import Said, call_here
from tests.support.supervision import make_dataset
from trainers.recipe import Recipe, apply_sets, preset


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    ws = Workspace.open(tmp_path / "home")
    make_dataset(ws)
    return ws


def recipe(*sets: str) -> Recipe:
    return apply_sets(preset("sd15", "style", "pocket"), sets)


def train(ws: Workspace, *words: str) -> Said:
    return call_here(ws.home, "train", "--dataset", "shapes", *words)


@pytest.mark.parametrize("forecast", [(), ("--forecast",)], ids=["train", "forecast"])
@pytest.mark.parametrize(
    ("sets", "wrong"),
    [
        (["optimizer.name=prodigy", "optimizer.lora_plus_ratio=2.0"], "optimizer.name: prodigy has one rate"),
        (["objective.flow_weighting=cosmap"], "objective.flow_weighting: means nothing"),
        (["adapter.targets=nothing"], "adapter.targets: 'nothing' matches no layer of this base"),
        (["adapter.block_ranks={'nothing' = 2}"], "adapter.block_ranks: 'nothing' decides about no layer"),
        (["adapter.block_ranks={'.*' = 0}"], "adapter.block_ranks: leaves no layer"),
        (["optimizer.block_lrs={'text_encoder.*' = 2.0}"], "'text_encoder.*' decides about no layer"),
        (["adapter.method=full", "adapter.conv_rank=0", "train.precision=fp16"], "train.precision: is fp16"),
        (["adapter.train_t5=true"], "adapter.train_t5: is on, but this base has no T5"),
        (["preview.scheduler=Eulerr"], "preview.scheduler is 'Eulerr'; must be one of default, DDIM"),
        (
            ["data.bucket_step=128", "train.resolution=128"],
            "picture 0.png: is 64x64, smaller than the smallest bucket 128x128. leave it out",
        ),
        (["train.resolution=40"], "train.resolution: is 40, sides are multiples of 16. use 32"),
    ],
)
def test_nothing_is_queued(ws: Workspace, forecast: tuple[str, ...], sets: list[str], wrong: str):
    options = [word for item in sets for word in ("--set", item)]
    code, out, err = train(ws, *options, *forecast)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert wrong in err
    assert err.count("\n") == 1
    assert ws.catalog.list(Run) == []
    assert not any((ws.home / "runs").iterdir())


@pytest.mark.parametrize(
    "sets",
    [
        [r"adapter.targets=.*attn2\.to_[kv]"],
        ["adapter.block_ranks={'mid_block.*' = 7, '.*to_q' = 0}"],
        ["adapter.train_text_encoder=true", r"adapter.block_ranks={'text_encoder\.text_model.*fc1' = 2}"],
        ["optimizer.block_lrs={'up_blocks.*' = 2.0}"],
        ["adapter.method=full", "adapter.conv_rank=0", "optimizer.block_lrs={'conv_in' = 2.0}"],
    ],
)
def test_patterns_that_match_are_taken(ws: Workspace, sets: list[str]):
    check_fit(ws, recipe(*sets), ws.catalog.get(Base, "pocket"))


@pytest.mark.parametrize(
    ("family", "pattern", "known"),
    [
        ("sdxl", r"down_blocks\.2\.attentions\.1\.transformer_blocks\.9\.attn1\.to_k", True),
        ("sdxl", r"transformer_blocks\.9\.attn\.to_k", False),
        ("flux1", r"single_transformer_blocks\.37\.attn\.to_q", True),
        ("flux1", r"mid_block.*", False),
        ("sd35", r"transformer_blocks\.\d+\.attn2\.to_q", True),
    ],
)
def test_where_the_files_cannot_be_read_the_table_of_names_decides(
    ws: Workspace, family: str, pattern: str, known: bool
):
    base = Base(name="hub", family=family, location="some/where", kind="hub")
    wanted = apply_sets(preset(family, "style"), [f"adapter.targets='{pattern}'"])
    if known:
        check_patterns(ws, wanted, base)
        return
    with pytest.raises(BadInput, match="matches no layer"):
        check_patterns(ws, wanted, base)


def test_a_base_without_t5_is_known_by_its_folder(ws: Workspace, tmp_path: Path):
    folder = tmp_path / "sd35"
    base = Base(name="b", family="sd35", location=str(folder), kind="folder")
    assert traits_of(ws, base).t5 is False
    (folder / "text_encoder_3").mkdir(parents=True)
    (folder / "text_encoder_3" / "config.json").write_text("{}")
    assert traits_of(ws, base).t5 is True
    schnell = Base(name="f", family="flux1", variant="schnell", location="x/y", kind="hub")
    assert traits_of(ws, schnell).guidance_input is False


def test_what_has_no_effect_is_said_in_forecast_and_train(ws: Workspace):
    idle = ("--set", "data.text_length=128")
    said = "data.text_length has no effect here: it counts only with bases that read captions with T5."
    code, out, err = train(ws, *idle, "--forecast")
    assert (code, err) == (0, "")
    assert f"Warning: {said}" in out
    code, out, err = train(ws, *idle)
    assert code == 0
    assert f"warning: {said}\n" in err
    code, out, err = train(ws, *idle, "--forecast", "--json")
    assert json.loads(out)["warnings"] == [said.removesuffix(".")]


def test_a_forecast_is_in_words_and_units(ws: Workspace):
    code, out, err = train(ws, "--forecast")
    assert (code, err) == (0, "")
    assert "not known yet" in out
    assert " MB" in out
    assert not any(sign in out for sign in ("[", "{", '"', "_bytes"))
    assert "Each of the 3 pictures is shown 1067 times." in out.splitlines()


def test_a_forecast_counts_regularisation_pictures(ws: Workspace):
    kept = make_dataset(ws, "others", 2)
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws, "again")
    alone, both = (forecast(ws, recipe(), base, dataset, other) for other in (None, kept))
    assert both.disk_bytes > alone.disk_bytes
    assert "Each of the 3 pictures is shown 533 times." in both.notes
    code, out, _ = train(ws, "--forecast", "--regularisation", "others")
    assert code == 0
    assert "Every second showing is one of 2 regularisation pictures." in out
    code, _, err = train(ws, "--forecast", "--regularisation", "shapes")
    assert (code, err.count("\n")) == (2, 1)
    assert "is also what is to be learned" in err
