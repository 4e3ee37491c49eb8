"""kohya <-> diffusers <-> internal: the weight change survives, whatever the ranks and alphas."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import BadInput
from registry.formats import diffusers, kohya, reading
from registry.formats.internal import AdapterForm, LoraFactors, make_factors
from registry.formats.tensors import DTYPES, cast, read_tensors, save
from registry.formats.tools import relative_error
from tests.support.adapters import TEXT, UNET, make_form, write_run_file

ALPHA = st.floats(0.01, 256, allow_nan=False).map(lambda x: float(np.float32(x))) | st.just(0.0)


@st.composite
def forms(draw):
    """Any subset of modules, each with its own rank and alpha."""
    names = draw(st.lists(st.sampled_from([*UNET, *TEXT]), min_size=1, max_size=6, unique=True))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    modules = {}
    for name in names:
        rows, *inside = (UNET | TEXT)[name]
        rank = draw(st.integers(1, 9))
        down = random.normal(size=(rank, *inside)).astype(np.float32)
        up = random.normal(size=(rows, rank, *[1] * (len(inside) - 1))).astype(np.float32)
        modules[name] = LoraFactors(down, up, draw(ALPHA))
    return AdapterForm("sd15", modules)


def independent_delta(item):
    """alpha / r * up @ down in float64, by an explicit sum over the rank."""
    rank = item.down.shape[0]
    down, up = item.down.astype(np.float64), item.up.astype(np.float64).reshape(item.up.shape[0], rank)
    total = sum(np.multiply.outer(up[:, k], down[k]) for k in range(rank))
    return item.alpha / rank * total


@settings(deadline=None)
@given(forms())
def test_delta_is_the_formula(form):
    for name, item in form.modules.items():
        wanted = independent_delta(item)
        assert form.delta(name).shape == (UNET | TEXT)[name]
        np.testing.assert_allclose(
            form.delta(name), wanted, rtol=1e-3, atol=1e-5 * (1 + np.abs(wanted).max())
        )


@settings(deadline=None)
@given(forms())
def test_both_layouts_keep_every_weight_change(form):
    through_kohya = reading.read(*kohya.write(form), "sd15")
    through_diffusers = reading.read(*diffusers.write(form), "sd15")
    both = reading.read(*kohya.write(through_diffusers), "sd15")
    for name, item in form.modules.items():
        for other in (through_kohya, through_diffusers, both):
            assert relative_error(other.modules[name], item) < 1e-6, name
        assert relative_error(through_diffusers.modules[name], item) < 1e-6
    for name in through_kohya.modules.keys() - form.modules.keys():  # the out_proj that diffusers needs
        assert name.endswith(".self_attn.out_proj")
        assert not through_kohya.delta(name).any()


@settings(deadline=None)
@given(forms())
def test_a_kohya_file_has_one_alpha_per_component_and_no_other_strength(form):
    tensors, metadata = kohya.write(form)
    assert metadata == {}
    names = {key.partition(".")[0] for key in tensors}
    assert set(tensors) == {f"{n}.{part}" for n in names for part in (kohya.DOWN, kohya.UP, kohya.ALPHA)}
    for prefix in ("lora_unet_", "lora_te_"):
        alphas = {float(v) for k, v in tensors.items() if k.startswith(prefix) and k.endswith(".alpha")}
        assert len(alphas) <= 1 or form.of("unet" if "unet" in prefix else "text_encoder").keys() == set()


@settings(deadline=None)
@given(forms())
def test_a_diffusers_file_needs_no_metadata(form):
    tensors, metadata = diffusers.write(form)
    assert metadata == {}
    for name, item in form.modules.items():
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        plain = (up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)).reshape(
            form.delta(name).shape
        )
        np.testing.assert_allclose(
            plain, form.delta(name), rtol=1e-4, atol=1e-4 * np.abs(item.delta()).max() + 1e-9
        )


# 2^-24, 2^-11 and 2^-8 per factor at worst; the norm over a matrix is well below the sum of both.
@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-6), ("fp16", 5e-4), ("bf16", 4e-3)])
@pytest.mark.parametrize("layout", [kohya, diffusers])
def test_error_of_each_dtype(dtype, bound, layout, tmp_path):
    form = make_form(rank=8, conv_rank=4, alpha=3.0, conv_alpha=5.0)
    tensors, metadata = layout.write(form)
    stored = cast(tensors, dtype)
    assert {v.dtype for v in stored.values() if v.ndim} == {DTYPES[dtype]}
    save(tmp_path / "a.safetensors", stored, metadata)
    back = reading.read(read_tensors(tmp_path / "a.safetensors"), metadata, "sd15")
    worst = max(relative_error(back.modules[name], item) for name, item in form.modules.items())
    assert worst < bound
    if dtype != "fp32":
        assert worst > bound / 100, "the bound says nothing"


def test_a_run_s_file_keeps_ranks_and_alphas(tmp_path):
    form = make_form(rank=8, conv_rank=4, alpha=3.0, conv_alpha=7.0)
    path = write_run_file(form, tmp_path / "a.safetensors")
    from registry.formats.load import load_adapter

    back, facts, _ = load_adapter(path, "sd15")
    for name, item in form.modules.items():
        assert (back.modules[name].rank, back.modules[name].alpha) == (item.rank, item.alpha)
        np.testing.assert_array_equal(back.modules[name].down, item.down)
    assert (facts.rank, facts.layout, facts.targets) == (8, "diffusers", ("unet", "text_encoder"))


NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def _strength(config, down_rank=4):
    tensors = {
        f"{NAME}.lora_A.weight": np.ones((down_rank, 8), np.float32),
        f"{NAME}.lora_B.weight": np.ones((8, down_rank), np.float32),
    }
    text = config if isinstance(config, str) else json.dumps(config)
    return reading.read(tensors, {"lora_adapter_metadata": text}, "sd15").modules[NAME].scale


def test_strengths_as_peft_means_them():
    assert _strength({}) == 1.0
    assert _strength({"unet.r": 4, "unet.lora_alpha": 2}) == 0.5
    assert _strength({"text_encoder.lora_alpha": 2}) == 1.0
    pattern = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": 8}}
    assert _strength(pattern) == 2.0
    assert _strength(pattern | {"unet.alpha_pattern": {"^mid_block": 8}}) == 0.5
    assert _strength(pattern | {"unet.alpha_pattern": {"o_q": 8}}) == 0.5
    assert _strength(pattern | {"unet.alpha_pattern": {"^" + NAME.removeprefix("unet."): 8}}) == 2.0
    assert _strength({"unet.lora_alpha": 2, "unet.use_rslora": True}) == 1.0  # 2 / sqrt(4)


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 50_000, '{"unet.lora_alpha": "2"}', '{"unet.lora_alpha": NaN}']
)
def test_broken_strengths_are_one_line(text):
    with pytest.raises(BadInput, match="ask its author for a sound file"):
        _strength(text)


def test_a_regular_expression_from_a_file_is_never_run():
    evil = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"(a+)+$" * 50: 8}}
    assert _strength(evil) == 0.5


def test_a_module_without_alpha_has_its_rank():
    tensors = {
        "lora_unet_conv_in.lora_down.weight": np.ones((3, 4, 3, 3), np.float32),
        "lora_unet_conv_in.lora_up.weight": np.ones((8, 3, 1, 1), np.float32),
    }
    assert reading.read(tensors, {}, "sd15").modules["unet.conv_in"].scale == 1.0


@pytest.mark.parametrize(
    ("down", "up", "wrong"),
    [
        (None, np.ones((2, 3)), "lacks its down weights"),
        (np.ones((3, 2)), None, "lacks its up weights"),
        (np.ones((3, 2)), np.ones((2, 4)), "do not fit"),
        (np.ones(3), np.ones((2, 3)), "neither linear nor convolution"),
        (np.ones((3, 2, 3, 3)), np.ones((2, 3, 3, 3)), "neither linear nor convolution"),
        (np.ones((0, 2)), np.ones((2, 0)), "do not fit"),
    ],
)
def test_factors_that_do_not_fit_are_one_line(down, up, wrong):
    with pytest.raises(BadInput, match=wrong):
        make_factors("module 'x'", down, up, 1.0)


@pytest.mark.parametrize("part", ["alpha", "scale"])
@pytest.mark.parametrize("values", [[], [1, 2]])
def test_a_strength_that_is_no_single_number_is_refused(part, values):
    tensors = {
        "lora_unet_conv_in.lora_down.weight": np.ones((3, 4, 3, 3), np.float32),
        "lora_unet_conv_in.lora_up.weight": np.ones((8, 3, 1, 1), np.float32),
        f"lora_unet_conv_in.{part}": np.array(values, np.float32),
    }
    with pytest.raises(BadInput, match=rf"has {len(values)} numbers as its {part}, not one"):
        reading.read(tensors, {}, "sd15")


def test_the_same_module_under_two_prefixes_is_refused():
    tensors = {}
    for prefix in ("lora_te_", "lora_te1_"):
        name = f"{prefix}text_model_encoder_layers_0_mlp_fc1"
        tensors[f"{name}.lora_down.weight"] = np.ones((2, 4), np.float32)
        tensors[f"{name}.lora_up.weight"] = np.ones((4, 2), np.float32)
    with pytest.raises(BadInput, match="is there twice under two names"):
        reading.read(tensors, {}, "sd15")


def test_a_value_that_does_not_fit_the_dtype_is_named():
    with pytest.raises(
        BadInput, match=r"dtype fp16: cannot hold tensor 'a' \(up to 1e\+05\)\. use fp32 or bf16"
    ):
        cast({"a": np.full((2, 2), 1e5, np.float32)}, "fp16")
    with pytest.raises(BadInput, match="use one of fp32, fp16, bf16"):
        cast({}, "int8")
