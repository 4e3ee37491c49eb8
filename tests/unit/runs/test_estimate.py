"""Figures of a forecast: estimated from shapes, measured by a probe, scaled; each says which it is."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from registry.errors import StudioError
from registry.records import Base, Dataset, RunState
from studio.runs import estimate, speed
from studio.runs import forecast as runs_forecast
from studio.runs.forecast import Forecast, figure_words, forecast
from studio.runs.probe import probe
from studio.workspace import Workspace
from tests.support.supervision import fake_executor, make_dataset, make_run
from trainers.fitting import CHECKPOINTED
from trainers.recipe import Recipe, apply_sets, preset
from trainers.rundir import Status


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def recipe(*sets: str) -> Recipe:
    return apply_sets(preset("sd15", "style", "pocket"), ["train.max_steps=120", *sets])


def cost(ws: Workspace, *sets: str) -> Forecast:
    dataset = ws.catalog.find(Dataset, "shapes") or make_dataset(ws)
    return forecast(ws, recipe(*sets), ws.catalog.get(Base, "pocket"), dataset)


def kinds(found: Forecast) -> tuple[str, str]:
    assert found.time is not None
    assert found.peak is not None
    return found.time.kind, found.peak.kind


def seen(ws: Workspace, seconds: float, memory: int, *sets: str) -> None:
    """A run of these settings was here."""
    status = Status(state="finished", step=9, seconds_per_step=seconds, peak_memory=memory)
    base = ws.catalog.get(Base, "pocket")
    speed.remember_probe(ws, base.weight_hash, recipe(*sets), status, took=20.0 + 9 * seconds)


def test_a_figure_says_how_it_is_known(ws: Workspace):
    assert kinds(cost(ws)) == ("estimated", "estimated")
    assert cost(ws).start is None
    seen(ws, 0.5, 600 << 20)
    here = cost(ws)
    assert kinds(here) == ("measured", "measured")
    assert (here.time and here.time.value, here.peak and here.peak.value) == (1.0, 600 << 20)
    assert here.start is not None
    assert here.start.value == pytest.approx(20 / 60)
    assert figure_words(here.time, lambda minutes: f"{minutes:.0f} min") == "1 min (measured)"
    larger = cost(ws, "train.batch_size=8")
    assert kinds(larger) == ("scaled", "scaled")
    assert 1.0 < larger.time.value < 2.0  # a part of a step costs the same
    assert kinds(cost(ws, "train.gradient_checkpointing=true")) == ("estimated", "estimated")
    seen(ws, 0.6, 500 << 20, "train.gradient_checkpointing=true")
    half = cost(ws, "train.gradient_checkpointing=true", "train.checkpointed_blocks=0.5")
    assert kinds(half) == ("estimated", "estimated")


def test_two_sizes_give_a_line(ws: Workspace):
    seen(ws, 0.4, 600 << 20, "train.batch_size=2")
    seen(ws, 0.6, 640 << 20, "train.batch_size=4")
    found = cost(ws, "train.batch_size=8")
    assert found.time is not None
    assert found.time.value == pytest.approx(120 * 1.0 / 60)
    assert "another of other sizes" in found.time.reason


def test_memory_grows_with_pictures_and_shrinks_with_savings(ws: Workspace):
    base, chosen = ws.catalog.get(Base, "pocket"), recipe()
    size = estimate.size_of(ws, base)
    assert size.cell == 4  # its autoencoder halves twice

    def need(piece: int, fit: estimate.Fit) -> int:
        return estimate.memory(chosen, "sd15", size, 10**6, piece, fit)

    plain = need(64**2, estimate.Fit())
    assert need(16 * 64**2, estimate.Fit()) > plain > need(64**2, estimate.Fit(checkpointing=1.0))
    shares = [need(64**2, estimate.Fit(checkpointing=share)) for share in (0.0, *CHECKPOINTED)]
    assert shares == sorted(shares, reverse=True)
    assert len({*shares}) == len(shares)
    asked = recipe("train.gradient_checkpointing=true", "train.checkpointed_blocks=0.5")
    assert estimate.memory(asked, "sd15", size, 10**6, 64**2, estimate.Fit()) == shares[2]
    times = [
        estimate.seconds(chosen, "sd15", size, 512**2, estimate.Fit(checkpointing=share))
        for share in (0, 0.5, 1)
    ]
    assert times[0] < times[1] < times[2]
    assert estimate.seconds(asked, "sd15", size, 512**2) == times[1]
    assert need(64**2, estimate.Fit(pieces=2)) < plain
    whole, int8, nf4 = (need(64**2, estimate.Fit(base=kept)) for kept in ("whole", "int8", "nf4"))
    assert whole - nf4 > 1.1 * (whole - int8) > 2 * size.denoiser
    asked = apply_sets(chosen, ["train.base_weights=int8"])
    assert estimate.memory(asked, "sd15", size, 10**6, 64**2, estimate.Fit()) == int8


def test_the_fit_is_said_with_its_reason(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    assert cost(ws).fit.startswith("It fits as it is: 0.5 GiB of")
    monkeypatch.setattr(estimate, "room_here", lambda _: (int(0.60 * 2**30), "of memory"))
    said = cost(ws, "train.batch_size=32").fit
    assert "gradient checkpointing" in said
    assert said.endswith("Set it in the recipe, without a GPU nothing is tried.")
    asked = cost(ws, "train.batch_size=32", "train.dry_run=on").fit
    assert asked.endswith("The trainer sees to it.")
    for room in range(600, 440, -1):  # down to where nothing but a base of fewer bits helps
        monkeypatch.setattr(estimate, "room_here", lambda _, room=room: (room << 20, "of memory"))
        said = cost(ws, "train.batch_size=1").fit
        if "rounded to 8 bits" in said or said.startswith("It will not fit"):
            break
    assert "the base's weights rounded to 8 bits" in said
    refused = cost(ws, "train.batch_size=1", "train.base_weights=whole").fit
    assert refused.startswith("It will not fit")
    assert ". Set train.base_weights=auto, lower train.resolution" in refused
    monkeypatch.setattr(estimate, "room_here", lambda _: (100 << 20, "of memory"))
    assert cost(ws).fit.startswith("It will not fit: it needs 0.4 GiB at least")


def test_on_a_gpu_the_forecast_begins_as_the_trainer_does(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    size, chosen = estimate.Size(12 * 10**9, 0, 8), apply_sets(preset("flux1", "style"), [])
    monkeypatch.setattr(estimate, "has_gpu", lambda: True)

    def fit(gigabytes: int, *sets: str) -> estimate.Fit | None:
        monkeypatch.setattr(estimate, "room_here", lambda _: (int(gigabytes * 0.94e9), "on the GPU"))
        return estimate.fits(apply_sets(chosen, [*sets]), "flux1", size, 10**7, 512**2)[0]

    for gigabytes, kept in ((80, "whole"), (24, "int8"), (12, "nf4")):  # 24, 12.5 and 7 GB of weights
        found = fit(gigabytes)
        assert found is not None
        assert (found.base, found.streamed, found.small_state) == (kept, False, False)
    smallest = fit(8)
    assert smallest is not None
    assert (smallest.base, smallest.streamed) == ("nf4", True)
    assert fit(24, "train.base_weights=whole", "train.base_streaming=off") is None
    assert fit(24, "train.base_weights=whole") == estimate.Fit(streamed=True)
    assert fit(24, "adapter.method=full", "adapter.alpha=none") is None


@pytest.mark.parametrize(
    ("visible", "processes", "gigabytes"),
    [
        (None, 1, 24), (None, 2, 16), (None, 3, 8), (None, 4, 8), ("", 2, 16), ("1", 2, 16), ("0, 2", 2, 8),
        ("2,0", 1, 8), ("GPU-c", 1, 8), ("MIG-d", 1, 24),
    ],
)  # fmt: skip
def test_of_unequal_gpus_the_smallest_that_is_used_counts(
    visible: str | None, processes: int, gigabytes: int, monkeypatch: pytest.MonkeyPatch
):
    said = "GPU-a1, 24576\nGPU-b2, 16384\nGPU-c3, 8192\n"
    monkeypatch.setattr(estimate.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(estimate, "has_gpu", lambda: True)
    room = int((gigabytes << 30) * estimate.USABLE)
    assert estimate.room_here.__wrapped__(processes) == (room, "on the GPU")


def test_several_gpus_hold_the_base_together(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    size, chosen = estimate.Size(12 * 10**9, 0, 8), apply_sets(preset("flux1", "style"), [])
    monkeypatch.setattr(estimate, "has_gpu", lambda: True)
    monkeypatch.setattr(estimate, "room_here", lambda _: (int(24 * 0.94e9), "on the GPU"))

    def fit(*sets: str) -> estimate.Fit | None:
        return estimate.fits(apply_sets(chosen, [*sets]), "flux1", size, 10**7, 512**2)[0]

    def need(*sets: str) -> int:
        recipe = apply_sets(chosen, [*sets])
        return estimate.memory(recipe, "flux1", size, 10**7, 512**2, fit(*sets) or estimate.Fit())

    shared = estimate.Fit(checkpointing=True, sharded=True)
    assert fit("train.processes=2") == shared
    assert fit("train.processes=2", "train.base_sharding=off") == estimate.Fit(base="int8")
    assert fit("train.processes=2", "train.base_weights=whole") == shared
    assert fit("train.processes=4", "train.base_sharding=on") == estimate.Fit()
    two, four = need("train.processes=2"), need("train.processes=4")
    assert two - four == pytest.approx(24e9 / 4, rel=1e-6)
    seen(ws, 5.0, 600 << 20, "train.processes=2", "train.base_sharding=on")
    assert kinds(cost(ws, "train.processes=2")) == ("estimated", "estimated")


def test_a_streamed_base_is_measured_apart(ws: Workspace):
    seen(ws, 5.0, 600 << 20, "train.base_streaming=on")
    assert kinds(cost(ws)) == ("estimated", "estimated")
    assert kinds(cost(ws, "train.base_streaming=on")) == ("measured", "measured")


def test_a_probe_measures_and_leaves_nothing_else(ws: Workspace):
    dataset, base = make_dataset(ws), ws.catalog.get(Base, "pocket")
    found = probe(ws, recipe(), base, dataset, executor=fake_executor(ws))
    assert found.run == speed.PROBE
    assert kinds(cost(ws))[0] == "measured"
    assert list((ws.home / "cache" / "probes").iterdir()) == []
    run = make_run(ws)
    ws.catalog.move_run(run.id, RunState.STARTING, expect={RunState.QUEUED})
    with pytest.raises(StudioError, match="while run ink trains"):
        probe(ws, recipe(), base, dataset, executor=fake_executor(ws))


def test_a_probe_that_fails_says_why(ws: Workspace):
    dataset, base = make_dataset(ws), ws.catalog.get(Base, "pocket")
    with pytest.raises(StudioError, match="was not measured: it was stopped"):
        probe(ws, recipe(), base, dataset, executor=fake_executor(ws), stop=lambda: True)
    assert list((ws.home / "cache" / "probes").iterdir()) == []


def test_on_a_gpu_memory_is_scaled_with_the_savings_that_each_size_takes(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
):
    """What fits with gradient checkpointing is not said to need plain activations."""
    size, room = estimate.Size(12 * 10**9, 0, 8), int(24 * 0.94e9)
    base = replace(ws.catalog.get(Base, "pocket"), family="flux1")
    chosen = apply_sets(preset("flux1", "style"), ["train.resolution=1024", "train.resolutions=[]"])
    pixels, piece = speed.pixels_of(chosen)
    here = 18 << 30  # at half of the sides
    monkeypatch.setattr(estimate, "has_gpu", lambda: True)
    monkeypatch.setattr(runs_forecast, "has_gpu", lambda: True)
    monkeypatch.setattr(estimate, "room_here", lambda _: (room, "on the GPU"))
    monkeypatch.setattr(estimate, "size_of", lambda *_: size)
    monkeypatch.setattr(speed, "near", lambda *_: [speed.Seen(2.0, here, pixels // 4, piece // 4, "r")])
    found = runs_forecast.figures_of(ws, chosen, base, 10**7)
    assert "gradient checkpointing" in found["fit"]
    assert found["peak"].kind == "scaled"
    assert 0.5 * here <= found["peak"].value < here + (2 << 30)  # plain ones take 23 GiB more
