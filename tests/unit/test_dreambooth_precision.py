"""Preservation, new words and full fine-tunes in half precision, with checkpointed activations."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import train, write_run
from trainers.rundir import MODEL

KEPT = {
    "preservation.mode": "base_prediction", "data.trigger": "zork", "train.gradient_checkpointing": True,
    "train.max_steps": 2, "preview.every": 2, "checkpoints.every": 2,
}  # fmt: skip
CASES = {
    "text encoder": {"adapter.train_text_encoder": True},
    "new words": {"tokens.words": ("zork",)},
    "words alone": {"tokens.words": ("zork",), "tokens.only": True},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_learns_stays_fp32(case, precision, tmp_path, tiny_sd15, pictures):
    rundir = write_run(
        tmp_path / "run", tiny_sd15, pictures, KEPT | {"train.precision": precision} | CASES[case]
    )
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    assert rundir.read_status().warnings == []
    assert {tensor.dtype for tensor in load_file(rundir.adapter).values()} == {torch.float32}


def test_a_full_fine_tune_in_bf16_is_saved_in_bf16(tmp_path, tiny_sd15, pictures):
    changes = {
        "adapter.method": "full",
        "train.precision": "bf16",
        "train.max_steps": 2,
        "optimizer.lr": 1e-3,
    }
    changes |= {"train.gradient_checkpointing": True, "adapter.train_text_encoder": True, "preview.every": 2}
    rundir = write_run(tmp_path / "run", tiny_sd15, pictures, changes)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    weights = load_file(rundir.file(MODEL) / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    before = load_file(tiny_sd15 / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[name].bfloat16(), value) for name, value in weights.items())
