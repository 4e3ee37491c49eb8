"""SDXL, SD3.5 and FLUX.1: a trained adapter, exported, draws in diffusers what the live model draws.

diffusers divides FLUX's `linear1` at its true width of 3072 only, so at toy size kohya files of single blocks
are checked by the weights that its converter makes of them, at true width.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from registry.formats.export import FAMILY_TOOLS, export_adapter
from registry.formats.families import FORMATS
from registry.formats.inspect import inspect_adapter
from registry.formats.internal import AdapterForm
from registry.formats.load import load_adapter
from registry.formats.tools import TOOLS, Judge
from studio.sampling.engine import Engine
from studio.sampling.request import SampleRequest
from studio.sampling.task import SampleTask, TaskAdapter, TaskBase
from tests.support.adapters import make_form, write_run_file
from tests.support.bases import save_base
from tests.support.real_loader import pipeline as real_pipeline
from trainers.families import FAMILIES
from trainers.families.base import BaseFiles
from trainers.guidance import Guided, begin, first_latents
from trainers.methods import attach
from trainers.preview import make_sampler
from trainers.recipe_fields import AdapterSection

CPU = torch.device("cpu")
SIDE, STEPS, CFG, PROMPT, SEED = 32, 2, 3.0, "a red circle", 7
FLUX_DOUBLE = r"transformer_blocks\.0\..*(to_[qkv]|to_out\.0|proj|to_add_out|net\.2)"
EVERYTHING = r".*(to_[qkv]|to_out\.0|proj_in|proj_out|conv\d?|conv_shortcut|time_emb_proj|linear_[12])"
# family, layout, layers ("" = the family's own list), whether the CLIPs learn too
CASES = [
    ("sdxl", "kohya", "", True),
    ("sdxl", "kohya", EVERYTHING, False),
    ("sdxl", "diffusers", "", True),
    ("sd35", "diffusers", "", True),
    ("sd35", "diffusers", r".*(linear|proj|to_[qkv])", False),
    ("flux1", "diffusers", "", True),
    ("flux1", "kohya", FLUX_DOUBLE, True),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@cache
def folder_of(name: str, root: Path) -> Path:
    """The toy base; SDXL with two residual blocks a level, which kohya's block numbers take for granted."""
    folder = save_base(name, root / name)
    if name == "sdxl":
        unet: Any = FAMILIES[name].load_class().tiny()["unet"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            type(unet).from_config({**unet.config, "layers_per_block": 2}).save_pretrained(folder / "unet")
    return folder


def load(name: str, root: Path) -> Any:
    return FAMILIES[name].load_class()(BaseFiles(str(folder_of(name, root))), dtype=torch.float32, device=CPU)


def trained(family: Any, targets: str, text: bool, path: Path) -> Path:
    """An adapter on the live model, with an effect that shows, saved as a run saves it."""
    section = AdapterSection(
        rank=3, alpha=2.0, targets=targets, train_text_encoder=text, text_rank=2, text_alpha=3.0
    )
    trainables = attach(family, section, seed=0)
    torch.manual_seed(3)
    for key, parameter in trainables.named.items():
        if key.endswith("lora_B.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    tensors = {key: value.detach().contiguous() for key, value in trainables.named.items()}
    save_file(tensors, path, trainables.metadata())
    return path


def noise_for(family: Any) -> torch.Tensor:
    side = SIDE // family.latent_factor
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(SEED))


@torch.no_grad()
def drawn(family: Any) -> np.ndarray:
    """The live model's picture, (H, W, 3) from 0 to 1."""
    noise = noise_for(family)
    scheduler = begin(family, make_sampler(family, "default"), STEPS, noise.shape)
    negative = family.unguided(family.encode_text([""]))
    guided = Guided(family, family.encode_text([PROMPT]), negative, CFG, (SIDE, SIDE))
    x = first_latents(scheduler, noise)
    for t in scheduler.timesteps:
        x = scheduler.step(guided.predict(scheduler, x, t), t, x, return_dict=False)[0]
    return ((family.decode_image(x)[0].clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()


def pipeline(name: str, root: Path) -> Any:
    pipe = real_pipeline(name, folder_of(name, root))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn_by(pipe: Any, family: Any) -> np.ndarray:
    """The pipeline's picture of the same request."""
    noise, options = noise_for(family), {}
    if family.name == "flux1":
        noise, options = pipe._pack_latents(noise, *noise.shape), {"max_sequence_length": family.text_length}
    return pipe(PROMPT, height=SIDE, width=SIDE, num_inference_steps=STEPS, guidance_scale=CFG, latents=noise,
                output_type="np", **options).images[0]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "layout", "targets", "text"), CASES)
def test_the_same_picture_as_the_trained_model(name, layout, targets, text, root, tmp_path):
    family = load(name, root)
    plain = drawn(family)
    source = trained(family, targets, text, tmp_path / "adapter.safetensors")
    live = drawn(family)
    assert np.abs(live - plain).max() > 0.01, "the adapter must show, or the test proves nothing"

    report = export_adapter(source, tmp_path / "out.safetensors", layout, family=name)
    assert report.matched == report.modules > 0
    assert {tool.tool for tool in report.tools} == set(FAMILY_TOOLS.get(name, TOOLS))
    judged = next(tool for tool in report.tools if tool.tool == "diffusers")
    assert judged.verdict == "loads", judged
    pipe = pipeline(name, root)
    assert np.abs(drawn_by(pipe, family) - plain).max() < 1e-4
    pipe.load_lora_weights(tmp_path, weight_name="out.safetensors")
    assert np.abs(drawn_by(pipe, family) - live).max() < 1e-3

    # our own sampler, from the exported file
    base = TaskBase(id="b", name="b", family=name, location=str(folder_of(name, root)), kind="folder")
    request = SampleRequest(base="b", prompt=PROMPT, steps=STEPS, cfg=CFG, seed=SEED, width=SIDE, height=SIDE)
    adapter = TaskAdapter(id="a", name="a", path=report.path, tensor_sha256=report.tensor_sha256,
                          file_sha256="", weight=1.0, text_weight=1.0)  # fmt: skip
    pictures: list[Any] = []
    said = Engine(device="cpu").draw(
        SampleTask(id="s", request=request, base=base, adapters=(adapter,)),
        keep=lambda _, picture, __: pictures.append(np.asarray(picture, np.float32) / 255),
    )
    assert not said.warnings
    assert np.abs(pictures[0] - live).max() < 1e-3 + 0.5 / 255


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "t5"), [("sd35", "text_encoder_3"), ("flux1", "text_encoder_2")])
def test_t5_is_exported_and_where_it_is_lost_is_said(name, t5, root, tmp_path):
    family = load(name, root)
    trainables = attach(family, AdapterSection(rank=2, train_t5=True), seed=0)
    tensors = {key: torch.randn_like(value) for key, value in trainables.named.items()}
    save_file(tensors, tmp_path / "adapter.safetensors", trainables.metadata())
    for layout in ("diffusers", "kohya", "peft"):
        report = export_adapter(tmp_path / "adapter.safetensors", tmp_path / layout, layout, family=name)
        assert report.matched == report.modules
        if layout == "peft":
            continue
        path = Path(report.path)
        form, _, _ = load_adapter(path, name)
        assert form.of(t5)
        assert inspect_adapter(path).targets == ("transformer", t5)
        verdicts = {tool.tool: (tool.verdict, tool.note) for tool in report.tools}
        if layout == "diffusers":
            assert verdicts["diffusers"] == ("partly", "drops T5")
            assert verdicts["ComfyUI"][0] == "partly"
        else:
            assert verdicts["ComfyUI"][0] == verdicts["kohya sd-scripts"][0] == "loads"


