"""Flow matching on straight lines between picture and noise (rectified flow).

Liu et al. 2022, "Flow Straight and Fast"; Esser et al. 2024, "Scaling Rectified Flow Transformers for
High-Resolution Image Synthesis" (SD3), whose section 3.1 has the timestep laws and section 5.3.2 the shift.

Shapes as in `trainers.objectives`; t is (B,) fp32 from 0 (the picture) to 1 (pure noise).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from trainers.fitting import check_objective
from trainers.noise import NoiseLaw, make_noise
from trainers.penalties import Penalty, make_penalty
from trainers.timestep_laws import Law, TimestepLaw, make_law

if TYPE_CHECKING:
    from trainers.recipe_fields import ObjectiveSection

Weighting = Literal["off", "sigma_sqrt", "cosmap"]

SMALLEST = 1e-3  # noise level below which sigma_sqrt counts no further: one step of 1000


@dataclass(frozen=True)
class Shift:
    """Moves times towards noise: t' = f t / (1 + (f - 1) t) (SD3, eq. 23, where f is sqrt(m / n)).

    A factor that grows with resolution makes up for large pictures being harder to drown in noise. FLUX.1
    takes f = exp(mu), mu linear in the number of image tokens.

    Args:
        factor: f when it does not depend on the size; 1 = no shift.
        dynamic: (tokens, mu) of two points of FLUX's line; None = `factor` holds for every size.
        exponential: Whether f is exp(mu); else mu itself.
    """

    factor: float = 1.0
    dynamic: tuple[tuple[float, float], tuple[float, float]] | None = None
    exponential: bool = True

    def mu(self, tokens: int) -> float:
        """FLUX's mu for a picture of that many tokens."""
        assert self.dynamic
        (few, low), (many, high) = self.dynamic
        return low + (high - low) * (tokens - few) / (many - few)

    def factor_of(self, tokens: int) -> float:
        """f for a picture of that many tokens, above 0."""
        if self.dynamic is None:
            return self.factor
        return math.exp(self.mu(tokens)) if self.exponential else self.mu(tokens)

    def apply(self, t: Tensor, tokens: int) -> Tensor:
        """Shifted times; keeps 0, 1 and the order."""
        factor = self.factor_of(tokens)
        return factor * t / (1 + (factor - 1) * t)


@dataclass(frozen=True)
class FlowMatching:
    """x_t = (1 - t) x0 + t noise; the target is its derivative, noise - x0.

    A time is drawn by the law's quantile function from a uniform number, then shifted, then squeezed into the
    bounds: t = low + (high - low) t'.

    Args:
        law: How times are drawn; see `TimestepLaw`.
        mean: Of the law.
        std: Of the law.
        sigmoid_scale: Of the law.
        mode_scale: Of the law.
        shift: Applied to the drawn time.
        weighting: off = 1; sigma_sqrt = t^-2; cosmap = 2 / (pi (1 - 2 t + 2 t^2)) (SD3, eq. 21). All as in
            diffusers, whose name sigma_sqrt it is.
        bounds: Lowest and highest time that is trained, 0 to 1.
        patch: Latent cells per token along one side; the shift counts tokens.
        noise: Law of the noise; of its variants only the perturbed input is of use here.
        error: Elementwise penalty.
    """

    law: Law = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    sigmoid_scale: float = 1.0
    mode_scale: float = 1.29
    shift: Shift = Shift()
    weighting: Weighting = "off"
    bounds: tuple[float, float] = (0.0, 1.0)
    patch: int = 2
    noise: NoiseLaw = field(default_factory=NoiseLaw)
    error: Penalty = field(default_factory=Penalty)

    def __post_init__(self) -> None:
        low, high = self.bounds
        assert 0 <= low < high <= 1, self.bounds

    def sample_t(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B,) fp32."""
        return self._placed(torch.rand(shape[0], generator=generator), shape)

    def sample_noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Standard normal noise."""
        return self.noise.sample(shape, generator)

    def perturb(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """See `NoiseLaw.perturb`."""
        return self.noise.perturb(noise, generator)

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(1 - t) x0 + t noise."""
        t = t.view(-1, 1, 1, 1)
        return (1 - t) * x0 + t * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """noise - x0, the same all along the line."""
        del t
        return noise - x0

    def weight(self, t: Tensor) -> Tensor:
        """1, or what `weighting` says."""
        if self.weighting == "sigma_sqrt":
            return t.float().clamp(min=SMALLEST).square().reciprocal()
        if self.weighting == "cosmap":
            return 2 / (math.pi * (1 - 2 * t + 2 * t.square())).float()
        return torch.ones(t.shape, dtype=torch.float32, device=t.device)

    def penalty(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Squared error, or what the recipe says; see `Penalty`."""
        return self.error(prediction, target, t)

    def probe_t(self, shape: torch.Size) -> Tensor:
        """(B,) fp32: the law's quantiles at the midpoints of B equal parts: as in training."""
        return self._placed((torch.arange(shape[0]) + 0.5) / shape[0], shape)

    def quantile(self, u: Tensor) -> Tensor:
        """The law's quantile function: uniform numbers in [0, 1] -> times before the shift."""
        law = TimestepLaw(self.law, self.mean, self.std, self.sigmoid_scale, self.mode_scale)
        return law.quantile(u)

    def _placed(self, u: Tensor, shape: torch.Size) -> Tensor:
        tokens = shape[-2] * shape[-1] // self.patch**2
        low, high = self.bounds
        return low + (high - low) * self.shift.apply(self.quantile(u), tokens)


def flow_matching(config: Mapping[str, Any], section: "ObjectiveSection", *, patch: int) -> FlowMatching:
    """The objective of a base that was trained by flow matching.

    Args:
        config: scheduler_config.json of a FlowMatch* scheduler: where the shift comes from.
        section: Of the recipe.
        patch: Latent cells per token along one side.

    Raises:
        BadInput: the recipe asks for what only diffusion has.
    """
    check_objective(section, flow=True)
    law = make_law(section, "logit_normal")
    return FlowMatching(
        law=law.name,
        mean=section.logit_mean,
        std=section.logit_std,
        sigmoid_scale=section.sigmoid_scale,
        mode_scale=section.mode_scale,
        shift=make_shift(config, section.shift, section.shift_factor),
        weighting=section.flow_weighting,
        bounds=(section.timestep_min / 1000, section.timestep_max / 1000),
        patch=patch,
        noise=make_noise(section),
        error=make_penalty(section),
    )


def make_shift(
    config: Mapping[str, Any],
    kind: Literal["auto", "static", "dynamic", "off"] = "auto",
    factor: float | None = None,
) -> Shift:
    """The shift a recipe asks for; what it leaves open comes from the base's scheduler.

    Args:
        config: scheduler_config.json.
        kind: auto = dynamic if the scheduler says `use_dynamic_shifting`, else static.
        factor: Of the static shift; None = the scheduler's.
    """
    if kind == "auto":
        kind = "dynamic" if config.get("use_dynamic_shifting") and factor is None else "static"
    if kind == "off":
        return Shift()
    if kind == "static":
        return Shift(float(config.get("shift", 1.0)) if factor is None else factor)
    few = (float(config.get("base_image_seq_len", 256)), float(config.get("base_shift", 0.5)))
    many = (float(config.get("max_image_seq_len", 4096)), float(config.get("max_shift", 1.15)))
    return Shift(
        dynamic=(few, many), exponential=config.get("time_shift_type", "exponential") == "exponential"
    )
