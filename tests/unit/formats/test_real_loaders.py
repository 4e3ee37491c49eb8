"""SDXL, SD3.5 and FLUX.1: what the real loaders apply of an exported file, module by module.

Adapters as the trainer attaches them to toy models of the real classes, each parameter moved at random; ranks
differ from alphas. Where a library cannot load what a layout holds, the report says so, and it is shown.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.errors import BadInput
from registry.formats.convert import ToLora
from registry.formats.export import ExportReport, export_adapter
from registry.formats.families import FORMATS
from registry.formats.header import read_header
from registry.formats.internal import AdapterForm, component_of
from registry.formats.load import load_adapter
from registry.formats.operations.sources import BaseWeights
from registry.formats.tools import relative_error
from tests.support.adapters import make_form, write_run_file
from tests.support.corpus import of_kohya
from tests.support.methods import load, save
from tests.support.real_loader import (
    empty_pipeline,
    factors_of,
    lora_layers,
    pipeline,
    toy_base,
    worst_error,
)
from trainers.methods import attach
from trainers.recipe import AdapterSection

pytestmark = pytest.mark.filterwarnings("ignore")
ERROR = 1e-5
FAMILIES = ("sdxl", "sd35", "flux1")
TEXT = {"train_text_encoder": True, "text_rank": 3, "text_alpha": 6.0}
UNEVEN = {r".*to_q": 2, r".*to_v": 5}
BLOCK = r"(mid_block|transformer_blocks\.0)\..*to_[qkv]"
SECTIONS = {
    "lora": AdapterSection(rank=4, alpha=1.0, conv_rank=2, conv_alpha=3.0, block_ranks=UNEVEN, **TEXT),
    "a block": AdapterSection(rank=4, alpha=3.0, targets=BLOCK),
    "dora": AdapterSection(method="dora", rank=4, alpha=2.0, conv_rank=2, **TEXT),
    "pissa": AdapterSection(method="pissa", rank=4, alpha=2.0, conv_rank=2, **TEXT),
    "lokr": AdapterSection(method="lokr", rank=2, alpha=3.0, conv_rank=2, **TEXT),
    "loha": AdapterSection(method="loha", rank=2, alpha=3.0, conv_rank=2, **TEXT),
}  # fmt: skip
DOUBLE = r"transformer_blocks\.0\..*(to_[qkv]|to_out\.0|net\.2|add_[qkv]_proj)"
FLUX_KOHYA = {  # diffusers divides `linear1` at the true width only, see below
    "lora": AdapterSection(rank=4, alpha=1.0, targets=DOUBLE, **TEXT),
    "a block": AdapterSection(rank=4, alpha=3.0, targets=r"transformer_blocks\.0\..*attn\.to_[qkv]"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@cache
def base(family: str, root: Path) -> Path:
    return toy_base(family, root / family)


@cache
def source(family: str, name: str, root: Path, *, flux_kohya: bool = False) -> tuple[Path, AdapterForm]:
    """An adapter's file as a run leaves it, and what is in it."""
    section = (FLUX_KOHYA if flux_kohya else SECTIONS)[name]
    if family != "sdxl":  # there are no convolutions
        section = section.model_copy(update={"conv_rank": 0, "conv_alpha": AdapterSection().conv_alpha})
    trainables = attach(load(family, base(family, root)), section, seed=3)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainables.parameters:
            parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    path = root / f"{family}-{name}{'-kohya' if flux_kohya else ''}.safetensors"
    return path, load_adapter(save(trainables, path), family)[0]


def exported(path: Path, family: str, layout: str, folder: Path, **options: Any) -> ExportReport:
    report = export_adapter(path, folder / "out.safetensors", layout, family=family, **options)
    assert report.matched == report.modules
    return report


def applied(family: str, root: Path, folder: Path, form: AdapterForm) -> tuple[set[str], float]:
    """What `load_lora_weights` makes of the file in `folder`."""
    pipe = pipeline(family, base(family, root))
    pipe.load_lora_weights(folder, weight_name="out.safetensors")
    return worst_error(form, lora_layers(pipe, family))


def verdict(report: ExportReport) -> str:
    return next(tool.verdict for tool in report.tools if tool.tool == "diffusers")


EXACT = [
    (family, layout, name)
    for family, layouts in (("sdxl", "kohya diffusers"), ("sd35", "diffusers"), ("flux1", "diffusers"))
    for layout in layouts.split()
    for name in ("lora", "a block", "pissa", "dora")
    if (layout, name) != ("kohya", "dora")
]  # fmt: skip


@pytest.mark.parametrize(("family", "layout", "name"), EXACT)
def test_diffusers_applies_every_module_as_it_was_trained(family, layout, name, root, tmp_path):
    path, form = source(family, name, root)
    assert verdict(exported(path, family, layout, tmp_path)) == "loads"
    found, error = applied(family, root, tmp_path, form)
    assert found == form.everything.keys()
    assert error < ERROR


