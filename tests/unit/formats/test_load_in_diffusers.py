"""An exported file gives the same picture in diffusers as the model it was trained in."""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from registry.formats.export import export_adapter
from registry.formats.families import FORMATS
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.load import load_adapter
from registry.formats.tensors import read_tensors
from registry.formats.tools import Judge, diffusers_reading
from tests.support.bases import save_base
from tests.support.real_loader import fresh

POCKET = Path(__file__).parents[3] / "studio/pocket/model"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [
    *ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut",
    "time_emb_proj", "conv", "conv_in", "conv_out", "linear_1", "linear_2",
]  # fmt: skip
CONV = {"conv1": 2, "conv2": 2, "conv_shortcut": 2, "conv": 2}


@dataclass
class Case:
    """An adapter as a person would configure it."""

    unet: list[str] = field(default_factory=list)
    alpha: float = 1.0
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    text_alpha: float = 2.0
    text_alphas: dict[str, float] = field(default_factory=dict)
    rank: int = 4


CASES = {
    "alpha is not rank": Case(unet=ATTENTION),
    "every module, uneven ranks and alphas": Case(
        unet=EVERYTHING,
        ranks=CONV,
        alphas={"conv1": 3.0, "to_q": 5.0, "ff.net.2": 0.5},
        text=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        text_alphas={"q_proj": 7.0},
    ),
    "text encoder without out_proj": Case(unet=ATTENTION, alpha=8.0, text=["q_proj", "v_proj"]),
    "text encoder alone": Case(text=["q_proj", "fc1"]),
}


@cache
def _folder(base: str, root: Path) -> Path:
    return POCKET if base == "pocket" else save_base(base, root / base)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


def _pipeline(folder):
    from diffusers import StableDiffusionPipeline

    pipe = fresh(StableDiffusionPipeline, folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _picture(pipe):
    import torch

    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return pipe(
        "a red circle", num_inference_steps=3, guidance_scale=3.0, width=side, height=side, output_type="np",
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip


@cache
def _plain_picture(folder):
    return _picture(_pipeline(folder))


def _attach(model, targets, r, alpha, ranks, alphas):
    """A trained PEFT adapter on `model`: random factors of a size that shows."""
    import torch
    from peft import LoraConfig

    torch.manual_seed(3)
    model.add_adapter(
        LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, rank_pattern=ranks, alpha_pattern=alphas)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)


def _factors(model, component):
    """Weights and strengths of the live model, straight from its layers."""
    from peft.tuners.lora import LoraLayer

    modules = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            path = name if component == "unet" or name.startswith("text_model.") else f"text_model.{name}"
            down, up = (
                w["default"].weight.detach().numpy().astype(np.float32) for w in (layer.lora_A, layer.lora_B)
            )
            alpha = float(layer.scaling["default"]) * down.shape[0]
            modules[f"{component}.{path}"] = LoraFactors(down, up, alpha)
    return modules


def _train(pipe, case, folder: Path) -> AdapterForm:
    """Attach, and save as the trainer does: PEFT names and the LoraConfig in the metadata."""
    from safetensors.numpy import save_file

    modules, config = {}, {}
    for component, model, targets, alpha, ranks, alphas in (
        ("unet", pipe.unet, case.unet, case.alpha, case.ranks, case.alphas),
        ("text_encoder", pipe.text_encoder, case.text, case.text_alpha, {}, case.text_alphas),
    ):
        if targets:
            _attach(model, targets, case.rank, alpha, ranks, alphas)
            modules |= _factors(model, component)
            values = {"r": case.rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas}
            config |= {f"{component}.{key}": value for key, value in values.items()}
    tensors = {}
    for name, item in modules.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = item.down, item.up
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config), "ss_base_model_version": "sd_v1"}
    save_file(tensors, folder / "adapter.safetensors", metadata)
    return AdapterForm("sd15", modules)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize(
    ("base", "name"),
    [("sd15", name) for name in CASES] + [("pocket", "every module, uneven ranks and alphas")],
)
def test_the_same_picture_as_the_trained_model(base, name, layout, root, tmp_path):
    folder = _folder(base, root)
    pipe = _pipeline(folder)
    plain = _plain_picture(folder)
    trained = _train(pipe, CASES[name], tmp_path)
    wanted = _picture(pipe)
    assert np.abs(wanted - plain).max() > 0.02, "the adapter must show, or the test proves nothing"

    form, _, _ = load_adapter(tmp_path / "adapter.safetensors", "sd15")
    assert form.modules.keys() == trained.modules.keys()
    for module in trained.modules:
        np.testing.assert_allclose(form.delta(module), trained.delta(module), rtol=1e-5, atol=1e-7)

    report = export_adapter(
        tmp_path / "adapter.safetensors", tmp_path / "out.safetensors", layout, family="sd15"
    )
    assert report.matched == report.modules == len(trained.modules)
    fresh = _pipeline(folder)
    fresh.load_lora_weights(tmp_path, weight_name="out.safetensors")
    assert np.abs(_picture(fresh) - wanted).max() < 1e-4
    assert next(t for t in report.tools if t.tool == "diffusers").verdict == "loads"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [["q_proj", "out_proj"], ["q_proj"], ["fc1"]])
