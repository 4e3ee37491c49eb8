"""Odd keys, mixed files, dtypes, and what is refused by name; families from headers alone."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.errors import BadInput
from registry.formats import reading
from registry.formats.factors import DoraFactors, OftFactors, change_of
from registry.formats.grammar import split_key
from registry.formats.inspect import inspect_adapter
from registry.formats.load import load_adapter
from registry.formats.tensors import save
from tests.support.corpus import layers, write_sparse

PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
NAME, MODULE = "lora_unet_" + PATH.replace(".", "_"), f"unet.{PATH}"
DOWN, UP = f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"


def noise(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def plain():
    return {DOWN: noise(2, 768), UP: noise(6, 2)}


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("a.b.lora_down.weight", "down"),
        ("a.b.lora_A.weight", "down"),
        ("a.b.lora_A.default.weight", "down"),
        ("a.b.lora_B.my_adapter.weight", "up"),
        ("a.b.lora.down.weight", "down"),
        ("a.b.lora_linear_layer.up.weight", "up"),
        ("a.b_lora.down.weight", "down"),
        ("a.b.lora_mid.weight", "mid"),
        ("a.b.lora_magnitude_vector", "lora_magnitude_vector"),
        ("a.b.lora_magnitude_vector.weight", "lora_magnitude_vector"),
        ("a.b.lora_magnitude_vector.default.weight", "lora_magnitude_vector"),
        ("a.b.hada_w1_a.default", "hada_w1_a"),
        ("a.b.oft_R.default.weight", "oft_R"),
        ("a.b.lora_B.bias", "up_bias"),
        ("a.b.diff_b", "diff_b"),
    ],
)
def test_keys_of_all_ages_are_split(key, part):
    assert split_key(key) == ("a.b", part)


@pytest.mark.parametrize("key", ["a.b.weight", "a.b.lora_C.weight", "a.down.weight", "alphabet", ""])
def test_other_keys_belong_to_no_method(key):
    assert split_key(key) == (key, "")


@pytest.mark.parametrize(
    ("dtype", "exact"),
    [
        (np.float32, True),
        (np.float16, True),
        (ml_dtypes.bfloat16, True),
        (ml_dtypes.float8_e4m3fn, True),
        (ml_dtypes.float8_e5m2, True),
    ],
)
def test_dtypes_are_read_for_what_they_are(dtype, exact, tmp_path):
    stored = {key: value.astype(dtype) for key, value in plain().items()}
    save_file(stored, tmp_path / "a.safetensors")
    form, _, _ = load_adapter(tmp_path / "a.safetensors")
    wanted = stored[UP].astype(np.float32) @ stored[DOWN].astype(np.float32)
    np.testing.assert_allclose(form.delta(MODULE), wanted, rtol=1e-5, atol=1e-6)


def test_a_mixed_file_is_read_whole_and_odd_keys_are_named(tmp_path):
    conv, norm = "lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_0_resnets_0_norm1"
    diff, bias = noise(4, 4, 3, 3), noise(4)
    tensors = plain() | {f"{conv}.diff": diff, f"{conv}.diff_b": bias, f"{norm}.w_norm": noise(4)}
    odd = {"lora_unet_nothing.lora_down.weight": noise(2, 4), "lora_unet_nothing.lora_up.weight": noise(4, 2),
           "some.weight": noise(3), "bundle_emb.zork.t5": noise(2, 4)}  # fmt: skip
    save(tmp_path / "a.safetensors", tensors | odd, {})
    form, facts, _ = load_adapter(tmp_path / "a.safetensors")
    assert form.modules.keys() == {MODULE}
    assert {module: factors.method for module, factors in form.others.items()} == {
        "unet.down_blocks.0.resnets.0.conv1": "full",
        "unet.down_blocks.0.resnets.0.norm1": "norm",
    }
    np.testing.assert_array_equal(form.biases["unet.down_blocks.0.resnets.0.conv1"], bias)
    assert set(form.ignored) == set(facts.ignored) == odd.keys()
    assert set(inspect_adapter(tmp_path / "a.safetensors").ignored) == odd.keys()
    assert (facts.method, facts.methods) == ("lora", {"lora": 2, "full": 1, "norm": 1})


def test_a_file_of_which_nothing_is_understood_is_refused(tmp_path):
    save(tmp_path / "a.safetensors", {"encoder.weight": noise(2, 2)}, {})
    with pytest.raises(BadInput, match="has no adapter weights"):
        load_adapter(tmp_path / "a.safetensors")
    save(tmp_path / "b.safetensors", {"x.y.lora_A.weight": noise(2, 4), "x.y.lora_B.weight": noise(4, 2)}, {})
    assert inspect_adapter(tmp_path / "b.safetensors").family == ""
    with pytest.raises(BadInput, match=r"module 'x\.y': is part of no family that is known"):
        load_adapter(tmp_path / "b.safetensors")
    with pytest.raises(BadInput, match=r"module 'x\.y': is not part of sd21, like all of the file"):
        load_adapter(tmp_path / "b.safetensors", "sd21")


@pytest.mark.parametrize("alpha", [3e38, -1e10, float("inf"), float("nan")])
def test_a_strength_beyond_all_numbers_is_refused(tmp_path, alpha):
    save(tmp_path / "a.safetensors", plain() | {f"{NAME}.alpha": np.array(alpha, np.float32)}, {})
    with pytest.raises(BadInput, match=r"has an alpha of .*, which no picture survives|not finite"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("tensors", "wrong"),
    [
        ({"lora_A.weight": noise(2, 4)}, "module 'x.y': lacks its up weights"),
        ({"lora_B.weight": noise(4, 2)}, "module 'x.y': lacks its down weights"),
        ({"lora_A.weight": noise(2, 4), "lora_B.weight": noise(4, 3)}, "(2, 4) and (4, 3) that do not fit"),
        ({"lora_A.weight": noise(0, 4), "lora_B.weight": noise(4, 0)}, "(0, 4) and (4, 0) that do not fit"),
        ({"lora_A.weight": noise(8), "lora_B.weight": noise(4, 2)}, "neither linear nor convolution"),
        (
            {"lora_A.weight": np.ones((2, 4), np.int8), "lora_B.weight": np.ones((4, 2), np.int8)},
            "tensor 'x.y.lora_A.weight' holds whole numbers (I8)",
        ),
    ],
)
def test_factors_that_can_mean_nothing_show_in_the_header(tmp_path, tensors, wrong):
    save(tmp_path / "a.safetensors", {f"x.y.{name}": value for name, value in tensors.items()}, {})
    with pytest.raises(BadInput, match=re.escape(wrong)):
        inspect_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("parts", "method"),
    [
        (("weight", "on_input"), "ia3"),
        (("a1.weight", "a2.weight", "b1.weight", "b2.weight"), "glora"),
        (("vera_lambda_b", "vera_lambda_d"), "vera"),
    ],
)
def test_methods_that_we_cannot_read_are_refused_by_name(parts, method, tmp_path):
    save(tmp_path / "a.safetensors", {f"{NAME}.{part}": noise(2, 2) for part in parts}, {})
    assert inspect_adapter(tmp_path / "a.safetensors").method == method
    with pytest.raises(BadInput, match=f"holds {method} weights. only LoRA"):
        load_adapter(tmp_path / "a.safetensors")


def test_boft_is_refused_by_name(tmp_path):
    save(tmp_path / "a.safetensors", {f"{NAME}.oft_blocks": noise(2, 3, 2, 2)}, {})
    with pytest.raises(BadInput, match="holds boft weights"):
        load_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["pissa", "pissa_niter_4", "olora", "loftq"])
def test_what_fits_only_a_changed_base_is_refused(name):
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.init_lora_weights": name})}
    tensors = {f"{MODULE}.lora_A.weight": noise(2, 768), f"{MODULE}.lora_B.weight": noise(6, 2)}
    with pytest.raises(BadInput, match="fits only the base that was changed for it"):
        reading.read(tensors, metadata, "sd15")


def test_scale_and_bias_of_a_lora():
    form = reading.read(plain() | {f"{NAME}.scale": np.array(0.25, np.float32)}, {}, "sd15")
    assert form.modules[MODULE].scale == 0.25
    halves = {f"{MODULE}.lora_A.weight": noise(2, 768), f"{MODULE}.lora_B.weight": noise(6, 2)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    form = reading.read(halves | {f"{MODULE}.lora_B.bias": np.ones(6, np.float32)}, metadata, "sd15")
    np.testing.assert_array_equal(form.biases[MODULE], np.full(6, 2.0))


@pytest.mark.parametrize("ending", ["", ".weight", ".default.weight"])
@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1)])
def test_magnitudes_of_peft_are_per_output_even_when_a_convolution_is_square(ending, shape):
    conv = "unet.down_blocks.0.resnets.0.conv1"
    tensors = {f"{conv}.lora_A.weight": noise(2, 4, 3, 3), f"{conv}.lora_B.weight": noise(4, 2, 1, 1),
               f"{conv}.lora_magnitude_vector{ending}": np.ones(shape, np.float32)}  # fmt: skip
    factors = reading.read(tensors, {}, "sd15").others[conv]
    assert isinstance(factors, DoraFactors)
    assert factors.per_output
    old = {
        key.replace(f"lora_magnitude_vector{ending}", "dora_scale"): value for key, value in tensors.items()
    }
    if len(shape) == 4:
        factors = reading.read(old, {}, "sd15").others[conv]
        assert isinstance(factors, DoraFactors)
        assert not factors.per_output
        assert change_of(factors, noise(4, 4, 3, 3)).shape == (4, 4, 3, 3)


def test_oft_of_peft_under_an_adapter_s_name():
    form = reading.read({f"base_model.model.{PATH}.oft_R.default.weight": noise(192, 6)}, {}, "sd15")
    assert isinstance(form.others[MODULE], OftFactors)
    assert form.others[MODULE].shape == (0, 768)


def test_what_cannot_be_divided_among_fused_layers_is_refused():
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    halves = {f"{name}.lora_down.weight": noise(2, 8), f"{name}.lora_up.weight": noise(24, 2)}
    with pytest.raises(BadInput, match="has DoRA magnitudes per input over the rows of several layers"):
        reading.read(halves | {f"{name}.dora_scale": noise(1, 8)}, {}, "flux1")
    with pytest.raises(BadInput, match="has blocks of 6 rows that lie in two layers"):
        reading.read({f"{name}.oft_blocks": noise(4, 6, 6)}, {}, "flux1")
    text = "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1"
    with pytest.raises(BadInput, match="does not say how wide its input is"):
        reading.read({f"{text}.oft_blocks": noise(4, 4, 4)}, {}, "sd35")


WIDTHS = {  # module -> family, variant
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v": ("sd15", "sd21", "sdxl"),
    "transformer.transformer_blocks.3.attn.to_q": ("sd35", "flux1"),
}


def parts_of(method: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    rows, columns = shape
    return {
        "loha": {f"hada_w{i}_a": (rows, 4) for i in (1, 2)} | {f"hada_w{i}_b": (4, columns) for i in (1, 2)},
        "lokr": {"lokr_w1": (8, 8), "lokr_w2_a": (rows // 8, 4), "lokr_w2_b": (4, columns // 8)},
        "lokr whole": {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 16), "lokr_w2": (rows // 8, columns // 16)},
        "full": {"diff": shape},
        "dora": {"lora_down.weight": (4, columns), "lora_up.weight": (rows, 4), "dora_scale": (rows, 1)},
        "oft": {"oft_R.weight": (columns // 8, 28)},
    }[method]  # fmt: skip


@pytest.mark.parametrize("method", ["loha", "lokr", "lokr whole", "full", "dora", "oft"])
@pytest.mark.parametrize(("family", "module"), [(f, m) for m, families in WIDTHS.items() for f in families])
def test_families_by_width_for_every_method(family, module, method, tmp_path):
    """Headers at true widths; the weights are a hole."""
    shapes = parts_of(method, layers(family)[module])
    path = write_sparse(tmp_path / "a.safetensors", {f"{module}.{p}": s for p, s in shapes.items()}, {})
    facts = inspect_adapter(path)
    assert (facts.family, facts.confidence, facts.method) == (family, "high", method.split()[0])
    assert facts.targets == (module.partition(".")[0],)


@pytest.mark.parametrize(
    ("names", "metadata", "found"),
    [
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1": 768}, {}, ("sd15", "medium", "")),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1": 1024}, {}, ("sd21", "medium", "")),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1": 1280}, {}, ("sdxl", "medium", "")),
        ({NAME: 1024}, {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, ("sd21", "high", "v")),
        ({NAME: 1024}, {"modelspec.prediction_type": "epsilon"}, ("sd21", "high", "eps")),
        ({"transformer.transformer_blocks.0.attn.to_q": 2432}, {}, ("sd35", "high", "large")),
        ({"transformer.single_transformer_blocks.0.proj_mlp": 3072}, {}, ("flux1", "high", "")),
        ({"transformer.single_transformer_blocks.0.proj_mlp": 3072},
         {"ss_sd_model_name": "flux1-schnell.safetensors"}, ("flux1", "high", "schnell")),
        ({"transformer.single_transformer_blocks.0.proj_mlp": 3072},
         {"modelspec.architecture": "flux-1-dev/lora"}, ("flux1", "high", "dev")),
        ({"transformer.transformer_blocks.59.attn.to_q": 3072}, {}, ("", "none", "")),
        ({"transformer.transformer_blocks.0.attn.to_q": 3072,
          "transformer.transformer_blocks.0.img_mod.1": 3072,
          "transformer.transformer_blocks.0.txt_mod.1": 3072}, {}, ("", "none", "")),
    ],
)  # fmt: skip
def test_what_names_and_metadata_say(names, metadata, found, tmp_path):
    tensors = {}
    for name, width in names.items():
        tensors |= {f"{name}.lora_A.weight": noise(2, width), f"{name}.lora_B.weight": noise(4, 2)}
    save(tmp_path / "a.safetensors", tensors, metadata)
    facts = inspect_adapter(tmp_path / "a.safetensors")
    assert (facts.family, facts.confidence, facts.variant) == found
    assert facts.family or facts.reason.startswith("unidentified: its blocks are 3072 wide, but")
