"""What an adapter is, whatever file it came in: for each module two factors and a strength.

W' = W + alpha / r * up @ down        (LoRA, Hu et al. 2021, arXiv:2106.09685)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.tensors import Array
from registry.formats.words import Words
from registry.formats.words import components as word_components

if TYPE_CHECKING:
    from registry.formats.factors import Factors

MAX_ALPHA = 1e9  # beyond it the weights themselves leave fp32; the largest in use are some thousands
_AGAIN = "ask its author for a sound file"


@dataclass(frozen=True)
class LoraFactors:
    """The factors of one module.

    Args:
        down: (r, in) of a linear layer, (r, in, kh, kw) of a convolution; float32.
        up: (out, r) or (out, r, 1, 1); float32.
        alpha: Strength; the weight change is scaled by alpha / r.
    """

    down: Array
    up: Array
    alpha: float

    @property
    def rank(self) -> int:
        """Rank r."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def delta(self) -> Array:
        """Weight change: (out, in) or (out, in, kh, kw)."""
        up = self.up.reshape(self.up.shape[0], self.rank)
        change = np.float32(self.scale) * (up @ self.down.reshape(self.rank, -1))
        return change.reshape(up.shape[0], *self.down.shape[1:])

    def with_alpha(self, alpha: float) -> "LoraFactors":
        """The same weight change with another alpha; the difference goes into `up`."""
        if alpha == self.alpha:
            return self
        return LoraFactors(self.down, self.up * np.float32(self.alpha / alpha), alpha)


@dataclass(frozen=True)
class AdapterForm:
    """An adapter as `{module: factors}`: plain LoRA in `modules`, every other method in `others`.

    Module names are diffusers paths behind their component: `unet.down_blocks.0.attentions.0...attn1.to_q`,
    `text_encoder.text_model.encoder.layers.0.self_attn.q_proj` (`text_model.` always there, although newer
    transformers drop it in memory).
    """

    family: str  # "" while unidentified
    modules: Mapping[str, LoraFactors] = field(default_factory=dict[str, LoraFactors])
    others: Mapping[str, "Factors"] = field(default_factory=dict[str, Any])  # see `factors`
    configs: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict[str, Any]
    )  # PEFT's, of our own files
    words: Words = field(default_factory=dict[str, Mapping[str, Array]])  # new ones, see `formats.words`
    biases: Mapping[str, Array] = field(
        default_factory=dict[str, Array]
    )  # module -> what its bias changes by
    ignored: tuple[str, ...] = ()  # keys of the file that could not be understood

    @property
    def everything(self) -> dict[str, "LoraFactors | Factors"]:
        """All modules, of any method."""
        return {**self.modules, **self.others}

    def delta(self, module: str) -> Array:
        """Weight change of `module`, shaped like its weight."""
        return self.modules[module].delta()

    @property
    def components(self) -> tuple[str, ...]:
        """Pipeline components that have modules, the denoiser first."""
        return _denoiser_first({component_of(name) for name in (*self.everything, *self.biases)})

    @property
    def targets(self) -> tuple[str, ...]:
        """Pipeline components that the adapter changes: those with modules, and those with new words."""
        return _denoiser_first({*self.components, *word_components(self.words)})

    def of(self, component: str) -> dict[str, LoraFactors]:
        """Modules of one component, by full name."""
        return {name: item for name, item in self.modules.items() if component_of(name) == component}


def _denoiser_first(components: set[str]) -> tuple[str, ...]:
    return tuple(sorted(components, key=lambda name: (name.startswith("text"), name)))


def component_of(module: str) -> str:
    """`unet.conv_in` -> `unet`."""
    return module.partition(".")[0]


def make_factors(where: str, down: Array | None, up: Array | None, alpha: float | None) -> LoraFactors:
    """Checked factors of one module; a missing alpha means alpha = rank, as every reader takes it.

    Raises:
        BadInput: a half is missing or the halves do not fit; `where` names the module.
    """
    check_pair(where, None if down is None else down.shape, None if up is None else up.shape)
    assert down is not None
    assert up is not None
    if up.ndim != down.ndim:  # a convolution's second half may be stored flat, and the other way round
        up = up.reshape(*up.shape[:2], *[1] * (down.ndim - 2))
    strength = float(down.shape[0]) if alpha is None else float(alpha)
    if not abs(strength) <= MAX_ALPHA:  # nor is it a number
        raise BadInput(where, f"has an alpha of {strength:g}, which no picture survives", _AGAIN)
    return LoraFactors(down, up, strength)


def check_pair(where: str, down: tuple[int, ...] | None, up: tuple[int, ...] | None) -> None:
    """Check the shapes of LoRA's two factors: (rank, in) or (rank, in, kh, kw), and (out, rank) or with 1, 1.

    Raises:
        BadInput: a half is missing or the halves do not fit; `where` names the module.
    """
    if down is None or up is None:
        raise BadInput(where, f"lacks its {'down' if down is None else 'up'} weights", _AGAIN)
    if len(down) not in {2, 4} or len(up) not in {2, 4} or any(n != 1 for n in up[2:]):
        raise BadInput(
            where, f"has factors of shapes {down} and {up}, neither linear nor convolution", _AGAIN
        )
    if down[0] != up[1] or 0 in down or 0 in up:
        raise BadInput(where, f"has factors of shapes {down} and {up} that do not fit", _AGAIN)


def unknown_module(name: str, family: str) -> BadInput:
    """The error for a module that no table of the family knows."""
    label = family or "the known families"
    return BadInput(f"module {shown(name)}", f"is not part of {label}", "check which base it was trained on")
