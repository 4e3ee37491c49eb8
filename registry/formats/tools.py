"""What each tool makes of an adapter file, from the rules by which it looks up keys.

The rules were read in the tools' sources (diffusers 0.42, ComfyUI, A1111, Forge, InvokeAI, kohya sd-scripts;
2026) and are emulated, here for families with a UNet, in `tools_flow` for those with a transformer, so that
an export can be proven without installing them. diffusers' are also checked against the library in the tests.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from registry.formats import diffusers, kohya
from registry.formats.families import FamilyFormat
from registry.formats.internal import AdapterForm, LoraFactors, component_of
from registry.formats.tensors import Array

Tensors = Mapping[str, Array]
HALVES = (
    (f".{kohya.UP}", f".{kohya.DOWN}"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
)
_OUTSIDE = {
    "conv_in",
    "conv_out",
    "time_embedding",
    "add_embedding",
}  # kohya's networks stay inside the blocks


@dataclass(frozen=True)
class Reading:
    """What a tool would apply: module -> factors; `note` says why something is missing."""

    modules: Mapping[str, LoraFactors] = field(default_factory=dict[str, LoraFactors])
    note: str = ""


@dataclass(frozen=True)
class ToolReport:
    """How one tool reads a file. `verdict`: "loads", "partly" (modules missing or wrong) or "no"."""

    tool: str
    verdict: str
    modules: int  # in the adapter
    matched: int  # found by the tool, with the right weight change
    missing: tuple[str, ...]  # not found
    worst_error: float  # largest relative error of a weight change among those found
    note: str = ""


@dataclass(frozen=True)
class Proof:
    """A file that was read back, compared module by module with what it was written from."""

    modules: int
    matched: int
    missing: tuple[str, ...]
    worst_error: float
    worst_module: str


def diffusers_reading(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """`StableDiffusionPipeline.load_lora_weights`."""
    if all(key.startswith(tuple(names.kohya_prefixes)) for key in tensors):
        if diffusers.ADAPTER_METADATA in metadata:
            return Reading(note="raises: alpha keys and alpha metadata in one file")
        return _diffusers_kohya(tensors, names, list(modules))
    if not all("lora" in key for key in tensors):
        return Reading(note="raises: keys without 'lora' in their names")
    strengths = diffusers.Strengths.from_metadata(metadata)
    found: dict[str, LoraFactors] = {}
    for module in modules:
        halves = _halves(tensors, [module], HALVES[2:3])
        if halves:
            alpha = strengths.alpha(module, halves[0].shape[0])
            found[module] = _factors(*halves, alpha)
    return Reading(found)


def _diffusers_kohya(tensors: Tensors, names: FamilyFormat, modules: list[str]) -> Reading:
    found = kohya_modules(tensors, names, modules, tuple(names.kohya_prefixes))
    if lacks_out_proj(tensors, names, found):
        return Reading(note="raises or drops them: text-encoder attention without an out_proj")
    # The name under which alpha is remembered reaches its module only outside attention.
    order = {
        key: index for index, key in enumerate(tensors)
    }  # settles which of two equally frequent alphas wins
    for component in {component_of(module) for module in found}:
        mine = (m for m in found if component_of(m) == component)
        keys = {m: f"{names.kohya_name(m)}.{kohya.DOWN}" for m in mine}
        inside = {m: found[m] for m in sorted(keys, key=lambda m: order.get(keys[m], 0))}
        common = Counter(factors.alpha for factors in inside.values()).most_common(1)[0][0]
        for module, factors in inside.items():
            if ".to_" in module or ".self_attn." in module:
                found[module] = LoraFactors(factors.down, factors.up, common)
    return Reading(found)


def lacks_out_proj(tensors: Tensors, names: FamilyFormat, found: Iterable[str]) -> bool:
    """Whether diffusers will not recognise the kohya keys of a text encoder."""
    attended = {component_of(module) for module in found if ".self_attn." in module}
    starts = {c: tuple(p for p, owner in names.kohya_prefixes.items() if owner == c) for c in attended}
    return not all(
        any(key.startswith(starts[c]) and "self_attn_out_proj" in key for key in tensors) for c in attended
    )


def comfyui_reading(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """ComfyUI's key map (Forge carries a copy): kohya names, and diffusers names as they were before PEFT."""
    del metadata  # never read: a strength that is only there is lost
    found: dict[str, LoraFactors] = {}
    ignored = False
    for module in modules:
        component, _, path = module.partition(".")
        keys = [p + spelling for p, spelling in kohya_spellings(module, names)]
        if component == "unet":
            old = path.replace(".to_", ".processor.to_").removesuffix(".0" if ".to_out" in path else "\0")
            keys += [old, f"unet.{old}"]
        else:
            keys.append(module)
        halves = _halves(tensors, keys, HALVES)
        if halves:
            alpha = next((float(tensors[f"{k}.alpha"].item()) for k in keys if f"{k}.alpha" in tensors), None)
            found[module] = _factors(*halves, alpha)
        ignored = ignored or (not halves and ".to_" in path)
    return Reading(found, "ignores attention under PEFT names" if ignored else "")


