"""Key names against lists written by hand, and the way there and back."""

from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.formats import names as names_module
from registry.formats.families import FORMATS, modern_path
from registry.formats.grammar import split_key
from registry.formats.names import LONGEST, remembered

SD15 = FORMATS["sd15"]
GOLDEN = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q":
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0":
        "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_out_0",
    "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj":
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2":
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2",
    "unet.mid_block.attentions.0.proj_in": "lora_unet_mid_block_attentions_0_proj_in",
    "unet.up_blocks.1.attentions.1.proj_out": "lora_unet_up_blocks_1_attentions_1_proj_out",
    "unet.down_blocks.3.resnets.1.conv1": "lora_unet_down_blocks_3_resnets_1_conv1",
    "unet.mid_block.resnets.0.conv2": "lora_unet_mid_block_resnets_0_conv2",
    "unet.up_blocks.0.resnets.2.conv_shortcut": "lora_unet_up_blocks_0_resnets_2_conv_shortcut",
    "unet.down_blocks.1.resnets.0.time_emb_proj": "lora_unet_down_blocks_1_resnets_0_time_emb_proj",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_down_blocks_0_downsamplers_0_conv",
    "unet.up_blocks.2.upsamplers.0.conv": "lora_unet_up_blocks_2_upsamplers_0_conv",
    "unet.conv_in": "lora_unet_conv_in",
    "unet.conv_out": "lora_unet_conv_out",
    "unet.time_embedding.linear_1": "lora_unet_time_embedding_linear_1",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj":
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "text_encoder.text_model.encoder.layers.22.self_attn.out_proj":
        "lora_te_text_model_encoder_layers_22_self_attn_out_proj",
    "text_encoder.text_model.encoder.layers.11.mlp.fc2": "lora_te_text_model_encoder_layers_11_mlp_fc2",
}  # fmt: skip
OLD = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight":
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight":
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora.down.weight":
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "text_encoder.text_model.encoder.layers.3.self_attn.k_proj.lora_linear_layer.up.weight":
        "text_encoder.text_model.encoder.layers.3.self_attn.k_proj",
    "text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.down.weight":
        "text_encoder.text_model.encoder.layers.3.self_attn.out_proj",
    "text_encoder.encoder.layers.3.mlp.fc1.lora_A.weight":
        "text_encoder.text_model.encoder.layers.3.mlp.fc1",
    "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight":
        "unet.mid_block.attentions.0.proj_in",
    "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_B.default.weight":
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
}  # fmt: skip


@pytest.mark.parametrize("module", GOLDEN)
def test_kohya_names_by_hand(module):
    assert SD15.kohya_name(module) == GOLDEN[module]
    assert SD15.module_of_kohya(GOLDEN[module]) == module


def test_te1_is_read_and_te_is_written():
    module = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert SD15.module_of_kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1") == module
    assert SD15.kohya_name(module) == "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.mark.parametrize("key", OLD)
def test_diffusers_names_of_all_ages(key):
    path, part = split_key(key)
    assert part in {"down", "up"}
    assert SD15.module_of_path(modern_path(path)) == OLD[key]


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn3_to_q",
        "lora_unet_double_blocks_0_img_attn_qkv",  # FLUX.1
        "lora_te2_text_model_encoder_layers_31_mlp_fc1",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn3_to_q",
        "lora_unet_down_blocks_00_resnets_0_conv1",
        "lora_unet_",
        "lycoris_conv_inner",
    ],
)
def test_names_of_other_families_are_refused(name):
    with pytest.raises(BadInput, match=f"module '{name}': is not part of sd15"):
        SD15.module_of_kohya(name)


def _real_modules(model):
    """Every linear and convolution of a real model."""
    import torch

    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]


def test_every_layer_of_the_pocket_base_has_a_name_that_comes_back():
    import json

    from diffusers import UNet2DConditionModel

    config = json.loads(
        (Path(__file__).parents[3] / "studio/pocket/model/unet/config.json").read_text(encoding="utf-8")
    )
    _check(UNet2DConditionModel.from_config(config))


@pytest.mark.parametrize("linear", [False, True], ids=["sd15", "sd21"])
def test_every_layer_of_the_real_unet_has_a_name_that_comes_back(linear):
    """SD1.5 and SD2.1 at their true depth and proportions, narrow."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 16, 32, 32), norm_num_groups=2, attention_head_dim=2, cross_attention_dim=8,
        use_linear_projection=linear,
    )  # fmt: skip
    modules = _check(unet)
    # kohya's network has 350 modules with convolutions, 72 of them in CLIP, and no place for four of ours.
    assert len(modules) == 350 - 72 + 4


def _check(unet):
    modules = [f"unet.{path}" for path in _real_modules(unet)]
    for module in modules:
        assert SD15.module_of_kohya(SD15.kohya_name(module)) == module
        assert SD15.module_of_path(module) == module
        assert SD15.module_of_path(module.removeprefix("unet.")) == module
    return modules


def test_every_layer_of_clip_has_a_name_that_comes_back():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=2,
        vocab_size=9,
        bos_token_id=0,
        eos_token_id=1,
    )
    paths = _real_modules(CLIPTextModel(config))
    assert len(paths) == 72
    for path in paths:
        module = SD15.module_of_path(f"text_encoder.{path}")
        assert module.startswith("text_encoder.text_model.encoder.layers.")
        assert SD15.module_of_kohya(SD15.kohya_name(module)) == module


def test_answers_for_names_are_kept_but_not_for_endless_ones():
    asked = []
    length = remembered(lambda name: asked.append(name) or len(name))
    names = ["up", "up", "x" * (LONGEST + 1), "x" * (LONGEST + 1)]
    assert [length(name) for name in names] == [2, 2, LONGEST + 1, LONGEST + 1]
    assert asked == ["up", *names[2:]]


def test_answers_for_names_stay_few(monkeypatch):
    monkeypatch.setattr(names_module, "REMEMBERED", 3)
    asked = []
    length = remembered(lambda name: asked.append(name) or len(name))
    assert [length("x" * n) for n in (1, 2, 3, 4, 4, 1)] == [1, 2, 3, 4, 4, 1]
    assert list(map(len, asked)) == [1, 2, 3, 4, 1], "the fourth name takes the place of all before it"
