"""PEFT's own files: their strength lies beside them, and is right as PEFT itself means it."""

import json
from typing import Any

import numpy as np
import pytest

from registry.errors import BadInput
from registry.formats.export import export_adapter
from registry.formats.factors import change_of
from registry.formats.header import read_header
from registry.formats.inspect import facts_of, inspect_adapter
from registry.formats.load import load_adapter
from registry.formats.peft_config import ASSUMED, CONFIG, MAX_BYTES, WEIGHTS, PeftConfig
from registry.formats.tensors import save
from tests.support.bases import save_base

CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def peft_file(folder, config=None, prefix="base_model.model.", name=WEIGHTS):
    """A LoRA of rank 4 on two layers, as PEFT saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, inputs in ((CROSS, 768), (OUT, 32)):
        tensors[f"{prefix}{module}.lora_A.weight"] = noise(4, inputs)
        tensors[f"{prefix}{module}.lora_B.weight"] = noise(32, 4, seed=1)
    save(folder / name, tensors, {})
    if config is not None:
        values = {"peft_type": "LORA", "r": 4, "target_modules": ["to_k"]} | config
        (folder / CONFIG).write_text(json.dumps(values))
    return folder / name


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({"lora_alpha": 8}, (2.0, 2.0)),
        ({"lora_alpha": 8, "use_rslora": True}, (4.0, 4.0)),
        ({"lora_alpha": 8, "alpha_pattern": {"to_k": 2}}, (0.5, 2.0)),
        ({"lora_alpha": 8, "alpha_pattern": {"^" + OUT: 1}}, (2.0, 0.25)),
        ({"lora_alpha": 8, "alpha_pattern": {r"attn2\.to_k": 2}}, (0.5, 2.0)),
        ({"lora_alpha": 8, "rank_pattern": {"to_k": 4}, "init_lora_weights": True}, (2.0, 2.0)),
        ({"lora_alpha": 3, "init_lora_weights": "gaussian"}, (0.75, 0.75)),
    ],
)
def test_the_strength_is_that_of_the_configuration(config, scales, tmp_path):
    path = peft_file(tmp_path, config)
    form, facts, _ = load_adapter(path)
    assert tuple(form.modules[f"unet.{name}"].scale for name in (CROSS, OUT)) == pytest.approx(scales)
    assert not facts.strength_assumed
    assert facts.alpha in {4 * scale for scale in scales}
    export_adapter(path, tmp_path / "out", "kohya")
    again, _, _ = load_adapter(tmp_path / "out.safetensors")
    np.testing.assert_allclose(again.delta(f"unet.{CROSS}"), form.delta(f"unet.{CROSS}"), rtol=1e-5)


def test_a_strength_that_is_missing_is_an_assumption_that_is_said(tmp_path):
    path = peft_file(tmp_path)
    form, facts, _ = load_adapter(path)
    assert facts.strength_assumed
    assert {item.scale for item in form.modules.values()} == {1.0}
    assert ASSUMED in export_adapter(path, tmp_path / "out", "kohya").notes
    assert not inspect_adapter(tmp_path / "out.safetensors").strength_assumed


def test_what_the_catalog_knows_counts_before_what_lies_beside_the_file(tmp_path):
    path = peft_file(tmp_path, {"lora_alpha": 8})
    known = PeftConfig.from_json(json.loads(json.dumps(inspect_adapter(path).peft.to_json())))
    (tmp_path / CONFIG).write_text("{}")
    path = path.rename(tmp_path / "elsewhere.safetensors")
    form, facts, _ = load_adapter(path, "sd15", known)
    assert {item.scale for item in form.modules.values()} == {2.0}
    assert facts.alpha == 8


def test_a_renamed_file_is_known_while_it_is_alone(tmp_path):
    path = peft_file(tmp_path, {"lora_alpha": 8}, name="ink.safetensors")
    assert inspect_adapter(path).alpha == 8
    peft_file(tmp_path, name="other.safetensors")
    assert inspect_adapter(path).strength_assumed


def test_a_file_that_says_its_strength_needs_no_configuration(tmp_path):
    tensors = {f"base_model.model.{CROSS}.lora_A.weight": noise(4, 768),
               f"base_model.model.{CROSS}.lora_B.weight": noise(32, 4),
               f"base_model.model.{CROSS}.alpha": np.array(2, np.float32)}  # fmt: skip
    save(tmp_path / WEIGHTS, tensors, {})
    (tmp_path / CONFIG).write_text("{")
    form, facts, _ = load_adapter(tmp_path / WEIGHTS)
    assert form.modules[f"unet.{CROSS}"].scale == 0.5
    assert facts.peft is None


def test_the_folder_names_the_text_encoder(tmp_path):
    folder = tmp_path / "ink" / "text_encoder_2"
    folder.mkdir(parents=True)
    name = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    save(
        folder / WEIGHTS,
        {f"{name}.lora_A.weight": noise(4, 1280), f"{name}.lora_B.weight": noise(1280, 4)},
        {},
    )
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 2}))
    form, facts, _ = load_adapter(folder / WEIGHTS, "sdxl")
    assert form.targets == facts.targets == ("text_encoder_2",)
    assert {item.scale for item in form.modules.values()} == {0.5}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "describes no adapter that we read"),
        ('{"peft_type": "IA3"}', "describes no adapter that we read"),
        (" " * (MAX_BYTES + 1), "is too large"),
        ('{"peft_type": "LORA", "r": 4, "lora_alpha": "much"}', "is not a number"),
        ('{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": true}', "have no lora_magnitude_vector"),
        ('{"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"(a+)+": 2}}', "is a regular expression"),
        ('{"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": [1]}', "is not an object"),
        ('{"peft_type": "LORA", "lora_alpha": 8, "init_lora_weights": "pissa"}', "started from pissa"),
        (
            '{"peft_type": "LORA", "lora_alpha": 8, "init_lora_weights": "pissa_niter_4"}',
            "started from pissa",
        ),
    ],
)
def test_what_would_be_wrong_is_refused_in_one_line(text, wrong, tmp_path):
    path = peft_file(tmp_path)
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(BadInput, match=wrong) as caught:
        facts_of(path, read_header(path))
    assert "\n" not in str(caught.value)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 7},
    "rslora": {"lora_alpha": 7, "use_rslora": True},
    "patterns": {"lora_alpha": 7, "alpha_pattern": {"to_k": 3, "mid_block.attentions.0.proj_in": 5},
                 "rank_pattern": {"to_v": 2}},
    "dora": {"lora_alpha": 7, "use_dora": True},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SETTINGS)
def test_peft_itself_means_the_same(name, tmp_path):
    """A real UNet with a real LoraConfig, saved by PEFT: the weight change of every layer."""
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    folder = save_base("sd15", tmp_path / "base")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    plain = {key: value.clone() for key, value in unet.state_dict().items()}
    config = LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "proj_in", "conv1"], **SETTINGS[name])
    model = get_peft_model(unet, config)
    torch.manual_seed(2)
    for key, parameter in model.named_parameters():
        if "lora_B" in key or "magnitude" in key:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    model.save_pretrained(tmp_path / "saved")
    wanted = {}
    for path, layer in unet.named_modules():
        if isinstance(layer, LoraLayer):
            layer.merge()
            wanted[f"unet.{path}"] = (
                layer.base_layer.weight.detach().numpy() - plain[f"{path}.weight"].numpy()
            )
    form, facts, _ = load_adapter(tmp_path / "saved" / WEIGHTS, "sd15")
    assert not facts.strength_assumed
    assert form.everything.keys() == wanted.keys()
    assert len(wanted) > 20
    for module, change in wanted.items():
        weight = plain[f"{module.removeprefix('unet.')}.weight"].numpy()
        got = change_of(form.everything[module], weight)
        assert np.linalg.norm(got - change) < 1e-5 * max(1.0, np.linalg.norm(change)), module
