"""Forecasts: counted from headers, remembered from runs, honest about the rest."""

import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from registry.errors import StudioError
from registry.records import Base, Run, now
from studio.runs import launch, speed
from studio.runs.forecast import FP32, Figure, adapter_parameters, forecast
from studio.workspace import Workspace
from tests.support.bases import save_base
from tests.support.supervision import make_dataset
from trainers.recipe import Recipe, apply_sets, preset
from trainers.rundir import Status


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def recipe(*sets: str) -> Recipe:
    return apply_sets(preset("sd15", "style", "pocket"), ["adapter.rank=4", "adapter.conv_rank=2", *sets])


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("adapter.conv_rank=0",),
        ("adapter.train_text_encoder=true", "adapter.text_rank=3"),
        (r"adapter.targets=.*attn2\.to_[kv]",),
        ("adapter.method=dora",),
        ("adapter.method=loha",),
        ("adapter.method=oft", "adapter.conv_rank=0", "adapter.oft_block=8"),
        ("adapter.block_ranks={'mid_block.*' = 7, '.*to_q' = 0}",),
    ],
)
def test_the_adapter_has_as_many_parameters_as_was_said(ws: Workspace, sets: tuple[str, ...]):
    import torch

    from trainers.families.base import BaseFiles
    from trainers.families.sd import StableDiffusion15
    from trainers.methods import attach

    base = ws.catalog.get(Base, "pocket")
    wanted = recipe(*sets)
    said, source = adapter_parameters(ws, wanted, base)
    files = BaseFiles(str(ws.resolve(base.location)))
    family = StableDiffusion15(files, dtype=torch.float32, device=torch.device("cpu"))
    trained = attach(family, wanted.adapter, 0)
    assert said == sum(parameter.numel() for parameter in trained.named.values())
    assert "weight files" in source


@pytest.mark.parametrize("sets", [(), ("adapter.train_text_encoder=true", "adapter.text_rank=3")], ids=str)
@pytest.mark.parametrize("name", ["sdxl", "sd35", "flux1"])
def test_layers_of_other_families_are_counted(
    ws: Workspace, tmp_path: Path, name: str, sets: tuple[str, ...]
):
    import torch

    from trainers.families import FAMILIES
    from trainers.families.base import BaseFiles
    from trainers.methods import attach

    folder = save_base(name, tmp_path / "base")
    more = ("adapter.train_t5=true",) if sets and FAMILIES[name].flow else ()
    wanted = apply_sets(preset(name, "style"), ["adapter.rank=4", *sets, *more])
    base = Base(name="b", family=name, location=str(folder), kind="folder")
    cls = FAMILIES[name].load_class()
    family = cls(BaseFiles(str(folder)), dtype=torch.float32, device=torch.device("cpu"))
    trained = attach(family, wanted.adapter, 0)
    count = sum(parameter.numel() for parameter in trained.named.values())
    assert adapter_parameters(ws, wanted, base)[0] == count


@pytest.mark.parametrize("sets", [(), ("text_encoder",), ("t5",), ("text_encoder", "t5")], ids=str)
def test_a_full_fine_tune_counts_the_parts_that_learn(ws: Workspace, tmp_path: Path, sets: tuple[str, ...]):
    import torch

    from trainers.families import FAMILIES
    from trainers.families.base import BaseFiles
    from trainers.full import attach_full

    folder = save_base("flux1", tmp_path / "base")
    more = [f"adapter.train_{name}=true" for name in sets]
    wanted = apply_sets(preset("flux1", "style"), ["adapter.method=full", *more])
    base = Base(name="b", family="flux1", location=str(folder), kind="folder")
    files = BaseFiles(str(folder))
    family = FAMILIES["flux1"].load_class()(files, dtype=torch.float32, device=torch.device("cpu"))
    count = sum(p.numel() for p in attach_full(family, wanted.adapter).named.values())
    said, source = adapter_parameters(ws, wanted, base)
    assert 0.97 * count < said <= count  # biases are not counted
    assert source == "all weights of the base that learn"
    cost = forecast(ws, wanted, base, make_dataset(ws))
    assert cost.notes[0].startswith("What learns has")
    whole = sum(file.stat().st_size for part in ("transformer", "text_encoder", "text_encoder_2")
                for file in (folder / part).glob("*.safetensors"))  # fmt: skip
    checkpoints = (wanted.checkpoints.keep + 2) * 4 * said * FP32
    assert cost.disk_bytes > checkpoints + 1.9 * whole


def test_new_words_count_alone_or_beside_the_adapter(ws: Workspace):
    base = ws.catalog.get(Base, "pocket")
    word, both = 'tokens.words=["zork"]', "tokens.vectors=3"
    words, _ = adapter_parameters(ws, recipe(word, both, "tokens.only=true"), base)
    assert words == 3 * 96
    assert (
        adapter_parameters(ws, recipe(word, both), base)[0]
        == words + adapter_parameters(ws, recipe(), base)[0]
    )


