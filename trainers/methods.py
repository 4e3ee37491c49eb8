"""Adapter methods: what is attached to the frozen base, and how its tensors are named in a file.

The methods themselves are rows of `method_table`.
"""

import json
import math
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from registry.errors import BadInput
from trainers.families.base import Family
from trainers.layers import component_layers, file_prefix
from trainers.method_table import METHODS, PEFT_NAME, Method, doubled, file_config, initial_of
from trainers.plan import draw_seed
from trainers.recipe_fields import AdapterSection

METADATA_KEY = "lora_adapter_metadata"  # where diffusers looks for rank and alpha
PEFT_KEY = "studio.peft"  # PEFT's configuration by component, see `method_table.file_config`


@dataclass(frozen=True)
class Trainables:
    """The parameters that learn, fp32, by their key in the adapter file.

    Args:
        denoiser: Of the UNet or transformer.
        text: Of the text encoders; empty when they are frozen.
        configs: Component -> the PEFT configuration it was given.
        components: Component -> the module that carries the adapter.
        method: Row of `method_table.METHODS`.
        initial: PiSSA's frozen factors by the key of those that learn; empty for other methods.
        tokens: Of new words, see `trainers.new_tokens`.
        separable: Whether the base is still there below them; not in a full fine-tune.
    """

    denoiser: dict[str, nn.Parameter]
    text: dict[str, nn.Parameter]
    configs: dict[str, PeftConfig]
    components: dict[str, nn.Module]
    method: str = "lora"
    initial: dict[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])
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

    @property
    def unshared(self) -> list[nn.Parameter]:
        """What every process has whole where they share the base: all of them, and what is saved beside."""
        return [*self.parameters, *self.initial.values()]

    @cached_property
    def layers(self) -> list[Any]:
        """The adapted layers of all components: PEFT's, and embeddings with new words."""
        return [module for module in self._modules if hasattr(module, "_disable_adapters")]

    @cached_property
    def _modules(self) -> list[nn.Module]:
        """Every module of the components; to look for them is as much work as a look at each of them."""
        return [module for part in self.components.values() for module in part.modules()]

    def movement(self) -> float:
        """Largest absolute value of what an untrained adapter has at zero: 0 = no effect, infinity = there is
        no such thing. Waits for the device."""
        if self.initial:
            named = self.named
            moved = [(named[key].detach() - start).abs().max() for key, start in self.initial.items()]
        else:
            zero = METHODS[self.method].zero
            moved = [p.detach().abs().max() for key, p in self.named.items() if key.endswith(zero)]
        return float(torch.stack(moved).max()) if moved else math.inf

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a file holds for these values of the parameters: themselves, or for PiSSA a LoRA of twice the
        rank."""
        return doubled(dict(values), self.initial) if self.initial else dict(values)

    def metadata(self) -> dict[str, str]:
        """File metadata without which loaders take alpha = rank, and PEFT's configuration as a whole."""
        configs = {name: file_config(self.method, config) for name, config in self.configs.items()}
        texts = {"format": "pt", PEFT_KEY: json.dumps(configs, sort_keys=True)}
        if METHODS[self.method].has_ab:
            facts = {f"{name}.{key}": value for name, c in configs.items() for key, value in _facts(c)}
            texts[METADATA_KEY] = json.dumps(facts, sort_keys=True)
        return texts

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """Dropout off: pictures and probes show the adapter as it is saved, and draw no random numbers."""
        learning = [module for module in self._modules if module.training]  # all, or none without dropout
        for module in learning:
            module.training = False
        try:
            yield
        finally:
            for module in learning:
                module.training = True

    @contextmanager
    def disabled(self) -> Generator[None]:
        """The base as it is, without the adapter."""
        # PEFT's enable_adapters would also let frozen factors learn again.
        for layer in self.layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers:
                layer._disable_adapters = False


def attach(family: Family, section: AdapterSection, seed: int) -> Trainables:
    """Put an adapter on the denoiser and, if the recipe says so, on the text encoders.

    Args:
        family: Its denoiser (and text encoders) get loaded and changed in place.
        section: The adapter section of the recipe.
        seed: Seed of the initial factors.

    Raises:
        BadInput: a pattern of the section matches no layer, or the rank does not fit one.
    """
    method = METHODS[section.method]
    configs = {
        name: method.config(section, layers) for name, layers in component_layers(family, section).items()
    }
    components: dict[str, nn.Module] = {}
    named: dict[str, dict[str, nn.Parameter]] = {}
    initial: dict[str, nn.Parameter] = {}
    for name, config in configs.items():
        module: nn.Module = family.part(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(seed, "adapter", name))
            learning = _inject(module, config, method, section)
        module.train(section.dropout > 0)
        components[name] = module
        named[name] = {file_key(name, module, key): parameter for key, parameter in learning.items()}
        initial |= {file_key(name, module, key): p for key, p in initial_of(module).items()}
    denoiser = named.pop(family.denoiser_name)
    text = {key: value for part in named.values() for key, value in part.items()}
    return Trainables(denoiser, text, configs, components, section.method, initial)


def _inject(
    module: nn.Module, config: PeftConfig, method: Method, section: AdapterSection
) -> dict[str, nn.Parameter]:
    """Adapt the layers of a component; returns what learns, fp32, by its name in memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")  # the field's text says it
        inject_adapter_in_model(config, module, adapter_name=PEFT_NAME)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # fp16 gradients underflow, bf16 updates round away
    if method.prepare:
        for path, layer in list(module.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                method.prepare(path, layer, section)
    return {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}


def file_key(component: str, module: nn.Module, name: str) -> str:
    """Parameter name in memory -> key in an adapter file, as PEFT and diffusers write it.

    DoRA's magnitude has no `.weight` behind it in PEFT; diffusers loads text encoders through transformers,
    which finds it only with one.
    """
    key = name.replace(f".{PEFT_NAME}.", ".").removesuffix(f".{PEFT_NAME}")
    if not component.startswith("text_encoder"):
        key = key.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
    return file_prefix(component, module) + key


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


def load_initial(trainables: Trainables, tensors: Mapping[str, Tensor]) -> None:
    """Put PiSSA's frozen factors back as a checkpoint has them: elsewhere a decomposition rounds otherwise.

    Raises:
        BadInput: the checkpoint has none for a layer.
    """
    with torch.no_grad():
        for key, parameter in trainables.initial.items():
            if key not in tensors or tensors[key].shape != parameter.shape:
                raise BadInput("checkpoint", f"lacks the start of {key}", "start a new run")
            parameter.copy_(tensors[key])


def _facts(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What diffusers needs to know of a configuration."""
    yield "r", config.get("r", 8)
    yield "lora_alpha", config.get("lora_alpha", 8)
    yield "target_modules", config["target_modules"]
    yield "rank_pattern", config.get("rank_pattern", {})
    yield "alpha_pattern", config.get("alpha_pattern", {})
    for flag in ("use_rslora", "use_dora"):
        if config.get(flag):
            yield flag, True
