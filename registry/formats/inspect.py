"""What a file is, from its header alone: family, method, rank, strength, targets, trigger words.

Shapes decide before metadata, because metadata is copied and edited; what stays undecided is said to be so.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from registry.errors import BadInput
from registry.formats import diffusers, lycoris
from registry.formats.families import FORMATS
from registry.formats.header import Header, read_header
from registry.formats.tensors import read_scalars, stored_dtype
from registry.formats.words import BUNDLE, is_word

# Input width of attn2.to_k, which is the width of the text conditioning.
CONTEXT_DIMS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
# Width of a diffusion transformer's blocks -> family and size of the base.
BLOCK_DIMS = {3072: ("flux1", ""), 2432: ("sd35", "large"), 1536: ("sd35", "medium")}
# Parts of names that exist in one family only; the first that occurs decides.
_MARKS = (
    ("double_blocks", "flux1"), ("single_blocks", "flux1"), ("single_transformer_blocks", "flux1"),
    ("joint_blocks", "sd35"), ("lora_unet_input_blocks", "sdxl"), ("lora_unet_output_blocks", "sdxl"),
    ("lora_unet_middle_block", "sdxl"), ("label_emb", "sdxl"), ("add_embedding", "sdxl"),
)  # fmt: skip
# Names that several families may have, asked after the metadata.
_WEAK_MARKS = (
    ("transformer.transformer_blocks", "sd35"), ("lora_transformer_transformer_blocks", "sd35"),
    ("lora_te2_text_model", "sdxl"),
)  # fmt: skip
_VERSIONS = (
    ("sd_v1", "sd15"), ("sd_v2", "sd21"), ("sdxl", "sdxl"), ("flux1", "flux1"), ("sd3", "sd35"),
    ("5-large", "sd35"), ("5-medium", "sd35"), ("3-5", "sd35"),
)  # fmt: skip
_ARCHITECTURES = (
    ("stable-diffusion-v1", "sd15"), ("stable-diffusion-v2", "sd21"), ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-v3", "sd35"), ("flux-1", "flux1"),
)  # fmt: skip
# The first ending that occurs names the method.
_METHODS = (
    ("dora", (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")),
    ("loha", (".hada_w1_a",)),
    ("lokr", (".lokr_w1", ".lokr_w1_a")),
    ("oft", (".oft_blocks", ".oft_R.weight")),
    ("tucker", (".lora_mid.weight",)),
    ("lora", (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", "lora.down.weight",
              ".lora_linear_layer.down.weight")),
    ("full", (".diff",)),
)  # fmt: skip
_DOWN = re.compile(
    r"\.(lora_down|lora_A|lora_A\.default|lora\.down|lora_linear_layer\.down)\.weight$|_lora\.down\.weight$"
)
_CONTEXT = re.compile(r"attn2[._](processor\.)?to_[kv]")  # in a UNet; SD3.5 medium has an attn2 of its own
_BLOCK = re.compile(
    r"transformer_blocks[._]\d+[._](attn2?[._](to_[qkv]|add_[qkv]_proj)|ff(_context)?[._]net[._]0)"
    r"|(double|joint)_blocks[._]\d+[._](\w+_block[._])?(img_|txt_)?(attn2?[._]qkv|mlp[._](0|fc1))"
    r"|single_(transformer_)?blocks[._]\d+[._](linear1|attn[._]to_[qkv]|proj_mlp)"
)
_DEEP = re.compile(r"attentions[._]\d+[._]transformer_blocks[._]([2-9]|\d\d)[._]")  # only SDXL has so many
_FLOW = re.compile(r"^transformer\.|^lora_transformer_|(double|single|joint)_blocks|^lora_unet_final_layer")
_FLUX = re.compile(r"(double|single)_blocks|single_transformer_blocks")


@dataclass(frozen=True)
class AdapterFacts:
    """What the header says. `family` is "" while unidentified; `reason` says what decided or is missing."""

    family: str
    method: str  # "lora", "dora", "loha", "lokr", "oft", "tucker", "full", "embedding" (new words alone)
    rank: int  # the most frequent one; 0 when the method has none
    alpha: float  # the most frequent one
    targets: tuple[str, ...]  # components: "unet", "text_encoder"
    layout: str  # "kohya", "diffusers", "diffusers-old", "peft", "other"
    trigger_words: tuple[str, ...]
    base_name: str
    metadata: dict[str, str] = field(repr=False)
    confidence: str  # "high": from shapes; "medium": from metadata or names; "none"
    reason: str
    context_dim: int = 0  # 0 when no cross-attention is among the targets
    modules: int = 0
    dtype: str = "fp32"


def inspect_adapter(path: Path) -> AdapterFacts:
    """Facts of the adapter in `path`; reads the header and the alpha scalars, never the weights.

    Raises:
        BadInput: the file is unsound or holds no adapter.
    """
    return facts_of(path, read_header(path))


def facts_of(path: Path, header: Header) -> AdapterFacts:
    """`inspect_adapter` for a header that is read already."""
    method = next(
        (name for name, endings in _METHODS if any(k.endswith(endings) for k in header.tensors)), ""
    )
    if not method and header.tensors and all(map(is_word, header.tensors)):
        method = "embedding"
    if not method:
        raise BadInput(str(path), "has no adapter weights", "import checkpoints with studio bases add")
    family, confidence, reason, context = _family(header)
    downs = [name for name in header.tensors if _DOWN.search(name)]
    ranks = Counter(header.tensors[name].shape[0] for name in downs if header.tensors[name].shape)
    rank = ranks.most_common(1)[0][0] if ranks else 0
    modules, alpha = len(downs), -1.0
    if method in lycoris.METHODS and not downs:
        rank, modules, alpha = lycoris.header_facts(path, header)
    return AdapterFacts(
        family=family,
        method=method,
        rank=rank,
        alpha=_alpha(path, header, rank) if alpha < 0 else alpha,
        targets=_targets(header),
        layout=_layout(header),
        trigger_words=trigger_words(header.metadata),
        base_name=header.metadata.get("studio.base_name") or header.metadata.get("ss_sd_model_name", ""),
        metadata=header.metadata,
        confidence=confidence,
        reason=reason,
        context_dim=context,
        modules=modules,
        dtype=stored_dtype(header),
    )


def check_fits(facts: AdapterFacts, name: str, base_name: str, context_dim: int) -> None:
    """Refuse an adapter on a base whose text conditioning has another width.

    Raises:
        BadInput: both widths are named.
    """
    if facts.context_dim and context_dim and facts.context_dim != context_dim:
        raise BadInput(
            f"adapter {name}",
            f"was trained for a text width of {facts.context_dim}, base {base_name} has {context_dim}",
            "choose a base of its family",
        )


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Trigger words that a file names, most explicit source first."""
    own = _json(metadata.get("studio.trigger_words", ""))
    if isinstance(own, list):
        return tuple(str(word) for word in cast(list[Any], own) if str(word).strip())
    phrase = metadata.get("modelspec.trigger_phrase", "")
    if phrase.strip():
        return tuple(word.strip() for word in phrase.split(",") if word.strip())
    words: list[str] = []
    datasets = _json(metadata.get("ss_datasets", ""))
    for dataset in cast(list[Any], datasets) if isinstance(datasets, list) else []:
        subsets: Any = cast(dict[str, Any], dataset).get("subsets") if isinstance(dataset, dict) else None
        for subset in cast(list[Any], subsets) if isinstance(subsets, list) else []:
            tokens: Any = (
                cast(dict[str, Any], subset).get("class_tokens") if isinstance(subset, dict) else None
            )
            if isinstance(tokens, str) and tokens.strip():
                words.append(tokens.strip())
    return tuple(dict.fromkeys(words))


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


