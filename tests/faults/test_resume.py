"""A run that is killed and resumed equals the uninterrupted one, bit for bit (CPU, fp32)."""

import json
import os
import random
import shutil
import signal
import time

import pytest

from registry.hashing import hash_adapter
from tests.support.runs import KEY, Trainer, resume, start_trainer, train, write_run
from trainers.rundir import RunDir, checkpoint_name, checkpoint_step, verify_checkpoint

pytestmark = pytest.mark.fault

STEPS = 12
KILLED_AFTER = (2, 4)  # up to two steps after this checkpoint: text encoders and words freeze about then
PROMPT = {"preview.prompts": ("a zork on a table",)}

CASES = {
    "plain": {},
    "everything": {
        "train.accumulate": 2,
        "data.flip": True,
        "data.caption_dropout": 0.5,
        "adapter.train_text_encoder": True,
        "adapter.text_encoder_until": 0.25,
        "adapter.conv_rank": 2,
        "adapter.dropout": 0.1,
        "objective.noise_offset": 0.1,
        "preview.every": 5,
        "train.ema_decay": 0.9,
    },
    "preservation": {
        "preservation.mode": "base_prediction",
        "data.trigger": "zork",
        "adapter.train_text_encoder": True,
        "adapter.text_encoder_until": 0.25,
        "adapter.dropout": 0.1,
    },
    "class pictures": {
        "preservation.mode": "class_pictures",
        "preservation.class_prompt": "a disc",
        "preservation.count": 3,
        "preservation.steps": 2,
    },
    "new words": {
        "tokens.words": ("zork", "ring"),
        "tokens.until": 0.4,
        "data.trigger": "zork ring",
        "preservation.mode": "base_prediction",
        "preview.every": 2,
    },
    "words alone": {"tokens.words": ("zork",), "tokens.only": True, "data.trigger": "zork"},
    "prodigy": {"optimizer.name": "prodigy", "optimizer.lr": 1.0, "train.ema_decay": 0.0},
    "schedulefree": {
        "optimizer.name": "schedulefree",
        "preview.every": 3,
        "objective.input_perturbation": 0.1,
        "objective.pyramid_discount": 0.5,
        "objective.loss": "huber",
    },
    "adamw8bit": {"optimizer.name": "adamw8bit", "train.ema_every": 3, "train.dry_run": "on"},
    "flow": {
        "train.accumulate": 2,
        "data.flip": True,
        "data.caption_dropout": 0.5,
        "data.text_length": 32,
        "adapter.train_text_encoder": True,
        "adapter.text_encoder_until": 0.25,
        "adapter.dropout": 0.1,
        "objective.timestep_law": "mode",
        "preview.every": 5,
        "train.ema_decay": 0.9,
    },
}
CASES["flow, t5"] = CASES["flow"] | {"adapter.train_t5": True, "objective.guidance": 3.5}


@pytest.mark.parametrize(
    ("case", "family"),
    [
        ("plain", "sd15"),
        ("everything", "sd15"),
        ("everything", "sd21"),
        ("prodigy", "sd15"),
        ("preservation", "sd15"),
        ("class pictures", "sd15"),
        ("new words", "sdxl"),
        ("new words", "sd35"),
        ("words alone", "sd21"),
        ("everything", "sdxl"),
        ("flow", "sd35"),
        ("flow, t5", "flux1"),
        ("schedulefree", "sd21"),
        ("adamw8bit", "sd15"),
    ],
)
def test_killed_and_resumed_is_bit_identical(case, family, request, tmp_path, pictures):
    base = request.getfixturevalue(f"tiny_{family}")
    changes = {"train.max_steps": STEPS, "checkpoints.every": 2, **PROMPT, **CASES[case]}
    # Whether there are checkpoints on the way makes no difference either.
    straight = changes | {"checkpoints.every": STEPS}
    whole = write_run(tmp_path / "whole", base, pictures, straight, family=family)
    assert train(whole) == 0, whole.file("log.txt").read_text()

    broken = write_run(tmp_path / "broken", base, pictures, changes, family=family)
    for saved in KILLED_AFTER:
        process = start_trainer(broken)
        wait_for_checkpoint(process, broken, saved)
        time.sleep(random.random() * 2 * broken.read_metrics()[-1]["seconds"])
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it did not get to its end before
        resume(broken)
    (broken.file("checkpoints") / f"{checkpoint_name(STEPS - 2)}.partial").mkdir(exist_ok=True)
    assert train(broken) == 0, broken.file("log.txt").read_text()

    assert same(broken, whole)
    assert losses(broken) == losses(whole)
    assert not list(broken.file("checkpoints").glob("*.partial"))
    assert previews(broken) == previews(whole)
    assert ("preview.every" in changes) == bool(previews(whole))


