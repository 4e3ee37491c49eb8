"""What a file is, from its header alone: family (see `detect`), method, rank, strength, targets, words."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from registry.errors import BadInput
from registry.formats import grammar
from registry.formats.detect import FLOW, Shape, identify
from registry.formats.diffusers import ADAPTER_METADATA, Strengths
from registry.formats.families import PEFT_ROOT, family_format, modern_path
from registry.formats.grammar import Grouped
from registry.formats.header import INTEGERS, Header, read_header, shown
from registry.formats.internal import check_pair
from registry.formats.peft_config import PeftConfig, peft_config
from registry.formats.reading import peft_configs, require_whole_base
from registry.formats.tensors import read_scalars, stored_dtype
from registry.formats.words import BUNDLE, word_keys

# Of a file with several, the first of these that occurs names it.
METHODS = ("dora", "loha", "lokr", "oft", "tucker", "lora", "full", "norm")
Kind = tuple[tuple[str, Shape], ...]  # of a module: its parts with their shapes
_FLUX = re.compile(r"(double|single)_blocks|single_transformer_blocks")


@dataclass(frozen=True)
class AdapterFacts:
    """What the header says. `family` is "" while unidentified; `reason` says what decided or is missing."""

    family: str
    method: str  # one of `METHODS`, "embedding" (new words alone), or what we cannot read: see `foreign`
    rank: int  # the most frequent one; 0 when the method has none
    alpha: float  # the most frequent one
    targets: tuple[str, ...]  # components: "unet", "text_encoder"
    layout: str  # see `_layout`
    trigger_words: tuple[str, ...]
    base_name: str
    metadata: dict[str, str] = field(repr=False)
    confidence: str  # "high": from shapes; "medium": from metadata or names; "none"
    reason: str
    context_dim: int = 0  # 0 when no cross-attention is among the targets
    modules: int = 0
    dtype: str = "fp32"
    variant: str = ""  # of the base: "medium", "large", "dev", "schnell", "v", "eps"; "" = nothing says
    methods: Mapping[str, int] = field(default_factory=dict[str, int])  # modules of each
    ignored: tuple[str, ...] = ()  # keys that cannot be understood, all of them
    foreign: bool = False  # `method` is one that we cannot read
    peft: PeftConfig | None = field(default=None, repr=False)  # of a file that does not say its strength

    @property
    def strength_assumed(self) -> bool:
        """Whether nothing says how strong the adapter is, so that `alpha` is an assumption."""
        return self.peft is not None and not self.peft.values and self.method not in {"full", "norm", "oft"}


def inspect_adapter(path: Path) -> AdapterFacts:
    """Facts of the adapter in `path`; reads the header and the alpha scalars, never the weights.

    Raises:
        BadInput: the file is unsound or holds no adapter.
    """
    return facts_of(path, read_header(path))


def facts_of(path: Path, header: Header, peft: PeftConfig | None = None) -> AdapterFacts:
    """`inspect_adapter` for a header that is read already; `peft` as in `load.load_adapter`.

    Raises:
        BadInput: it holds no adapter, an unsound one, one that fits only a base that was changed for it, or
            the configuration beside it is unsound.
    """
    new_words = word_keys(header.tensors)
    peft = peft or peft_config(path, header.tensors, header.metadata)
    shapes = {peft.name(name) if peft else name: info.shape for name, info in header.tensors.items()}
    for name in new_words:
        del shapes[name]
    groups = grammar.grouped(shapes)
    kinds = Counter(tuple(parts.items()) for parts in groups.modules.values())  # a thousand modules have few
    methods, ranks = Counter[str](), Counter[int]()
    for kind, count in kinds.items():
        parts = dict(kind)
        methods[grammar.method_of(parts)] += count
        ranks[_rank(parts)] += count
    del methods[""], ranks[0]
    foreign = grammar.foreign_method(groups.ignored) or _boft(groups)
    method = foreign or next((name for name in METHODS if methods[name]), "")
    if not method and header.tensors and not shapes:
        method = "embedding"
    if not method:
        raise BadInput(str(path), "has no adapter weights", "import checkpoints with studio bases add")
    if not foreign:
        _check_sound(path, header, groups, kinds)
    found = identify(groups, header.metadata)
    rank = ranks.most_common(1)[0][0] if ranks else 0
    said = header.metadata | (peft.metadata(found.family) if peft else {})
    require_whole_base(said)
    rank, alpha = _strength(path, header, groups, method, rank, found.family, said)
    return AdapterFacts(
        family=found.family,
        method=method,
        rank=rank,
        alpha=alpha,
        targets=_targets(found.components, [*groups.modules, *new_words] if not found.family else new_words),
        layout=_layout(groups, header.tensors),
        trigger_words=trigger_words(header.metadata),
        base_name=header.metadata.get("studio.base_name") or header.metadata.get("ss_sd_model_name", ""),
        metadata=header.metadata,
        confidence=found.confidence,
        reason=found.reason,
        context_dim=found.context_dim,
        modules=sum(methods.values()),
        dtype=stored_dtype(header),
        variant=found.variant,
        methods=dict(methods),
        ignored=(*groups.ignored, *(key for name in found.unknown for key in groups.keys[name])),
        foreign=bool(foreign),
        peft=peft,
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


def _check_sound(path: Path, header: Header, groups: Grouped[Shape], kinds: Iterable[Kind]) -> None:
    """What can be known without the weights: LoRA's factors fit each other, and all weights are floats."""
    for kind in kinds:
        parts = dict(kind)
        if ("down" in parts or "up" in parts) and "mid" not in parts:
            try:
                check_pair("", parts.get("down"), parts.get("up"))
            except BadInput as error:
                module = next(name for name, own in groups.modules.items() if tuple(own.items()) == kind)
                raise BadInput(f"{path}, module {shown(module)}", error.wrong, error.do) from error
    for name, info in header.tensors.items() if INTEGERS.intersection(header.dtypes) else ():
        if info.dtype in INTEGERS and len(info.shape) > 1:
            wrong = f"tensor {shown(name)} holds whole numbers ({info.dtype}), not weights"
            raise BadInput(str(path), wrong, "ask for fp32, fp16 or bf16")


