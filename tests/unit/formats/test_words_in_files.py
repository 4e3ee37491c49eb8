"""New words in adapter files: read in every form, carried by kohya exports, written as embeddings."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from registry.errors import BadInput
from registry.formats.export import export_adapter
from registry.formats.header import read_header
from registry.formats.inspect import inspect_adapter
from registry.formats.internal import AdapterForm
from registry.formats.load import load_adapter
from registry.formats.words import split
from tests.support.adapters import make_form, write_run_file

RANDOM = np.random.default_rng(3)
ZORK, RING = (RANDOM.normal(size=(n, 32)).astype(np.float32) for n in (3, 1))
BIG = RANDOM.normal(size=(3, 48)).astype(np.float32)
RUN = {"text_encoder.new_tokens.zork": ZORK, "text_encoder.new_tokens.ring": RING}


@pytest.fixture
def pivotal(tmp_path):
    """A run's file with a LoRA and two words."""
    path = write_run_file(make_form(), tmp_path / "run.safetensors")
    save_file(load_file(path) | RUN, path, read_header(path).metadata)
    return path


def test_words_are_read_beside_the_modules(pivotal):
    form, facts, _ = load_adapter(pivotal)
    assert (facts.method, facts.family) == ("lora", "sd15")
    assert form.modules.keys() == make_form().modules.keys()
    assert np.array_equal(form.words["zork"]["text_encoder"], ZORK)
    assert np.array_equal(form.words["ring"]["text_encoder"], RING)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_kohya_file_carries_them_in_its_bundle(pivotal, tmp_path, dtype):
    report = export_adapter(pivotal, tmp_path / "out.safetensors", "kohya", dtype=dtype)
    assert report.matched == report.modules == len(make_form().modules)
    assert "bundle_emb.zork.string_to_param.*" in load_back(report.path)
    form, facts, _ = load_adapter(tmp_path / "out.safetensors")
    assert np.allclose(form.words["zork"]["text_encoder"], ZORK, rtol=2e-2, atol=2e-2)
    assert facts.targets == ("unet", "text_encoder")
    assert report.tools


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_words_of_an_encoder_without_modules(tmp_path, layout):
    form = make_form()
    unet = AdapterForm(form.family, form.of("unet"))
    path = write_run_file(unet, tmp_path / "run.safetensors")
    save_file(load_file(path) | RUN, path, read_header(path).metadata)
    read, _, _ = load_adapter(path)
    assert (read.components, read.targets) == (("unet",), ("unet", "text_encoder"))
    report = export_adapter(path, tmp_path / "out", layout)
    assert report.matched == report.modules == len(unet.modules)


def load_back(path):
    return set(read_header(Path(path)).tensors)


def test_other_layouts_leave_them_out_and_say_so(pivotal, tmp_path):
    report = export_adapter(pivotal, tmp_path / "out.safetensors", "diffusers")
    assert "the new words are left out; write them with --format embedding" in report.notes
    assert not [key for key in load_back(report.path) if "new_tokens" in key or "bundle" in key]


def test_words_become_embedding_files(pivotal, tmp_path):
    report = export_adapter(pivotal, tmp_path / "mine.safetensors", "embedding", dtype="fp32")
    names = [Path(path).name for path in report.files]
    assert sorted(names) == ["mine-ring.safetensors", "mine-zork.safetensors"]
    tensors = [load_file(path) for path in report.files]
    assert all(set(item) == {"emb_params"} for item in tensors)
    with pytest.raises(BadInput, match="exists already"):
        export_adapter(pivotal, tmp_path / "mine.safetensors", "embedding")
    plain = write_run_file(make_form(), tmp_path / "plain.safetensors")
    with pytest.raises(BadInput, match="has no new words"):
        export_adapter(plain, tmp_path / "none.safetensors", "embedding")


def test_an_inversion_alone_is_an_adapter_of_its_own_kind(tmp_path):
    path = tmp_path / "ti.safetensors"
    save_file({"text_encoder.new_tokens.zork": ZORK}, path, {"studio.family": "sd15"})
    facts = inspect_adapter(path)
    assert (facts.method, facts.family, facts.targets, facts.rank) == (
        "embedding",
        "sd15",
        ("text_encoder",),
        0,
    )
    form, _, _ = load_adapter(path, "sd15")
    assert form.targets == ("text_encoder",)
    report = export_adapter(path, tmp_path / "out.safetensors", family="sd15")
    assert report.layout == "embedding"
    assert np.array_equal(load_file(report.path)["emb_params"], ZORK)
    with pytest.raises(BadInput, match="holds new words alone"):
        export_adapter(path, tmp_path / "lora.safetensors", "kohya", family="sd15")


def test_families_with_two_encoders_name_them(tmp_path):
    path = tmp_path / "ti.safetensors"
    both = {"text_encoder.new_tokens.zork": ZORK, "text_encoder_2.new_tokens.zork": BIG}
    save_file(both, path)
    report = export_adapter(path, tmp_path / "out.safetensors", family="sdxl")
    tensors = load_file(report.path)
    assert np.array_equal(tensors["clip_l"], ZORK)
    assert np.array_equal(tensors["clip_g"], BIG)


def test_bundles_of_other_tools_are_read():
    words, rest = split({"bundle_emb.zork.emb_params": ZORK, "lora_unet_x.alpha": RING})
    assert np.array_equal(words["zork"]["text_encoder"], ZORK)
    assert set(rest) == {"lora_unet_x.alpha"}


@pytest.mark.parametrize(
    "tensors",
    [
        {"bundle_emb.zork.clip_l": ZORK[0]},
        {"text_encoder.new_tokens.": ZORK},
        {"text_encoder.new_tokens.zork": ZORK[0]},
    ],
)
def test_what_is_no_word_is_refused(tensors):
    with pytest.raises(BadInput, match="is not the vectors of a word"):
        split(tensors)
