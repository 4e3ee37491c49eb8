"""The files of a base: hashes, half precision, single files, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

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


def load(base: tuple[str, Path], **options):
    cls = FAMILIES[base[0]].load_class()
    return cls(BaseFiles(str(base[1])), **{"dtype": torch.float32, "device": CPU} | options)


def copied(base: tuple[str, Path], folder: Path) -> tuple[str, Path]:
    return base[0], shutil.copytree(base[1], folder)


def test_component_hash_follows_the_files(base, tmp_path):
    family, moved = load(base), load(copied(base, tmp_path / "copy"))
    assert (
        moved.component_hash("vae") == family.component_hash("vae") != family.component_hash("text_encoder")
    )
    edit(tmp_path / "copy" / "vae" / "config.json", scaling_factor=0.2)
    assert moved.component_hash("vae") != family.component_hash("vae")


def test_half_precision_folder(base, tmp_path):
    """Weights named *.fp16.safetensors, as many bases are published."""
    family, half = load(base), load(copied(base, tmp_path / "half"))
    for file in (tmp_path / "half").rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
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
    assert load(("sd15", folder)).make_objective(ObjectiveSection()).prediction == "v_prediction"
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


@pytest.mark.parametrize("name", ["sd15", "sd21"])
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


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _use_everything(folder: Path) -> None:
    family = load(("sd15", folder))
    family.make_objective(ObjectiveSection())
    family.encode_text(["a"])
    _ = family.denoiser


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _pickle(folder: Path) -> None:
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.bin")
