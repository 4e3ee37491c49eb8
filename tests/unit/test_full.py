"""Full fine-tune: the base's own weights learn, the result is a base in two forms, and it resumes exactly."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from registry.errors import BadInput
from tests.support.checkpoints import save_checkpoint
from tests.support.runs import recipe, resume, start_trainer, train, write_run
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.full import attach_full, full_warnings
from trainers.priors import check_preservation, check_words
from trainers.recipe import AdapterSection
from trainers.rundir import MODEL, MODEL_FILE
from trainers.single_file import original_tensors

CPU = torch.device("cpu")
FULL = {"adapter.method": "full", "optimizer.lr": 1e-4, "train.max_steps": 6, "checkpoints.every": 2}
BOTH = FULL | {"adapter.train_text_encoder": True, "preview.every": 3, "train.ema_decay": 0.9}


def load(location, family="sd15", kind="folder", config=""):
    files = BaseFiles(str(location), kind, str(config))
    return FAMILIES[family].load_class()(files, dtype=torch.float32, device=CPU)


def answers(family):
    """What the denoiser says for two captions, and what the VAE makes of the latents."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cond = family.encode_text(["a red disc", "zork"])
        return family.predict(x, torch.tensor([100, 700]), cond, []), family.decode_image(x)


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def finished(request, tmp_path_factory, pictures):
    base = request.getfixturevalue(f"tiny_{request.param}")
    rundir = write_run(tmp_path_factory.mktemp("full") / "run", base, pictures, BOTH, family=request.param)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    return request.param, base, rundir


def test_the_result_is_the_base_with_other_weights(finished):
    name, base, rundir = finished
    assert not rundir.adapter.exists()
    model = rundir.file(MODEL)
    assert json.loads((model / "model_index.json").read_text()) == json.loads(
        (base / "model_index.json").read_text()
    )
    before, after = load(base, name), load(model, name)
    assert not torch.equal(answers(before)[0], answers(after)[0])
    assert torch.equal(answers(before)[1], answers(after)[1])  # the VAE does not learn
    state = load_file(rundir.checkpoints()[-1] / "state.safetensors")
    means = torch.cat([state["mean.0"], state["mean.1"]])
    learned = {**after.denoiser.state_dict(), **after.part("text_encoder").state_dict()}
    assert means.numel() == sum(value.numel() for value in learned.values())
    assert means.double().sum() == pytest.approx(
        sum(float(v.double().sum()) for v in learned.values()), rel=1e-6
    )


def test_the_single_file_is_the_same_model(finished, tmp_path):
    name, _, rundir = finished
    folder, file = rundir.file(MODEL), rundir.file(MODEL_FILE)
    assert set(load_file(file)) == set(original_tensors(folder, FAMILIES[name].load_class().single_file))
    from_file = load(file, name, "file", folder)
    expected, found = answers(load(folder, name)), answers(from_file)
    assert torch.equal(expected[1], found[1])
    assert torch.allclose(expected[0], found[0], atol=1e-6)


def test_text_encoders_have_the_names_that_other_tools_read(finished):
    _, _, rundir = finished
    names = set(load_file(rundir.file(MODEL) / "text_encoder" / "model.safetensors"))
    assert all(name.startswith("text_model.") for name in names)


def test_original_names_are_those_of_the_published_checkpoints(tiny_sd15, tmp_path):
    expected = load_file(save_checkpoint(tiny_sd15, tmp_path / "original.safetensors"))
    found = original_tensors(tiny_sd15, FAMILIES["sd15"].load_class().single_file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_previews_show_the_base_before_the_first_step(finished):
    _, _, rundir = finished
    lines = rundir.previews()
    assert {line["step"] for line in lines if line["base"]} == {0}
    files = {(line["step"], line["base"]): (rundir.path / line["file"]).read_bytes() for line in lines}
    assert files[0, True] == files[0, False]
    assert files[0, True] != files[6, False]


def test_a_checkpoint_holds_the_weights_once_and_their_mean(finished):
    _, _, rundir = finished
    folder = rundir.checkpoints()[-1]
    assert not (folder / "adapter.safetensors").exists()
    state = load_file(folder / "state.safetensors")
    kinds = {name.partition(".")[0] for name in state}
    assert kinds == {"weights", "mean", "optimizer"}
    weights = sum(v.numel() for n, v in state.items() if n.startswith("weights."))
    assert sum(v.numel() for v in state.values()) < 4.01 * weights  # and AdamW's two moments


def test_killed_and_resumed_is_the_same_model(tmp_path, tiny_sd15, pictures):
    whole = write_run(tmp_path / "whole", tiny_sd15, pictures, BOTH | {"train.max_steps": 7})
    assert train(whole) == 0, whole.file("log.txt").read_text()
    broken = write_run(tmp_path / "broken", tiny_sd15, pictures, BOTH | {"train.max_steps": 7})
    trainer = start_trainer(broken)
    trainer.wait_for_step(broken, 5)
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    resume(broken)
    assert train(broken) == 0, broken.file("log.txt").read_text()
    assert broken.file(MODEL_FILE).read_bytes() == whole.file(MODEL_FILE).read_bytes()
    assert [line["loss"] for line in broken.read_metrics()] == [line["loss"] for line in whole.read_metrics()]


def test_a_base_that_is_one_file_gives_a_folder_and_a_file(tmp_path, tiny_sd15, pictures):
    single = save_checkpoint(tiny_sd15, tmp_path / "base.safetensors")
    env = {"base_kind": "file", "base_config": str(tiny_sd15)}
    rundir = write_run(tmp_path / "run", single, pictures, FULL | {"train.max_steps": 2}, **env)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    plain = write_run(tmp_path / "plain", tiny_sd15, pictures, FULL | {"train.max_steps": 2})
    assert train(plain) == 0
    one, other = (answers(load(run.file(MODEL))) for run in (rundir, plain))
    assert torch.allclose(one[0], other[0], atol=1e-5)
    assert torch.equal(one[1], other[1])


def test_what_cannot_be_is_refused(tiny_sd15):
    family = FAMILIES["sd15"].load_class()(BaseFiles(str(tiny_sd15)), dtype=torch.float16, device=CPU)
    with pytest.raises(BadInput, match=r"train\.precision: is fp16"):
        attach_full(family, AdapterSection(method="full"))
    kept = FULL | {"preservation.mode": "base_prediction", "preservation.class_prompt": "a disc"}
    with pytest.raises(BadInput, match="leaves no base to ask"):
        check_preservation(recipe(kept))
    with pytest.raises(BadInput, match="saved with an adapter"):
        check_words(recipe(FULL | {"tokens.words": ("zork",)}))
    assert full_warnings(recipe(FULL)) == [
        "optimizer.lr is 0.0001: whole models usually learn at 1e-6 to 1e-05"
    ]
    assert full_warnings(recipe(FULL | {"optimizer.lr": 2e-6})) == []
