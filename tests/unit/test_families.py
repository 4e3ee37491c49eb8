"""The family contract over every family, with real classes at toy size."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from registry.errors import BadInput
from tests.support.bases import save_base
from tests.support.checkpoints import save_checkpoint
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.recipe import ObjectiveSection

CPU = torch.device("cpu")


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def base(request, tmp_path_factory):
    return request.param, save_base(request.param, tmp_path_factory.mktemp(request.param))


def load(base: tuple[str, Path]):
    return FAMILIES[base[0]].load_class()(BaseFiles(str(base[1])), dtype=torch.float32, device=CPU)


def test_text_encoding_equals_the_pipeline(base):
    family, pipe = load(base), StableDiffusionPipeline.from_pretrained(base[1], local_files_only=True)
    captions = ["a red star", "", "ein Haus"]
    expected, _ = pipe.encode_prompt(captions, CPU, 1, do_classifier_free_guidance=False)
    assert torch.equal(family.encode_text(captions)["hidden"], expected)
    tokens = family.tokenize(captions)
    assert tokens["input_ids"].shape == (3, 77)
    assert torch.equal(family.conditioning(tokens)["hidden"], expected)
    cached = {"hidden": expected}
    assert family.conditioning(cached) is cached


def test_latents_are_the_vaes_posterior_scaled(base):
    family = load(base)
    pixels = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = family.encode_image(pixels)
    vae = family.part("vae")
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(pixels))
    expected_mean, log_variance = moments.chunk(2, dim=1)
    torch.testing.assert_close(mean, expected_mean * vae.config.scaling_factor)
    torch.testing.assert_close(std, (log_variance.clamp(-30, 20) / 2).exp() * vae.config.scaling_factor)
    assert mean.shape == (2, 4, 32 // family.latent_factor, 24 // family.latent_factor)
    assert family.decode_image(mean).shape == pixels.shape


def test_prediction_is_one_call_of_the_denoiser(base):
    family = load(base)
    x_t, t = torch.randn(2, 4, 8, 6), torch.tensor([3, 900])
    cond = family.encode_text(["a", "b"])
    with torch.no_grad():
        expected = family.denoiser(x_t, t, cond["hidden"]).sample
        assert torch.equal(family.predict(x_t, t, cond, []), expected)


def test_objective_follows_the_scheduler(base):
    assert load(base).make_objective(ObjectiveSection()).prediction == (
        "v_prediction" if base[0] == "sd21" else "epsilon"
    )
    forced = load(base).make_objective(
        ObjectiveSection(prediction="epsilon", snr_gamma=5.0, timestep_max=500)
    )
    assert (forced.prediction, forced.snr_gamma, forced.timesteps) == ("epsilon", 5.0, (0, 500))


def test_tokens_beyond_the_encoder_are_counted(base):
    family = load(base)
    assert family.tokens_cut("red " * 75) == 0
    assert family.tokens_cut("red " * 80) == 5


def test_parts_load_when_needed_and_can_be_freed(base):
    family = load(base)
    family.encode_text(["a"])
    assert set(family._loaded) == {"tokenizer", "text_encoder"}
    family.free("text_encoder", "vae")
    assert set(family._loaded) == {"tokenizer"}
    assert not any(parameter.requires_grad for parameter in family.denoiser.parameters())


def test_component_hash_follows_the_files(base, tmp_path):
    family = load(base)
    copy = shutil.copytree(base[1], tmp_path / "copy")
    moved = FAMILIES[base[0]].load_class()(BaseFiles(str(copy)), dtype=torch.float32, device=CPU)
    assert (
        moved.component_hash("vae") == family.component_hash("vae") != family.component_hash("text_encoder")
    )
    config = copy / "vae" / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.2"))
    assert moved.component_hash("vae") != family.component_hash("vae")


def test_half_precision_folder(base, tmp_path):
    """Weights named *.fp16.safetensors, as many bases are published."""
    family, folder = load(base), shutil.copytree(base[1], tmp_path / "half")
    for name in ("unet", "vae", "text_encoder"):
        for file in (folder / name).glob("*.safetensors"):
            file.rename(file.with_suffix(".fp16.safetensors"))
    half = FAMILIES[base[0]].load_class()(BaseFiles(str(folder)), dtype=torch.float32, device=CPU)
    assert torch.equal(half.encode_text(["x"])["hidden"], family.encode_text(["x"])["hidden"])
    assert half.part("vae").dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "unet" / "evil.py").write_text("print()"), "may not bring code"),
        (lambda folder: shutil.rmtree(folder), "the base is not there"),
        (lambda folder: shutil.rmtree(folder / "unet"), "cannot be loaded|is missing"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "is missing from the base"),
        (lambda folder: _empty(folder / "tokenizer"), "has only .* tokens|cannot be loaded"),
        (lambda folder: _pickle(folder / "unet"), "cannot be loaded"),
    ],
    ids=["code", "gone", "no unet", "no scheduler", "empty tokenizer", "pickle"],
)
def test_bad_bases_are_refused_in_one_line(change, message, tmp_path):
    folder = save_base("sd15", tmp_path / "base")
    change(folder)
    with pytest.raises(BadInput, match=message) as error:
        _use_everything(folder)
    assert "\n" not in str(error.value)


def test_single_files_need_configs_and_safetensors(tmp_path):
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(b"x")
    with pytest.raises(BadInput, match="is no safetensors file"):
        BaseFiles(str(checkpoint), "file").check()
    safe = checkpoint.rename(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match="--config DIR"):
        BaseFiles(str(safe), "file").check()


def test_scheduler_class_of_the_base_does_not_matter(tmp_path):
    folder = save_base("sd15", tmp_path / "base")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    family = FAMILIES["sd15"].load_class()(BaseFiles(str(folder)), dtype=torch.float32, device=CPU)
    assert family.make_objective(ObjectiveSection()).prediction == "v_prediction"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def _use_everything(folder: Path) -> None:
    family = FAMILIES["sd15"].load_class()(BaseFiles(str(folder)), dtype=torch.float32, device=CPU)
    family.make_objective(ObjectiveSection())
    family.encode_text(["a"])
    _ = family.denoiser


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _pickle(folder: Path) -> None:
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_single_file_is_the_folder(name, tmp_path):
    """Weights in one file under the original names, configs beside it, nothing asked of a hub."""
    folder = save_base(name, tmp_path / "base")
    file = save_checkpoint(folder, tmp_path / "model.safetensors")
    configs = shutil.copytree(
        folder, tmp_path / "configs", ignore=shutil.ignore_patterns("*model*.safetensors")
    )
    from_folder = load((name, folder))
    base = BaseFiles(str(file), "file", str(configs))
    from_file = FAMILIES[name].load_class()(base, dtype=torch.float32, device=CPU)
    for part in ("unet", "vae", "text_encoder"):
        expected = from_folder.part(part).state_dict()
        found = from_file.part(part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), part
    assert torch.equal(from_file.encode_text(["x"])["hidden"], from_folder.encode_text(["x"])["hidden"])
    assert from_file.make_objective(ObjectiveSection()) is not None
    assert from_file.component_hash("vae") == from_file.component_hash("unet")
