"""Bases with rounded weights: what is rounded, how far off, adapters on them, and what pictures say of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from studio.sampling import shelf
from studio.sampling.engine import Engine
from studio.sampling.layers import AdaptedLayer
from studio.sampling.memory import bytes_of, needed_bytes, settle, sizes_of
from studio.sampling.metadata.a1111 import parse_a1111
from studio.sampling.metadata.reading import read_metadata
from studio.sampling.metadata.said import OWN
from studio.sampling.server import _Writer
from studio.sampling.stack import AdapterStack, AdapterUseInStack
from tests.support.bases import save_base
from tests.support.methods import SECTIONS, draw, load, save, trained
from tests.support.modes import floats, task
from trainers.stored import LEVELS, ROUNDED, StoredConv2d, StoredLayer, StoredLinear, compress

pytestmark = pytest.mark.filterwarnings("ignore")

CPU, GIB = torch.device("cpu"), 2**30
FAMILIES_TRIED = ["sd15", "sd35", "flux1"]  # a UNet, and transformers with T5
UNET = {"conv_in", "conv_out", "time_embedding.linear_1"}
MMDIT = {"pos_embed.proj", "proj_out", "norm_out.linear", "context_embedder"}
FLUX1 = {"x_embedder", "proj_out", "norm_out.linear", "context_embedder"}
# Largest relative error of a weight matrix; of normal ones 0.004, 0.026 and 0.09.
OFF = {"int8": 0.01, "fp8": 0.03, "nf4": 0.12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_base(name, tmp_path_factory.mktemp(name) / "base") for name in FAMILIES_TRIED}


def rounded(family: str, folder: Path, precision: str):
    model = load(family, folder)
    compress(model, precision)
    return model


def whole_again(family: str, folder: Path, precision: str):
    """A plain base that has the rounded weights."""
    model, source = load(family, folder), rounded(family, folder, precision)
    for name in (*model.text_encoder_names, model.denoiser_name):
        layers = dict(model.part(name).named_modules())
        for path, layer in source.part(name).named_modules():
            if isinstance(layer, StoredLayer):
                layers[path].weight.data = layer.weight
    return model


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_nearly_as_they_were(precision: str, dtype: torch.dtype):
    torch.manual_seed(0)
    # 33 x 50 fills no whole blocks of 64; a row of zeros has no scale.
    for plain, kind in (
        (nn.Linear(33, 50), StoredLinear),
        (nn.Conv2d(5, 6, 3, padding=1, stride=2, bias=False), StoredConv2d),
    ):
        layer = plain.to(dtype).requires_grad_(False).eval()
        layer.weight[0] = 0
        weight, x = layer.weight.clone(), torch.randn(2, 33 if layer.weight.ndim == 2 else 5, 9, 9).to(dtype)
        x = x if layer.weight.ndim == 4 else x[:, :, 0, 0]
        expected = layer(x)
        kept = kind(layer, precision, CPU)
        assert layer.weight is None, "or it is there twice"
        assert (kept.weight.dtype, kept.weight.shape) == (dtype, weight.shape)
        assert float((kept.weight - weight).float().norm() / weight.float().norm()) < OFF[precision]
        assert torch.equal(kept.weight[0], weight[0])
        assert float((kept(x) - expected).float().norm() / expected.float().norm()) < 1.5 * OFF[precision]
        assert not kept.training


def test_each_level_of_nf4_is_exact():
    weight = torch.tensor(LEVELS).repeat(8).view(2, 64) * 0.5
    layer = nn.Linear(64, 2)
    layer.weight.data = weight.clone()
    assert torch.equal(StoredLinear(layer.requires_grad_(False), "nf4", CPU).weight, weight)


def test_each_number_of_fp8_is_exact_up_to_a_power_of_two():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()]
    layer = nn.Linear(len(codes), 2)
    layer.weight.data = torch.stack((codes, codes / 1024))
    kept = StoredLinear(layer.requires_grad_(False), "fp8", CPU)
    assert torch.equal(kept.weight, torch.stack((codes, codes / 1024)))
    assert kept.codes.dtype == torch.uint8
    assert not [b for b in kept.to(torch.bfloat16).buffers() if b.dtype not in (torch.uint8, torch.bfloat16)]


@pytest.mark.parametrize("family", FAMILIES_TRIED)
def test_blocks_of_denoiser_and_t5_are_rounded_and_all_else_is_not(family: str, folders: dict[str, Path]):
    model = load(family, folders[family])
    expected = sizes_of(model)
    layers = dict(model.denoiser.named_modules()).items()
    outside = {path for path, layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)}
    compress(other := load(family, folders[family]), "fp8")
    assert bytes_of(other) == expected["fp8"]
    compress(model, "int8")
    assert bytes_of(model) == expected["int8"]
    kept = {path for path, layer in model.denoiser.named_modules() if isinstance(layer, StoredLayer)}
    assert kept
    outside -= kept
    assert {"sd15": UNET, "sd35": MMDIT, "flux1": FLUX1}[family] <= outside
    assert not any("block" in path for path in outside)
    for name in (*model.text_encoder_names, "vae"):
        stored = any(isinstance(layer, StoredLayer) for layer in model.part(name).modules())
        assert stored == (name == model.t5_encoder), name


@pytest.mark.parametrize(
    ("family", "precision", "method"),
    [
        ("sd15", "int8", "oft"),
        ("sd15", "nf4", "dora"),
        ("flux1", "nf4", "rslora"),
    ],
)
def test_adapters_act_on_rounded_weights_as_on_the_same_weights_whole(
    tmp_path: Path, folders: dict[str, Path], family: str, precision: str, method: str
):
    folder = folders[family]
    section = SECTIONS[method] if family == "sd15" else SECTIONS[method].model_copy(update={"conv_rank": 0})
    path = save(trained(family, folder, section)[1], tmp_path / "a.safetensors")
    use = AdapterUseInStack("a", path, "a", 0.8, 0.8)
    pictures = []
    for model in (rounded(family, folder, precision), whole_again(family, folder, precision)):
        plain, stack = draw(model), AdapterStack(model)
        stack.use([use])
        pictures.append((plain, draw(model)))
        assert any(isinstance(layer, AdaptedLayer) for layer in model.denoiser.modules())
        stack.use([])
        assert torch.equal(draw(model), plain), "back to the base, to the bit"
    (plain, adapted), (expected_plain, expected) = pictures
    torch.testing.assert_close(plain, expected_plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(plain, adapted, atol=1e-3)


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_every_way_to_lie_in_memory_goes_with_rounded_weights(folders: dict[str, Path], mode: str):
    folder = folders["sd15"]
    plain = floats(task("sd15", folder, steps=2, precision="int8"))
    saving = floats(task("sd15", folder, steps=2, precision="int8", memory=mode))
    torch.testing.assert_close(saving, plain, atol=1e-4, rtol=0)


# -- what is chosen


SDXL = {"unet": 5.0, "text_encoder_2": 1.5, "vae": 0.3}
FLUX = {"transformer": 22.0, "text_encoder_2": 9.0, "text_encoder": 0.25, "vae": 0.3}


def sizes(whole: dict[str, float]) -> dict[str, dict[str, int]]:
    large = ("unet", "transformer") if whole is SDXL else ("transformer", "text_encoder_2")
    shares = {"whole": 1.0, "int8": 0.5, "nf4": 0.27}
    return {
        kept: {name: int(size * GIB * (share if name in large else 1)) for name, size in whole.items()}
        for kept, share in shares.items()
    }


@pytest.mark.parametrize(
    ("base", "free", "memory", "precision", "settled"),
    [
        (SDXL, 24, "auto", "auto", ("fast", "whole")),
        (SDXL, 7, "auto", "auto", ("model", "whole")),
        (SDXL, 5.5, "auto", "auto", ("fast", "int8")),
        (SDXL, 4, "auto", "auto", ("model", "int8")),
        (SDXL, 2.6, "auto", "auto", ("model", "nf4")),
        (SDXL, 1.9, "auto", "auto", ("group", "whole")),
        (FLUX, 24, "auto", "auto", ("model", "whole")),
        (FLUX, 16, "auto", "auto", ("model", "int8")),
        (FLUX, 8, "auto", "auto", ("model", "nf4")),
        (FLUX, 8, "auto", "whole", ("group", "whole")),
        (FLUX, 8, "group", "auto", ("group", "whole")),
        (FLUX, 80, "auto", "int8", ("fast", "int8")),
        (FLUX, 8, "sequential", "nf4", ("sequential", "nf4")),
    ],
)
def test_weights_are_rounded_when_nothing_quick_fits_whole(base, free, memory, precision, settled):
    needed = needed_bytes(512 * 512)
    assert settle(memory, precision, sizes(base), needed, int(free * GIB)) == settled
    on_cpu = settle(memory, precision, sizes(base), needed, int(free * GIB), on_cpu=True)
    assert on_cpu[1] == ("whole" if precision == "auto" else precision)


def rounds(monkeypatch):
    """As on a GPU where the base does not fit whole."""
    monkeypatch.setattr(shelf, "settle", lambda *_, **__: ("fast", "int8"))


def test_auto_means_the_same_whatever_was_asked_for_before(folders: dict[str, Path]):
    engine, folder = Engine(device="cpu"), folders["sd15"]
    kept = []
    for precision in ("auto", "int8", "auto", "nf4"):
        floats(task("sd15", folder, steps=1, precision=precision), engine)
        (loaded,) = engine._shelf.bases.values()
        kept.append(loaded.precision)
    assert kept == ["whole", "int8", "whole", "nf4"]


def test_rounding_is_said_and_drawn_again_wherever_the_base_would_fit(
    folders: dict[str, Path], tmp_path: Path, monkeypatch
):
    wanted = task("sd15", folders["sd15"], steps=1)
    with monkeypatch.context() as patch:
        rounds(patch)
        engine, writer = Engine(device="cpu"), _Writer(wanted, tmp_path)
        for _ in range(2):
            said = engine.draw(wanted, keep=writer.keep)
            assert any("rounded (int8)" in warning for warning in said.warnings)
    picture = tmp_path / writer.files[0]
    told = read_metadata(picture)
    assert told.request is not None
    assert told.request.precision == "int8"
    assert told.pairs["Base precision"] == "int8"
    assert parse_a1111(told.texts["parameters"]).more["precision"] == "int8"
    again, first = replace(wanted, request=told.request), picture.read_bytes()
    said = Engine(device="cpu").draw(again, keep=_Writer(again, tmp_path).keep)
    assert picture.read_bytes() == first
    assert not said.warnings, "it was asked for"


def test_a_picture_from_before_there_was_a_choice_is_whole(tmp_path: Path):
    fields = task("sd15", tmp_path).request.model_dump(mode="json")
    del fields["precision"]
    texts = PngInfo()
    texts.add_text(OWN, json.dumps({"request": fields, "adapters": [], "base": {}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=texts)
    told = read_metadata(tmp_path / "old.png").request
    assert told is not None
    assert told.precision == "whole"
