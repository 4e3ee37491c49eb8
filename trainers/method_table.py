"""Adapter methods, one row each: how PEFT makes it, what is zero before training, what a file holds.

W is the weight of a layer, (out, in), or (out, in, kh, kw) read as (out, in kh kw); s = alpha / rank. All
factors are fp32. In every method an untrained adapter changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from registry.errors import BadInput
from trainers.recipe_fields import AdapterSection
from trainers.stored import StoredLayer

PEFT_NAME = "default"  # PEFT's name of the adapter that learns; not part of a key in a file
INITIAL = "initial"  # PEFT's name of the frozen copy that PiSSA subtracts


@dataclass(frozen=True)
class Layers:
    """Which layers of a component get an adapter, how wide and how strong.

    Args:
        targets: Names as PEFT takes them: whole paths or endings of paths.
        rank: Of layers that `ranks` does not name.
        alpha: Of layers that `alphas` does not name.
        ranks: Ending of a path, or "^" and a whole path -> rank.
        alphas: The same -> alpha.
    """

    targets: list[str]
    rank: int
    alpha: float
    ranks: dict[str, int] = field(default_factory=dict[str, int])
    alphas: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        config: Section and layers -> PEFT's configuration of a component.
        zero: Endings of parameter names that are zero until the first step.
        has_ab: Whether it has A and B: diffusers reads its strengths, LoRA+ tells its halves apart.
        undecayed: Endings of parameter names that weight decay would pull away from the base, not to it.
        prepare: Called with each adapted layer once its factors are fp32.
    """

    config: Callable[[AdapterSection, Layers], PeftConfig]
    zero: tuple[str, ...]
    has_ab: bool = False
    undecayed: tuple[str, ...] = ()
    prepare: Callable[[str, Any, AdapterSection], None] | None = None


def lora(section: AdapterSection, layers: Layers) -> LoraConfig:
    """W + s B A: A (rank, in) random, B (out, rank) zero.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
    """
    return _lora(section, layers)


def rslora(section: AdapterSection, layers: Layers) -> LoraConfig:
    """W + alpha / sqrt(rank) B A: the size of the update does not shrink as the rank grows.

    Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA".
    """
    return _lora(section, layers, use_rslora=True)


def dora(section: AdapterSection, layers: Layers) -> LoraConfig:
    """m (W + s B A) / |W + s B A|, norms per output row: m (out,) is the length, B A turns the direction.

    m starts as |W|. Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation".
    """
    return _lora(section, layers, use_dora=True)


def pissa(section: AdapterSection, layers: Layers) -> LoraConfig:
    """W - s B0 A0 + s B A: A and B start as A0 and B0, the `rank` largest singular directions of W.

    s B0 A0 = U S V' of W, cut to `rank`. W itself stays as it is: A0 and B0 are a frozen adapter of strength
    -s, so the base without the adapter is exact also in bf16, and a file is a LoRA of rank 2 rank, [A; A0]
    and [B, -B0]. Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation".
    """
    return _lora(section, layers)


def loha(section: AdapterSection, layers: Layers) -> LoHaConfig:
    """W + s (w1_a w1_b) * (w2_a w2_b), entry by entry, so of rank up to rank^2; w2_b is zero.

    Hyeon-Woo et al. 2022, "FedPara"; Yeh et al. 2024, "Navigating Text-To-Image Customization" (LyCORIS).
    """
    return LoHaConfig(use_effective_conv2d=section.tucker, **_lycoris(section, layers))


def lokr(section: AdapterSection, layers: Layers) -> LoKrConfig:
    """W + s w1 (x) w2, a Kronecker product; w1 is zero. w2 (and w1, when asked) is a product of low rank.

    The sides of w1 are `lokr_factor`, or near the square root of W's. Edalati et al. 2022, "KronA"; Yeh et
    al. 2024, "Navigating Text-To-Image Customization" (LyCORIS).
    """
    return LoKrConfig(
        use_effective_conv2d=section.tucker,
        decompose_factor=section.lokr_factor,
        decompose_both=section.lokr_decompose_both,
        **_lycoris(section, layers),
    )


def oft(section: AdapterSection, layers: Layers) -> OFTConfig:
    """W R': R (in, in) is block diagonal, a block is (I - Q) / (I + Q) with Q = -Q', orthogonal; Q is zero.

    The exact Cayley transform, not PEFT's default of five terms of its series, which is no rotation any more
    for larger Q. Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning".
    """
    return OFTConfig(
        target_modules=layers.targets, oft_block_size=section.oft_block, use_cayley_neumann=False
    )


def exact_magnitude(name: str, layer: Any, section: AdapterSection) -> None:
    """DoRA's m and norms in fp32: over a bf16 base PEFT rounds m, and norms on convolutions, to 8 bits.

    A row of W would then be off by up to 0.4 % before the first step.
    """
    del name, section
    dora_layer = layer.lora_magnitude_vector[PEFT_NAME]
    of_rows = dora_layer.get_weight_norm

    def norm(weight: Tensor, lora_weight: Tensor, scaling: float, **_: Any) -> Tensor:
        return of_rows(weight.float(), lora_weight.float(), scaling)

    dora_layer.get_weight_norm = norm
    if isinstance(base := layer.get_base_layer(), StoredLayer):
        _ask_the_layer(dora_layer)
    weight = base.weight.detach()
    rows = norm(weight, torch.zeros_like(weight), layer.scaling[PEFT_NAME])
    dora_layer.weight.data = rows.reshape(dora_layer.weight.shape)


