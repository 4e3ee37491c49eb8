"""DoRA, LoHa, LoKr and OFT in files: LyCORIS' keys (kohya layout) and PEFT's.

kohya layout: `<name>.hada_w1_a`, `.lokr_w1`, `.dora_scale`, `.oft_blocks`, ... and `.alpha`, with the names
of plain LoRA files in front. PEFT's: `<component>.<path>.hada_w1_a`, `.lora_magnitude_vector`,
`.oft_R.weight`; strengths are in the metadata that a run writes (`studio.peft`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from registry.errors import BadInput
from registry.formats import kohya
from registry.formats.factors import (
    DoraFactors,
    Factors,
    LohaFactors,
    LokrFactors,
    OftBlocks,
    OftFactors,
    shape_of,
)
from registry.formats.families import FamilyFormat, family_format
from registry.formats.grammar import LOHA, LOKR
from registry.formats.header import shown
from registry.formats.internal import AdapterForm, LoraFactors
from registry.formats.original import Place
from registry.formats.rows import FullFactors, RowsFactors, united, united_bias
from registry.formats.tensors import Array

METHODS = ("dora", "loha", "lokr", "oft", "full", "norm")  # beside plain LoRA, and Tucker, which becomes one
_CONVERT = "use --convert lora"
_USE_PEFT = f"{_CONVERT}, or --format peft"


def write_kohya(form: AdapterForm) -> dict[str, Array]:
    """Tensors of the modules that are no plain LoRA, under LyCORIS' keys.

    Raises:
        BadInput: the layout has no keys for a module.
    """
    names = family_format(form.family)
    tensors: dict[str, Array] = {}
    for prefix, (component, place), modules in _places(names, form.others):
        parts = {module: form.others[module] for module in modules}
        if any(f"{component}.{path}" in form.modules for path in place.modules):
            wrong = "is one layer in kohya's layout, where LoRA and another method cannot be one"
            raise BadInput(f"module {shown(place.path)}", wrong, _CONVERT)
        factors = united(component, place, parts)
        assert not isinstance(factors, LoraFactors)
        tensors |= {f"{prefix}{place.name}.{part}": value for part, value in _parts(factors).items()}
    for prefix, (component, place), modules in _places(names, form.biases):
        part = "b_norm" if f"{prefix}{place.name}.w_norm" in tensors else "diff_b"
        rows = {module.removeprefix(f"{component}."): form.biases[module] for module in modules}
        weight = form.everything.get(modules[0])
        inputs = shape_of(weight)[1] if weight is not None else 0
        tensors[f"{prefix}{place.name}.{part}"] = united_bias(place, rows, inputs)
    return tensors


def _places(
    names: FamilyFormat, modules: Iterable[str]
) -> Iterator[tuple[str, tuple[str, Place], list[str]]]:
    """(prefix, component and place, modules of ours in it) of a kohya file."""
    found: dict[str, tuple[tuple[str, Place], list[str]]] = {}
    for module in modules:
        component, place = names.place_of_module(module)
        found.setdefault(f"{component}.{place.path}", ((component, place), []))[1].append(module)
    for place, inside in found.values():
        yield names.prefix_of(place[0]), place, inside


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
            raise BadInput(
                "the diffusers layout",
                wrong,
                f"{_CONVERT}, or --format {'kohya or peft' if fits else 'peft'}",
            )
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


def _parts(factors: Factors) -> dict[str, Array]:
    """Keys and values in the kohya layout."""
    if isinstance(factors, OftFactors):
        wrong = "cannot hold oft of PEFT, which turns inputs; its oft_blocks turn outputs"
        raise BadInput("the kohya layout", wrong, _USE_PEFT)
    if isinstance(factors, OftBlocks):
        found = {"oft_blocks": factors.blocks, "rescale": factors.rescale, "alpha": _scalar(factors.alpha)}
    elif isinstance(factors, FullFactors):
        found = {"w_norm" if factors.method == "norm" else "diff": factors.diff}
    elif isinstance(factors, RowsFactors):
        wrong = f"cannot hold some rows of a {factors.method} without the others"
        raise BadInput("the kohya layout", wrong, _CONVERT)
    elif isinstance(factors, DoraFactors):
        inner = factors.inner
        ones = [1] * (inner.down.ndim - 2 if isinstance(inner, LoraFactors) else 0)
        shape = (-1, 1, *ones) if factors.per_output else (1, -1, *ones)
        found = {**_inner_parts(inner), "dora_scale": factors.magnitude.reshape(shape)}
    else:
        found = _inner_parts(cast(LohaFactors | LokrFactors, factors))
    return {part: value for part, value in found.items() if value is not None}


def _inner_parts(inner: LoraFactors | LohaFactors | LokrFactors | RowsFactors) -> dict[str, Array | None]:
    if isinstance(inner, RowsFactors):
        wrong = f"cannot hold some rows of a {inner.method} without the others"
        raise BadInput("the kohya layout", wrong, _CONVERT)
    if isinstance(inner, LoraFactors):
        return {kohya.DOWN: inner.down, kohya.UP: inner.up, "alpha": _scalar(inner.alpha)}
    names, start = (LOHA, "hada_") if isinstance(inner, LohaFactors) else (LOKR, "lokr_")
    found: dict[str, Array | None] = {name: getattr(inner, name.removeprefix(start)) for name in names}
    if isinstance(inner, LokrFactors) and inner.w1 is not None and not inner.rank:
        found["lokr_w1"] = inner.w1 * np.float32(inner.whole_scale)
    return {**found, "alpha": _scalar(inner.alpha)}


def _scalar(value: float) -> Array:
    return np.array(value, np.float32)
