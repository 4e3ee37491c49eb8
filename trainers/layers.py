"""Which layers of a base get an adapter: the family's lists, the recipe's patterns and per-block ranks."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from registry.errors import BadInput
from trainers.families.base import Family
from trainers.method_table import Layers, tidy
from trainers.recipe_fields import AdapterSection


def component_layers(family: Family, section: AdapterSection) -> dict[str, Layers]:
    """Component -> its layers: the denoiser, and the text encoders if the recipe trains them.

    Raises:
        BadInput: a pattern matches no layer, or nothing is left.
    """
    found = {family.denoiser_name: _denoiser(family, section)}
    for name in family.trained_encoders(section):
        targets = list(family.targets_of(name))
        found[name] = Layers(targets, section.text_encoder_rank, section.scale_text_alpha)
    if not section.block_ranks:
        return found
    used: set[str] = set()
    for name, layers in found.items():
        module: nn.Module = family.part(name)
        prefix = "" if name == family.denoiser_name else file_prefix(name, module)
        found[name] = _by_block(layers, module, prefix, section.block_ranks, used)
    for pattern in section.block_ranks:
        if pattern not in used:
            raise BadInput(
                "adapter.block_ranks", f"{pattern!r} decides about no layer", f"paths look like {EXAMPLE}"
            )
    empty = [name for name, layers in found.items() if not layers.targets]
    if empty:
        raise BadInput("adapter.block_ranks", f"leaves no layer of {empty[0]}", "give some of them a rank")
    return found


EXAMPLE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def file_prefix(component: str, module: nn.Module) -> str:
    """What stands before a module's path in a file.

    transformers 5 dropped the level `text_model` from CLIPTextModel; files keep it, or other tools load
    nothing.
    """
    kind = getattr(getattr(module, "config", None), "model_type", "")
    flat = kind == "clip_text_model" and not hasattr(module, "text_model")
    return f"{component}.text_model." if flat else f"{component}."


def _denoiser(family: Family, section: AdapterSection) -> Layers:
    listed, pattern = family.lora_targets, section.targets
    if isinstance(listed, str):
        listed, pattern = (), pattern or listed
    targets: list[str] = list(listed)
    if section.conv_rank and not family.conv_targets:
        raise BadInput("adapter.conv_rank", "is set, but this base has no convolutions", "set it to 0")
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    if section.conv_rank:
        targets += family.conv_targets
        ranks = dict.fromkeys(family.conv_targets, section.conv_rank)
        alphas = dict.fromkeys(family.conv_targets, section.scale_conv_alpha)
    if pattern:
        layers = (name for name, m in family.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
        targets = [name for name in layers if re.fullmatch(pattern, name)]
        if not targets:
            raise BadInput(
                "adapter.targets", f"{section.targets!r} matches no layer", f"paths look like {EXAMPLE}"
            )
        ranks, alphas = _used(ranks, targets), _used(alphas, targets)
    return Layers(targets, section.rank, section.scale_alpha, ranks, alphas)


def _by_block(
    layers: Layers, module: nn.Module, prefix: str, block_ranks: Mapping[str, int], used: set[str]
) -> Layers:
    """The layers with their block's rank and an alpha that keeps the strength; `used` gets what decided."""
    patterns = {text: re.compile(text) for text in block_ranks}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    kept: list[str] = []
    paths = [name for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    paths = [path for path in paths if any(_ends(path, target) for target in layers.targets)]
    for path in paths:
        text = next((text for text, pattern in patterns.items() if pattern.fullmatch(prefix + path)), None)
        if text is None:
            kept.append(path)
            continue
        used.add(text)
        if not block_ranks[text]:
            continue
        kept.append(path)
        rank, alpha = _given(layers.ranks, path, layers.rank), _given(layers.alphas, path, layers.alpha)
        ranks[f"^{path}"] = block_ranks[text]
        alphas[f"^{path}"] = tidy(alpha * block_ranks[text] / rank)
    # Endings of paths stay where every layer stays: diffusers refuses whole paths of text encoders.
    targets = layers.targets if len(kept) == len(paths) else kept
    ranks |= _used(layers.ranks, targets)
    alphas |= _used(layers.alphas, targets)
    return Layers(targets, layers.rank, layers.alpha, ranks, alphas)


def _used(patterns: dict[str, Any], targets: list[str]) -> dict[str, Any]:
    """Those that fit a target: PEFT warns of the others."""
    return {name: value for name, value in patterns.items() if any(_ends(t, name) for t in targets)}


def _ends(path: str, target: str) -> bool:
    """How PEFT reads a list of targets."""
    return path == target or path.endswith(f".{target}")


def _given(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    return next((value for target, value in patterns.items() if _ends(path, target)), default)