def kohya_names_reading(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """A1111: kohya names only."""
    del metadata
    found = kohya_modules(tensors, names, modules, written_prefixes(names))
    return Reading(found, "" if found else "reads kohya names only")


def invoke_reading(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """InvokeAI: kohya names, in a file that shows the width of its text conditioning."""
    reading = kohya_names_reading(tensors, metadata, names, modules)
    if not reading.modules or _shows_width(tensors):
        return reading
    return Reading(
        note="does not recognise the base: it wants attn2 to_k or to_v, or attention of all text encoders"
    )


def _shows_width(tensors: Tensors) -> bool:
    """By its `lora_token_vector_length`: cross-attention, `lora_te_`, or both of SDXL's text encoders."""
    starts = {key.partition("text_model")[0] for key in tensors if "_self_attn_" in key}
    if "lora_te_" in starts or {"lora_te1_", "lora_te2_"} <= starts:
        return True
    signs = ("_attn2_to_k.", "_attn2_to_v.", "time_emb_proj.lora_down")
    return any(key.startswith("lora_unet_") and any(sign in key for sign in signs) for key in tensors)


def sd_scripts_reading(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """kohya's own network: kohya names, inside attention, resnet and sampling blocks only."""
    del metadata
    found = kohya_modules(tensors, names, modules, written_prefixes(names))
    outside = [m for m in found if m.split(".")[1] in _OUTSIDE]
    for module in outside:
        del found[module]
    if not found:
        return Reading(note="reads kohya names only")
    return Reading(found, "has no conv_in, conv_out and embeddings" if outside else "")


Reader = Callable[[Tensors, Mapping[str, str], FamilyFormat, Iterable[str]], Reading]
TOOLS: dict[str, Reader] = {
    "diffusers": diffusers_reading,
    "ComfyUI": comfyui_reading,
    "A1111": kohya_names_reading,
    "Forge": comfyui_reading,
    "InvokeAI": invoke_reading,
    "kohya sd-scripts": sd_scripts_reading,
}


class Judge:
    """Compares readings of a written file with the adapter it was written from.

    Args:
        source: What every reading should amount to.
        tolerance: Relative error that still counts, see `relative_error`.
    """

    def __init__(self, source: AdapterForm, tolerance: float) -> None:
        self._source, self.tolerance = source, tolerance
        self._errors: dict[tuple[str, int, int, float], float] = {}

    def error(self, module: str, factors: LoraFactors) -> float:
        """Relative error of one module; tools that read the same arrays share the work."""
        key = (module, id(factors.down), id(factors.up), factors.alpha)
        if key not in self._errors:
            self._errors[key] = relative_error(factors, self._source.modules[module])
        return self._errors[key]

    def prove(self, written: AdapterForm) -> Proof:
        """Compare with the whole file; modules of zeros that only the file has are left out."""
        errors = {m: self.error(m, f) for m, f in written.modules.items() if m in self._source.modules}
        missing = tuple(m for m in self._source.modules if m not in errors)
        worst = max(errors, key=lambda m: errors[m], default="")
        matched = sum(error <= self.tolerance for error in errors.values())
        return Proof(len(self._source.modules), matched, missing, errors.get(worst, 0.0), worst)

    def report(self, tool: str, reading: Reading) -> ToolReport:
        """Verdict for one tool."""
        proof = self.prove(AdapterForm(self._source.family, reading.modules))
        verdict = "loads" if proof.matched == proof.modules else "partly" if reading.modules else "no"
        note = reading.note
        if not note and proof.worst_error > self.tolerance:
            note = f"wrong strength or weights in {proof.worst_module}"
        return ToolReport(tool, verdict, proof.modules, proof.matched, proof.missing, proof.worst_error, note)


def relative_error(got: LoraFactors, wanted: LoraFactors) -> float:
    """Frobenius norm of the difference of two weight changes, over that of the wanted one.

    Infinite when the shapes differ; the plain norm when the wanted change is zero.
    """
    if (len(got.up), got.down.size // got.rank) != (len(wanted.up), wanted.down.size // wanted.rank):
        return float("inf")
    if got.alpha == wanted.alpha and got.down is wanted.down and got.up is wanted.up:
        return 0.0
    size = _norm((wanted, 1.0))
    difference = _norm((wanted, 1.0), (got, -1.0))
    return difference / size if size else difference


def _norm(*terms: tuple[LoraFactors, float]) -> float:
    """Frobenius norm of a sum of weight changes, without making a weight: |B A|^2 = sum((B' B) * (A A')).

    In double precision, where squares lose half of 53 bits: good to 1e-8 of the terms.
    """
    down = np.concatenate([factors.down.reshape(factors.rank, -1) for factors, _ in terms]).astype(np.float64)
    up = np.concatenate(
        [
            factors.up.reshape(-1, factors.rank).astype(np.float64) * (sign * factors.scale)
            for factors, sign in terms
        ],
        axis=1,
    )
    return float(np.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))))


def written_prefixes(names: FamilyFormat) -> tuple[str, ...]:
    """The prefix of each component that tools agree on: the first in the table."""
    return tuple(names.prefix_of(component) for component in names.grammars)


def kohya_spellings(module: str, names: FamilyFormat) -> list[tuple[str, str]]:
    """(prefix, rest) under which tools look for a module that is none of several in one.

    Published names, and diffusers' own, which tools also know for a UNet.
    """
    component, _, path = module.partition(".")
    spellings = [path.replace(".", "_")]
    if names.original is not None and component == names.denoiser:
        spellings.insert(0, names.place_of_module(module)[1].name)
    prefixes = [p for p, owner in names.kohya_prefixes.items() if owner == component]
    return [(prefix, spelling) for spelling in spellings for prefix in prefixes]


def kohya_modules(
    tensors: Tensors, names: FamilyFormat, modules: Iterable[str], prefixes: tuple[str, ...]
) -> dict[str, LoraFactors]:
    """Those of `modules` that are in a kohya file under one of `prefixes`."""
    found: dict[str, LoraFactors] = {}
    for module in modules:
        keys = [p + spelling for p, spelling in kohya_spellings(module, names) if p in prefixes]
        halves = _halves(tensors, keys, HALVES[:1])
        if halves:
            alpha = next((float(tensors[f"{k}.alpha"].item()) for k in keys if f"{k}.alpha" in tensors), None)
            found[module] = _factors(*halves, alpha)
    return found


def _halves(
    tensors: Tensors, keys: Iterable[str], endings: Iterable[tuple[str, str]]
) -> tuple[Array, Array] | None:
    """(down, up) under the first of `keys` and `endings` that is there."""
    for key in keys:
        for up, down in endings:
            if key + up in tensors and key + down in tensors:
                return tensors[key + down], tensors[key + up]
    return None


def _factors(down: Array, up: Array, alpha: float | None) -> LoraFactors:
    return LoraFactors(down, up, float(down.shape[0]) if alpha is None else alpha)
