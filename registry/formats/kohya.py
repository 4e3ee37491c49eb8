"""The kohya layout: `<prefix><path with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

diffusers takes one alpha per component from such a file for the attention layers, and recognises text-encoder
keys only when an `out_proj` is among them. So `write` gives every module of a component the same alpha, and
adds an `out_proj` of zeros where the text encoder has none: the same weight change everywhere.

From SDXL on, kohya goes by the names of the published checkpoints, where layers that read the same input may
be one (see `original` and `fusing`).
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from registry.formats.families import family_format
from registry.formats.internal import AdapterForm, LoraFactors, component_of
from registry.formats.original import Place
from registry.formats.rows import united
from registry.formats.tensors import Array

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def write(form: AdapterForm) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata (none) of `form`; every module has an `.alpha`.

    Raises:
        BadInput: the layout has no name for a module.
    """
    names = family_format(form.family)
    complete = _complete(form)
    modules = _level(complete) if names.one_alpha else complete
    groups: dict[str, dict[str, LoraFactors]] = {}
    places: dict[str, tuple[str, Place]] = {}
    for module, factors in modules.items():
        component, place = names.place_of_module(module)
        name = names.prefix_of(component) + place.name
        groups.setdefault(name, {})[module] = factors
        places[name] = component, place
    tensors: dict[str, Array] = {}
    for name, parts in groups.items():
        factors = united(*places[name], parts)
        assert isinstance(factors, LoraFactors)
        tensors[f"{name}.{DOWN}"] = factors.down
        tensors[f"{name}.{UP}"] = factors.up
        tensors[f"{name}.{ALPHA}"] = np.array(factors.alpha, np.float32)
    return tensors, {}


def _level(modules: Mapping[str, LoraFactors]) -> dict[str, LoraFactors]:
    """One alpha per component: its most frequent one that is not zero."""
    counts: dict[str, Counter[float]] = {}
    for module, factors in modules.items():
        if factors.alpha:
            counts.setdefault(component_of(module), Counter())[factors.alpha] += 1
    common = {component: count.most_common(1)[0][0] for component, count in counts.items()}
    return {m: f.with_alpha(common.get(component_of(m), f.alpha)) for m, f in modules.items()}


def _complete(form: AdapterForm) -> dict[str, LoraFactors]:
    """The modules, plus an `out_proj` of zeros in each CLIP that has only other attention layers."""
    modules = dict(form.modules)
    for component in form.components:
        attention = [name for name in form.of(component) if ".self_attn." in name]
        if attention and not any(name.endswith(".out_proj") for name in attention):
            first = modules[attention[0]]
            width = first.down.shape[1]  # all four projections of CLIP's attention are width x width
            down, up = np.zeros((first.rank, width), np.float32), np.zeros((width, first.rank), np.float32)
            modules[attention[0].rpartition(".")[0] + ".out_proj"] = LoraFactors(down, up, first.alpha)
    return modules
