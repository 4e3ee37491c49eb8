"""The kohya layout: `<prefix><path with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

diffusers takes one alpha per component from such a file for the attention layers, and recognises text-encoder
keys only when an `out_proj` is among them. So `write` gives every module of a component the same alpha, and
adds an `out_proj` of zeros where the text encoder has none: the same weight change everywhere.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from registry.errors import BadInput
from registry.formats.families import family_format
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors, component_of, make_factors
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
        module = names.module_of_kohya(name)
        if module in modules:
            raise BadInput(f"module {shown(module)}", "is there twice under two prefixes", "keep one of them")
        alpha = float(parts[ALPHA].reshape(-1)[0]) if ALPHA in parts and parts[ALPHA].size == 1 else None
        modules[module] = make_factors(f"module {shown(name)}", parts.get(DOWN), parts.get(UP), alpha)
    return AdapterForm(family, modules)


def write(form: AdapterForm) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata (none) of `form`; every module has an `.alpha`, equal within a component."""
    names = family_format(form.family)
    tensors: dict[str, Array] = {}
    for module, factors in _level(_complete(form)).items():
        name = names.kohya_name(module)
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
    """The modules, plus an `out_proj` of zeros when the text encoder has only other attention layers."""
    modules = dict(form.modules)
    attention = [name for name in form.of("text_encoder") if ".self_attn." in name]
    if attention and not any(name.endswith(".out_proj") for name in attention):
        first = modules[attention[0]]
        width = first.down.shape[1]  # all four projections of CLIP's attention are width x width
        zeros = LoraFactors(
            np.zeros((first.rank, width), np.float32), np.zeros((width, first.rank), np.float32), first.alpha
        )
        modules[attention[0].rpartition(".")[0] + ".out_proj"] = zeros
    return modules
