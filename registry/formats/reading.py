"""The tensors of an adapter file of any tool -> `AdapterForm`.

One reader for all grammars: keys are split (`grammar`), modules found under any spelling (`families`), their
parts made into factors (`building`), and layers that are several of ours divided (`rows`).
"""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from registry.errors import BadInput
from registry.formats import grammar
from registry.formats.building import Strength, build
from registry.formats.diffusers import ADAPTER_METADATA, Patterns, Strengths
from registry.formats.factors import Factors, shape_of
from registry.formats.families import FamilyFormat, family_format
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.original import Place
from registry.formats.rows import divided, divided_bias
from registry.formats.tensors import Array

PEFT_METADATA = "studio.peft"  # JSON: component -> what differs from PEFT's defaults in its configuration


def read(tensors: Mapping[str, Array], metadata: Mapping[str, str], family: str = "") -> AdapterForm:
    """The adapter that `tensors` (float32) hold; keys that cannot be understood are in `ignored`.

    Strength: a module's own `alpha`, else `lora_adapter_metadata` or PEFT's configuration, else the rank.

    Raises:
        BadInput: no key can be understood, factors are missing or do not fit, or the metadata with the
            strengths is broken.
    """
    names = family_format(family)
    groups = grammar.grouped(tensors)
    strengths = _Strengths(metadata)
    found = _Found(names)
    ignored = list(groups.ignored)
    for name, parts in groups.modules.items():
        place = names.place_of(name) if parts.keys() - {"alpha"} else None
        if place is None:
            ignored += groups.keys[name]
        else:
            found.add(name, *place, parts, strengths)
    if not found.modules and not found.others and not found.biases:
        raise _nothing(groups, family, ignored)
    return AdapterForm(
        family, found.modules, found.others, strengths.configs, biases=found.biases, ignored=tuple(ignored)
    )


class _Found:
    """What was read so far."""

    def __init__(self, names: FamilyFormat) -> None:
        self._names = names
        self.modules: dict[str, LoraFactors] = {}
        self.others: dict[str, Factors] = {}
        self.biases: dict[str, Array] = {}

    def add(
        self, name: str, component: str, place: Place, parts: Mapping[str, Array], strengths: "_Strengths"
    ) -> None:
        where = f"module {shown(name)}"
        first = f"{component}.{place.modules[0]}"
        factors = build(where, parts, strengths.of(first, parts))
        if factors is not None:
            for module, item in divided(component, place, factors, where).items():
                if module in self.modules or module in self.others:
                    raise BadInput(
                        f"module {shown(module)}", "is there twice under two names", "keep one of them"
                    )
                if isinstance(item, LoraFactors):
                    self.modules[module] = item
                else:
                    self.others[module] = item
        bias = _bias(parts, factors)
        if bias is not None:
            inputs = shape_of(factors)[1] if factors is not None else 0
            for path, values in zip(place.modules, divided_bias(place, bias, inputs, where), strict=True):
                self.biases[f"{component}.{path}"] = values


def _bias(parts: Mapping[str, Array], factors: LoraFactors | Factors | None) -> Array | None:
    """What a module adds to the layer's bias, (out,), or None."""
    if "up_bias" in parts and isinstance(factors, LoraFactors):
        return parts["up_bias"].reshape(-1) * np.float32(factors.scale)
    found = next((parts[part] for part in ("diff_b", "b_norm") if part in parts), None)
    return None if found is None else found.reshape(-1)


def lora_strengths(metadata: Mapping[str, str]) -> Strengths:
    """alpha of plain LoRA modules, as the metadata have it.

    Raises:
        BadInput: the metadata is broken, or says that the adapter fits a changed base only.
    """
    require_whole_base(metadata)
    return Strengths.from_metadata(metadata)


class _Strengths:
    """alpha of every module, as the metadata have it."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._lora = lora_strengths(metadata)
        self.configs = peft_configs(metadata)
        self._patterns: dict[tuple[str, str], Patterns] = {}  # of a component and table, once asked for

    def of(self, module: str, parts: Mapping[str, Array]) -> Strength:
        method = grammar.method_of(parts)
        component, _, path = module.partition(".")
        config = self.configs.get(component) if method in OTHERS else None
        if not config:
            down = parts.get("down")
            return Strength(None if down is None else self._lora.alpha(module, len(down)))
        rank = int(self._value(component, "rank_pattern", path, config.get("r", 8)))
        key = "lora_alpha" if config.get("peft_type") == "LORA" else "alpha"
        alpha = float(self._value(component, "alpha_pattern", path, config.get(key, 8)))
        if config.get("use_rslora") is True:
            alpha *= float(np.sqrt(rank))
        return Strength(alpha, rank, config)

    def _value(self, component: str, table: str, path: str, default: Any) -> Any:
        if (component, table) not in self._patterns:
            self._patterns[component, table] = Patterns(self.configs[component].get(table) or {})
        value = self._patterns[component, table].value_of(path, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise BadInput(
                f"metadata {PEFT_METADATA}", "has a strength that is no number", "use the run's own file"
            )
        return value


OTHERS = ("dora", "loha", "lokr", "oft")  # methods whose strength a run's file has in PEFT's configuration


def peft_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's configurations by component, as a run writes them into a file.

    Raises:
        BadInput: the entry is there and is not what a run writes.
    """
    try:
        found: Any = json.loads(metadata.get(PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(c, dict) for c in found.values()):  # pyright: ignore[reportUnknownVariableType]
        raise BadInput(f"metadata {PEFT_METADATA}", "is not what a run writes", "use the run's own file")
    return cast(dict[str, dict[str, Any]], found)


# Initialisations of PEFT that subtract from the base's weights what they start with.
_TAKEN_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def require_whole_base(metadata: Mapping[str, str]) -> None:
    """Refuse an adapter that only fits a base of which its start was subtracted.

    Raises:
        BadInput: PEFT's configuration says so.
    """
    text = metadata.get(ADAPTER_METADATA, "").lower()
    for name in _TAKEN_FROM_BASE:
        if re.search(rf'init_lora_weights":\s*"{name}', text):
            wrong = f"started from {name} and fits only the base that was changed for it"
            do = "ask its author for the converted file (PEFT: path_initial_model_for_weight_conversion)"
            raise BadInput(f"metadata {ADAPTER_METADATA}: the adapter", wrong, do)


def _nothing(groups: grammar.Grouped[Array], family: str, ignored: list[str]) -> BadInput:
    if groups.modules:
        module = f"module {shown(next(iter(groups.modules)))}"
        if not family:
            do = "say what it is for with studio adapters set-family"
            return BadInput(module, "is part of no family that is known, like all of the file", do)
        wrong = f"is not part of {family}, like all of the file"
        return BadInput(module, wrong, "check which base it was trained on")
    first = f" (the first is {shown(ignored[0])})" if ignored else ""
    return BadInput(
        "its tensors", f"are no adapter weights{first}", "see docs/formats.md for what can be read"
    )
