"""How training times are drawn between the picture (0) and pure noise (1), for flow matching and diffusion.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", sec. 3.1.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainers.fitting import check_law
from trainers.recipe_fields import ObjectiveSection

Law = Literal["uniform", "logit_normal", "sigmoid", "mode"]


@dataclass(frozen=True)
class TimestepLaw:
    """A law by its quantile function.

    Args:
        name: uniform; logit_normal: sigmoid(mean + std n), n standard normal (eq. 19; the published models
            have 0, 1); sigmoid: sigmoid(scale n); mode: 1 - u - s (cos^2(pi u / 2) - 1 + u) (eq. 20).
        mean: Of logit_normal; above 0 means more noise.
        std: Of logit_normal.
        sigmoid_scale: Of sigmoid; 1 is logit_normal(0, 1).
        mode_scale: s of mode, -1 to 2 / (pi - 2); 1.29 in the paper.
    """

    name: Law = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    sigmoid_scale: float = 1.0
    mode_scale: float = 1.29

    def quantile(self, u: Tensor) -> Tensor:
        """Uniform numbers in [0, 1] -> times in [0, 1]."""
        if self.name == "uniform":
            return u
        if self.name == "mode":
            return 1 - u - self.mode_scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
        mean, std = (self.mean, self.std) if self.name == "logit_normal" else (0.0, self.sigmoid_scale)
        return torch.sigmoid(mean + std * torch.special.ndtri(u))


def make_law(section: ObjectiveSection, usual: Law) -> TimestepLaw:
    """The recipe's law, `usual` where it leaves that open.

    Raises:
        BadInput: it sets something that belongs to another law.
    """
    law: Law = usual if section.timestep_law == "auto" else section.timestep_law
    check_law(section, usual)
    return TimestepLaw(law, section.logit_mean, section.logit_std, section.sigmoid_scale, section.mode_scale)