def _family(header: Header) -> tuple[str, str, str, int]:
    """(family, confidence, reason, context width)."""
    context = _width(header, _CONTEXT, flow=False) or lycoris.context_of(header)
    if context in CONTEXT_DIMS:
        return CONTEXT_DIMS[context], "high", f"cross-attention reads {context} values", context
    block = _width(header, _BLOCK, flow=True)
    if block in BLOCK_DIMS:
        family, size = BLOCK_DIMS[block]
        return family, "high", f"its blocks are {block} wide" + (f" ({size})" if size else ""), context
    if (found := _marked(header, _MARKS)) or any(_DEEP.search(name) for name in header.tensors):
        mark, family = found or ("transformer_blocks.2", "sdxl")
        return family, "medium", f"has modules named {mark}", context
    family, key = family_of_metadata(header.metadata)
    if family:
        return family, "medium", f"metadata {key} says so", context
    if found := _marked(header, _WEAK_MARKS):
        return found[1], "medium", f"has modules named {found[0]}", context
    widths = {
        info.shape[1]
        for name, info in header.tensors.items()
        if name.startswith("lora_te_") and "q_proj" in name and _DOWN.search(name) and len(info.shape) == 2
    }
    if len(widths) == 1 and (width := widths.pop()) in {768, 1024}:
        return CONTEXT_DIMS[width], "medium", f"its text encoder is {width} wide", context
    missing = f"reads {context} values, which no known family does" if context else "is not among its modules"
    return "", "none", f"unidentified: cross-attention {missing}, and its metadata names no base", context


