"""What the real libraries apply of an adapter file, module by module: diffusers' loader, and PEFT's."""

import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from registry.formats.factors import change_of
from registry.formats.families import FORMATS
from registry.formats.internal import AdapterForm, LoraFactors
from studio.base_facts import CONFIGS
from tests.support.bases import save_base
from tests.support.corpus import DENOISERS
from trainers.families import FAMILIES


def toy_base(family: str, folder: Path) -> Path:
    """A toy base; SDXL with two residual blocks a level, which kohya's block numbers take for granted."""
    save_base(family, folder)
    if family == "sdxl":
        unet: Any = FAMILIES[family].load_class().tiny()["unet"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            type(unet).from_config({**unet.config, "layers_per_block": 2}).save_pretrained(folder / "unet")
    return folder


def pipeline(family: str, folder: Path) -> Any:
    """The real pipeline of a toy base."""
    return fresh(FAMILIES[family].load_class().pipeline_class(), folder)


def fresh(cls: Any, folder: Path) -> Any:
    """A pipeline with models of its own, copied from what was read once: the folder stays as it is."""
    parts = _read(cls, folder).components
    made = {name: deepcopy(part) if isinstance(part, nn.Module) else part for name, part in parts.items()}
    return cls(**made, **({"requires_safety_checker": False} if "safety_checker" in parts else {}))


@cache
def _read(cls: Any, folder: Path) -> Any:
    return cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def empty_pipeline(family: str) -> Any:
    """The real pipeline at the true size: its weights are memory that nobody touches, so they take none."""
    import diffusers
    import transformers

    cls: Any = FAMILIES[family].load_class().pipeline_class()
    names = FORMATS[family]
    parts: dict[str, Any] = dict.fromkeys(cls._get_signature_keys(cls)[0], None)
    for component in names.grammars:
        if component == names.t5:  # diffusers loads no adapter for it
            continue
        folder = CONFIGS / (DENOISERS[family] if component == names.denoiser else f"{family}/{component}")
        values = json.loads((folder / "config.json").read_text())
        with torch.device("meta"):
            if component == names.denoiser:
                model = getattr(diffusers, values["_class_name"]).from_config(values)
            else:
                config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
                model = getattr(transformers, values["architectures"][0])(config)
        parts[component] = model.to_empty(device="cpu")
    return cls(**parts)


def lora_layers(pipe: Any, family: str) -> Iterator[tuple[str, Any]]:
    """(module by our full name, layer with an adapter)."""
    from peft.tuners.lora import LoraLayer

    for component in FORMATS[family].grammars:
        model = getattr(pipe, component, None)
        for path, layer in model.named_modules() if isinstance(model, nn.Module) else ():
            if isinstance(layer, LoraLayer) and layer.lora_A:
                yield full_name(family, component, path), layer


def full_name(family: str, component: str, path: str) -> str:
    """As `AdapterForm` has it: CLIP with `text_model.`, which newer transformers drop in memory."""
    path = path.removeprefix("base_model.model.")
    clip = component.startswith("text") and component != FORMATS[family].t5
    return f"{component}.{'text_model.' if clip and not path.startswith('text_model.') else ''}{path}"


def factors_of(layer: Any) -> LoraFactors:
    """What a layer with a plain LoRA applies."""
    name = next(iter(layer.lora_A))
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    alpha = layer.scaling[name] * len(down)
    return LoraFactors(down.detach().float().numpy(), up.detach().float().numpy(), alpha)


def worst_error(form: AdapterForm, layers: Iterator[tuple[str, Any]]) -> tuple[set[str], float]:
    """Modules that a library changes, and the largest relative error of a weight change, in double precision.

    Args:
        form: What should be applied.
        layers: See `lora_layers`; they are merged by this, and are of no use afterwards.
    """
    worst, found = 0.0, set[str]()
    for module, layer in layers:
        found.add(module)
        layer.to(torch.float64)
        weight = layer.base_layer.weight.detach().clone().numpy()
        layer.merge()
        got = layer.base_layer.weight.detach().numpy() - weight
        if module not in form.everything:
            assert not got.any(), f"{module} is no module of the adapter"
            found.discard(module)
            continue
        wanted = change_of(form.everything[module], weight)
        size = float(np.linalg.norm(wanted))
        assert size > 0, f"{module} learned nothing, so it proves nothing"
        worst = max(worst, float(np.linalg.norm(got - wanted)) / size)
    return found, worst