@pytest.mark.parametrize("name", FLUX_KOHYA)
def test_diffusers_applies_flux_in_kohya_s_layout(name, root, tmp_path):
    path, form = source("flux1", name, root, flux_kohya=True)
    assert verdict(exported(path, "flux1", "kohya", tmp_path)) == "loads"
    found, error = applied("flux1", root, tmp_path, form)
    assert found == form.everything.keys()
    assert error < ERROR


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_peft_applies_the_folder(family, name, root, tmp_path):
    from peft import PeftModel

    path, form = source(family, name, root)
    report = export_adapter(path, tmp_path / "out", "peft", family=family)
    assert report.matched == report.modules
    pipe = pipeline(family, base(family, root))
    for component in form.components:
        subfolder = {} if component == form.components[0] else {"subfolder": component}
        model = PeftModel.from_pretrained(getattr(pipe, component), tmp_path / "out", **subfolder)
        setattr(pipe, component, model.base_model.model)
    found, error = worst_error(form, lora_layers(pipe, family))
    assert found == form.everything.keys()
    assert error < ERROR


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lokr", "loha"])
def test_other_methods_are_refused_or_converted_by_svd(family, name, root, tmp_path):
    path, form = source(family, name, root)
    with pytest.raises(BadInput, match=f"the diffusers layout: cannot hold {name}"):
        exported(path, family, "diffusers", tmp_path)
    assert not (tmp_path / "out.safetensors").exists()
    report = exported(path, family, "diffusers", tmp_path, convert=ToLora(max_error=1e-6))
    assert report.converted["worst_error"] <= 1e-6
    found, error = applied(family, root, tmp_path, form)
    assert found == form.everything.keys()
    assert error < ERROR


def test_dora_in_kohya_s_layout_is_said_to_be_wrong_and_right_when_converted(root, tmp_path):
    """diffusers drops `dora_scale` with a warning: every module is there, and none is right."""
    path, form = source("sdxl", "dora", root)
    report = exported(path, "sdxl", "kohya", tmp_path)
    assert verdict(report) == "partly"
    found, error = applied("sdxl", root, tmp_path, form)
    assert found == form.everything.keys()
    assert error > 0.01
    weights = BaseWeights(base("sdxl", root), "sdxl")
    exported(path, "sdxl", "kohya", tmp_path, overwrite=True, convert=ToLora(max_error=1e-6, weights=weights))
    assert applied("sdxl", root, tmp_path, form)[1] < 2e-5  # the change of a DoRA is a difference of weights


def test_lokr_in_kohya_s_layout_raises_in_diffusers_as_the_report_says(root, tmp_path):
    path, _ = source("sdxl", "lokr", root)
    assert verdict(exported(path, "sdxl", "kohya", tmp_path)) == "no"
    with pytest.raises(ValueError, match="have not been correctly renamed"):
        pipeline("sdxl", base("sdxl", root)).load_lora_weights(tmp_path, weight_name="out.safetensors")


# Modules of kohya's own networks at the true names and shapes: of the denoiser, and with CLIP. FLUX.1's 304
# are 494 layers of diffusers', because query, key, value and the MLP's input are one there.
TRUE_SIZES = [("sd15", "kohya", 278, 350), ("sdxl", "kohya", 788, 1052), ("flux1", "kohya", 494, 566),
              ("sd35", "diffusers", 393, 657)]  # fmt: skip


def is_loaded(family: str, module: str) -> bool:
    """diffusers loads no T5, and of FLUX.1 in kohya's layout no embedders; both are said in the report."""
    component, _, path = module.partition(".")
    embedder = family == "flux1" and path.startswith(("x_embedder", "context_embedder", "time_text_embed"))
    return component != FORMATS[family].t5 and not embedder


@pytest.mark.parametrize(("family", "layout", "denoiser", "everything"), TRUE_SIZES)
def test_every_module_at_the_true_size_is_hit(family, layout, denoiser, everything, tmp_path):
    """Rank 1 on every layer, loaded by the real loader into models of the true size."""
    shapes = {m: s for m, s in of_kohya(family).items() if is_loaded(family, m)}
    form = make_form(shapes, rank=1, conv_rank=1, alpha=0.5, conv_alpha=0.25, family=family)
    path = write_run_file(form, tmp_path / "source.safetensors")
    report = exported(path, family, layout, tmp_path)
    assert verdict(report) == "loads"
    pipe = empty_pipeline(family)
    pipe.load_lora_weights(tmp_path, weight_name="out.safetensors")
    errors = {m: relative_error(factors_of(layer), form.modules[m]) for m, layer in lora_layers(pipe, family)}
    assert errors.keys() == form.modules.keys()
    assert max(errors.values()) < ERROR
    assert len(errors) == everything
    assert sum(not component_of(module).startswith("text") for module in errors) == denoiser
    if family == "flux1":
        names = {key.partition(".")[0] for key in read_header(tmp_path / "out.safetensors").tensors}
        assert sum(name.startswith("lora_unet_") for name in names) == 304