def test_more_sizes_crops_and_versions_need_more_disk_and_their_own_time(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    least = forecast(ws, recipe(), base, dataset).disk_bytes
    for sets in (["train.resolutions=[32]"], ["data.crop=random"], ["data.flip=true"],
                 ["data.shuffle_tags=true"]):  # fmt: skip
        assert forecast(ws, recipe(*sets), base, dataset).disk_bytes > least
    different = ([], ["train.resolutions=[32]"], ["adapter.method=full"], ["adapter.method=dora"],
                 ["adapter.train_text_encoder=true"], ["adapter.train_t5=true"],
                 ["preservation.mode=base_prediction"],
                 ["preservation.mode=base_prediction", "preservation.rows=2"])  # fmt: skip
    keys = {speed.key("h", recipe(*sets).model_dump(mode="json")) for sets in different}
    assert len(keys) == len(different)


def test_time_and_memory_are_only_known_from_a_run_like_it(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    wanted = recipe("train.max_steps=120")
    before = forecast(ws, wanted, base, dataset)
    assert (before.steps, before.time.kind, before.peak.kind) == (120, "estimated", "estimated")
    assert not any("not known" in said for said in (*before.reasons, *before.notes))
    run = launch.launch(ws, wanted, base, dataset)
    speed.remember(ws, run, Status(state="finished", step=120, seconds_per_step=0.5, peak_memory=7 << 20))
    said = f"Measured by run {run.name} on this machine."
    after = forecast(ws, wanted, base, dataset)
    assert (after.time, after.peak) == (Figure(1.0, "measured", said), Figure(7 << 20, "measured", said))
    assert after.reasons[0] == said
    assert after.reasons.count(said) == 1
    other = forecast(ws, recipe("train.max_steps=120", "train.batch_size=2"), base, dataset)
    assert other.time.kind == "scaled"
    assert f"{120 * 4 / 3:.0f} times" in after.notes[1]
    short = forecast(ws, recipe("train.max_steps=1", "train.batch_size=2"), base, dataset)
    assert short.notes[1] == "It ends before each of the 3 pictures was shown once."
    ws.catalog.delete(Run, run.id)
    assert (
        forecast(ws, wanted, base, dataset).reasons[0] == "Measured by a run since removed on this machine."
    )


def test_start_and_end_of_a_resumed_run_are_those_of_its_last_attempt(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    run = launch.launch(ws, wanted := recipe("train.max_steps=120"), base, dataset)
    run = ws.catalog.update(Run, run.id, step=120, started_at=now() - timedelta(seconds=30))
    status = Status(state="finished", step=120, begun=100, seconds_per_step=0.5)
    speed.remember(ws, run, replace(status, begun=117))  # too few steps to measure by
    assert forecast(ws, wanted, base, dataset).start is None
    speed.remember(ws, run, status)
    start = forecast(ws, wanted, base, dataset).start
    assert start is not None
    assert start.value * 60 == pytest.approx(20, abs=2)


def test_disk_grows_with_what_is_kept(ws: Workspace):
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    parameters, _ = adapter_parameters(ws, recipe(), base)
    few = forecast(ws, recipe("checkpoints.keep=2"), base, dataset).disk_bytes
    more = forecast(ws, recipe("checkpoints.keep=5"), base, dataset).disk_bytes
    assert more - few == 3 * 4 * FP32 * parameters


def test_a_base_without_files_here_is_guessed_and_said(ws: Workspace, tmp_path: Path):
    hub = Base(name="hub", family="sd15", location="someone/base", kind="hub")
    assert "guess" in adapter_parameters(ws, recipe(), hub)[1]
    pocket = ws.catalog.get(Base, "pocket")
    copy = tmp_path / "copy"
    shutil.copytree(ws.resolve(pocket.location), copy)
    weights = next((copy / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    assert "guess" in adapter_parameters(ws, recipe(), replace(pocket, location=str(copy)))[1]


def test_a_disk_without_room_is_refused_before_anything_is_written(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(ws.home)
    base, dataset = ws.catalog.get(Base, "pocket"), make_dataset(ws)
    monkeypatch.setattr("registry.files.shutil.disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(StudioError, match=r"this run needs .* the disk has 1 MiB free"):
        launch.launch(ws, recipe(), base, dataset)
    assert list((ws.home / "runs").iterdir()) == []


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd35"])
def test_a_single_file_counts_as_its_folder(ws: Workspace, tmp_path: Path, name: str):
    """Published names, fused layers and OpenCLIP's included; two residual blocks a level, as published."""
    from tests.support.checkpoints import save_checkpoint, save_sd35, save_sdxl
    from trainers.families import FAMILIES

    folder = save_base(name, tmp_path / "base")
    if name != "sd35":
        unet = FAMILIES[name].load_class().tiny()["unet"]
        type(unet).from_config({**unet.config, "layers_per_block": 2}).save_pretrained(folder / "unet")
    file = tmp_path / "model.safetensors"
    if name == "sd15":
        save_checkpoint(folder, file, layers=2)
    else:
        {"sdxl": save_sdxl, "sd35": save_sd35}[name](folder, file)
    sets = ["adapter.rank=4", "adapter.train_text_encoder=true", "adapter.text_rank=3"]
    sets += ["adapter.train_t5=true"] if name == "sd35" else ["adapter.conv_rank=2"]
    wanted = apply_sets(preset(name, "style"), sets)
    whole = Base(name="f", family=name, location=str(file), kind="file")
    counted = adapter_parameters(ws, wanted, whole)[0]
    assert (
        counted == adapter_parameters(ws, wanted, replace(whole, location=str(folder), kind="folder"))[0] > 0
    )
    if name == "sd35":  # the transformer alone, with the rest in its folder of configs
        save_sd35(folder, file, whole=False)
        assert adapter_parameters(ws, wanted, replace(whole, config=str(folder)))[0] == counted
        assert adapter_parameters(ws, wanted, whole)[0] < counted