def _boft(groups: Grouped[Shape]) -> str:
    return "boft" if any(len(parts.get("oft_blocks", ())) == 4 for parts in groups.modules.values()) else ""


def _rank(parts: Mapping[str, Shape]) -> int:
    """Inner dimension of a module, 0 where there is none."""
    for part in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if parts.get(part):
            return parts[part][0]
    return 0


def _strength(
    path: Path,
    header: Header,
    groups: Grouped[Shape],
    method: str,
    rank: int,
    family: str,
    metadata: Mapping[str, str],
) -> tuple[int, float]:
    """(rank, alpha), the most frequent ones; `metadata` with what PEFT's configuration adds to it."""
    stored = Counter(read_scalars(path, header, ".alpha"))
    if stored:
        return rank, stored.most_common(1)[0][0]
    if method in ("loha", "lokr"):
        configs = peft_configs(metadata)
        for name in sorted(configs, key=lambda name: name.startswith("text")):  # the denoiser's first
            config = configs[name]
            if config.get("peft_type") in ("LOHA", "LOKR"):
                return rank or int(config.get("r", 8)), float(config.get("alpha", 8))
    strengths = Strengths.from_metadata(metadata)
    paths = _full_names(groups.modules, family) if ADAPTER_METADATA in metadata else ()
    said = Counter(alpha for m in paths if rank and (alpha := strengths.alpha(m, rank)) is not None)
    return rank, said.most_common(1)[0][0] if said else float(rank)


def _full_names(modules: Iterable[str], family: str) -> Iterable[str]:
    """Names with their component, which PEFT's own files leave away; of what is not known, the denoiser's."""
    names = family_format(family)
    for module in modules:
        path = modern_path(module)
        if path.partition(".")[0] in names.grammars:
            yield path
        else:
            place = names.place_of(module)
            yield f"{place[0]}.{place[1].modules[0]}" if place else f"{names.denoiser}.{path}"


def _layout(groups: Grouped[Shape], keys: Iterable[str]) -> str:
    """Whose names a file has.

    "kohya" (`lora_unet_`, `lora_te`), "onetrainer" (`lora_transformer_`), "simpletuner" (`lycoris_`),
    "xlabs", "bfl" (the published names, dotted: BFL, ai-toolkit, ComfyUI), "peft", "diffusers",
    "diffusers-old", "other".
    """
    text, names = "\n".join(["", *keys]), "\n".join(["", *groups.modules])
    for sign, layout in (
        ("\nlora_transformer_", "onetrainer"), ("\nlora_", "kohya"), ("\noft_unet_", "kohya"),
        ("\nlycoris_", "simpletuner"), ("\ndiffusion_model.", "bfl"), ("\nmodel.diffusion_model.", "bfl"),
        ("_lora1.", "xlabs"), ("_lora2.", "xlabs"), ("\n" + PEFT_ROOT, "peft"),
    ):  # fmt: skip
        if sign in text:
            return layout
    if re.search(r"\nsingle_blocks\.\d+\.processor\.", names):
        return "xlabs"
    if re.search(r"\n(double|single|joint|input|output)_blocks?\.", names):
        return "bfl"
    if ".lora_A." in text or any(root in names for root in ("\nunet.", "\ntransformer.", "\ntext_encoder")):
        old = re.search(r"(_lora|\.lora|\.lora_linear_layer)\.down\.weight", text)
        return "diffusers-old" if old else "diffusers"
    return (
        "diffusers-old" if re.search(r"(_lora|\.lora|\.lora_linear_layer)\.down\.weight", text) else "other"
    )


def _targets(known: Iterable[str], names: list[str]) -> tuple[str, ...]:
    """Pipeline components that a file changes: those that are known, and those that `names` suggest."""
    flux = _FLUX.search("\n".join(names)) is not None
    found = {*known, *(_target(name, flux) for name in names if not name.startswith(BUNDLE))}
    return tuple(sorted(found, key=lambda name: (name.startswith("text"), name)))


def _target(key: str, flux: bool) -> str:
    if key.startswith(("lora_te3_", "text_encoder_3.", "text_encoders.t5xxl.")):
        return "text_encoder_2" if flux else "text_encoder_3"  # FLUX has T5 second, kohya third
    if key.startswith(("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.")):
        return "text_encoder_2"
    if key.startswith(("lora_te", "text_encoder")) or ".self_attn." in key:
        return "text_encoder"
    return "transformer" if FLOW.search(key) else "unet"


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
