"""What a header says: shapes first, metadata second, and honest when neither does."""

import json
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.errors import BadInput
from registry.formats import diffusers, kohya
from registry.formats.header import read_header
from registry.formats.inspect import check_fits, inspect_adapter
from registry.formats.tensors import read_scalars
from tests.support.adapters import TEXT, UNET, make_form, write_run_file

CROSS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def _write(path, shapes, layout=kohya, metadata=None, **options):
    tensors, _ = layout.write(make_form(shapes, **options))
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("width", "family", "confidence"),
    [
        (768, "sd15", "high"),
        (1024, "sd21", "high"),
        (2048, "sdxl", "high"),
        (96, "", "none"),
        (4096, "", "none"),
    ],
)
@pytest.mark.parametrize("layout", [kohya, diffusers])
def test_family_by_the_width_of_the_text(width, family, confidence, layout, tmp_path):
    facts = inspect_adapter(_write(tmp_path / "a.safetensors", {CROSS: (32, width)}, layout))
    assert (facts.family, facts.confidence, facts.context_dim) == (family, confidence, width)
    assert str(width) in facts.reason


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"studio.family": "sd15"}, "studio.family"),
        ({"ss_base_model_version": "sd_v1"}, "ss_base_model_version"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "modelspec.architecture"),
    ],
)
def test_the_pocket_base_is_known_by_metadata(metadata, key, tmp_path):
    facts = inspect_adapter(_write(tmp_path / "a.safetensors", {CROSS: (32, 96)}, metadata=metadata))
    assert (facts.family, facts.confidence, facts.reason) == ("sd15", "medium", f"metadata {key} says so")


def test_shapes_win_over_metadata(tmp_path):
    path = _write(
        tmp_path / "a.safetensors", {CROSS: (32, 1024)}, metadata={"ss_base_model_version": "sd_v1"}
    )
    assert inspect_adapter(path).family == "sd21"


def test_without_cross_attention_the_reason_says_so(tmp_path):
    facts = inspect_adapter(_write(tmp_path / "a.safetensors", {"unet.conv_in": (32, 4, 3, 3)}))
    assert facts.family == ""
    assert (
        facts.reason
        == "unidentified: cross-attention is not among its modules, and its metadata names no base"
    )


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["lora_unet_double_blocks_0_img_attn_qkv"], "flux1"),
        (["lora_unet_joint_blocks_0_x_block_attn_qkv"], "sd35"),
        (["lora_te2_text_model_encoder_layers_0_mlp_fc1"], "sdxl"),
    ],
)
def test_other_families_are_named_not_guessed_away(keys, family, tmp_path):
    tensors = {}
    for key in keys:
        tensors[f"{key}.lora_down.weight"] = np.ones((4, 8), np.float32)
        tensors[f"{key}.lora_up.weight"] = np.ones((8, 4), np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    assert inspect_adapter(tmp_path / "a.safetensors").family == family


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        (["x.hada_w1_a", "x.hada_w1_b", "x.alpha"], "loha"),
        (["x.lokr_w1", "x.lokr_w2"], "lokr"),
        (["x.oft_blocks"], "oft"),
        (["x.lora_down.weight", "x.lora_up.weight", "x.dora_scale"], "dora"),
        (["x.lora_A.weight", "x.lora_B.weight", "x.lora_magnitude_vector"], "dora"),
        (["x.lora_down.weight", "x.lora_mid.weight", "x.lora_up.weight"], "tucker"),
        (["x.diff"], "full"),
        (["x.lora_down.weight", "x.lora_up.weight"], "lora"),
    ],
)
def test_methods(keys, method, tmp_path):
    save_file({key: np.ones((2, 2), np.float32) for key in keys}, tmp_path / "a.safetensors")
    assert inspect_adapter(tmp_path / "a.safetensors").method == method


def test_all_facts_of_a_run_s_file(tmp_path):
    path = write_run_file(
        make_form(UNET | TEXT, rank=8, alpha=4.0, conv_rank=2, conv_alpha=1.0), tmp_path / "a.safetensors",
        **{"studio.trigger_words": '["inkstyle"]', "studio.base_name": "pocket"},
    )  # fmt: skip
    facts = inspect_adapter(path)
    assert (facts.method, facts.rank, facts.alpha, facts.layout) == ("lora", 8, 4.0, "diffusers")
    assert (facts.targets, facts.trigger_words, facts.base_name) == (
        ("unet", "text_encoder"),
        ("inkstyle",),
        "pocket",
    )
    assert (facts.modules, facts.dtype) == (len(UNET | TEXT), "fp32")


def test_alpha_of_a_kohya_file_is_read_from_its_scalars(tmp_path):
    facts = inspect_adapter(_write(tmp_path / "a.safetensors", {CROSS: (32, 768)}, rank=8, alpha=2.5))
    assert (facts.rank, facts.alpha) == (8, 2.5)


