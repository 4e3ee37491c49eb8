"""DoRA, LoHa, LoKr and OFT in files: LyCORIS' keys (kohya layout) and PEFT's.

kohya layout: `<name>.hada_w1_a`, `.lokr_w1`, `.dora_scale`, `.oft_blocks`, ... and `.alpha`, with the names
of plain LoRA files in front. PEFT's: `<component>.<path>.hada_w1_a`, `.lora_magnitude_vector`,
`.oft_R.weight`; strengths are in the metadata that a run writes (`studio.peft`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from registry.errors import BadInput
from registry.formats import diffusers, kohya
from registry.formats.factors import (
    DoraFactors,
    Factors,
    LohaFactors,
    LokrFactors,
    OftBlocks,
    OftFactors,
    require_sound,
)
from registry.formats.families import family_format
from registry.formats.header import Header, shown
from registry.formats.internal import AdapterForm, LoraFactors, make_factors
from registry.formats.tensors import Array, read_scalars

METHODS = ("dora", "loha", "lokr", "oft")
PEFT_METADATA = "studio.peft"  # JSON: component -> what differs from PEFT's defaults in its configuration

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_OTHERS = (*_LOHA, *_LOKR, "oft_blocks", "rescale", "dora_scale", "oft_R.weight", "lora_magnitude_vector")
_PARTS = (*_OTHERS, "lora_magnitude_vector.weight", "alpha")
_RENAMED = {"lora_magnitude_vector.weight": "lora_magnitude_vector"}
_AGAIN = "ask its author for a sound file"


def read(tensors: Mapping[str, Array], metadata: Mapping[str, str], family: str, layout: str) -> AdapterForm:
    """The adapter that `tensors` (float32) hold; modules of plain LoRA may be among them.

    Raises:
        BadInput: a key belongs to no module of the family or to no method, or factors do not fit.
    """
    names = family_format(family)
    groups: dict[str, dict[str, Array]] = {}
    keys: dict[str, list[str]] = {}
    for key, value in tensors.items():
        name, part = _split(key, layout)
        groups.setdefault(name, {})[part] = value
        keys.setdefault(name, []).append(key)
    ours = [name for name, parts in groups.items() if any(part in _OTHERS for part in parts)]
    rest = {key: tensors[key] for name in groups.keys() - set(ours) for key in keys[name]}
    plain = kohya.read if layout == "kohya" else diffusers.read
    lora: Mapping[str, LoraFactors] = plain(rest, metadata, family).modules if rest else {}
    configs = {} if layout == "kohya" else _configs(metadata)
    strengths = diffusers.Strengths.from_metadata({} if layout == "kohya" else metadata)
    others: dict[str, Factors] = {}
    for name in ours:
        module = names.module_of_kohya(name) if layout == "kohya" else names.module_of_path(name)
        others[module] = _factors(module, groups[name], configs, strengths)
    return AdapterForm(family, lora, others, configs)


def reader(layout: str) -> Callable[[Mapping[str, Array], Mapping[str, str], str], AdapterForm]:
    """`read` for one layout."""
    return lambda tensors, metadata, family: read(tensors, metadata, family, layout)


def write_kohya(form: AdapterForm) -> dict[str, Array]:
    """Tensors of the modules that are no plain LoRA, under LyCORIS' keys.

    Raises:
        BadInput: the layout has no keys for a module.
    """
    names = family_format(form.family)
    tensors: dict[str, Array] = {}
    for module, factors in form.others.items():
        name = names.kohya_name(module)
        if names.module_of_kohya(name) != module:
            raise BadInput(f"module {shown(module)}", "has no name of its own in kohya's layout", _USE_PEFT)
        for part, value in _parts(factors).items():
            tensors[f"{name}.{part}"] = value
    return tensors


def write_diffusers(form: AdapterForm) -> dict[str, Array]:
    """Tensors of DoRA modules as diffusers reads them, with alpha / r folded into `lora_B`.

    Raises:
        BadInput: another method, which diffusers refuses.
    """
    tensors: dict[str, Array] = {}
    for module, factors in form.others.items():
        inner = factors.inner if isinstance(factors, DoraFactors) and factors.per_output else None
        if not isinstance(factors, DoraFactors) or not isinstance(inner, LoraFactors):
            wrong = f"cannot hold {factors.method}: diffusers loads LoRA and DoRA per output only"
            # kohya's layout turns other sides of OFT, and fuses layers of SD3.5 and FLUX.1.
            fits = factors.method != "oft" and family_format(form.family).auto_layout == "kohya"
            raise BadInput("the diffusers layout", wrong, "use --format kohya or peft" if fits else _USE_PEFT)
        folded = inner.with_alpha(float(inner.rank))
        tensors[f"{module}.lora_A.weight"] = folded.down
        tensors[f"{module}.lora_B.weight"] = folded.up
        shape = (1, -1, *[1] * (folded.down.ndim - 2)) if folded.down.ndim == 4 else (-1,)
        ending = ".weight" if module.startswith("text_encoder") else ""  # as transformers finds it
        tensors[f"{module}.lora_magnitude_vector{ending}"] = factors.magnitude.reshape(shape)
    return tensors


def peft_parts(factors: Factors) -> dict[str, Array]:
    """Keys and values as PEFT has them in memory, for factors that were read from one of our own files."""
    if isinstance(factors, OftFactors):
        return {"oft_R.weight": factors.vectors}
    if isinstance(factors, DoraFactors) and isinstance(factors.inner, LoraFactors):
        inner = factors.inner
        shape = (1, -1, 1, 1) if inner.down.ndim == 4 else (-1,)
        magnitude = factors.magnitude.reshape(shape)
        halves = {"lora_A.weight": inner.down, "lora_B.weight": inner.up}
        return {**halves, "lora_magnitude_vector": magnitude}
    if isinstance(factors, LokrFactors):
        factors = replace(factors, whole_scale=1.0)  # PEFT applies it again
    return {part: value for part, value in _parts(factors).items() if part != "alpha"}


def config_metadata(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """PEFT's configurations as a run writes them into a file."""
    return {PEFT_METADATA: json.dumps(configs)}


