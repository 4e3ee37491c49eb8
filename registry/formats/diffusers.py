"""The layouts of diffusers and PEFT: `<component>.<path>.lora_A.weight` (down) and `.lora_B.weight` (up).

Read in all its ages: PEFT names, `.lora.down`, `processor.to_q_lora.down`, `lora_linear_layer.down`, and
`base_model.model.` in front; also ai-toolkit's `diffusion_model.` before the names of published checkpoints.
Strength is in `lora_adapter_metadata`, else alpha = rank.

Written with alpha / r folded into `lora_B` and without that metadata: ComfyUI and InvokeAI do not read it and
would be wrong by exactly alpha / r, so does older diffusers, and for today's no metadata means alpha = rank.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from registry.errors import BadInput
from registry.formats.families import FamilyFormat, family_format
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors, make_factors, unknown_module
from registry.formats.kohya import divided
from registry.formats.tensors import Array

ADAPTER_METADATA = "lora_adapter_metadata"
PEFT_ROOT = "base_model.model."
PUBLISHED_ROOT = "diffusion_model."

# Endings of keys -> which half they are; the first that fits decides.
_ENDINGS = (
    (".lora_A.weight", "down"), (".lora_B.weight", "up"),
    (".lora_A.default.weight", "down"), (".lora_B.default.weight", "up"),
    (".lora_linear_layer.down.weight", "down"), (".lora_linear_layer.up.weight", "up"),
    (".lora.down.weight", "down"), (".lora.up.weight", "up"),
    ("_lora.down.weight", "down"), ("_lora.up.weight", "up"),
    (".alpha", "alpha"),
)  # fmt: skip

# The oldest names of attention projections in a text encoder.
_TEXT_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def read(tensors: Mapping[str, Array], metadata: Mapping[str, str], family: str = "") -> AdapterForm:
    """The adapter that `tensors` (float32) hold.

    Raises:
        BadInput: a key belongs to no module of the family or to another method than LoRA, or the metadata
            with the strengths is broken.
    """
    names = family_format(family)
    groups: dict[str, dict[str, Array]] = {}
    for key, value in tensors.items():
        path, part = split_key(key)
        if not part:
            raise BadInput(
                f"tensor {shown(key)}", "is not part of a LoRA in diffusers layout", "see docs/formats.md"
            )
        path = modern_path(path)
        published = path.startswith(PUBLISHED_ROOT) and names.original is not None
        groups.setdefault(path if published else names.module_of_path(path), {})[part] = value
    strengths = Strengths.from_metadata(metadata)
    modules: dict[str, LoraFactors] = {}
    for module, parts in groups.items():
        down = parts.get("down")
        own = parts.get("alpha")
        alpha = float(own.reshape(-1)[0]) if own is not None and own.size == 1 else None
        if alpha is None and down is not None:
            alpha = strengths.alpha(module, down.shape[0])
        factors = make_factors(f"module {shown(module)}", down, parts.get("up"), alpha)
        published = module.startswith(PUBLISHED_ROOT)
        modules |= _divided(module, factors, names) if published else {module: factors}
    return AdapterForm(family, modules)


def _divided(module: str, factors: LoraFactors, names: FamilyFormat) -> dict[str, LoraFactors]:
    """What a module of the published checkpoint is in ours: names of ai-toolkit, BFL and ComfyUI."""
    assert names.original is not None
    place = names.original.of_path(module.removeprefix(PUBLISHED_ROOT))
    if place is None:
        raise unknown_module(module, names.name)
    return divided(names.denoiser, place, factors, f"module {shown(module)}")


def write(form: AdapterForm) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata (none) of `form`, with alpha / r folded into `lora_B`."""
    tensors: dict[str, Array] = {}
    for module, factors in form.modules.items():
        folded = factors.with_alpha(float(factors.rank))
        tensors[f"{module}.lora_A.weight"] = folded.down
        tensors[f"{module}.lora_B.weight"] = folded.up
    return tensors, {}


