"""Which family an adapter file is for: shapes decide, then names that one family has, then metadata.

Metadata comes last because it is copied and edited; what stays undecided is said to be so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from registry.formats.families import FORMATS, family_format
from registry.formats.grammar import Grouped
from registry.formats.names import remembered

Shape = tuple[int, ...]
Parts = Mapping[str, Shape]

# Input width of attn2.to_k, which is the width of the text conditioning.
CONTEXT_DIMS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
# Width of a diffusion transformer's blocks -> family and size of the base.
BLOCK_DIMS = {3072: ("flux1", ""), 2432: ("sd35", "large"), 1536: ("sd35", "medium")}
# How many blocks a family has at most; a file with more is another's, of the same width.
BLOCKS = {"flux1": {"double": 19, "single": 38}, "sd35": {"double": 38, "single": 0}}
# Parts of names that exist in one family only; the first that occurs decides.
_MARKS = (
    ("double_blocks", "flux1"), ("single_blocks", "flux1"), ("single_transformer_blocks", "flux1"),
    ("joint_blocks", "sd35"), ("lora_unet_input_blocks", "sdxl"), ("lora_unet_output_blocks", "sdxl"),
    ("lora_unet_middle_block", "sdxl"), ("label_emb", "sdxl"), ("add_embedding", "sdxl"),
)  # fmt: skip
# Names that several families may have, asked after the metadata.
_WEAK_MARKS = (
    ("transformer.transformer_blocks", "sd35"), ("lora_transformer_transformer_blocks", "sd35"),
    ("lycoris_transformer_blocks", "sd35"), ("lora_te2_text_model", "sdxl"),
    ("text_encoder_2.text_model", "sdxl"), ("text_encoder_2.encoder.layers", "sdxl"),
    ("text_encoders.clip_g", "sdxl"),
)  # fmt: skip
_VERSIONS = (
    ("sd_v1", "sd15"), ("sd_v2", "sd21"), ("sdxl", "sdxl"), ("flux1", "flux1"), ("sd3", "sd35"),
    ("5-large", "sd35"), ("5-medium", "sd35"), ("3-5", "sd35"),
)  # fmt: skip
_ARCHITECTURES = (
    ("stable-diffusion-v1", "sd15"), ("stable-diffusion-v2", "sd21"), ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-v3", "sd35"), ("flux-1", "flux1"),
)  # fmt: skip
_CONTEXT = re.compile(r"attn2[._](processor\.)?to_[kv]$")  # in a UNet; SD3.5 medium has an attn2 of its own
_BLOCK = re.compile(  # layers that read the width of the blocks
    r"transformer_blocks[._]\d+[._](attn2?[._](processor[._])?(to_|add_)|ff(_context)?[._]net[._]0|norm1?(_context)?[._]linear|proj_mlp)"
    r"|(double|joint)_blocks[._]\d+[._](\w+_block[._])?((img_|txt_)?(attn2?[._](qkv|proj)|mlp[._](0|fc1)|mod[._]lin)|adaLN)"
    r"|(double|single)_blocks[._]\d+[._](linear1|modulation[._]lin|processor\.(qkv|proj_lora))"
)
_DEEP = re.compile(r"attentions[._]\d+[._]transformer_blocks[._]([2-9]|\d\d)[._]")  # only SDXL has so many
FLOW = re.compile(
    r"^(base_model\.model\.|lora_unet_|lycoris_|diffusion_model\.|model\.diffusion_model\.)?(single_)?transformer_blocks[._]"
    r"|^transformer\.|^lora_transformer_|(double|single|joint)_blocks|final_layer"
)
_NUMBERED = re.compile(r"(single_transformer|single|transformer|double|joint)_blocks[._](\d+)[._]")
_CLIP = re.compile(r"^(lora_te_|text_encoder\.|text_encoders\.clip_[lh]\.).*(q_proj|k_proj|v_proj|fc1)$")


@dataclass(frozen=True)
class Identity:
    """What a file is for. `family` is "" while unidentified; `reason` says what decided or is missing."""

    family: str
    confidence: str  # "high": from shapes; "medium": from names or metadata; "none"
    reason: str
    context_dim: int = 0  # width of the text conditioning; 0 = not among its modules
    variant: str = ""  # of the base: "medium", "large", "dev", "schnell", "v", "eps"; "" = nothing says
    unknown: tuple[str, ...] = ()  # modules that are not part of the family, as the file has them
    components: frozenset[str] = frozenset()  # of the pipeline, that have modules


def identify(groups: Grouped[Shape], metadata: Mapping[str, str]) -> Identity:
    """The family of a file, from the shapes of its modules' parts and its metadata."""
    found = _identify(groups.modules, metadata)
    if not found.family:
        return found
    names = family_format(found.family)
    unknown: list[str] = []
    components: set[str] = set()
    places = map(names.place_of, groups.modules)
    for (name, parts), place in zip(groups.modules.items(), places, strict=True):
        if place is None or len(parts) == ("alpha" in parts):
            unknown.append(name)
        else:
            components.add(place[0])
    if 2 * len(unknown) > len(groups.modules):
        known = len(groups.modules) - len(unknown)
        few = f"only {known} of its {len(groups.modules)} modules are part of {found.family}"
        return Identity("", "none", f"unidentified: {found.reason}, but {few}", found.context_dim)
    variant = found.variant or _variant(found.family, groups.modules, metadata)
    return replace(found, variant=variant, unknown=tuple(unknown), components=frozenset(components))


