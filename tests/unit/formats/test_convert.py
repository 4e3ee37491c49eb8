"""What a layout cannot carry: LoRA at a stated error, as the real loader applies it, or refused."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.errors import BadInput
from registry.formats.convert import ToLora, converted
from registry.formats.export import export_adapter
from registry.formats.factors import change_of
from registry.formats.load import load_adapter
from registry.formats.operations.ranks import RankRule
from registry.formats.operations.resize import resize
from registry.formats.operations.sources import BaseWeights
from registry.formats.tensors import save
from tests.support.bases import save_base

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LINEAR, CONV, TEXT = (
    f"unet.{BLOCK}.attn1.to_q",
    "unet.down_blocks.0.resnets.0.conv1",
    "text_encoder.text_model.",
)
TEXT += "encoder.layers.0.mlp.fc1"
OUT_PROJ = TEXT.replace("mlp.fc1", "self_attn.out_proj")
MODULES = (LINEAR, CONV, TEXT, OUT_PROJ)
NORM = "unet.down_blocks.0.resnets.0.norm1"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("bases")


@cache
def base(root: Path) -> Path:
    return save_base("sd15", root / "sd15")


def noise(*shape: int, seed: int = 0, size: float = 0.3) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32) * np.float32(size)


def kohya(module: str) -> str:
    path = module.partition(".")[2].replace(".", "_")
    return ("lora_te_" if module.startswith("text") else "lora_unet_") + path


def loha(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rows, columns = shape[0], int(np.prod(shape[1:]))
    parts = {"hada_w1_a": noise(rows, 2), "hada_w1_b": noise(2, columns), "hada_w2_a": noise(rows, 2, seed=1)}
    return parts | {"hada_w2_b": noise(2, columns, seed=1), "alpha": np.array(4.0, np.float32)}


def lokr(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"lokr_w1": noise(2, 2), "lokr_w2": noise(shape[0] // 2, shape[1] // 2, *shape[2:])}


def full(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"diff": noise(*shape), "diff_b": noise(shape[0])}


def dora(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    down, up = noise(2, *shape[1:]), noise(shape[0], 2, *[1] * (len(shape) - 2))
    scale = 1 + np.abs(noise(shape[0], *[1] * (len(shape) - 1)))
    return {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": scale}


def oft(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {"oft_blocks": noise(shape[0] // 4, 4, 4), "alpha": np.array(0.0, np.float32)}


METHODS = {"loha": loha, "lokr": lokr, "full": full, "dora": dora, "oft": oft}


def written(method: str, weights: BaseWeights, path: Path, **more: np.ndarray) -> Path:
    """A file of one method, with alpha beside the rank, a convolution and a text encoder."""
    parts = {module: METHODS[method](weights.shape(module)) for module in MODULES}
    tensors = {f"{kohya(m)}.{part}": value for m, values in parts.items() for part, value in values.items()}
    save(path, tensors | more, {})
    return path


def loaded(folder: Path, base: Path) -> dict[str, np.ndarray]:
    """What the real library applies, by module."""
    import torch
    from diffusers import StableDiffusionPipeline
    from peft.tuners.lora import LoraLayer

    pipe: Any = StableDiffusionPipeline.from_pretrained(base, local_files_only=True, dtype=torch.float32)
    pipe.load_lora_weights(folder, weight_name="out.safetensors")
    found: dict[str, np.ndarray] = {}
    for component in ("unet", "text_encoder"):
        for name, layer in getattr(pipe, component).named_modules():
            if isinstance(layer, LoraLayer) and layer.lora_A:
                inside = "text_model." if component != "unet" and not name.startswith("text_model.") else ""
                change = layer.get_delta_weight(next(iter(layer.lora_A)))
                found[f"{component}.{inside}{name}"] = change.detach().numpy()
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("method", METHODS)
def test_the_real_loader_applies_what_the_method_does(method, layout, root, tmp_path):
    weights = BaseWeights(base(root), "sd15")
    source = written(method, weights, tmp_path / "source.safetensors")
    form, _, _ = load_adapter(source, "sd15")
    settings = ToLora(max_error=1e-4, weights=weights)
    report = export_adapter(source, tmp_path / "out.safetensors", layout, family="sd15", convert=settings)
    assert report.matched == report.modules == len(MODULES)
    assert report.converted["worst_error"] <= 1e-4
    assert f"{len(MODULES)} modules of {method} became LoRA" in report.notes[0]
    assert {tool.tool: tool.verdict for tool in report.tools}["diffusers"] == "loads"
    if method == "full":
        assert "changes of 4 biases are left out" in report.notes[1]
    applied = loaded(tmp_path, base(root))
    assert set(MODULES) == applied.keys()
    for module in MODULES:
        wanted = change_of(form.everything[module], weights.read(module))
        error = np.linalg.norm(applied[module] - wanted) / np.linalg.norm(wanted)
        assert error < 2e-4, module


@pytest.mark.parametrize("method", METHODS)
def test_the_stated_error_of_a_low_rank_is_the_real_one(method, root, tmp_path):
    weights = BaseWeights(base(root), "sd15")
    form, _, _ = load_adapter(written(method, weights, tmp_path / "a.safetensors"), "sd15")
    made, report = converted(form, ToLora(rank=2, weights=weights))
    for item in report.modules:
        wanted = change_of(form.everything[item.module], weights.read(item.module))
        got = made.delta(item.module).reshape(wanted.shape)
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert item.error == pytest.approx(error, rel=1e-3, abs=1e-5)
        assert item.rank == 2
    assert report.worst.error > 0.1, "a rank too low must show"


@pytest.mark.parametrize("method", ["dora", "oft"])
def test_without_the_base_it_is_refused(method, root, tmp_path):
    source = written(method, BaseWeights(base(root), "sd15"), tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match=f"is {method.upper()}, whose change depends on the base.*--base"):
        export_adapter(source, tmp_path / "out", family="sd15", convert=ToLora(rank=4))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_rank_that_is_too_low_for_the_error_is_refused(root, tmp_path):
    source = written("lokr", BaseWeights(base(root), "sd15"), tmp_path / "a.safetensors")
    with pytest.raises(BadInput, match=r"would lose \d+\.\d% at rank 2, more than 1\.0%"):
        export_adapter(source, tmp_path / "out", family="sd15", convert=ToLora(rank=2, max_error=0.01))


def test_norms_and_biases_are_kept_by_kohya_and_named_where_they_are_lost(root, tmp_path):
    weights = BaseWeights(base(root), "sd15")
    more = {f"{kohya(NORM)}.w_norm": noise(32), f"{kohya(NORM)}.b_norm": noise(32, seed=1)}
    source = written("full", weights, tmp_path / "a.safetensors", **more)
    report = export_adapter(source, tmp_path / "kept.safetensors", family="sd15")
    assert (report.matched, report.modules) == (5, 5)
    again, _, _ = load_adapter(tmp_path / "kept.safetensors", "sd15")
    np.testing.assert_array_equal(again.biases[NORM], more[f"{kohya(NORM)}.b_norm"])
    assert len(again.biases) == 5
    with pytest.raises(
        BadInput, match=r"the diffusers layout: cannot hold changes of biases .*--convert lora"
    ):
        export_adapter(source, tmp_path / "d", "diffusers", family="sd15")
    made = export_adapter(source, tmp_path / "d", "diffusers", family="sd15", convert=ToLora())
    assert f"1 norms are left out, which have no LoRA: {NORM}" in made.notes
    save(tmp_path / "n.safetensors", more, {})
    with pytest.raises(BadInput, match="changes nothing but norms and biases"):
        export_adapter(tmp_path / "n.safetensors", tmp_path / "e", family="sd15", convert=ToLora())


@pytest.mark.parametrize("settings", [{"rank": -1}, {"rank": 5000}, {"max_error": 1.5}, {"max_error": -0.1}])
def test_numbers_out_of_range_are_one_line(settings):
    with pytest.raises(BadInput, match="is not between"):
        ToLora(**settings).checked()


def test_operations_on_weights_say_what_they_leave_out(root, tmp_path):
    weights = BaseWeights(base(root), "sd15")
    source = written("full", weights, tmp_path / "a.safetensors", **{"some.weight": noise(3)})
    form, _, _ = load_adapter(source, "sd15")
    made, report = resize(form, RankRule(rank=2))
    assert report.notes[1:] == ("1 keys that are not understood are left out",)
    assert made.biases == form.biases