@pytest.mark.filterwarnings("ignore")
def test_kohya_files_of_sd35_load_nothing_in_diffusers(root, tmp_path):
    family = load("sd35", root)
    source = trained(family, "", False, tmp_path / "adapter.safetensors")
    report = export_adapter(source, tmp_path / "out.safetensors", "kohya", family="sd35")
    verdicts = {tool.tool: tool.verdict for tool in report.tools}
    assert verdicts == {"diffusers": "no", "ComfyUI": "loads", "InvokeAI": "no", "kohya sd-scripts": "loads"}
    pipe = pipeline("sd35", root)
    plain = drawn_by(pipe, family)
    pipe.load_lora_weights(tmp_path, weight_name="out.safetensors")
    np.testing.assert_array_equal(drawn_by(pipe, family), plain)


TRUE_WIDTH = {
    **{f"transformer.transformer_blocks.0.attn.to_{x}": (3072, 3072) for x in "qkv"},
    "transformer.transformer_blocks.0.attn.add_q_proj": (3072, 3072),
    "transformer.transformer_blocks.0.attn.to_add_out": (3072, 3072),
    "transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072),
    "transformer.single_transformer_blocks.0.attn.to_v": (3072, 3072),
    "transformer.single_transformer_blocks.0.proj_mlp": (12288, 3072),
    "transformer.single_transformer_blocks.0.proj_out": (3072, 15360),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "odd",
    [
        "",
        "transformer.x_embedder",
        "transformer.norm_out.linear",
        "transformer.single_transformer_blocks.38.proj_out",
    ],
)
def test_kohya_files_of_flux_at_true_width(odd, tmp_path):
    """What diffusers' converter makes of our file, and that our idea of it is the library's."""
    from diffusers import FluxPipeline

    shapes = TRUE_WIDTH | ({odd: (6144, 3072) if "norm" in odd else (3072, 64)} if odd else {})
    form = make_form(shapes, rank=2, alpha=3.0, family="flux1")
    source = write_run_file(form, tmp_path / "adapter.safetensors")
    report = export_adapter(source, tmp_path / "out.safetensors", "kohya", family="flux1")
    judged = next(tool for tool in report.tools if tool.tool == "diffusers")
    if "38" in odd:
        assert judged.note == "raises: it knows 19 double and 38 single blocks"
        with pytest.raises(ValueError, match="Incompatible keys"):
            FluxPipeline.lora_state_dict(load_file(tmp_path / "out.safetensors"))
        return
    made: Any = FluxPipeline.lora_state_dict(load_file(tmp_path / "out.safetensors"))
    found = {
        key.removesuffix(".lora_A.weight") for key in made if key.startswith("transformer.") and "_A." in key
    }
    for module in form.modules.keys() & found:
        delta = made[f"{module}.lora_B.weight"] @ made[f"{module}.lora_A.weight"]
        assert close(delta, torch.from_numpy(form.delta(module))), module
    assert found >= form.modules.keys() - {odd}
    assert judged.missing == ((odd,) if odd else ())
    assert judged.verdict == ("partly" if odd else "loads")


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Every number to 1e-3 of it and 1e-5; NumPy's own check takes ten times as long for 47 million."""
    return got.shape == wanted.shape and bool(
        got.sub_(wanted).abs_().sub_(wanted.abs_().mul_(1e-3)).max() <= 1e-5
    )