def family_of_metadata(metadata: Mapping[str, str]) -> tuple[str, str]:
    """(family, the key that says so), or ("", "")."""
    own = metadata.get("studio.family", "")
    if own in FORMATS:
        return own, "studio.family"
    for key, table in (("ss_base_model_version", _VERSIONS), ("modelspec.architecture", _ARCHITECTURES)):
        for start, family in table:
            if metadata.get(key, "").startswith(start):
                return family, key
    return "", ""


def inputs_of(parts: Parts) -> int:
    """Width of a layer's input; 0 when the parts do not say."""
    for part in ("down", "diff"):
        if len(parts.get(part, ())) > 1:
            return parts[part][1]
    if len(parts.get("hada_w1_b", ())) == 2:
        return parts["hada_w1_b"][1]
    first = parts.get("lokr_w1") or parts.get("lokr_w1_b")
    second = parts.get("lokr_w2") or parts.get("lokr_w2_b")
    if first and second and len(first) == 2 and len(second) in {2, 4}:
        return first[1] * second[1]
    turned = parts.get("oft_R", ())
    return turned[0] * round((1 + np.sqrt(1 + 8 * turned[1])) / 2) if len(turned) == 2 else 0


def _identify(modules: Mapping[str, Parts], metadata: Mapping[str, str]) -> Identity:
    kinds = dict(zip(modules, map(_kind, modules), strict=True))
    context = _usual(inputs_of(modules[name]) for name, kind in kinds.items() if kind == "context")
    if context in CONTEXT_DIMS:
        return Identity(CONTEXT_DIMS[context], "high", f"cross-attention reads {context} values", context)
    block = _usual(_block_width(modules[name]) for name, kind in kinds.items() if kind == "block")
    if block in BLOCK_DIMS:
        family, size = BLOCK_DIMS[block]
        said = f"its blocks are {block} wide" + (f" ({size})" if size else "")
        if too_many := _beyond(family, (name for name, kind in kinds.items() if kind in {"block", "flow"})):
            return Identity("", "none", f"unidentified: {said}, but {too_many}")
        return Identity(family, "high", said, variant=size)
    marked = _marked(modules, _MARKS)
    if marked or any(_DEEP.search(name) for name in modules):
        mark, family = marked or ("transformer_blocks.2", "sdxl")
        return Identity(family, "medium", f"has modules named {mark}", context)
    family, key = family_of_metadata(metadata)
    if family:
        return Identity(family, "medium", f"metadata {key} says so", context)
    if weak := _marked(modules, _WEAK_MARKS):
        return Identity(weak[1], "medium", f"has modules named {weak[0]}", context)
    width = _usual(inputs_of(parts) for name, parts in modules.items() if _CLIP.search(name))
    if width in {768, 1024}:
        return Identity(CONTEXT_DIMS[width], "medium", f"its text encoder is {width} wide", context)
    missing = f"reads {context} values, which no known family does" if context else "is not among its modules"
    reason = f"unidentified: cross-attention {missing}, and its metadata names no base"
    return Identity("", "none", reason, context)


@remembered
def _kind(name: str) -> str:
    """What a module's name says of its input.

    "context": of a UNet, as wide as the text conditioning; "block": of a diffusion transformer, as wide as
    its blocks; "flow": another of a diffusion transformer; "": nothing.
    """
    if FLOW.search(name):
        return "block" if _BLOCK.search(name) else "flow"
    return "context" if _CONTEXT.search(name) else ""


def _block_width(parts: Parts) -> int:
    """Input of a layer in a transformer block; the blocks of OFT say how many outputs there are instead."""
    blocks = parts.get("oft_blocks", ())
    return inputs_of(parts) or (blocks[0] * blocks[1] if len(blocks) == 3 else 0)


def _beyond(family: str, names: Iterable[str]) -> str:
    """What says that a file has more blocks than the family, "" when it has not."""
    for name in names:
        if found := _NUMBERED.search(name):
            kind = "single" if found[1].startswith("single") else "double"
            limit = BLOCKS[family][kind]
            if int(found[2]) >= limit:
                return f"it has a block {found[2]} where {family} has {limit}"
    return ""


def _variant(family: str, names: Iterable[str], metadata: Mapping[str, str]) -> str:
    said = " ".join(
        metadata.get(key, "").lower()
        for key in ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "studio.base_name")
    )
    if family == "flux1":
        if any("guidance_in" in name or "guidance_embedder" in name for name in names):
            return "dev"
        return next(
            (word for word in ("schnell", "dev") if re.search(rf"(^|[^a-z]){word}([^a-z]|$)", said)), ""
        )
    if family == "sd35":
        if any(re.search(r"attn2[._]", name) for name in names):
            return "medium"
        return next((word for word in ("medium", "large") if word in said), "")
    prediction = metadata.get("modelspec.prediction_type", "").lower()
    if "v2-768-v" in said or prediction.startswith("v"):
        return "v"
    return "eps" if "v2-512" in said or prediction.startswith("eps") else ""


def _usual(widths: Iterable[int]) -> int:
    """The most frequent width that is known, 0 when none is."""
    counts = Counter(width for width in widths if width)
    return counts.most_common(1)[0][0] if counts else 0


def _marked(names: Iterable[str], marks: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The first mark that is in a name."""
    text = "\n".join(names)
    return next((mark for mark in marks if mark[0] in text), None)