def wait_for_checkpoint(process: Trainer, rundir: RunDir, step: int) -> None:
    """Until there is one of that step or a later one, or the trainer is gone."""
    while process.poll() is None and all(checkpoint_step(path) < step for path in rundir.checkpoints()):
        time.sleep(0.005)


def same(left: RunDir, right: RunDir) -> bool:
    return hash_adapter(left.adapter).tensor_sha256 == hash_adapter(right.adapter).tensor_sha256


def losses(rundir: RunDir) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in rundir.read_metrics()]


def previews(rundir: RunDir) -> dict[str, bytes]:
    return {line["file"]: (rundir.path / line["file"]).read_bytes() for line in rundir.previews()}


def test_every_step_is_resumable_and_the_newest_that_verifies_counts(tmp_path, tiny_sd15, pictures):
    changes = {"train.max_steps": 4, "checkpoints.every": 1, "checkpoints.keep": 4}
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, changes)
    assert train(whole) == 0
    folders = whole.checkpoints()
    assert [checkpoint_step(folder) for folder in folders] == [1, 2, 3, 4]
    assert all(verify_checkpoint(folder, bytes.fromhex(KEY)) for folder in folders)

    damaged = RunDir(shutil.copytree(whole.path, tmp_path / "damaged"))
    damaged.adapter.unlink()
    state = damaged.checkpoints()[-1] / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-5] ^= 1
    state.write_bytes(content)
    forged = damaged.checkpoints()[-2] / "manifest.json"
    body = json.loads(forged.read_text())
    body["hmac"] = "0" * 64
    forged.write_text(json.dumps(body))
    resume(damaged)
    assert train(damaged) == 0, damaged.file("log.txt").read_text()
    assert "step-000004 does not verify" in damaged.file("log.txt").read_text()
    assert same(damaged, whole)
    assert losses(damaged) == losses(whole)

    for folder in damaged.checkpoints():
        (folder / "state.safetensors").write_bytes(b"")
    assert train(damaged) != 0
    assert damaged.read_status().reason == "checkpoints: none of them verifies. start a new run."


def test_branch_goes_on_from_a_checkpoint_of_another_run(tmp_path, tiny_sd15, pictures):
    changes = {
        "train.max_steps": 4,
        "checkpoints.every": 2,
        "schedule.name": "constant",
        "schedule.warmup": 0.0,
    }
    parent = write_run(tmp_path / "parent", tiny_sd15, pictures, changes)
    assert train(parent) == 0
    folder = "../parent/checkpoints/step-000002"
    same_recipe = write_run(tmp_path / "same", tiny_sd15, pictures, changes, parent=folder)
    assert train(same_recipe) == 0, same_recipe.file("log.txt").read_text()
    assert same(same_recipe, parent)
    assert [step for step, _, _ in losses(same_recipe)] == [3, 4]

    other = write_run(
        tmp_path / "other", tiny_sd15, pictures, changes | {"optimizer.name": "prodigy"}, parent=folder
    )
    assert train(other) == 0
    assert any("fresh one" in warning for warning in other.read_status().warnings)
    assert not same(other, parent)

    wider = write_run(tmp_path / "wider", tiny_sd15, pictures, changes | {"adapter.rank": 8}, parent=folder)
    assert train(wider) == 2
    assert "the recipe makes it" in wider.read_status().reason
