"""Preservation, new words and full fine-tunes with every family; SD1.5 and SD2.1 have tests of their own."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import train, write_run
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.plan import Geometry
from trainers.rundir import MODEL, MODEL_FILE
from trainers.single_file import component_weights, original_tensors

OTHERS = ["sdxl", "sd35", "flux1"]
SHORT = {"train.max_steps": 2, "checkpoints.every": 2, "data.trigger": "zork"}
WIDTHS = {
    "sdxl": {"text_encoder", "text_encoder_2"},
    "sd35": {"text_encoder", "text_encoder_2"},
    "flux1": {"text_encoder"},
}


def run(request, tmp_path, family, pictures, changes):
    base = request.getfixturevalue(f"tiny_{family}")
    rundir = write_run(tmp_path / "run", base, pictures, SHORT | changes, family=family)
    assert train(rundir) == 0, rundir.file("log.txt").read_text()
    assert rundir.read_status().warnings == []
    return base, rundir


@pytest.mark.parametrize("family", OTHERS)
def test_base_prediction_beside_class_pictures_of_another_run(family, request, tmp_path, pictures):
    kept = {"preservation.mode": "base_prediction", "adapter.train_text_encoder": True}
    run(request, tmp_path / "kept", family, pictures, kept)
    drawn = {
        "preservation.mode": "class_pictures", "preservation.class_prompt": "a disc", "preservation.count": 2,
        "preservation.steps": 2,
    }  # fmt: skip
    run(request, tmp_path / "drawn", family, pictures, drawn)
    assert len(list((tmp_path / "drawn" / "cache" / "class").rglob("*.png"))) == 2


@pytest.mark.parametrize("family", OTHERS)
def test_words_are_learned_by_every_clip_encoder(family, request, tmp_path, pictures):
    changes = {
        "tokens.words": ("zork",),
        "tokens.lr": 1e-2,
        "preview.every": 2,
        "preservation.mode": "base_prediction",
    }
    _, rundir = run(request, tmp_path, family, pictures, changes)
    tensors = load_file(rundir.adapter)
    words = {key.partition(".")[0] for key in tensors if ".new_tokens.zork" in key}
    assert words == WIDTHS[family]
    state = load_file(rundir.checkpoints()[-1] / "state.safetensors")
    moments = [value for key, value in state.items() if "exp_avg_sq" in key and key.startswith("optimizer.1")]
    assert moments
    assert all(value.count_nonzero() == value.numel() for value in moments)  # every vector had a gradient


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize("family", OTHERS)
def test_a_full_fine_tune_gives_a_base_of_the_family(family, texts, request, tmp_path, pictures):
    changes = {"adapter.method": "full", "optimizer.lr": 1e-5, "adapter.train_text_encoder": texts}
    changes["adapter.train_t5"] = texts and FAMILIES[family].flow
    base, rundir = run(request, tmp_path, family, pictures, changes)
    model = rundir.file(MODEL)
    made = FAMILIES[family].load_class()(
        BaseFiles(str(model)), dtype=torch.float32, device=torch.device("cpu")
    )
    channels = made.config("vae")["latent_channels"]
    geometry = [Geometry((32, 32), (0, 0), (32, 32))]
    x, t = torch.zeros(1, channels, 8, 8), torch.full((1,), 0.5 if FAMILIES[family].flow else 500)
    assert made.predict(x, t, made.encode_text(["a disc"]), geometry).isfinite().all()
    name = made.denoiser_name
    before, after = component_weights(base / name), component_weights(model / name)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    for other in made.text_encoder_names:
        assert (model / other / "config.json").is_file()
        mine, theirs = (
            {key.removeprefix("text_model.") for key in component_weights(folder / other)}
            for folder in (model, base)
        )
        assert mine == theirs
    assert rundir.file(MODEL_FILE).exists() == bool(made.single_file)


def test_original_names_of_sdxl(tiny_sdxl):
    """The second text encoder as OpenCLIP has it: one matrix for query, key and value."""
    tensors = original_tensors(tiny_sdxl, FAMILIES["sdxl"].load_class().single_file)
    heads = {key.split(".")[0] for key in tensors}
    assert heads == {"model", "first_stage_model", "conditioner"}
    ours = component_weights(tiny_sdxl / "text_encoder_2")
    layer = "text_model.encoder.layers.0.self_attn"
    fused = torch.cat([ours[f"{layer}.{part}_proj.weight"] for part in "qkv"])
    theirs = "conditioner.embedders.1.model."
    assert torch.equal(tensors[f"{theirs}transformer.resblocks.0.attn.in_proj_weight"], fused)
    assert torch.equal(tensors[f"{theirs}text_projection"], ours["text_projection.weight"].T)
    assert "model.diffusion_model.label_emb.0.0.weight" in tensors
    assert "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight" in tensors
