"""The training step on a GPU: adapters in 16 bits, blocks compiled where that pays, a share checkpointed."""

import json

import pytest
import torch

from tests.support.runs import write_run
from tests.support.trained_here import losses, train_here
from tests.unit.test_packed import Model, cosine
from trainers import compiling
from trainers.kernels import settle_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def gradient_and_kernels(model: Model):
    """The gradient of a step, and how many kernels it starts."""
    _, found = model.step()
    found = found.clone()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        model.step()
        torch.cuda.synchronize()
    return found, sum("LaunchKernel" in event.name for event in profile.events())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_adapters_have_the_gradients_of_fp32_and_start_fewer_kernels(dtype, tiny_sd15):
    settle_kernels()
    exact, _ = gradient_and_kernels(Model(tiny_sd15, torch.float32, device=CUDA))
    plain, many = gradient_and_kernels(Model(tiny_sd15, dtype, device=CUDA))
    packed, few = gradient_and_kernels(Model(tiny_sd15, dtype, device=CUDA, packed=True))
    assert cosine(packed, exact) > min(0.999, cosine(plain, exact) - 1e-4)
    assert cosine(packed, plain) > 0.999
    assert few < 0.8 * many


@pytest.mark.parametrize("family", ["sd15", "sd35", "flux1"])
def test_compiled_runs_learn_what_plain_ones_learn(family, tmp_path, request, pictures):
    base, found = request.getfixturevalue(f"tiny_{family}"), {}
    for way in ("off", "on"):
        changes = {"train.max_steps": 4, "train.compile": way}
        rundir = write_run(tmp_path / way, base, pictures, changes, family=family)
        assert train_here(rundir).status.warnings == []
        found[way] = losses(rundir)
    assert found["on"] == pytest.approx(found["off"], rel=0.02)
    assert json.loads(rundir.file("memory.json").read_text())["compiled"] is True


def test_left_open_it_is_timed_once_and_remembered(tmp_path, tiny_sd15, pictures, monkeypatch):
    monkeypatch.setattr(compiling, "USUAL", 0.0)  # four steps are too few to be worth a trial
    monkeypatch.setattr(compiling, "MOST_GAIN", 100.0)
    place, kept = tmp_path / "cache" / compiling.PLACE, []
    for name in ("first", "second"):
        rundir = write_run(tmp_path / name, tiny_sd15, pictures, {"train.max_steps": 4})
        assert train_here(rundir).status.warnings == []
        kept.append((json.loads(rundir.file("memory.json").read_text())["compiled"], place.read_bytes()))
    assert kept[0][1] == kept[1][1]  # the second looked it up, and four steps make up for nothing
    assert kept[1][0] is False
    (pace,) = json.loads(place.read_text()).values()
    assert (pace["fault"], kept[0][0]) == ("", pace["compiled"] < pace["plain"])
    assert min(pace["plain"], pace["compiled"], pace["compiling"]) > 0


def test_the_fewer_blocks_are_checkpointed_the_more_is_kept(tmp_path, tiny_flux1, pictures):
    found, peaks = [], []
    for share in (0.0, 0.5, 1.0):
        changes = {"train.max_steps": 2, "train.compile": "off", "train.gradient_checkpointing": share > 0}
        changes |= {"train.checkpointed_blocks": share or 1.0, "train.batch_size": 4}
        rundir = write_run(tmp_path / str(share), tiny_flux1, pictures, changes, family="flux1")
        torch.cuda.empty_cache()
        assert train_here(rundir).status.warnings == []
        found.append(losses(rundir))
        peaks.append(rundir.read_metrics()[-1]["peak_memory"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] == pytest.approx(found[0], rel=1e-3)
    assert peaks[0] > peaks[1] > peaks[2]
