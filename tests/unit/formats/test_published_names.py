"""Names and fused layers of SDXL, SD3.5 and FLUX.1: by hand, at true size, and through every layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from registry.errors import BadInput
from registry.formats import diffusers, kohya, peft, reading
from registry.formats.families import FORMATS
from registry.formats.fusing import fuse, unfuse
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.tensors import save
from registry.formats.tools import relative_error
from studio.base_facts import CONFIGS
from tests.support.adapters import make_form

CLIP = "text_model.encoder.layers.0.self_attn.q_proj"
T5 = "encoder.block.0.layer.0.SelfAttention.q"
GOLDEN = {
    "sdxl": {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q":
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj":
            "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0":
            "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0",
        "unet.up_blocks.0.attentions.2.proj_out": "lora_unet_output_blocks_2_1_proj_out",
        "unet.up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_k":
            "lora_unet_output_blocks_3_1_transformer_blocks_1_attn1_to_k",
        "unet.down_blocks.0.resnets.0.conv1": "lora_unet_input_blocks_1_0_in_layers_2",
        "unet.down_blocks.1.resnets.0.time_emb_proj": "lora_unet_input_blocks_4_0_emb_layers_1",
        "unet.mid_block.resnets.1.conv2": "lora_unet_middle_block_2_out_layers_3",
        "unet.up_blocks.2.resnets.2.conv_shortcut": "lora_unet_output_blocks_8_0_skip_connection",
        "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_3_0_op",
        "unet.up_blocks.1.upsamplers.0.conv": "lora_unet_output_blocks_5_2_conv",
        "unet.conv_in": "lora_unet_input_blocks_0_0",
        "unet.conv_out": "lora_unet_out_2",
        "unet.time_embedding.linear_1": "lora_unet_time_embed_0",
        "unet.add_embedding.linear_2": "lora_unet_label_emb_0_2",
        f"text_encoder.{CLIP}": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "text_encoder_2.text_model.encoder.layers.31.mlp.fc1":
            "lora_te2_text_model_encoder_layers_31_mlp_fc1",
    },
    "sd35": {
        "transformer.transformer_blocks.0.attn.to_q": "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "transformer.transformer_blocks.0.attn.to_v": "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "transformer.transformer_blocks.12.attn2.to_k": "lora_unet_joint_blocks_12_x_block_attn2_qkv",
        "transformer.transformer_blocks.12.attn2.to_out.0": "lora_unet_joint_blocks_12_x_block_attn2_proj",
        "transformer.transformer_blocks.37.attn.add_k_proj":
            "lora_unet_joint_blocks_37_context_block_attn_qkv",
        "transformer.transformer_blocks.3.attn.to_add_out":
            "lora_unet_joint_blocks_3_context_block_attn_proj",
        "transformer.transformer_blocks.3.ff.net.0.proj": "lora_unet_joint_blocks_3_x_block_mlp_fc1",
        "transformer.transformer_blocks.3.ff_context.net.2": "lora_unet_joint_blocks_3_context_block_mlp_fc2",
        "transformer.transformer_blocks.3.norm1.linear":
            "lora_unet_joint_blocks_3_x_block_adaLN_modulation_1",
        "transformer.proj_out": "lora_unet_final_layer_linear",
        f"text_encoder_2.{CLIP}": "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
        f"text_encoder_3.{T5}": "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    },
    "flux1": {
        "transformer.transformer_blocks.0.attn.to_k": "lora_unet_double_blocks_0_img_attn_qkv",
        "transformer.transformer_blocks.18.attn.add_v_proj": "lora_unet_double_blocks_18_txt_attn_qkv",
        "transformer.transformer_blocks.0.attn.to_out.0": "lora_unet_double_blocks_0_img_attn_proj",
        "transformer.transformer_blocks.0.ff_context.net.0.proj": "lora_unet_double_blocks_0_txt_mlp_0",
        "transformer.transformer_blocks.0.norm1_context.linear": "lora_unet_double_blocks_0_txt_mod_lin",
        "transformer.single_transformer_blocks.37.attn.to_q": "lora_unet_single_blocks_37_linear1",
        "transformer.single_transformer_blocks.37.proj_mlp": "lora_unet_single_blocks_37_linear1",
        "transformer.single_transformer_blocks.37.proj_out": "lora_unet_single_blocks_37_linear2",
        "transformer.single_transformer_blocks.37.norm.linear": "lora_unet_single_blocks_37_modulation_lin",
        "transformer.norm_out.linear": "lora_unet_final_layer_adaLN_modulation_1",
        "transformer.x_embedder": "lora_unet_img_in",
        f"text_encoder.{CLIP}": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        f"text_encoder_2.{T5}": "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    },
}  # fmt: skip


def written(names, module):
    """The name in a kohya file."""
    component, place = names.place_of_module(module)
    return names.prefix_of(component) + place.name


@pytest.mark.parametrize(("family", "module"), [(f, m) for f, table in GOLDEN.items() for m in table])
def test_kohya_names_by_hand(family, module):
    names = FORMATS[family]
    assert written(names, module) == GOLDEN[family][module]
    component, place = names.place_of_kohya(GOLDEN[family][module])
    assert (names.place_of_module(module)[1], place.special) == (
        place,
        len(place.modules) > 1 or place.halves,
    )
    if place.special:
        with pytest.raises(BadInput, match="in kohya's layout, with other rows"):
            names.kohya_name(module)
    else:
        assert names.kohya_name(module) == GOLDEN[family][module]
    assert module in [f"{component}.{path}" for path in place.modules]
    assert names.module_of_path(module) == module


@pytest.mark.parametrize(
    ("family", "name", "module"),
    [
        ("sdxl", "lora_unet_down_blocks_1_resnets_0_conv1", "unet.down_blocks.1.resnets.0.conv1"),
        ("sdxl", "lora_unet_output_blocks_5_1_conv", "unet.up_blocks.1.upsamplers.0.conv"),
        ("flux1", "lora_transformer_transformer_blocks_3_attn_to_q",
         "transformer.transformer_blocks.3.attn.to_q"),
        ("flux1", "lora_te2_encoder_block_0_layer_1_DenseReluDense_wo",
         "text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wo"),
        ("sd35", "lora_transformer_transformer_blocks_3_attn2_to_out_0",
         "transformer.transformer_blocks.3.attn2.to_out.0"),
    ],
)  # fmt: skip
def test_other_spellings_are_read(family, name, module):
    assert FORMATS[family].module_of_kohya(name) == module


@pytest.mark.parametrize(
    ("family", "name", "wrong"),
    [
        ("sdxl", "lora_unet_input_blocks_2_0_op", "is not part of sdxl"),
        ("sdxl", "lora_unet_input_blocks_04_1_proj_in", "is not part of sdxl"),
        ("flux1", "lora_unet_joint_blocks_0_x_block_attn_qkv", "is not part of flux1"),
        ("sd35", "lora_unet_double_blocks_0_img_attn_qkv", "is not part of sd35"),
        ("flux1", "lora_unet_single_blocks_0_linear1", "holds the rows of flux1 in another way"),
        ("sd35", "lora_unet_final_layer_adaLN_modulation_1", "holds the rows of sd35 in another way"),
    ],
)
def test_what_is_no_single_module(family, name, wrong):
    with pytest.raises(BadInput, match=wrong):
        FORMATS[family].module_of_kohya(name)


# Module counts of kohya's networks: SDXL 1052 and SD3.5 medium 703 with text encoders, FLUX.1 552 without its
# final layer. Our UNet also has conv_in, conv_out and four embedding layers, our FLUX a final layer of two.
@pytest.mark.parametrize(
    ("family", "config", "layers", "kohya_modules"),
    [
        ("sdxl", "sdxl/unet", 794, 1052 - 72 - 192 + 6),
        ("sd35", "sd35/variants/medium/transformer", 393, 703 - 72 - 192 - 168),
        ("sd35", "sd35/variants/large/transformer", 537, 385),
        ("flux1", "flux1/variants/dev/transformer", 504, 552 - 72 - 168 + 2),
        ("flux1", "flux1/variants/schnell/transformer", 502, 552 - 72 - 168),
    ],
)
def test_every_layer_of_the_real_denoiser_has_a_name_that_comes_back(family, config, layers, kohya_modules):
    names = FORMATS[family]
    modules = [f"{names.denoiser}.{path}" for path in _layers_of(config)]
    spelled = {written(names, module) for module in modules}
    assert (len(modules), len(spelled)) == (layers, kohya_modules)
    found = []
    for name in spelled:
        component, place = names.place_of_kohya(name)
        found += [f"{component}.{path}" for path in place.modules]
    assert sorted(found) == sorted(modules)
    assert [names.module_of_path(module) for module in modules] == modules


def _layers_of(config):
    """Paths of all linear layers and convolutions of a model that takes no memory."""
    import diffusers as library
    import torch

    values = json.loads((CONFIGS / config / "config.json").read_text())
    with torch.device("meta"):
        model = getattr(library, values["_class_name"]).from_config(values)
    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]


# One of each kind of module at toy width 8: fused ones whole and in part, halves that are exchanged.
TOY = {
    "sdxl": {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (8, 8),
        "unet.down_blocks.0.resnets.0.conv1": (8, 8, 3, 3),
        "unet.up_blocks.0.upsamplers.0.conv": (8, 8, 3, 3),
        "unet.add_embedding.linear_1": (8, 12),
        f"text_encoder.{CLIP}": (6, 6),
        f"text_encoder_2.{CLIP}": (8, 8),
        "text_encoder_2.text_model.encoder.layers.1.mlp.fc2": (8, 16),
    },
    "sd35": {
        **{f"transformer.transformer_blocks.0.attn.to_{x}": (8, 8) for x in "qkv"},
        "transformer.transformer_blocks.0.attn.add_k_proj": (8, 8),
        "transformer.transformer_blocks.0.attn2.to_v": (8, 8),
        "transformer.transformer_blocks.0.norm1_context.linear": (48, 8),
        "transformer.transformer_blocks.1.norm1_context.linear": (16, 8),
        "transformer.norm_out.linear": (16, 8),
        "transformer.pos_embed.proj": (8, 4, 2, 2),
        f"text_encoder.{CLIP}": (6, 6),
        f"text_encoder_2.{CLIP}": (8, 8),
        f"text_encoder_3.{T5}": (8, 8),
    },
    "flux1": {
        **{f"transformer.transformer_blocks.0.attn.to_{x}": (8, 8) for x in "qkv"},
        "transformer.transformer_blocks.0.attn.add_q_proj": (8, 8),
        **{f"transformer.single_transformer_blocks.0.attn.to_{x}": (8, 8) for x in "qk"},
        "transformer.single_transformer_blocks.0.proj_mlp": (32, 8),
        "transformer.single_transformer_blocks.1.attn.to_v": (8, 8),
        "transformer.single_transformer_blocks.1.proj_out": (8, 40),
        "transformer.norm_out.linear": (16, 8),
        "transformer.proj_out": (16, 8),
        f"text_encoder.{CLIP}": (6, 6),
        f"text_encoder_2.{T5}": (8, 8),
    },
}


def _uneven(family):
    """Every module with a rank and an alpha of its own."""
    form = make_form(TOY[family], family=family, conv_rank=3)
    random = np.random.default_rng(5)
    modules = {}
    for number, (name, item) in enumerate(form.modules.items()):
        rank = 1 + number % 4
        down = random.normal(size=(rank, *item.down.shape[1:])).astype(np.float32)
        up = random.normal(size=(item.up.shape[0], rank, *item.up.shape[2:])).astype(np.float32)
        modules[name] = LoraFactors(down, up, (0.5, 1.0, 3.0)[number % 3])
    return AdapterForm(family, modules)


@pytest.mark.parametrize("family", TOY)
def test_every_layout_keeps_every_weight_change(family, tmp_path):
    form = _uneven(family)
    through_kohya = reading.read(*kohya.write(form), family)
    through_diffusers = reading.read(*diffusers.write(form), family)
    for name, (tensors, config) in peft.write(form).items():
        (tmp_path / name).mkdir(exist_ok=True)
        save(tmp_path / name / peft.WEIGHTS, tensors, {})
        (tmp_path / name / peft.CONFIG).write_text(json.dumps(config))
    through_peft = peft.read_folder(tmp_path, family)
    for name, item in form.modules.items():
        for other in (through_kohya, through_diffusers, through_peft):
            assert relative_error(other.modules[name], item) < 1e-6, name
    for name in through_kohya.modules.keys() - form.modules.keys():  # parts of fused layers, CLIP's out_proj
        assert not through_kohya.delta(name).any()
    assert through_diffusers.modules.keys() == through_peft.modules.keys() == form.modules.keys()


def test_a_fused_file_is_the_block_matrix():
    """A = cat, B = block_diag, alpha = new rank * alpha / r; written out by hand."""
    form = make_form(TOY["flux1"], rank=2, alpha=1.0, family="flux1")
    tensors, _ = kohya.write(form)
    name = "lora_unet_single_blocks_0_linear1"
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    block = "transformer.single_transformer_blocks.0"
    q, k, mlp = (form.modules[f"{block}.{leaf}"] for leaf in ("attn.to_q", "attn.to_k", "proj_mlp"))
    assert (down.shape, up.shape, float(tensors[f"{name}.alpha"])) == ((6, 8), (3 * 8 + 32, 6), 3.0)
    np.testing.assert_array_equal(down, np.concatenate([q.down, k.down, mlp.down]))
    wanted = np.zeros_like(up)
    wanted[:8, :2], wanted[8:16, 2:4], wanted[24:, 4:] = q.up, k.up, mlp.up
    np.testing.assert_array_equal(up, wanted)


def test_a_fused_file_gives_back_what_went_in():
    form = make_form(TOY["sd35"], rank=3, alpha=2.0, family="sd35")
    back = reading.read(*kohya.write(form), "sd35")
    for leaf in "qkv":
        name = f"transformer.transformer_blocks.0.attn.to_{leaf}"
        assert (back.modules[name].rank, back.modules[name].alpha) == (3, pytest.approx(2.0))
        np.testing.assert_array_equal(back.modules[name].down, form.modules[name].down)


def test_what_was_trained_as_one_shares_its_down_weights():
    random = np.random.default_rng(0)
    down, up = (random.normal(size=shape).astype(np.float32) for shape in ((4, 8), (24, 4)))
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up,
               f"{name}.alpha": np.array(2.0, np.float32)}  # fmt: skip
    form = reading.read(tensors, {}, "flux1")
    for number, leaf in enumerate("qkv"):
        got = form.delta(f"transformer.transformer_blocks.0.attn.to_{leaf}")
        np.testing.assert_allclose(got, 0.5 * up[8 * number : 8 * number + 8] @ down, rtol=1e-5)


def test_ai_toolkit_names_are_read_with_their_halves():
    random = np.random.default_rng(0)
    down, up = (random.normal(size=shape).astype(np.float32) for shape in ((4, 8), (16, 4)))
    key = "diffusion_model.final_layer.adaLN_modulation.1"
    form = reading.read({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, {}, "flux1")
    shift, scale = np.split(up @ down, 2)
    wanted = np.concatenate([scale, shift])
    np.testing.assert_allclose(form.delta("transformer.norm_out.linear"), wanted, rtol=1e-5)
    with pytest.raises(BadInput, match=r"diffusion_model\.nothing.*is not part of flux1"):
        reading.read(
            {"diffusion_model.nothing.lora_A.weight": down, "diffusion_model.nothing.lora_B.weight": up},
            {},
            "flux1",
        )


def test_only_sd3_s_last_text_modulation_is_exchanged():
    """Measured against diffusers' own conversion of whole weights."""
    from diffusers.loaders.single_file_utils import swap_scale_shift
    from torch import from_numpy

    form = make_form(TOY["sd35"], family="sd35")
    tensors, _ = kohya.write(form)
    for block, exchanged in ((0, False), (1, True)):
        name = f"lora_unet_joint_blocks_{block}_context_block_adaLN_modulation_1"
        theirs = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
        ours = form.delta(f"transformer.transformer_blocks.{block}.norm1_context.linear")
        scale = float(tensors[f"{name}.alpha"]) / tensors[f"{name}.lora_down.weight"].shape[0]
        wanted = swap_scale_shift(from_numpy(theirs), dim=0).numpy() if exchanged else theirs
        np.testing.assert_allclose(ours, scale * wanted, rtol=1e-4, atol=1e-6)


def test_parts_that_do_not_fit_are_one_line():
    narrow = LoraFactors(np.ones((1, 4), np.float32), np.ones((8, 1), np.float32), 1.0)
    wide = LoraFactors(np.ones((1, 8), np.float32), np.ones((8, 1), np.float32), 1.0)
    with pytest.raises(BadInput, match="x: has parts of shapes that cannot lie side by side"):
        fuse([narrow, wide, None], (1, 1, 1), "x")
    with pytest.raises(BadInput, match="x: has 8 outputs, which is no multiple of 7"):
        unfuse(narrow, (1, 1, 1, 4), "x")


def test_configs_are_complete():
    """Every variant of every family: what a single file needs beside its tokenizers."""
    for family in ("sdxl", "sd35", "flux1"):
        root = CONFIGS / family
        index = json.loads((root / "model_index.json").read_text())
        parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
        for variant in [*(root / "variants").glob("*")] or [root]:
            for part in parts:
                file = "scheduler_config.json" if part == "scheduler" else "config.json"
                found = [place / part / file for place in (root, variant)]
                assert part.startswith("tokenizer") or any(map(Path.is_file, found)), (variant, part)