def test_our_idea_of_how_diffusers_reads_kohya_files_is_the_library_s(text, root, tmp_path):
    """A raw kohya file with uneven alphas: diffusers gets it wrong in the way that the emulation says."""
    from safetensors.numpy import save_file

    pipe = _pipeline(_folder("sd15", root))
    case = Case(unet=["to_q", "to_k", "conv1"], alphas={"to_q": 5.0, "conv1": 3.0}, text=text)
    trained = _train(pipe, case, tmp_path)
    names = FORMATS["sd15"]
    tensors = {}
    for module, item in trained.modules.items():
        key = names.kohya_name(module)
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = item.down, item.up
        tensors[f"{key}.alpha"] = np.array(item.alpha, np.float32)
    save_file(tensors, tmp_path / "raw.safetensors")
    reading = diffusers_reading(read_tensors(tmp_path / "raw.safetensors"), {}, names, trained.modules)

    fresh = _pipeline(_folder("sd15", root))
    if "raises" in reading.note:
        with pytest.raises(ValueError, match="state dict type"):
            fresh.load_lora_weights(tmp_path, weight_name="raw.safetensors")
        return
    fresh.load_lora_weights(tmp_path, weight_name="raw.safetensors")
    loaded = {**_named(fresh.unet, "unet"), **_named(fresh.text_encoder, "text_encoder")}
    assert loaded.keys() == reading.modules.keys()
    for module, item in reading.modules.items():
        np.testing.assert_allclose(loaded[module], item.delta(), rtol=1e-4, atol=1e-6, err_msg=module)
    assert Judge(trained, 1e-5).report("diffusers", reading).verdict == "partly"


def _named(model, component):
    """Weight change of every layer that a fresh load gave an adapter."""
    from peft.tuners.lora import LoraLayer

    changes = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and layer.lora_A:
            path = name if component == "unet" or name.startswith("text_model.") else f"text_model.{name}"
            changes[f"{component}.{path}"] = layer.get_delta_weight(next(iter(layer.lora_A))).detach().numpy()
    return changes


@pytest.mark.filterwarnings("ignore")
def test_the_peft_folder_loads_into_unet_and_text_encoder(root, tmp_path):
    from peft import PeftModel

    folder = _folder("sd15", root)
    pipe = _pipeline(folder)
    _train(pipe, CASES["every module, uneven ranks and alphas"], tmp_path)
    wanted = _picture(pipe)
    report = export_adapter(tmp_path / "adapter.safetensors", tmp_path / "peft", "peft", family="sd15")
    assert report.matched == report.modules
    fresh = _pipeline(folder)
    fresh.unet = PeftModel.from_pretrained(fresh.unet, tmp_path / "peft").base_model.model
    text = PeftModel.from_pretrained(fresh.text_encoder, tmp_path / "peft", subfolder="text_encoder")
    fresh.text_encoder = text.base_model.model
    assert np.abs(_picture(fresh) - wanted).max() < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", ["", r".*attn2.*"])
def test_what_the_trainer_attaches_is_what_we_read(targets, tmp_path):
    """The trainer's own keys and metadata, against the strengths that its layers really have."""
    import torch
    from safetensors.torch import save_file

    from trainers.families import FAMILIES
    from trainers.families.base import BaseFiles
    from trainers.methods import attach
    from trainers.recipe_fields import AdapterSection

    folder = save_base("sd15", tmp_path / "base")
    cls = FAMILIES["sd15"].load_class()
    family = cls(BaseFiles(str(folder), "folder", "", ""), dtype=torch.float32, device=torch.device("cpu"))
    section = AdapterSection(
        rank=4, alpha=1.0, conv_rank=2, conv_alpha=3.0, targets=targets, train_text_encoder=True,
        text_rank=3, text_alpha=6.0,
    )  # fmt: skip
    trainables = attach(family, section, seed=0)
    for key, parameter in trainables.named.items():
        if key.endswith("lora_B.weight"):
            torch.nn.init.normal_(parameter)
    tensors = {key: parameter.detach().contiguous() for key, parameter in trainables.named.items()}
    save_file(tensors, tmp_path / "adapter.safetensors", trainables.metadata())
    wanted = {
        name: item
        for component in ("unet", "text_encoder")
        for name, item in _factors(family.part(component), component).items()
    }
    form, _, _ = load_adapter(tmp_path / "adapter.safetensors", "sd15")
    assert form.modules.keys() == wanted.keys()
    assert {item.alpha for item in form.of("text_encoder").values()} == {6.0}
    for name, item in wanted.items():
        assert form.modules[name].alpha == pytest.approx(item.alpha), name
        np.testing.assert_allclose(form.delta(name), item.delta(), rtol=1e-5, atol=1e-7)
    report = export_adapter(tmp_path / "adapter.safetensors", tmp_path / "ink", family="sd15")
    assert {tool.verdict for tool in report.tools} == {"loads"}
