"""Adapter methods: what is attached to the frozen base, and how its tensors are named in a file.

LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"): W x + (alpha / rank) B A x, with
A (rank, in) random and B (out, rank) zero at the start, so that an untrained adapter changes nothing.
"""

import json
import math
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from registry.errors import BadInput
from trainers.families.base import Family
from trainers.plan import draw_seed
from trainers.recipe_fields import AdapterSection

PEFT_NAME = "default"  # PEFT's name of the only adapter; not part of a key in a file
METADATA_KEY = "lora_adapter_metadata"  # where diffusers looks for rank and alpha


@dataclass(frozen=True)
class Trainables:
    """The parameters that learn, fp32, by their key in the adapter file.

    Args:
        denoiser: Of the UNet or transformer.
        text: Of the text encoders; empty when they are frozen.
        configs: Component -> the LoRA configuration it was given.
        components: Component -> the module that carries the adapter.
        tokens: Of new words, see `trainers.new_tokens`.
        separable: Whether the base is still there below them; not in a full fine-tune.
    """

    denoiser: dict[str, nn.Parameter]
    text: dict[str, nn.Parameter]
    configs: dict[str, LoraConfig]
    components: dict[str, nn.Module]
    tokens: dict[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])
    separable: bool = True

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """All of them."""
        return self.denoiser | self.text | self.tokens

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them, in the order of `named`."""
        return list(self.named.values())

    def movement(self) -> float:
        """Largest absolute value in any B: 0 = the adapter has no effect, infinity = there
        is none. Waits for the device."""
        ups = [parameter for key, parameter in self.named.items() if key.endswith("lora_B.weight")]
        return float(torch.stack([up.detach().abs().max() for up in ups]).max()) if ups else math.inf

    def metadata(self) -> dict[str, str]:
        """File metadata without which loaders take alpha = rank."""
        facts = {
            f"{name}.{key}": value for name, config in self.configs.items() for key, value in _facts(config)
        }
        return {"format": "pt", METADATA_KEY: json.dumps(facts, sort_keys=True)}

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Dropout off: pictures and probes show the adapter as it is saved, and draw no random numbers."""
        before = {module: module.training for part in self.components.values() for module in part.modules()}
        for module in self.components.values():
            module.eval()
        try:
            yield
        finally:
            for module, training in before.items():
                module.training = training

    @contextmanager
    def disabled(self) -> Generator[None]:
        """The base as it is, without the adapter."""
        for module in self.components.values():
            _switch(module, on=False)
        try:
            yield
        finally:
            for module in self.components.values():
                _switch(module, on=True)


def attach(family: Family, section: AdapterSection, seed: int) -> Trainables:
    """Put a LoRA on the denoiser and, if the recipe says so, on the text encoders.

    Args:
        family: Its denoiser (and text encoders) get loaded and changed in place.
        section: The adapter section of the recipe.
        seed: Seed of the initial A.

    Raises:
        BadInput: adapter.targets matches no layer.
    """
    configs = {family.denoiser_name: _denoiser_config(family, section)}
    for name in family.trained_encoders(section):
        configs[name] = LoraConfig(
            r=section.text_encoder_rank,
            lora_alpha=_tidy(section.scale_text_alpha),
            lora_dropout=section.dropout,
            target_modules=list(family.targets_of(name)),
        )
    components: dict[str, nn.Module] = {}
    named: dict[str, dict[str, nn.Parameter]] = {}
    for name, config in configs.items():
        module: Any = family.part(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(seed, "adapter", name))
            module.add_adapter(config, adapter_name=PEFT_NAME)
        module.train(section.dropout > 0)
        components[name] = module
        named[name] = {}
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # fp16 gradients underflow, bf16 updates round away
                named[name][file_key(name, module, key)] = parameter
    denoiser = named.pop(family.denoiser_name)
    text_parameters = {key: value for part in named.values() for key, value in part.items()}
    return Trainables(denoiser, text_parameters, configs, components)


def file_key(component: str, module: nn.Module, name: str) -> str:
    """Parameter name in memory -> key in an adapter file, diffusers layout.

    transformers 5 dropped the level `text_model` from CLIPTextModel; files keep it, or other tools load
    nothing.
    """
    key = name.replace(f".{PEFT_NAME}.", ".")
    if getattr(module.config, "model_type", "") == "clip_text_model" and not hasattr(module, "text_model"):
        key = f"text_model.{key}"
    return f"{component}.{key}"


def load_tensors(trainables: Trainables, tensors: Mapping[str, Tensor]) -> None:
    """Copy values by file key into the parameters.

    Raises:
        BadInput: other layers or ranks than this recipe's.
    """
    named = trainables.named
    if named.keys() != tensors.keys():
        odd = sorted(named.keys() ^ tensors.keys())[0]
        raise BadInput(
            "checkpoint", f"has other layers than the recipe ({odd})", "keep the adapter section as it was"
        )
    with torch.no_grad():
        for key, parameter in named.items():
            if parameter.shape != tensors[key].shape:
                was, now = tuple(tensors[key].shape), tuple(parameter.shape)
                raise BadInput(
                    "checkpoint", f"{key} is {was}, the recipe makes it {now}", "keep the ranks as they were"
                )
            parameter.copy_(tensors[key])


def _denoiser_config(family: Family, section: AdapterSection) -> LoraConfig:
    listed, pattern = family.lora_targets, section.targets
    if isinstance(listed, str):
        listed, pattern = (), pattern or listed
    targets: list[str] = list(listed)
    ranks: dict[str, int] = {}
    alphas: dict[str, Any] = {}
    if section.conv_rank and not family.conv_targets:
        raise BadInput("adapter.conv_rank", "is set, but this base has no convolutions", "set it to 0")
    if section.conv_rank:
        targets += family.conv_targets
        ranks = dict.fromkeys(family.conv_targets, section.conv_rank)
        alphas = dict.fromkeys(family.conv_targets, _tidy(section.scale_conv_alpha))
    if pattern:
        layers = (name for name, m in family.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
        targets = [name for name in layers if re.fullmatch(pattern, name)]
        if not targets:
            example = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
            raise BadInput(
                "adapter.targets", f"{section.targets!r} matches no layer", f"paths look like {example}"
            )
    return LoraConfig(
        r=section.rank,
        lora_alpha=_tidy(section.scale_alpha),
        lora_dropout=section.dropout,
        target_modules=targets,
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )


def _facts(config: LoraConfig) -> Iterator[tuple[str, Any]]:
    yield "r", config.r
    yield "lora_alpha", config.lora_alpha
    yield "target_modules", sorted(config.target_modules or ())
    yield "rank_pattern", config.rank_pattern
    yield "alpha_pattern", config.alpha_pattern


def _tidy(alpha: float) -> Any:
    """Whole numbers as int: what other tools write, and what PEFT annotates."""
    return int(alpha) if alpha == int(alpha) else alpha


def _switch(module: nn.Module, *, on: bool) -> None:
    """What PEFT's `enable_adapters` does, but for `requires_grad`: a frozen text encoder stays frozen."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            state: Any = layer
            state._disable_adapters = not on