def _ask_the_layer(dora_layer: Any) -> None:
    """With dropout PEFT multiplies with the base's weight itself, which autograd would keep whole."""
    through = dora_layer.forward

    def forward(x: Tensor, *, base_layer: Any, base_result: Tensor | None = None, **more: Any) -> Tensor:
        result = base_layer(x) if base_result is None else base_result
        return through(x, base_layer=base_layer, base_result=result, **more)

    dora_layer.forward = forward


def principal_directions(name: str, layer: Any, section: AdapterSection) -> None:
    """Fill A, B with the largest singular directions of W, and add the frozen copy that subtracts them.

    Raises:
        BadInput: the layer has fewer directions than the rank.
    """
    weight = layer.get_base_layer().weight.detach().float().flatten(1)
    rank, scale = layer.r[PEFT_NAME], layer.scaling[PEFT_NAME]
    if rank > min(weight.shape):
        wrong = f"pissa of rank {rank} needs as many directions, {name} has {min(weight.shape)}"
        raise BadInput("adapter.rank", wrong, "lower it, or leave the layer out with adapter.block_ranks")
    if section.pissa_iterations:
        u, s, v = torch.svd_lowrank(weight, rank, niter=section.pissa_iterations)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    down, up = root[:, None] * vh[:rank], u[:, :rank] * root
    config = LoraConfig(r=rank, lora_alpha=layer.lora_alpha[PEFT_NAME], init_lora_weights=False)
    layer.update_layer(INITIAL, rank, layer.lora_alpha[PEFT_NAME], config=config)
    layer.scaling[INITIAL] = -scale
    layer.set_adapter([PEFT_NAME, INITIAL])
    for adapter in (PEFT_NAME, INITIAL):
        for half, values in ((layer.lora_A[adapter], down), (layer.lora_B[adapter], up)):
            half.weight.data = values.reshape(half.weight.shape).clone(memory_format=torch.contiguous_format)
            half.weight.requires_grad_(adapter == PEFT_NAME)


METHODS: dict[str, Method] = {
    "lora": Method(lora, (".lora_B.weight",), has_ab=True),
    "rslora": Method(rslora, (".lora_B.weight",), has_ab=True),
    "dora": Method(
        dora,
        (".lora_B.weight",),
        has_ab=True,
        undecayed=(".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
        prepare=exact_magnitude,
    ),
    "loha": Method(loha, (".hada_w2_b",)),
    "lokr": Method(lokr, (".lokr_w1", ".lokr_w1_a")),
    "oft": Method(oft, (".oft_R.weight",)),
    "pissa": Method(pissa, (), has_ab=True, undecayed=("",), prepare=principal_directions),
}


def file_config(method: str, config: PeftConfig) -> dict[str, Any]:
    """What differs from PEFT's defaults in the configuration that reads a file of this method, as JSON types.

    `PeftConfig` of `peft_type` made from it fits the file exactly. PiSSA's is a LoRA of twice the rank.
    """
    defaults = type(config)().to_dict()
    facts = {key: value for key, value in config.to_dict().items() if value != defaults[key]}
    facts["target_modules"] = sorted(config.target_modules or ())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType, reportUnknownArgumentType]
    facts["peft_type"] = str(getattr(config.peft_type, "value", config.peft_type))
    if method in ("pissa",):
        facts |= {key: 2 * facts.get(key, defaults[key]) for key in ("r", "lora_alpha")}
        for key in ("rank_pattern", "alpha_pattern"):
            facts[key] = {pattern: 2 * value for pattern, value in facts.get(key, {}).items()}
    return facts


def initial_of(component: nn.Module) -> dict[str, nn.Parameter]:
    """PiSSA's frozen A0 and B0 by their name, in which the learning adapter stands for the frozen one."""
    return {
        name.replace(f".{INITIAL}.", f".{PEFT_NAME}."): parameter
        for name, parameter in component.named_parameters()
        if f".{INITIAL}." in name
    }


def doubled(values: dict[str, Tensor], initial: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """PiSSA's A and B with the initial ones subtracted, as a LoRA of twice the rank: [A; A0], [B, -B0].

    What has no initial value, as new words, stays as it is.
    """
    done = dict(values)
    for key in values.keys() & initial.keys():
        value = values[key]
        start = initial[key].detach().to(value)
        is_down = key.endswith(".lora_A.weight")
        done[key] = torch.cat([value, start], 0) if is_down else torch.cat([value, -start], 1)
    return done


def is_plain_lora(layer: nn.Module) -> bool:
    """Whether a layer computes W x + scaling B A x and nothing else."""
    return (
        isinstance(layer, LoraLayer)
        and list(layer.lora_A.keys()) == [PEFT_NAME]  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        and not layer.use_dora.get(PEFT_NAME, False)
    )


def _lora(section: AdapterSection, layers: Layers, **more: Any) -> LoraConfig:
    return LoraConfig(
        r=layers.rank,
        lora_alpha=tidy(layers.alpha),
        lora_dropout=section.dropout,
        target_modules=layers.targets,
        rank_pattern=layers.ranks,
        alpha_pattern={name: tidy(alpha) for name, alpha in layers.alphas.items()},
        **more,
    )


def _lycoris(section: AdapterSection, layers: Layers) -> dict[str, Any]:
    return {
        "r": layers.rank,
        "alpha": tidy(layers.alpha),
        "rank_dropout": section.dropout,
        "target_modules": layers.targets,
        "rank_pattern": layers.ranks,
        "alpha_pattern": {name: tidy(alpha) for name, alpha in layers.alphas.items()},
    }


def tidy(alpha: float) -> Any:
    """Whole numbers as int: what other tools write, and what PEFT annotates."""
    return int(alpha) if alpha == int(alpha) else alpha
