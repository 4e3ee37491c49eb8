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

from registry.errors import BadInput
from registry.formats.families import family_format
from registry.formats.fusing import fuse, swap_halves, unfuse
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors, component_of, make_factors
from registry.formats.original import Place
from registry.formats.tensors import Array

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def read(tensors: Mapping[str, Array], metadata: Mapping[str, str], family: str = "") -> AdapterForm:
    """The adapter that `tensors` (float32) hold; a module without alpha has alpha = rank.

    Raises:
        BadInput: a key belongs to no module of the family or to another method than LoRA.
    """
    del metadata  # the layout keeps everything in its keys
    names = family_format(family)
    groups: dict[str, dict[str, Array]] = {}
    for key, value in tensors.items():
        name, _, part = key.partition(".")
        if part not in {DOWN, UP, ALPHA}:
            raise BadInput(
                f"tensor {shown(key)}", "is not part of a LoRA in kohya layout", "see docs/formats.md"
            )
        groups.setdefault(name, {})[part] = value
    modules: dict[str, LoraFactors] = {}
    for name, parts in groups.items():
        component, place = names.place_of_kohya(name)
        where = f"module {shown(name)}"
        alpha = float(parts[ALPHA].reshape(-1)[0]) if ALPHA in parts and parts[ALPHA].size == 1 else None
        factors = make_factors(where, parts.get(DOWN), parts.get(UP), alpha)
        for module, item in divided(component, place, factors, where).items():
            if module in modules:
                raise BadInput(
                    f"module {shown(module)}", "is there twice under two prefixes", "keep one of them"
                )
            modules[module] = item
    return AdapterForm(family, modules)


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
        tensors[f"{name}.{DOWN}"] = factors.down
        tensors[f"{name}.{UP}"] = factors.up
        tensors[f"{name}.{ALPHA}"] = np.array(factors.alpha, np.float32)
    return tensors, {}


def divided(component: str, place: Place, factors: LoraFactors, where: str) -> dict[str, LoraFactors]:
    """Our modules, by full name, of one that a published checkpoint names.

    Raises:
        BadInput: its rows cannot be divided among them; `where` names it.
    """
    parts = unfuse(factors, place.shares, where)
    if place.halves:
        parts = [swap_halves(part) for part in parts]
    return {f"{component}.{m}": part for m, part in zip(place.modules, parts, strict=True)}


def united(component: str, place: Place, parts: Mapping[str, LoraFactors]) -> LoraFactors:
    """Inverse of `divided`; modules that are not in `parts` stay unchanged."""
    row = [parts.get(f"{component}.{module}") for module in place.modules]
    factors = fuse(row, place.shares, f"module {shown(place.path)}")
    return swap_halves(factors) if place.halves else factors


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