def write_exact(form: AdapterForm) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors of `form` as they are; where alpha is not the rank, metadata that says so, as runs write it."""
    tensors: dict[str, Array] = {}
    for module, factors in form.modules.items():
        tensors[f"{module}.lora_A.weight"] = factors.down
        tensors[f"{module}.lora_B.weight"] = factors.up
    if all(factors.alpha == factors.rank for factors in form.modules.values()):
        return tensors, {}
    config: dict[str, Any] = {}
    for component in form.components:
        modules = {_pattern(name): item for name, item in form.of(component).items()}
        first = next(iter(modules.values()))
        values = {
            "r": first.rank,
            "lora_alpha": first.alpha,
            "rank_pattern": {p: f.rank for p, f in modules.items() if f.rank != first.rank},
            "alpha_pattern": {p: f.alpha for p, f in modules.items() if f.alpha != first.alpha},
            "target_modules": [pattern.removeprefix("^") for pattern in modules],
        }
        config |= {f"{component}.{key}": value for key, value in values.items()}
    return tensors, {ADAPTER_METADATA: json.dumps(config)}


def _pattern(module: str) -> str:
    """A path ending that PEFT finds with and without `text_model.` in memory; elsewhere the whole path."""
    component, _, path = module.partition(".")
    return path.removeprefix("text_model.") if component.startswith("text") else f"^{path}"


def split_key(key: str) -> tuple[str, str]:
    """Path of the module, and "down", "up", "alpha" or "" for what is none of them."""
    for ending, part in _ENDINGS:
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return key, ""


def modern_path(path: str) -> str:
    """The path of today's model classes for one of any age, still with its component when it had one."""
    path = path.removeprefix(PEFT_ROOT).replace(".processor.", ".")
    head, _, leaf = path.rpartition(".")
    if head.endswith(".self_attn") and leaf in _TEXT_PROJECTIONS:
        return f"{head}.{_TEXT_PROJECTIONS[leaf]}"
    return f"{path}.0" if leaf == "to_out" else path


class Strengths:
    """alpha of every module, from `lora_adapter_metadata` (the LoraConfig of each component).

    The patterns of PEFT are regular expressions over path endings. Those that are written in practice are
    plain path endings (with `^` for a whole path); only these are read, because a regular expression from a
    foreign file can run for hours.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._configs = configs

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Strengths":
        """Strengths from a file's metadata; none at all when it says nothing.

        Raises:
            BadInput: the entry is there and is not what diffusers writes.
        """
        if ADAPTER_METADATA not in metadata:
            return cls({})
        try:
            flat: Any = json.loads(metadata[ADAPTER_METADATA])
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"metadata {ADAPTER_METADATA}", "is not JSON", "ask its author for a sound file"
            ) from error
        if not isinstance(flat, dict):
            raise BadInput(
                f"metadata {ADAPTER_METADATA}", "is not an object", "ask its author for a sound file"
            )
        configs: dict[str, dict[str, Any]] = {}
        for key, value in cast(dict[str, Any], flat).items():
            component, _, field = key.partition(".")
            configs.setdefault(component, {})[field] = value
        return cls(configs)

    def alpha(self, module: str, rank: int) -> float | None:
        """alpha of a module of `rank`, or None when nothing is said (then alpha = rank)."""
        component, _, path = module.partition(".")
        config = self._configs.get(component)
        if not config or "lora_alpha" not in config:
            return None
        patterns: Any = config.get("alpha_pattern") or {}
        value: Any = config["lora_alpha"]
        if isinstance(patterns, dict):
            known = cast(dict[str, Any], patterns)
            value = match_pattern(known, path.removeprefix("text_model."), value)  # as it is in memory
            value = match_pattern(known, path, value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadInput(
                f"alpha of module {shown(module)}", "is not a number", "ask its author for a sound file"
            )
        return float(value) * math.sqrt(rank) if config.get("use_rslora") is True else float(value)


def match_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first of PEFT's patterns that fits `path`; see `Strengths`."""
    for pattern, value in patterns.items():
        plain = pattern.removesuffix("$").replace("\\.", ".")
        whole = plain.removeprefix("^")
        if path == whole or (whole == plain and path.endswith("." + plain)):
            return value
    return default
