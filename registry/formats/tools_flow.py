"""What each tool makes of an adapter file of SD3.5 or FLUX.1, from the rules by which it looks up keys.

Read in the sources of diffusers 0.42, ComfyUI, InvokeAI and kohya sd-scripts (2026). A tool is left out where
nobody has read how it treats a layout (A1111 and Forge with SD3.5): no answer is better than a guess.
"""

import re
from collections.abc import Iterable, Mapping

from registry.formats import diffusers, kohya
from registry.formats.families import FamilyFormat
from registry.formats.internal import LoraFactors, component_of
from registry.formats.reading import read
from registry.formats.tools import Reader, Reading, Tensors, lacks_out_proj

FLUX_WIDTH = 3072
FLUX_BLOCKS = {"transformer_blocks": 19, "single_transformer_blocks": 38}
_LINEAR1_ROWS = 7 * FLUX_WIDTH  # q, k, v and the MLP's 4
_EMBEDDERS = ("x_embedder", "context_embedder", "time_text_embed")
_FINAL = ("norm_out", "proj_out")
# InvokeAI looks for these before it takes a file for FLUX's.
_INVOKE_SIGNS = ("single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj")
_QKV = (("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"))


def _is_kohya(tensors: Tensors, names: FamilyFormat) -> bool:
    return any(key.startswith(tuple(names.kohya_prefixes)) for key in tensors)


def _t5(names: FamilyFormat) -> str:
    """The text encoder that is T5: the last."""
    return list(names.grammars)[-1]


def _kohya_found(tensors: Tensors, names: FamilyFormat, modules: Iterable[str]) -> dict[str, LoraFactors]:
    """What the kohya keys hold of `modules`: layers that are one there, divided."""
    form = read(tensors, {}, names.name)
    return {module: form.modules[module] for module in modules if module in form.modules}


def _plain_found(tensors: Tensors, modules: Iterable[str]) -> dict[str, LoraFactors]:
    """What the keys `<module>.lora_A.weight` and `.lora_B.weight` hold; alpha = rank without metadata."""
    found: dict[str, LoraFactors] = {}
    for module in modules:
        down, up = tensors.get(f"{module}.lora_A.weight"), tensors.get(f"{module}.lora_B.weight")
        if down is not None and up is not None:
            found[module] = LoraFactors(down, up, float(down.shape[0]))
    return found


def _without(found: dict[str, LoraFactors], gone: Iterable[str], note: str) -> Reading:
    """`found` less some modules, with the reason if there were any."""
    gone = set(gone)
    return Reading({m: f for m, f in found.items() if m not in gone}, note if gone else "")


def _of(found: Mapping[str, LoraFactors], component: str) -> list[str]:
    return [module for module in found if component_of(module) == component]


