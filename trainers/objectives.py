"""What the denoiser is asked to predict: noising, regression target, timestep law, loss weight.

Shapes: x0, noise and x_t are (B, C, h, w) latents, already scaled; t is (B,), integer train timesteps
for `DDPM`, fp32 from 0 to 1 for `flow_matching`. Random numbers come from a CPU generator that the loop
derives from (seed, step, micro-batch, process), so that a resumed run draws what the uninterrupted one would
have drawn.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from registry.errors import BadInput
from trainers.fitting import check_objective
from trainers.noise import NoiseLaw, make_noise
from trainers.penalties import Penalty, make_penalty
from trainers.recipe_fields import ObjectiveSection
from trainers.timestep_laws import TimestepLaw, make_law

Prediction = Literal["epsilon", "v_prediction"]
UNIFORM = TimestepLaw("uniform")
Weighting = Literal["off", "min_snr", "soft_min_snr", "debiased", "p2", "epsilon"]


class Objective(Protocol):
    """A way to noise clean latents and to score the denoiser's answer."""

    def sample_t(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B,) timesteps on the CPU for latents of `shape` (B, C, h, w): the law may depend on their size."""
        ...

    def sample_noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B, C, h, w) fp32 noise on the CPU."""
        ...

    def perturb(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """What x_t is made with while the target keeps `noise`: the same, unless the input is perturbed."""
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

    An error of v is an error of the noise times (SNR + 1) / SNR, so a weight w of the noise's square becomes
    w SNR / (SNR + 1) for v. For the noise, with gamma = snr_gamma, w is

        off            1, and 1 for v too
        min_snr        min(SNR, gamma) / SNR     (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR
                                                 Weighting Strategy", sec. 3.4)
        soft_min_snr   gamma / (SNR + gamma)     (Crowson et al. 2024, "Scalable High-Resolution Pixel-Space
                                                 Image Synthesis with Hourglass Diffusion Transformers")
        debiased       1 / sqrt(SNR)             (Yu et al. 2023, "Debias the Training of Diffusion Models")
        p2             1 / (1 + SNR)             (Choi et al. 2022, "Perception Prioritized Training of
                                                 Diffusion Models", k = gamma = 1)
        epsilon        1

    Args:
        alphas_cumprod: (T,) fp32, a_t.
        prediction: "epsilon" regresses the noise; "v_prediction" regresses sqrt(a_t) noise - sqrt(1 - a_t) x0
            (Salimans and Ho 2022, "Progressive Distillation", app. D).
        snr_gamma: Above 0; only the two min-SNR weights read it.
        weighting: One of the table.
        timesteps: half-open range of the training timesteps.
        law: How they are drawn; mapped evenly to the range.
        noise: Law of the noise.
        error: Elementwise penalty.
    """

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"
    snr_gamma: float = 5.0
    weighting: Weighting = "off"
    timesteps: tuple[int, int] = (0, 1000)
    law: TimestepLaw = UNIFORM
    noise: NoiseLaw = field(default_factory=NoiseLaw)
    error: Penalty = field(default_factory=Penalty)

    def __post_init__(self) -> None:
        low, high = self.timesteps
        assert 0 <= low < high <= len(self.alphas_cumprod), self.timesteps

    def sample_t(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """(B,) int64 in `timesteps`."""
        if self.law.name == "uniform":
            return torch.randint(*self.timesteps, (shape[0],), generator=generator)
        return self._placed(torch.rand(shape[0], generator=generator))

    def sample_noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Standard normal noise, with what the recipe adds; see `NoiseLaw`."""
        return self.noise.sample(shape, generator)

    def perturb(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """See `NoiseLaw.perturb`."""
        return self.noise.perturb(noise, generator)

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
        """The table's weight; for v at zero SNR it is 0, but for "off"."""
        if self.weighting == "off":
            return torch.ones(t.shape, dtype=torch.float32, device=t.device)
        a = self.alphas_cumprod.to(t.device)[t]
        snr, gamma = a / (1 - a), self.snr_gamma
        velocity = self.prediction == "v_prediction"
        match self.weighting:
            case "min_snr":
                return snr.clamp(max=gamma) / (snr + 1) if velocity else (gamma / snr).clamp(max=1)
            case "debiased":
                return snr.sqrt() / (snr + 1) if velocity else snr.rsqrt()
            case "soft_min_snr":
                weight = gamma / (snr + gamma)
            case "p2":
                weight = 1 / (snr + 1)
            case "epsilon":
                weight = torch.ones_like(snr)
        return weight * snr / (snr + 1) if velocity else weight

    def penalty(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Squared error, or what the recipe says; see `Penalty`."""
        return self.error(prediction, target, t)

    def probe_t(self, shape: torch.Size) -> Tensor:
        """(B,) int64: the law's quantiles at the midpoints of B equal parts."""
        return self._placed((torch.arange(shape[0]) + 0.5) / shape[0])

    def _placed(self, u: Tensor) -> Tensor:
        low, high = self.timesteps
        return (low + self.law.quantile(u) * (high - low)).long().clamp(max=high - 1)

    def _alpha_bar(self, like: Tensor, t: Tensor) -> Tensor:
        return self.alphas_cumprod.to(like.device)[t].view(-1, 1, 1, 1)


def ddpm(scheduler_config: dict[str, Any], section: ObjectiveSection) -> DDPM:
    """The objective of a recipe on a base's noise schedule.

    Args:
        scheduler_config: Of any diffusers scheduler: betas and prediction type are what counts.
        section: The objective section of the recipe. Its timesteps are thousandths of the schedule; they are
            scaled when the base has other than 1000 steps.

    Raises:
        BadInput: the base predicts something else than epsilon or v, or epsilon on a schedule that ends at
            zero signal, where the noise is no longer a question; fields that only flow matching has.
    """
    check_objective(section, flow=False)
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = cast(DDPMScheduler, DDPMScheduler.from_config(noise_schedule(scheduler_config, section)))
    kind = scheduler.config["prediction_type"] if section.prediction == "auto" else section.prediction
    if kind not in ("epsilon", "v_prediction"):
        raise BadInput(
            "base", f"its scheduler predicts {kind!r}", "use a base that predicts epsilon or v_prediction"
        )
    a = scheduler.alphas_cumprod.float()
    if kind == "epsilon" and a[-1] < 1e-6:  # diffusers leaves 2^-24 there
        if section.zero_terminal_snr == "on":
            raise BadInput(
                "objective.zero_terminal_snr",
                "is on, but the base predicts epsilon, which has no answer at zero signal",
                "turn it off, or set objective.prediction=v_prediction",
            )
        raise BadInput(
            "objective.prediction",
            "is epsilon, but the base's noise schedule ends at zero signal",
            "set objective.prediction=v_prediction",
        )
    total = len(a)
    low, high = (bound * total // 1000 for bound in (section.timestep_min, section.timestep_max))

    def sigma(t: Tensor) -> Tensor:
        at = a.to(t.device)[t]
        return ((1 - at) / at).sqrt()

    return DDPM(
        a,
        kind,
        snr_gamma=section.snr_gamma or 5.0,
        weighting=_weighting(section),
        timesteps=(low, max(high, low + 1)),
        law=make_law(section, "uniform"),
        noise=make_noise(section),
        error=make_penalty(section, progress=lambda t: t.float() / total, sigma=sigma),
    )


def noise_schedule(scheduler_config: dict[str, Any], section: ObjectiveSection) -> dict[str, Any]:
    """A base's scheduler config with the recipe's word on its last step; for training and for previews.

    Zero terminal SNR (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", alg.
    1) shifts and scales s_t = sqrt(a_t): s_t <- (s_t - s_T) s_1 / (s_1 - s_T), so that s_1 stays and s_T = 0.
    Sampling has to begin at the last step then, hence the spacing.
    """
    if section.zero_terminal_snr == "auto":
        return dict(scheduler_config)
    on = section.zero_terminal_snr == "on"
    spacing = {"timestep_spacing": "trailing"} if on else {}
    return {**scheduler_config, "rescale_betas_zero_snr": on, **spacing}


def _weighting(section: ObjectiveSection) -> Weighting:
    if section.weighting == "auto":
        return "off" if section.snr_gamma is None else "min_snr"
    return section.weighting
