"""What the denoiser is asked to predict: noising, regression target, timestep law, loss weight.

Shapes: x0, noise and x_t are (B, C, h, w) latents, already scaled; t is (B,), integer train timesteps
for `DDPM`, fp32 from 0 to 1 for `flow_matching`. Random numbers come from a CPU generator that the loop
derives from (seed, step, micro-batch, process), so that a resumed run draws what the uninterrupted one would
have drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor

from registry.errors import BadInput

if TYPE_CHECKING:
    from trainers.recipe_fields import ObjectiveSection

Prediction = Literal["epsilon", "v_prediction"]


class Objective(Protocol):
    """A way to noise clean latents and to score the denoiser's answer."""

    def sample_t(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B,) timesteps on the CPU for latents of `shape` (B, C, h, w): the law may depend on their size."""
        ...

    def sample_noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B, C, h, w) fp32 noise on the CPU."""
        ...

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t: the clean latents at noise level t."""
        ...

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should return for x_t."""
        ...

    def weight(self, t: Tensor) -> Tensor:
        """(B,) fp32 loss weights."""
        ...

    def penalty(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """(B, C, h, w) fp32 error of every latent value, before weights and means."""
        ...

    def probe_t(self, shape: torch.Size) -> Tensor:
        """(B,) timesteps spread evenly over the range that is trained; for the probe loss."""
        ...


@dataclass(frozen=True)
class DDPM:
    """Discrete-time diffusion (Ho et al. 2020, "Denoising Diffusion Probabilistic Models").

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise; a_t is the cumulative product of alphas; SNR = a_t / (1 - a_t).

    Args:
        alphas_cumprod: (T,) fp32, a_t.
        prediction: "epsilon" regresses the noise; "v_prediction" regresses sqrt(a_t) noise - sqrt(1 - a_t) x0
            (Salimans and Ho 2022, "Progressive Distillation", app. D).
        snr_gamma: min-SNR weighting (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting
            Strategy", sec. 3.4): min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v.
            None = weight 1.
        noise_offset: standard deviation of a constant added to each channel of the noise (Guttenberg 2023,
            "Diffusion with Offset Noise"); lets pictures become very dark or bright. 0 = off.
        timesteps: half-open range of the training timesteps.
    """

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"
    snr_gamma: float | None = None
    noise_offset: float = 0.0
    timesteps: tuple[int, int] = (0, 1000)

    def __post_init__(self) -> None:
        low, high = self.timesteps
        assert 0 <= low < high <= len(self.alphas_cumprod), self.timesteps

    def sample_t(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B,) int64, uniform over `timesteps`."""
        return torch.randint(*self.timesteps, (shape[0],), generator=generator)

    def sample_noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Standard normal noise, plus the offset."""
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset:
            noise += self.noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
        return noise

    def corrupt(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """sqrt(a_t) x0 + sqrt(1 - a_t) noise."""
        a = self._alpha_bar(x0, t)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noise, or the velocity."""
        if self.prediction == "epsilon":
            return noise
        a = self._alpha_bar(x0, t)
        return a.sqrt() * noise - (1 - a).sqrt() * x0

    def weight(self, t: Tensor) -> Tensor:
        """1, or the min-SNR weight; 0 < weight <= 1 but for v at zero SNR, where it is 0."""
        if self.snr_gamma is None:
            return torch.ones(t.shape, dtype=torch.float32, device=t.device)
        a = self.alphas_cumprod.to(t.device)[t]
        snr = a / (1 - a)
        if self.prediction == "v_prediction":
            return snr.clamp(max=self.snr_gamma) / (snr + 1)
        return (self.snr_gamma / snr).clamp(max=1)

    def penalty(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Squared error."""
        del t
        return (prediction - target).square()

    def probe_t(self, shape: torch.Size) -> Tensor:
        """(B,) int64: midpoints of B equal parts of `timesteps`."""
        low, high = self.timesteps
        return (low + (torch.arange(shape[0]) + 0.5) * (high - low) / shape[0]).long()

    def _alpha_bar(self, like: Tensor, t: Tensor) -> Tensor:
        return self.alphas_cumprod.to(like.device)[t].view(-1, 1, 1, 1)


def ddpm(
    scheduler_config: dict[str, Any],
    *,
    prediction: Literal["auto", "epsilon", "v_prediction"] = "auto",
    snr_gamma: float | None = None,
    noise_offset: float = 0.0,
    timesteps: tuple[int, int] = (0, 1000),
) -> DDPM:
    """The objective that a base's scheduler_config.json describes.

    Args:
        scheduler_config: Of any diffusers scheduler: betas and prediction type are what counts.
        prediction: "auto" takes the scheduler's word for it.
        snr_gamma: See `DDPM`.
        noise_offset: See `DDPM`.
        timesteps: In thousandths of the schedule, half-open; scaled when the base has other than 1000 steps.

    Raises:
        BadInput: the base predicts something else than epsilon or v, or epsilon on a schedule that ends at
            zero signal, where the noise is no longer a question.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = cast(DDPMScheduler, DDPMScheduler.from_config(scheduler_config))
    kind = scheduler.config["prediction_type"] if prediction == "auto" else prediction
    if kind not in ("epsilon", "v_prediction"):
        raise BadInput(
            "base", f"its scheduler predicts {kind!r}", "use a base that predicts epsilon or v_prediction"
        )
    alphas_cumprod = scheduler.alphas_cumprod.float()
    if kind == "epsilon" and alphas_cumprod[-1] < 1e-6:  # diffusers leaves 2^-24 there
        raise BadInput(
            "objective.prediction",
            "is epsilon, but the base's noise schedule ends at zero signal",
            "set objective.prediction=v_prediction",
        )
    total = len(alphas_cumprod)
    low, high = (bound * total // 1000 for bound in timesteps)
    return DDPM(alphas_cumprod, kind, snr_gamma, noise_offset, (low, max(high, low + 1)))


FLOW_ONLY = (
    "timestep_law", "logit_mean", "logit_std", "sigmoid_scale", "mode_scale", "shift", "shift_factor",
    "flow_weighting", "guidance",
)  # fmt: skip


def refuse_fields(section: "ObjectiveSection", names: Sequence[str], why: str) -> None:
    """Refuse fields of the objective that have another value than their default.

    Raises:
        BadInput: names the first of them.
    """
    for name in names:
        default = type(section).model_fields[name].default
        if getattr(section, name) != default:
            usual = "none" if default is None else default
            raise BadInput(f"objective.{name}", why, f"set it to {usual}, or leave it out")