def verdicts(shapes: dict[str, tuple[int, ...]], layout: str, family: str, folder: Path) -> dict[str, Any]:
    source = write_run_file(make_form(shapes, family=family), folder / "adapter.safetensors")
    report = export_adapter(source, folder / "out.safetensors", layout, family=family, overwrite=True)
    return {tool.tool: tool for tool in report.tools}


def test_what_invokeai_takes_for_flux(tmp_path):
    double = {f"transformer.transformer_blocks.0.attn.add_{x}_proj": (8, 8) for x in "qkv"}
    both = double | {"transformer.single_transformer_blocks.0.attn.to_q": (8, 8)}
    clip = {"text_encoder.text_model.encoder.layers.0.mlp.fc1": (8, 8)}
    assert verdicts(both, "diffusers", "flux1", tmp_path)["InvokeAI"].verdict == "loads"
    assert "recognises files only with" in verdicts(double, "diffusers", "flux1", tmp_path)["InvokeAI"].note
    assert verdicts(double, "kohya", "flux1", tmp_path)["InvokeAI"].verdict == "loads"
    assert (
        "fails on text-encoder keys" in verdicts(both | clip, "diffusers", "flux1", tmp_path)["InvokeAI"].note
    )
    del both["transformer.transformer_blocks.0.attn.add_k_proj"]
    assert "only some of query, key" in verdicts(both, "diffusers", "flux1", tmp_path)["InvokeAI"].note
    ends = double | {"transformer.x_embedder": (8, 8)}
    assert "does not recognise" in verdicts(ends, "kohya", "flux1", tmp_path)["InvokeAI"].note
    assert verdicts(double, "kohya", "flux1", tmp_path)["A1111"].note == "does not draw with FLUX.1"


def test_kohya_itself_has_no_final_layer_for_flux(tmp_path):
    shapes = {"transformer.norm_out.linear": (16, 8), "transformer.transformer_blocks.0.ff.net.2": (8, 32)}
    assert verdicts(shapes, "kohya", "flux1", tmp_path)["kohya sd-scripts"].verdict == "partly"
    assert verdicts(shapes, "kohya", "sd35", tmp_path)["kohya sd-scripts"].verdict == "loads"


def test_comfyui_does_not_exchange_sd3_s_last_text_modulation(tmp_path):
    shapes = {
        f"transformer.transformer_blocks.{n}.norm1_context.linear": (rows, 8)
        for n, rows in ((0, 48), (1, 16))
    }
    report = verdicts(shapes, "diffusers", "sd35", tmp_path)["ComfyUI"]
    assert report.missing == ("transformer.transformer_blocks.1.norm1_context.linear",)
    assert verdicts(shapes, "kohya", "sd35", tmp_path)["ComfyUI"].verdict == "loads"


def test_a_reading_that_is_wrong_is_seen():
    """The judge tells exchanged halves from the right ones."""
    from registry.formats.fusing import swap_halves
    from registry.formats.tools import Reading

    form = make_form({"transformer.norm_out.linear": (16, 8)}, family="flux1")
    swapped = {name: swap_halves(item) for name, item in form.modules.items()}
    assert Judge(form, 1e-5).report("x", Reading(swapped)).matched == 0
    assert Judge(form, 1e-5).report("x", Reading(AdapterForm("flux1", form.modules).modules)).matched == 1
    assert FORMATS["flux1"].auto_layout == FORMATS["sd35"].auto_layout == "diffusers"
    assert FORMATS["sdxl"].auto_layout == "kohya"
