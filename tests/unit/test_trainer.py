"""Whole runs of the real trainer at toy size: what it leaves behind, and how it ends."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.hashing import hash_adapter
from tests.support.forked import FILE_LIMIT
from tests.support.runs import draw_pictures, resume, start_trainer, train, write_run
from trainers.guards import NotFinite
from trainers.metrics import Reporter
from trainers.readback import LAG, ReadBack
from trainers.rundir import RunDir, checkpoint_step
from trainers.signals import StopFlag


def log(rundir) -> str:
    return rundir.file("log.txt").read_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_sd15, pictures):
    changes = {
        "train.max_steps": 6, "data.trigger": "zork",
        "preview.every": 3, "preview.prompts": ("a red disc", "[trigger]"),
        "log.tensorboard": True, "adapter.train_text_encoder": True, "adapter.text_encoder_until": 0.5,
        "optimizer.text_lr": 5e-4,
    }  # fmt: skip
    rundir = write_run(tmp_path_factory.mktemp("runs") / "finished", tiny_sd15, pictures, changes)
    assert train(rundir) == 0, log(rundir)
    return rundir


def test_status_and_metrics(finished):
    status = finished.read_status()
    assert (status.state, status.step, status.steps, status.reason) == ("finished", 6, 6, "")
    assert status.seconds_per_step > 0
    assert status.peak_memory > 2**20
    lines = finished.read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "text_lr", "grad_norm", "seconds", "peak_memory"} <= lines[0].keys()
    assert status.loss == pytest.approx(sum(line["loss"] for line in lines) / 6)
    assert [line["text_lr"] > 0 for line in lines] == [True, True, True, False, False, False]
    assert ["probe_loss" in line for line in lines] == [False, True, False, True, False, True]
    assert time.time() - finished.file("heartbeat").stat().st_mtime < 60
    assert list(finished.file("tensorboard").glob("events.*"))


def test_previews_and_index(finished):
    lines = finished.previews()
    steps = {(line["step"], line["prompt"]) for line in lines if not line["base"]}
    assert steps == {(step, prompt) for step in (0, 3, 6) for prompt in ("a red disc", "zork")}
    assert [line["prompt"] for line in lines if line["base"]] == ["a red disc", "zork"]
    files = {(line["step"], line["prompt"], line["base"]): finished.path / line["file"] for line in lines}
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files.values())
    base, first = files[(0, "zork", True)], files[(0, "zork", False)]
    assert base.read_bytes() == first.read_bytes()  # B is zero before the first step


def test_checkpoints_and_result(finished):
    steps = [checkpoint_step(folder) for folder in finished.checkpoints()]
    best = finished.read_status().best_step
    assert steps == sorted({4, 6, best})
    last = finished.checkpoints()[-1]
    assert last.joinpath("adapter.safetensors").read_bytes() == finished.adapter.read_bytes()
    numbers = json.loads(last.joinpath("state.json").read_text())
    assert numbers["step"] == 6
    assert numbers["probe_loss"] > 0
    assert not [file for file in finished.path.rglob("*") if file.suffix in {".pt", ".bin", ".pkl", ".pth"}]


def test_text_encoder_is_frozen_after_its_time(finished):
    """Half-way its weights stay; their running mean still closes in on them."""
    by_step = {
        checkpoint_step(folder): load_file(folder / "state.safetensors") for folder in finished.checkpoints()
    }
    text = [key for key in by_step[4] if key.startswith("weights.text_encoder")]
    assert text
    assert all(torch.equal(by_step[4][key], by_step[6][key]) for key in text)
    unet = "weights.unet.mid_block.attentions.0.proj_in.lora_B.weight"
    assert not torch.equal(by_step[4][unet], by_step[6][unet])


def test_previews_do_not_change_the_training(tmp_path, tiny_sd15, pictures):
    changes = {"train.max_steps": 2, "adapter.dropout": 0.2}
    plain = write_run(tmp_path / "plain", tiny_sd15, pictures, changes)
    shown = write_run(
        tmp_path / "shown", tiny_sd15, pictures, changes | {"preview.every": 1, "preview.scheduler": "Euler"}
    )
    assert train(plain) == train(shown) == 0
    assert hash_adapter(plain.adapter).tensor_sha256 == hash_adapter(shown.adapter).tensor_sha256


def test_a_failing_preview_does_not_break_the_run(tmp_path, tiny_sd15, pictures):
    base = shutil.copytree(tiny_sd15, tmp_path / "base")
    scheduler = base / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("DDIMScheduler", "NoSuchScheduler"))
    rundir = write_run(tmp_path / "run", base, pictures, {"preview.every": 2, "train.max_steps": 2})
    assert train(rundir) == 0
    assert rundir.read_status().warnings == [
        "previews fail: AttributeError: module diffusers has no attribute NoSuchScheduler"
    ]


def test_stop_saves_and_resume_goes_on(tmp_path, tiny_sd15, pictures):
    changes = {"train.max_steps": 400, "checkpoints.every": 300}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    trainer = start_trainer(rundir)
    trainer.wait_for_step(rundir, 3)
    os.killpg(trainer.pid, signal.SIGTERM)
    assert trainer.wait() == 0, log(rundir)
    status = rundir.read_status()
    assert status.state == "stopped"
    assert 3 <= status.step < 400
    assert [checkpoint_step(folder) for folder in rundir.checkpoints()] == [status.step]
    assert not rundir.adapter.exists()
    assert train(rundir) == 2  # not silently from the beginning
    assert "has checkpoints already" in rundir.read_status().reason


def test_an_attempt_says_after_which_step_it_begins(tmp_path):
    reporter = Reporter(RunDir(tmp_path), writes=False)
    reporter.begin(7, 20)
    reporter.step({"step": 8})
    assert (reporter.status.begun, reporter.status.steps) == (7, 20)


def test_second_signal_ends_at_once():
    """The first one is a wish; an echo of it, as launchers send, is not the second."""
    context = multiprocessing.get_context("fork")
    ready, say = context.Pipe(duplex=False)
    child = context.Process(target=_wait_for_signals, args=(say,))
    child.start()
    assert ready.recv() == "ready"
    os.kill(child.pid, signal.SIGTERM)
    os.kill(child.pid, signal.SIGTERM)
    assert ready.recv() == "asked"
    time.sleep(0.35)
    os.kill(child.pid, signal.SIGINT)
    child.join(10)
    assert child.exitcode == 1


def _wait_for_signals(say):
    flag = StopFlag(grace=0.3)
    flag.install()
    say.send("ready")
    while not flag:
        time.sleep(0.01)
    say.send("asked")
    time.sleep(60)


def test_nan_stops_early_and_the_last_finite_checkpoint_is_the_result(tmp_path, tiny_sd15, pictures):
    base = shutil.copytree(tiny_sd15, tmp_path / "base")
    changes = {"train.max_steps": 40, "checkpoints.every": 30}
    rundir = write_run(tmp_path / "run", base, pictures, changes)
    trainer = start_trainer(rundir)
    trainer.wait_for_step(rundir, 3)
    os.killpg(trainer.pid, signal.SIGTERM)
    assert trainer.wait() == 0
    good = rundir.checkpoints()[-1]

    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(float("nan"))
    save_file(tensors, weights, {"format": "pt"})
    resume(rundir)
    assert train(rundir) == 3, log(rundir)
    status = rundir.read_status()
    assert (status.state, status.kind) == ("failed", "nan")
    assert f"step {checkpoint_step(good) + 1}: the loss is not finite (pictures: picture-" in status.reason
    assert "\n" not in status.reason
    assert rundir.adapter.read_bytes() == (good / "adapter.safetensors").read_bytes()
    assert rundir.checkpoints() == [good]
    assert f"the result is {good.name}, the last finite checkpoint" in log(rundir)


@pytest.mark.parametrize(
    ("loss", "norm", "what"), [(math.nan, 1.0, "loss"), (math.inf, 1.0, "loss"), (1.0, math.nan, "gradient")]
)
def test_figures_are_checked_within_five_steps(loss, norm, what, tmp_path):
    readback = ReadBack(Reporter(RunDir(tmp_path)), torch.device("cpu"), track=lambda _: None, scaled=False)
    with pytest.raises(NotFinite, match=f"step 3: the {what} is not finite \\(pictures: b.png\\)"):
        _push_steps(readback, {3: (loss, norm)}, last=3 + LAG)
    assert LAG < 5


def _push_steps(readback, bad, last):
    for step in range(1, last + 1):
        loss, norm = bad.get(step, (0.5, 1.0))
        names = ["b.png" if step in bad else "a.png"]
        readback.push(step, torch.tensor(loss), norm, torch.tensor(0.0), names, {})


def test_an_overflowing_gradient_is_no_failure_under_a_gradient_scaler(tmp_path):
    """fp16: the scaler skips the step and lowers its scale."""
    readback = ReadBack(Reporter(RunDir(tmp_path)), torch.device("cpu"), track=lambda _: None, scaled=True)
    readback.push(1, torch.tensor(0.5), math.inf, torch.tensor(0.0), [], {})
    readback.drain({"probe_loss": 2.0})
    line = RunDir(tmp_path).read_metrics()[0]
    assert (line["grad_norm"], line["probe_loss"]) == (None, 2.0)


def test_bad_input_is_one_line(tmp_path, tiny_sd15, pictures):
    broken = [replace(pictures[0], image=str(tmp_path / "gone.png")), *pictures[1:]]
    rundir = write_run(tmp_path / "run", tiny_sd15, [replace(broken[0], pixel_hash="new"), *broken[1:]])
    assert train(rundir) == 2
    status = rundir.read_status()
    assert (status.state, status.kind) == ("failed", "input")
    assert status.reason.startswith("picture-0.png: is missing")
    assert "Traceback" not in log(rundir)
    assert log(rundir).count("picture-0.png") == 1
    assert log(rundir).splitlines()[-1] == f"error: {status.reason}"
    wrong = write_run(tmp_path / "wrong", tiny_sd15, pictures, family="sd15")
    wrong.write_env(replace(wrong.read_env(), family="sd21"))
    assert train(wrong) == 2
    assert "is for sd15, the base is sd21" in wrong.read_status().reason


def test_dead_adapter_is_reported(tmp_path, tiny_sd15, pictures):
    changes = {"optimizer.lr": 1e-45, "optimizer.weight_decay": 0.0, "train.max_steps": 2}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    assert train(rundir) == 0
    assert any("the adapter has not moved in 1 steps" in warning for warning in rundir.read_status().warnings)


def test_an_adapter_that_changes_nothing_is_reported(tmp_path, tiny_sd15, pictures):
    """It moved, but by less than fp32 can tell in the output."""
    changes = {"optimizer.lr": 1e-14, "optimizer.weight_decay": 0.0, "train.max_steps": 3}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    assert train(rundir) == 0, log(rundir)
    (warning,) = rundir.read_status().warnings
    assert warning.startswith("after 3 steps the base answers with the adapter as without it")


@pytest.mark.parametrize("trained", [False, True])
def test_captions_that_all_read_the_same_are_reported(trained, tmp_path, tiny_sd15, pictures):
    base = shutil.copytree(tiny_sd15, tmp_path / "base")
    (weights,) = (base / "text_encoder").glob("*.safetensors")
    tensors = load_file(weights)
    (key,) = [key for key in tensors if "token_embedding" in key]
    save_file(tensors | {key: torch.zeros_like(tensors[key])}, weights, {"format": "pt"})
    changes = {"train.max_steps": 1, "adapter.train_text_encoder": trained}
    rundir = write_run(tmp_path / "run", base, pictures, changes)
    assert train(rundir) == 0, log(rundir)
    assert any(
        "makes no difference between captions (hidden)" in warning
        for warning in rundir.read_status().warnings
    )


def test_schedule_free_says_that_it_takes_no_schedule(tmp_path, tiny_sd15, pictures):
    changes = {"optimizer.name": "schedulefree", "schedule.name": "linear", "train.max_steps": 4}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    assert train(rundir) == 0, log(rundir)
    assert rundir.read_status().warnings == [
        "schedulefree takes no schedule: after the warmup its rate stays constant, schedule.name=linear "
        "means nothing"
    ]
    rates = [line["lr"] for line in rundir.read_metrics()]
    assert rates == [1e-3] * 4
    last = rundir.checkpoints()[-1]
    weights, result = load_file(last / "state.safetensors"), load_file(rundir.adapter)
    assert any(not torch.equal(weights[f"weights.{key}"], value) for key, value in result.items())  # x, not y


def test_full_disk_is_told_apart_and_old_checkpoints_stay(tmp_path, tiny_sd15):
    items = draw_pictures(tmp_path / "pictures")
    rundir = write_run(tmp_path / "run", tiny_sd15, items, {"train.max_steps": 50, "checkpoints.every": 1})
    trainer = start_trainer(rundir, **{FILE_LIMIT: "200000"})
    assert trainer.wait() == 5, log(rundir)
    assert (rundir.read_status().state, rundir.read_status().kind) == ("failed", "disk")
    assert not rundir.checkpoints()
    assert not list(rundir.file("checkpoints").glob("*.partial"))
    resume(rundir)
    trainer = start_trainer(rundir)
    trainer.wait_for_step(rundir, 2)
    os.killpg(trainer.pid, signal.SIGTERM)
    assert trainer.wait() == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_with_gradient_checkpointing(precision, tmp_path, tiny_sd15, pictures):
    """The base computes in half precision; adapter weights and file stay fp32."""
    changes = {
        "train.precision": precision,
        "train.gradient_checkpointing": True,
        "adapter.train_text_encoder": True,
        "train.max_steps": 2,
        "preview.every": 2,
    }
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    assert train(rundir) == 0, log(rundir)
    assert rundir.read_status().warnings == []
    tensors = load_file(rundir.adapter)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if "lora_B" in key)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, tiny_sd15, pictures):
    changes = {"train.max_steps": 2, "adapter.train_text_encoder": True}
    plain = write_run(tmp_path / "plain", tiny_sd15, pictures, changes)
    less = write_run(tmp_path / "less", tiny_sd15, pictures, changes | {"train.gradient_checkpointing": True})
    assert train(plain) == train(less) == 0
    expected, found = load_file(plain.adapter), load_file(less.adapter)
    assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in expected)