def diffusers_sd35(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """`StableDiffusion3Pipeline.load_lora_weights`."""
    if _is_kohya(tensors, names):
        return Reading(note="warns and loads nothing: it knows no kohya names of SD3.5")
    return _diffusers_plain(tensors, metadata, names, modules)


def diffusers_flux(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """`FluxPipeline.load_lora_weights`."""
    if not _is_kohya(tensors, names):
        return _diffusers_plain(tensors, metadata, names, modules)
    linear1 = (v for k, v in tensors.items() if k.endswith(f"_linear1.{kohya.UP}"))
    if any(up.shape[0] != _LINEAR1_ROWS for up in linear1):
        return Reading(note=f"raises: it divides linear1 at FLUX.1's own width of {FLUX_WIDTH} only")
    found = _kohya_found(tensors, names, modules)
    if any(_beyond(module) for module in found):
        return Reading(note="raises: it knows 19 double and 38 single blocks")
    if lacks_out_proj(tensors, names, _of(found, "text_encoder")):
        return Reading(note="raises or drops them: text-encoder attention without an out_proj")
    ends = (*_EMBEDDERS, *_FINAL)  # named without "transformer." after the conversion, and so lost
    gone = [*_of(found, _t5(names)), *(m for m in found if m.split(".")[1] in ends)]
    return _without(found, gone, "drops T5, embedders and the final layer")


def _diffusers_plain(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    strengths = diffusers.Strengths.from_metadata(metadata)
    found: dict[str, LoraFactors] = {}
    for module, factors in _plain_found(tensors, modules).items():
        alpha = strengths.alpha(module, factors.rank)
        found[module] = factors if alpha is None else LoraFactors(factors.down, factors.up, alpha)
    return _without(found, _of(found, _t5(names)), "drops T5")


def comfyui(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """ComfyUI's key map (Forge has the same for FLUX): kohya names and diffusers'."""
    del metadata
    if _is_kohya(tensors, names):
        return Reading(_kohya_found(tensors, names, modules))
    found = _plain_found(tensors, modules)
    # It exchanges the halves of the final layer, and not those of SD3.5's last text modulation.
    last = [m for m, f in found.items() if m.endswith("norm1_context.linear") and _has_halves(f)]
    gone = [*_of(found, _t5(names)), *last]
    return _without(
        found, gone, "ignores T5 under diffusers' names, and the last text modulation is exchanged"
    )


def invoke_flux(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """InvokeAI's two FLUX detectors and what they then convert."""
    del metadata
    if _is_kohya(tensors, names):
        found = _kohya_found(tensors, names, modules)
        odd = [*_of(found, _t5(names)), *(m for m in found if m.split(".")[1] in _EMBEDDERS)]
        if odd:
            return Reading(note="does not recognise a file with T5 or embedders in it")
        final = [m for m in found if m.split(".")[1] in _FINAL]
        return _without(found, final, "skips the final layer")
    found = _plain_found(tensors, modules)
    if any(component_of(module).startswith("text") for module in found):
        return Reading(note="fails on text-encoder keys under diffusers' names; use kohya for it")
    paths = {module.partition(".")[2] for module in found}
    if not all(sign in paths for sign in _INVOKE_SIGNS):
        return Reading(note=f"recognises files only with {' and '.join(_INVOKE_SIGNS)} among the modules")
    blocks = {path.rpartition(".attn.")[0] for path in paths if ".attn." in path}
    for block in sorted(name for name in blocks if name.startswith("transformer_blocks.")):
        for row in _QKV:
            there = sum(f"{block}.{leaf}" in paths for leaf in row)
            if there not in (0, len(row)):
                return Reading(note=f"fails: {block} has only some of query, key and value")
    return Reading(found)


def no_tool(why: str) -> Reader:
    """A tool that cannot use such files at all."""

    def reading(
        tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
    ) -> Reading:
        del tensors, metadata, names, modules
        return Reading(note=why)

    return reading


def sd_scripts(
    tensors: Tensors, metadata: Mapping[str, str], names: FamilyFormat, modules: Iterable[str]
) -> Reading:
    """kohya's own networks; lora_flux has no final layer, lora_sd3 has it."""
    del metadata
    if not _is_kohya(tensors, names):
        return Reading(note="reads kohya names only")
    found = _kohya_found(tensors, names, modules)
    single = any(m.startswith("single_transformer_blocks") for m in names.grammars[names.denoiser].templates)
    final = [m for m in found if single and m.split(".")[1] in _FINAL]
    return _without(found, final, "has no final layer")


def _beyond(module: str) -> bool:
    found = re.match(r"transformer\.(\w+_blocks)\.(\d+)\.", module)
    return bool(found) and int(found[2]) >= FLUX_BLOCKS.get(found[1], 0)


def _has_halves(factors: LoraFactors) -> bool:
    return factors.up.shape[0] == 2 * factors.down.shape[1]


FLUX_TOOLS: dict[str, Reader] = {
    "diffusers": diffusers_flux,
    "ComfyUI": comfyui,
    "A1111": no_tool("does not draw with FLUX.1"),
    "Forge": comfyui,
    "InvokeAI": invoke_flux,
    "kohya sd-scripts": sd_scripts,
}
SD35_TOOLS: dict[str, Reader] = {
    "diffusers": diffusers_sd35,
    "ComfyUI": comfyui,
    "InvokeAI": no_tool("does not load adapters of SD3.5"),
    "kohya sd-scripts": sd_scripts,
}