def header_facts(path: Path, header: Header) -> tuple[int, int, float]:
    """(rank, modules, alpha) of a file of one of `METHODS`; reads the header and the alpha scalars."""
    shapes = _shapes(header)
    ranks = [rank for parts in shapes.values() if (rank := _rank(parts))]
    rank = max(sorted(set(ranks)), key=ranks.count) if ranks else 0
    stored = list(read_scalars(path, header, ".alpha").values())
    if stored:
        return rank, len(shapes), max(sorted(set(stored)), key=stored.count)
    configs = _configs(header.metadata)
    for name in sorted(configs, key=lambda name: name.startswith("text")):  # the denoiser's first
        config = configs[name]
        if config.get("peft_type") in ("LOHA", "LOKR"):
            return rank or int(config.get("r", 8)), len(shapes), float(config.get("alpha", 8))
    return rank, len(shapes), float(rank)


def context_of(header: Header) -> int:
    """Width of the text conditioning, from the shapes of a UNet's cross-attention; 0 when they do not say."""
    widths = [
        _inputs(parts)
        for path, parts in _shapes(header).items()
        if "attn2" in path and path.endswith(("to_k", "to_v"))
    ]
    return max(sorted(set(widths)), key=widths.count) if widths else 0


def has_peft_names(header: Header) -> bool:
    """Whether modules go by dotted paths with their component in front."""
    return any(path.startswith(("unet.", "transformer.", "text_encoder")) for path in _shapes(header))