def _width(header: Header, pattern: re.Pattern[str], *, flow: bool) -> int:
    """Most frequent input width of the modules that `pattern` finds, 0 when there are none.

    `flow`: among those of diffusion transformers, or of UNets.
    """
    widths = Counter(
        info.shape[1]
        for name, info in header.tensors.items()
        if pattern.search(name)
        and bool(_FLOW.search(name)) == flow
        and (_DOWN.search(name) or name.endswith("hada_w1_b"))
        and len(info.shape) >= 2
    )
    return widths.most_common(1)[0][0] if widths else 0


def _marked(header: Header, marks: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The first mark that is in a name."""
    return next((mark for mark in marks if any(mark[0] in name for name in header.tensors)), None)


def _layout(header: Header) -> str:
    if any(name.startswith("lora_") for name in header.tensors):
        return "kohya"
    if any(name.startswith(diffusers.PEFT_ROOT) for name in header.tensors):
        return "peft"
    if any(".lora_A." in name for name in header.tensors) or lycoris.has_peft_names(header):
        return "diffusers"
    return "diffusers-old" if any(_DOWN.search(name) for name in header.tensors) else "other"


def _targets(header: Header) -> tuple[str, ...]:
    found: dict[str, None] = {}
    flux = any(_FLUX.search(name) for name in header.tensors)
    for name in header.tensors:
        if name.startswith(BUNDLE):
            continue
        if name.startswith(("lora_te3_", "text_encoder_3.")):
            found["text_encoder_2" if flux else "text_encoder_3"] = None  # FLUX has T5 second, kohya third
        elif name.startswith(("lora_te2_", "text_encoder_2.")):
            found["text_encoder_2"] = None
        elif name.startswith(("lora_te", "text_encoder.")) or ".self_attn." in name:
            found["text_encoder"] = None
        else:
            found["transformer" if _FLOW.search(name) else "unet"] = None
    return tuple(sorted(found, key=lambda name: (name.startswith("text"), name)))


def _alpha(path: Path, header: Header, rank: int) -> float:
    alphas = Counter(read_scalars(path, header, ".alpha").values())
    if alphas:
        return alphas.most_common(1)[0][0]
    strengths = diffusers.Strengths.from_metadata(header.metadata)
    modules = (diffusers.modern_path(diffusers.split_key(name)[0]) for name in header.tensors)
    said = Counter(alpha for m in modules if rank and (alpha := strengths.alpha(m, rank)) is not None)
    if said:
        return said.most_common(1)[0][0]
    return float(rank)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
