"""Every grammar for every family at the true names and shapes: what it is, and what it changes."""

from pathlib import Path

import numpy as np
import pytest

from registry.formats.families import FORMATS
from registry.formats.inspect import inspect_adapter
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.load import load_adapter
from registry.formats.tensors import save
from registry.formats.tools import relative_error
from tests.support.corpus import GRAMMARS, layers, of_kohya

RANK, ALPHA = 2, 0.5
CASES = [(family, name) for name, grammar in GRAMMARS.items() for family in grammar.families]
VARIANTS = {"sd35": "medium", "flux1": "dev"}


def written(family: str, name: str, path: Path, shapes: dict[str, tuple[int, ...]]) -> AdapterForm:
    """A LoRA on all of `shapes` in one grammar; what it should come back as."""
    grammar, names = GRAMMARS[name], FORMATS[family]
    random = np.random.default_rng(3)
    tensors: dict[str, np.ndarray] = {}
    wanted: dict[str, LoraFactors] = {}
    for key, component, place in grammar.places(family, shapes):
        parts = [shapes[f"{component}.{module}"] for module in place.modules if f"{component}.{module}" in shapes]
        rows, (_, *inside) = sum(shape[0] for shape in parts), parts[0]
        down = random.standard_normal((RANK, *inside), np.float32)
        up = random.standard_normal((rows, RANK, *[1] * (len(inside) - 1)), np.float32)
        joint = "." if not key.endswith("_lora") else "."
        tensors[f"{key}{joint}{grammar.down}"], tensors[f"{key}{joint}{grammar.up}"] = down, up
        if grammar.alpha:
            tensors[f"{key}.alpha"] = np.array(ALPHA, np.float32)
        edges = np.cumsum([0, *(shape[0] for shape in parts)])
        for module, start, stop in zip(place.modules, edges, edges[1:], strict=False):
            taken = up[start:stop]
            if place.halves and len(taken) == 2 * inside[0]:
                taken = np.concatenate(np.split(taken, 2)[::-1])
            wanted[f"{component}.{module}"] = LoraFactors(down, taken, ALPHA if grammar.alpha else RANK)
    assert names.denoiser in {module.partition(".")[0] for module in wanted}
    save(path, tensors, {})
    return AdapterForm(family, wanted)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_module_is_found_and_its_change_is_right(family, name, tmp_path):
    path = tmp_path / "a.safetensors"
    wanted = written(family, name, path, layers(family))
    form, facts, _ = load_adapter(path)
    assert (facts.family, facts.confidence, facts.variant) == (family, "high", VARIANTS.get(family, ""))
    assert (facts.method, facts.rank, facts.ignored, form.ignored) == ("lora", RANK, (), ())
    assert facts.alpha == (ALPHA if GRAMMARS[name].alpha else RANK)
    assert form.modules.keys() == wanted.modules.keys()
    assert form.targets == facts.targets == wanted.components
    worst = max(relative_error(form.modules[m], item) for m, item in wanted.modules.items())
    assert worst < 1e-5


# Modules of kohya's networks, text encoders and convolutions included: SD1.5 350, of them 278 in the UNet.
@pytest.mark.parametrize(
    ("family", "denoiser", "everything"),
    [("sd15", 278, 350), ("sdxl", 788, 1052), ("sd35", 271, 703), ("flux1", 304, 552)],
)
def test_kohya_names_hit_every_module_of_kohya_s_networks(family, denoiser, everything, tmp_path):
    shapes = of_kohya(family)
    written(family, "kohya", tmp_path / "a.safetensors", shapes)
    facts = inspect_adapter(tmp_path / "a.safetensors")
    form, _, _ = load_adapter(tmp_path / "a.safetensors")
    assert form.modules.keys() == shapes.keys()
    texts = sum(module.startswith("text_encoder") for module in shapes)
    assert (facts.modules - texts, facts.modules) == (denoiser, everything)