def _shapes(header: Header) -> dict[str, dict[str, tuple[int, ...]]]:
    """Module as it is written -> part -> shape."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, info in header.tensors.items():
        if path := _path(name):
            found.setdefault(path, {})[name.removeprefix(path + ".")] = info.shape
    return found


_USE_PEFT = "use --format peft"
_WHOLE = (".oft_R.weight", ".lora_magnitude_vector.weight")


def _path(name: str) -> str:
    """Path of the module of a part that only these methods have, "" for any other key."""
    head, _, part = name.rpartition(".")
    if name.endswith(_WHOLE):
        return head.rpartition(".")[0]
    return head if part in _OTHERS else ""


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int:
    for part in ("hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if shapes.get(part):
            return shapes[part][0]
    return 0


def _inputs(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Width of the input of a linear layer; 0 when the parts do not say."""
    if len(shapes.get("hada_w1_b", ())) == 2:
        return shapes["hada_w1_b"][1]
    first = shapes.get("lokr_w1") or shapes.get("lokr_w1_b")
    second = shapes.get("lokr_w2") or shapes.get("lokr_w2_b")
    if first and second and len(first) == len(second) == 2:
        return first[1] * second[1]
    turned = shapes.get("oft_R.weight", ())
    if len(turned) == 2:
        return turned[0] * round((1 + np.sqrt(1 + 8 * turned[1])) / 2)
    return 0


def _split(key: str, layout: str) -> tuple[str, str]:
    """Name of the module as it is written, and the part."""
    if layout == "kohya":
        name, _, part = key.partition(".")
        known = part in (*_PARTS, kohya.DOWN, kohya.UP)
    else:
        part = next((part for part in _PARTS if key.endswith("." + part)), "")
        name = key.removesuffix("." + part) if part else key
        if not part:
            name, part = diffusers.split_key(key)
        name, known = diffusers.modern_path(name), bool(part)
    if not known:
        raise BadInput(f"tensor {shown(key)}", "is part of no known method", "see docs/formats.md")
    return name, _RENAMED.get(part, part)


def _factors(
    module: str,
    parts: dict[str, Array],
    configs: Mapping[str, Mapping[str, Any]],
    strengths: diffusers.Strengths,
) -> Factors:
    where = f"module {shown(module)}"
    component, _, path = module.partition(".")
    config = configs.get(component, {})
    alpha, rank = _alpha(parts), int(_value(config, "rank_pattern", path, config.get("r", 8)))
    if config:
        key = "lora_alpha" if config.get("peft_type") == "LORA" else "alpha"
        alpha = float(_value(config, "alpha_pattern", path, config.get(key, 8)))
        if config.get("use_rslora") is True:
            alpha *= float(np.sqrt(rank))
    elif alpha is None and "down" in parts:
        alpha = strengths.alpha(module, len(parts["down"]))
    known = {part: value for part, value in parts.items() if part != "alpha"}
    try:
        factors = _make(where, known, alpha, rank if config else 0, config)
    except (KeyError, IndexError) as error:
        raise BadInput(where, "lacks some of its factors", _AGAIN) from error
    require_sound(where, factors, known)
    return factors


def _make(
    where: str, parts: dict[str, Array], alpha: float | None, rank: int, config: Mapping[str, Any]
) -> Factors:
    if "oft_R.weight" in parts:
        neumann = config.get("use_cayley_neumann", True)
        return OftFactors(
            parts["oft_R.weight"], int(config.get("num_cayley_neumann_terms", 5)) if neumann else 0
        )
    if "oft_blocks" in parts:
        return OftBlocks(parts["oft_blocks"], alpha or 0.0, parts.get("rescale"))
    if "hada_w1_a" in parts:
        inner = _loha(parts, alpha)
    elif any(part.startswith("lokr_") for part in parts):
        inner = _lokr(parts, alpha, rank)
    else:
        down, up = parts.get(kohya.DOWN, parts.get("down")), parts.get(kohya.UP, parts.get("up"))
        inner = make_factors(where, down, up, alpha)
    magnitude = parts.get("dora_scale", parts.get("lora_magnitude_vector"))
    return inner if magnitude is None else _dora(where, inner, magnitude)  # pyright: ignore[reportReturnType]


def _loha(parts: dict[str, Array], alpha: float | None) -> LohaFactors:
    w1_a, w1_b, w2_a, w2_b = (parts[name] for name in _LOHA[:4])
    strength = float(w1_b.shape[0]) if alpha is None else alpha
    return LohaFactors(w1_a, w1_b, w2_a, w2_b, strength, parts.get("hada_t1"), parts.get("hada_t2"))


