"""Whole models: adapters baked into bases, and taken out of them again, in folders and single files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from registry.errors import BadInput, StudioError
from registry.formats.factors import change_of
from registry.formats.header import read_header
from registry.formats.internal import AdapterForm
from registry.formats.operations import bake as module
from registry.formats.operations.bake import bake
from registry.formats.operations.extract import extract
from registry.formats.operations.merge import Ingredient
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.sources import BaseWeights
from registry.formats.operations.strength import make_strength
from registry.formats.tensors import read_tensor
from tests.support.adapters import make_form
from tests.support.checkpoints import save_sd35, save_sdxl

POCKET = Path(__file__).parents[3] / "studio/pocket/model"


@pytest.fixture(scope="session")
def folders(tiny_sdxl, tiny_sd35, tiny_flux1):
    return {"sd15": POCKET, "sdxl": tiny_sdxl, "sd35": tiny_sd35, "flux1": tiny_flux1}


def adapter(base, family, seed=0, every=3, **form):
    """An adapter on every n-th module of a base."""
    shapes = {name: base.shape(name) for name in list(base.places)[::every]}
    return make_form(shapes, seed=seed, family=family, **form)


def same(base, baked, form, weight=0.8, limit=1e-6):
    for name in base.places:
        wanted = base.read(name)
        if name in form.everything:
            wanted = wanted + weight * change_of(form.everything[name], wanted)
        assert np.abs(baked.read(name) - wanted).max() <= limit, name


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
def test_a_baked_folder_has_the_changed_weights_and_nothing_else_changed(tmp_path, folders, family):
    base = BaseWeights(folders[family], family)
    form = adapter(base, family)
    report = bake(base, [Ingredient("a", form, make_strength(0.8))], tmp_path / "out", dtype="fp32")
    assert (report.kind, report.modules, report.notes) == ("folder", len(form.modules), ())
    baked = BaseWeights(tmp_path / "out", family)
    same(base, baked, form)
    for name, (file, info) in base.rest.items():
        raw = name.partition(".")[2]
        assert np.array_equal(
            read_tensor(*baked.rest[name][:1], raw, baked.rest[name][1]), read_tensor(file, raw, info)
        )
    texts = [path.relative_to(folders[family]) for path in folders[family].rglob("*.json")]
    assert all((tmp_path / "out" / path).is_file() for path in texts)
    assert (tmp_path / "out/model_index.json").stat().st_nlink == 1


@pytest.mark.parametrize("family", ["sdxl", "sd35"])
def test_a_baked_file_is_the_baked_folder(tmp_path, folders, family):
    """Fused rows, exchanged halves and OpenCLIP's stacked projections land where they belong."""
    writer = save_sdxl if family == "sdxl" else save_sd35
    folder = BaseWeights(folders[family], family)
    single = BaseWeights(writer(folders[family], tmp_path / "base.safetensors"), family)
    missing = folder.places.keys() - single.places.keys()
    assert not [name for name in missing if not name.startswith("text")], (
        "every layer of the denoiser is found"
    )
    for name in single.places:
        assert np.array_equal(single.read(name).ravel(), folder.read(name).ravel()), name
    form = adapter(single, family, every=2)
    bake(single, [Ingredient("a", form, make_strength(0.8))], tmp_path / "out.safetensors")
    same(single, BaseWeights(tmp_path / "out.safetensors", family), form)
    assert read_header(tmp_path / "out.safetensors").tensors.keys() == read_header(single.path).tensors.keys()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_folder_becomes_the_single_file_that_the_trainer_writes(tmp_path, folders, family):
    from safetensors.torch import load_file as load_torch

    from trainers.families import FAMILIES
    from trainers.single_file import original_tensors

    base = BaseWeights(folders[family], family)
    form = adapter(base, family)
    bake(base, [Ingredient("a", form)], tmp_path / "folder")
    bake(base, [Ingredient("a", form)], tmp_path / "file.safetensors")
    wanted = original_tensors(tmp_path / "folder", FAMILIES[family].load_class().single_file)
    got = load_torch(tmp_path / "file.safetensors")
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[name].numpy(), wanted[name].numpy()) for name in wanted)


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32"), ("", "")])
def test_dtypes(tmp_path, dtype, stored):
    base = BaseWeights(POCKET, "sd15")
    form = adapter(base, "sd15")
    report = bake(base, [Ingredient("a", form)], tmp_path / "out", dtype=dtype)
    header = read_header(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    old = read_header(POCKET / "unet/diffusion_pytorch_model.safetensors")
    if stored:
        assert {info.dtype for info in header.tensors.values()} == {stored}
    else:
        assert {n: i.dtype for n, i in header.tensors.items()} == {n: i.dtype for n, i in old.tensors.items()}
    limit = {"fp16": 2e-3, "bf16": 2e-2, "": 2e-3}.get(dtype, 1e-6)
    same(base, BaseWeights(tmp_path / "out", "sd15"), form, 1.0, limit)
    assert report.bytes == sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_whole_numbers_and_half_precision_variants_survive(tmp_path):
    folder = Path(shutil.copytree(POCKET, tmp_path / "base"))
    file = folder / "text_encoder/model.safetensors"
    tensors = load_file(file)
    ids = np.arange(77, dtype=np.int64)[None]
    save_file(
        tensors | {"text_model.embeddings.position_ids": ids}, folder / "text_encoder/model.fp16.safetensors"
    )
    file.unlink()
    base = BaseWeights(folder, "sd15")
    bake(base, [Ingredient("a", adapter(base, "sd15"))], tmp_path / "out", dtype="bf16")
    assert not list((tmp_path / "out").rglob("*fp16*"))
    header = read_header(tmp_path / "out/text_encoder/model.safetensors")
    assert header.tensors["text_model.embeddings.position_ids"].dtype == "I64"


def test_pickles_are_left_out_and_said_to_be(tmp_path):
    folder = Path(shutil.copytree(POCKET, tmp_path / "base"))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"\x80\x04")
    base = BaseWeights(folder, "sd15")
    report = bake(base, [Ingredient("a", adapter(base, "sd15"))], tmp_path / "out")
    assert report.notes == ("safety_checker is left out: its weights are pickles",)
    assert json.loads((tmp_path / "out/model_index.json").read_text())["safety_checker"] == [None, None]


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, folders, monkeypatch):
    base = BaseWeights(POCKET, "sd15")
    form = adapter(base, "sd15")
    part = Ingredient("a", form)
    out = tmp_path / "out"
    name = next(iter(form.modules))
    wide = make_form({name: (7, 9)})
    for parts, options, wrong in (
        ([Ingredient("a", AdapterForm("sdxl", form.modules))], {}, "is for sdxl, the base is sd15"),
        ([Ingredient("a", wide)], {}, "is 7 x 9 in the adapter and"),
        ([Ingredient("a", form, make_strength(0))], {}, "would change nothing"),
        (
            [Ingredient("a", make_form({"unet.up_blocks.9.resnets.0.conv1": (4, 4, 3, 3)}))],
            {},
            "has no module",
        ),
        ([part], {"dtype": "int8"}, "dtype 'int8': is unknown"),
        (
            [Ingredient("a", make_form({name: base.shape(name)}, alpha=1e9, conv_alpha=1e9))],
            {"dtype": "fp16"},
            "cannot hold",
        ),
    ):
        with pytest.raises(BadInput, match=wrong):
            bake(base, parts, out, **options)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadInput, match="is the base itself or lies in it"):
        bake(base, [part], POCKET / "more")
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(BadInput, match="exists already"):
        bake(base, [part], out)
    with pytest.raises(BadInput, match="is a folder that is no model"):
        bake(base, [part], out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(BadInput, match="is something else"):
        bake(base, [part], loop)
    flux = BaseWeights(folders["flux1"], "flux1")
    with pytest.raises(BadInput, match="no single file that we write"):
        bake(flux, [Ingredient("a", adapter(flux, "flux1"))], tmp_path / "x.safetensors")
    monkeypatch.setattr(
        module, "require_space", lambda *_: (_ for _ in ()).throw(StudioError("disk", "is full"))
    )
    with pytest.raises(StudioError, match="is full"):
        bake(base, [part], tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_files_with_other_depths_are_refused(tmp_path):
    from tests.support.checkpoints import save_checkpoint

    file = save_checkpoint(POCKET, tmp_path / "pocket.safetensors")
    with pytest.raises(BadInput, match="another number of residual blocks"):
        BaseWeights(file, "sd15")


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux1"])
def test_extracting_gives_the_adapter_back(tmp_path, folders, family):
    base = BaseWeights(folders[family], family)
    form = adapter(base, family, rank=3, conv_rank=2)
    bake(base, [Ingredient("a", form)], tmp_path / "tuned", dtype="fp32")
    got, report = extract(base, BaseWeights(tmp_path / "tuned", family), RankRule(8, sv_ratio=100))
    assert got.modules.keys() == form.modules.keys()
    for name, factors in form.modules.items():
        wanted = factors.delta()
        assert np.linalg.norm(got.delta(name) - wanted) < 1e-4 * np.linalg.norm(wanted), name
        assert got.modules[name].rank <= factors.rank
    assert report.total_error < 1e-3
    rounded = "base and model are stored in F16 and F32: rounding looks like training"
    assert report.notes == ((rounded,) if family == "sd15" else ())


def test_extracting_from_a_file_is_extracting_from_its_folder(tmp_path, folders):
    base = BaseWeights(folders["sdxl"], "sdxl")
    form = adapter(base, "sdxl", every=5)
    bake(base, [Ingredient("a", form)], tmp_path / "tuned")
    file = save_sdxl(tmp_path / "tuned", tmp_path / "tuned.safetensors")
    by_folder, _ = extract(base, BaseWeights(tmp_path / "tuned", "sdxl"), RankRule(4))
    by_file, report = extract(base, BaseWeights(file, "sdxl"), RankRule(4))
    assert by_file.modules.keys() == by_folder.modules.keys()
    assert all(
        np.allclose(by_file.delta(name), by_folder.delta(name), atol=1e-6) for name in by_folder.modules
    )
    assert report.notes == ("norms and biases were not compared: one is a folder, the other a file",)


def test_what_a_lora_cannot_hold_is_said(tmp_path):
    folder = Path(shutil.copytree(POCKET, tmp_path / "tuned"))
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1
    tensors["conv_in.weight"] = tensors["conv_in.weight"] + 1
    save_file(tensors, file)
    base, tuned = BaseWeights(POCKET, "sd15"), BaseWeights(folder, "sd15")
    form, report = extract(base, tuned, RankRule(1))
    assert list(form.modules) == ["unet.conv_in"]
    assert report.notes == (
        "1 norms, biases and embeddings differ too, which a LoRA cannot hold "
        "(the first is 'unet.conv_in.bias')",
    )
    with pytest.raises(BadInput, match="has the weights of"):
        extract(base, tuned, RankRule(1), convolutions=False)
    with pytest.raises(BadInput, match="has the weights of"):
        extract(base, tuned, RankRule(1), components=["text_encoder"])
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :2]
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file)
    with pytest.raises(BadInput, match=r"'unet\.conv_in' of 32 x 2 x 3 x 3, in the base 32 x 4 x 3 x 3"):
        extract(base, BaseWeights(folder, "sd15"), RankRule(1))
    del tensors["conv_in.weight"]
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file)
    with pytest.raises(BadInput, match=r"has no module 'unet\.conv_in', which its base has"):
        extract(base, BaseWeights(folder, "sd15"), RankRule(1))


def test_no_more_than_a_few_tensors_are_in_memory(tmp_path):
    """A base of 64 layers of 4 MB is baked with less than 60 MB."""
    import tracemalloc

    folder = tmp_path / "base"
    shutil.copytree(POCKET, folder)
    weights = {
        f"down_blocks.0.attentions.0.transformer_blocks.{n}.attn1.to_q.weight": np.zeros(
            (1024, 1024), np.float32
        )
        for n in range(64)
    }
    save_file(weights, folder / "unet/diffusion_pytorch_model.safetensors")
    base = BaseWeights(folder, "sd15")
    shapes = {name: base.shape(name) for name in base.places if name.startswith("unet.")}
    form = make_form(shapes, rank=1)
    tracemalloc.start()
    bake(base, [Ingredient("a", form)], tmp_path / "out")
    extract(base, BaseWeights(tmp_path / "out", "sd15"), RankRule(2))
    assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    tracemalloc.stop()