def test_of_many_equal_alphas_some_are_read_and_of_different_ones_all(tmp_path):
    def write(odd):
        alphas = {f"lora_unet_x_{n}.alpha": np.float16(4 if n in odd else 2) for n in range(300)}
        save_file({key: np.array(value) for key, value in alphas.items()}, tmp_path / "a.safetensors")
        header = read_header(tmp_path / "a.safetensors")
        return Counter(read_scalars(tmp_path / "a.safetensors", header, ".alpha"))

    assert list(write(()).items()) == [(2.0, 60)], "every fifth"
    assert write(range(180)) == {4.0: 180, 2.0: 120}
    save_file({"up": np.ones((2, 2), np.float16)}, tmp_path / "b.safetensors")
    assert read_scalars(tmp_path / "b.safetensors", read_header(tmp_path / "b.safetensors"), ".alpha") == []


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "inkstyle, red dragon"}, ("inkstyle", "red dragon")),
        ({"ss_datasets": json.dumps([{"subsets": [{"class_tokens": "ohwx man"}, {}]}])}, ("ohwx man",)),
        ({"ss_datasets": "[[[", "studio.trigger_words": "{"}, ()),
        ({"ss_datasets": '[1, {"subsets": 3}, {"subsets": [4]}]'}, ()),
        ({}, ()),
    ],
)
def test_trigger_words(metadata, words, tmp_path):
    path = _write(tmp_path / "a.safetensors", {CROSS: (32, 768)}, metadata=metadata)
    assert inspect_adapter(path).trigger_words == words


def test_24_another_family_s_adapter_on_this_base_names_both_widths(tmp_path):
    facts = inspect_adapter(_write(tmp_path / "a.safetensors", {CROSS: (32, 1024)}))
    with pytest.raises(BadInput, match="adapter ink: was trained for a text width of 1024, base SD has 768"):
        check_fits(facts, "ink", "SD", 768)
    check_fits(facts, "ink", "SD", 1024)


@pytest.mark.parametrize(
    ("shapes", "family", "found"),
    [
        ({"transformer.transformer_blocks.0.attn.to_q": (3072, 3072)}, "flux1", ("flux1", "high")),
        ({"transformer.transformer_blocks.0.ff.net.0.proj": (9728, 2432)}, "sd35", ("sd35", "high")),
        ({"transformer.transformer_blocks.0.attn2.to_k": (1536, 1536)}, "sd35", ("sd35", "high")),
        ({"transformer.single_transformer_blocks.0.attn.to_q": (8, 8)}, "flux1", ("flux1", "medium")),
        ({"transformer.transformer_blocks.0.attn.to_q": (8, 8)}, "sd35", ("sd35", "medium")),
        ({"unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": (8, 8)}, "sdxl", ("", "none")),
        ({"unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q": (8, 8)}, "sdxl", ("sdxl", "medium")),
    ],
)  # fmt: skip
def test_newer_families_by_the_width_of_their_blocks_and_by_names(shapes, family, found, tmp_path):
    facts = inspect_adapter(_write(tmp_path / "d.safetensors", shapes, diffusers, family=family))
    assert (facts.family, facts.confidence) == found
    facts = inspect_adapter(_write(tmp_path / "k.safetensors", shapes, kohya, family=family))
    assert facts.family == family  # the names of published checkpoints say more


def test_metadata_comes_before_names_that_two_families_have(tmp_path):
    shapes = {"transformer.transformer_blocks.0.attn.to_q": (8, 8)}
    for metadata in ({"studio.family": "flux1"}, {"ss_base_model_version": "flux1"}):
        path = _write(tmp_path / "a.safetensors", shapes, diffusers, metadata, family="flux1")
        assert inspect_adapter(path).family == "flux1"
    medium = {"ss_base_model_version": "5-medium"}
    assert inspect_adapter(_write(path, shapes, diffusers, medium, family="sd35")).family == "sd35"


@pytest.mark.parametrize("family", ["sdxl", "sd35", "flux1"])
@pytest.mark.parametrize("layout", [kohya, diffusers])
def test_targets_of_several_text_encoders(family, layout, tmp_path):
    from registry.formats.families import FORMATS

    clip, t5 = "text_model.encoder.layers.0.mlp.fc1", "encoder.block.0.layer.1.DenseReluDense.wo"
    names = FORMATS[family]
    inside = {c: clip if g.knows(clip) else t5 if g.knows(t5) else "" for c, g in names.grammars.items()}
    inside[names.denoiser] = "conv_in" if family == "sdxl" else "transformer_blocks.0.attn.to_q"
    if family == "flux1":
        inside[names.denoiser] = f"single_{inside[names.denoiser]}"
    shapes = {f"{c}.{path}": (8, 8) for c, path in inside.items()}
    facts = inspect_adapter(_write(tmp_path / "a.safetensors", shapes, layout, family=family))
    assert facts.targets == tuple(names.grammars)
