"""The layouts of diffusers and PEFT: `<component>.<path>.lora_A.weight` (down) and `.lora_B.weight` (up).

What is read is in `grammar`; strength is in `lora_adapter_metadata`, else alpha = rank.

Written with alpha / r folded into `lora_B` and without that metadata: ComfyUI and InvokeAI do not read it and
would be wrong by exactly alpha / r, so does older diffusers, and for today's no metadata means alpha = rank.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.internal import AdapterForm
from registry.formats.rows import FullFactors
from registry.formats.tensors import Array

ADAPTER_METADATA = "lora_adapter_metadata"


def write(form: AdapterForm) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata (none) of `form`, with alpha / r folded into `lora_B`."""
    tensors: dict[str, Array] = {}
    for module, factors in form.modules.items():
        folded = factors.with_alpha(float(factors.rank))
        tensors[f"{module}.lora_A.weight"] = folded.down
        tensors[f"{module}.lora_B.weight"] = folded.up
    return tensors, {}


def write_exact(form: AdapterForm) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors of `form` as they are; where alpha is not the rank, metadata that says so, as runs write it.

    Norms and biases, which diffusers has no names for, go by LyCORIS' (`w_norm`, `b_norm`, `diff_b`).
    """
    tensors: dict[str, Array] = {}
    for module, factors in form.modules.items():
        tensors[f"{module}.lora_A.weight"] = factors.down
        tensors[f"{module}.lora_B.weight"] = factors.up
    for module, factors in form.others.items():
        assert isinstance(factors, FullFactors), "operations make LoRA of every other method"
        tensors[f"{module}.w_norm"] = factors.diff
    for module, bias in form.biases.items():
        tensors[f"{module}.{'b_norm' if module in form.others else 'diff_b'}"] = bias
    if all(factors.alpha == factors.rank for factors in form.modules.values()):
        return tensors, {}
    config: dict[str, Any] = {}
    for component in form.components:
        modules = {_pattern(name): item for name, item in form.of(component).items()}
        if not modules:
            continue
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


class Strengths:
    """alpha of every module, from `lora_adapter_metadata` (the LoraConfig of each component).

    The patterns of PEFT are regular expressions over path endings. Those that are written in practice are
    plain path endings (with `^` for a whole path); only these are read, because a regular expression from a
    foreign file can run for hours.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._configs = configs
        self._patterns: dict[str, Patterns] = {}  # of a component, once it was asked for

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
            if component not in self._patterns:
                self._patterns[component] = Patterns(cast(dict[str, Any], patterns))
            value = self._patterns[component].value_of(path, value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadInput(
                f"alpha of module {shown(module)}", "is not a number", "ask its author for a sound file"
            )
        return float(value) * math.sqrt(rank) if config.get("use_rslora") is True else float(value)


class Patterns:
    """PEFT's patterns as tables, because a thousand modules may have one each; see `Strengths`.

    Args:
        patterns: Pattern -> value; of several that fit, the first counts.
    """

    def __init__(self, patterns: Mapping[str, Any]) -> None:
        self._whole: dict[str, tuple[int, Any]] = {}
        self._ending: dict[str, tuple[int, Any]] = {}
        for place, (pattern, value) in enumerate(patterns.items()):
            plain = pattern.removesuffix("$").replace("\\.", ".")
            whole = plain.removeprefix("^")
            self._whole.setdefault(whole, (place, value))
            if whole == plain:
                self._ending.setdefault(plain, (place, value))
        self._depths = {ending.count(".") for ending in self._ending}

    def value_of(self, path: str, default: Any) -> Any:
        """What fits a module's path, or else the path that it has in memory, without `text_model.`."""
        return self._match(path, self._match(path.removeprefix("text_model."), default))

    def _match(self, path: str, default: Any) -> Any:
        found = [self._whole[path]] if path in self._whole else []
        for dots in self._depths:
            _, *ending = path.rsplit(".", dots + 1)
            if len(ending) == dots + 1 and (known := self._ending.get(".".join(ending))):
                found.append(known)
        return min(found, key=lambda one: one[0])[1] if found else default