def _lokr(parts: dict[str, Array], alpha: float | None, rank: int) -> LokrFactors:
    values: dict[str, Any] = {name.removeprefix("lokr_"): parts.get(name) for name in _LOKR}
    made = LokrFactors(alpha=alpha or 0.0, **values)
    if not made.rank:
        return replace(made, whole_scale=alpha / rank if rank and alpha is not None else 1.0)
    return made if alpha is not None else replace(made, alpha=float(made.rank))


def _dora(where: str, inner: LoraFactors | LohaFactors | LokrFactors, magnitude: Array) -> DoraFactors:
    """Of every shape: (out,) or (1, out, 1, 1) of PEFT, (out, 1) of LyCORIS 4, (1, in) of older ones."""
    rows = inner.up.shape[0] if isinstance(inner, LoraFactors) else inner.shape[0]
    peft = magnitude.ndim == 1 or (magnitude.ndim == 4 and magnitude.shape[:2] == (1, rows))
    per_output = peft or magnitude.shape[0] == rows
    if per_output and magnitude.size != rows:
        raise BadInput(where, f"has magnitudes of shape {magnitude.shape} for {rows} outputs", _AGAIN)
    return DoraFactors(inner, magnitude.reshape(-1), per_output)


def _parts(factors: Factors) -> dict[str, Array]:
    """Keys and values in the kohya layout."""
    if isinstance(factors, OftFactors):
        wrong = "cannot hold oft of PEFT, which turns inputs; its oft_blocks turn outputs"
        raise BadInput("the kohya layout", wrong, _USE_PEFT)
    if isinstance(factors, OftBlocks):
        found = {"oft_blocks": factors.blocks, "rescale": factors.rescale, "alpha": _scalar(factors.alpha)}
    elif isinstance(factors, DoraFactors):
        inner = factors.inner
        ones = [1] * (inner.down.ndim - 2 if isinstance(inner, LoraFactors) else 0)
        shape = (-1, 1, *ones) if factors.per_output else (1, -1, *ones)
        found = {**_inner_parts(inner), "dora_scale": factors.magnitude.reshape(shape)}
    else:
        found = _inner_parts(cast(LohaFactors | LokrFactors, factors))
    return {part: value for part, value in found.items() if value is not None}


def _inner_parts(inner: LoraFactors | LohaFactors | LokrFactors) -> dict[str, Array | None]:
    if isinstance(inner, LoraFactors):
        return {kohya.DOWN: inner.down, kohya.UP: inner.up, "alpha": _scalar(inner.alpha)}
    names, start = (_LOHA, "hada_") if isinstance(inner, LohaFactors) else (_LOKR, "lokr_")
    found: dict[str, Array | None] = {name: getattr(inner, name.removeprefix(start)) for name in names}
    if isinstance(inner, LokrFactors) and inner.w1 is not None and not inner.rank:
        found["lokr_w1"] = inner.w1 * np.float32(inner.whole_scale)
    return {**found, "alpha": _scalar(inner.alpha)}


def _scalar(value: float) -> Array:
    return np.array(value, np.float32)


def _alpha(parts: Mapping[str, Array]) -> float | None:
    value = parts.get("alpha")
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    try:
        found: Any = json.loads(metadata.get(PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(c, dict) for c in found.values()):  # pyright: ignore[reportUnknownVariableType]
        raise BadInput(f"metadata {PEFT_METADATA}", "is not what a run writes", "use the run's own file")
    return cast(dict[str, dict[str, Any]], found)


def _value(config: Mapping[str, Any], table: str, path: str, default: Any) -> Any:
    patterns: Any = config.get(table) or {}
    in_memory = diffusers.match_pattern(patterns, path.removeprefix("text_model."), default)
    value = diffusers.match_pattern(patterns, path, in_memory)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise BadInput(
            f"metadata {PEFT_METADATA}", "has a strength that is no number", "use the run's own file"
        )
    return value
