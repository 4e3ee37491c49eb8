"""A quick look at latents while a picture is being drawn, without the cost of a real decode.

A latent cell's colour is very nearly a linear function of its channels. For a small VAE the real decode is
cheap enough; for others the linear map is fitted once, by least squares, on what the VAE itself decodes.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from trainers.families.base import Family

SMALL = 5_000_000  # parameters of a VAE that may decode every preview
FIT_CELLS = 16  # side of the latents used for the fit, in cells
FIT_SEED = 7


class LatentPreview:
    """Latents -> small RGB pictures, for one base."""

    def __init__(self, family: "Family") -> None:
        self._family = family
        vae: Any = family.part("vae")
        self._small = sum(p.numel() for p in vae.parameters()) <= SMALL
        self._factors: Tensor | None = None  # (C + 1, 3), the last row is the constant

    @torch.no_grad()
    def rgb(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents -> (B, 3, H, W) in [-1, 1] on the CPU; H = h if the VAE is big."""
        if self._small:
            return self._family.decode_image(latents).clamp(-1, 1).cpu()
        if self._factors is None:
            self._factors = self._fit(latents.shape[1])
        with_one = F.pad(latents.float().cpu(), (0, 0, 0, 0, 0, 1), value=1.0)  # append a channel of ones
        return torch.einsum("bchw,cd->bdhw", with_one, self._factors).clamp(-1, 1)

    def _fit(self, channels: int) -> Tensor:
        """Least squares between smooth random latents and the decoded pictures, averaged over each cell."""
        generator = torch.Generator("cpu").manual_seed(FIT_SEED)
        coarse = torch.randn(4, channels, FIT_CELLS // 4, FIT_CELLS // 4, generator=generator)
        latents = F.interpolate(coarse, size=FIT_CELLS, mode="bicubic")
        pictures = F.adaptive_avg_pool2d(self._family.decode_image(latents).cpu(), FIT_CELLS)
        inputs = F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0).permute(0, 2, 3, 1).reshape(-1, channels + 1)
        return torch.linalg.lstsq(inputs, pictures.permute(0, 2, 3, 1).reshape(-1, 3)).solution
