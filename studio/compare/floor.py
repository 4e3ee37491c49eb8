"""The least distance that a base can reach: pictures through its autoencoder and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trainers.spared import spare

BATCH = 16


class Autoencoder:
    """The autoencoder of a base, in fp32 on the CPU.

    Args:
        base: A diffusers folder.
    """

    def __init__(self, base: Path) -> None:
        spare("bitsandbytes")  # an autoencoder needs no 8-bit optimizer
        import torch
        from diffusers import AutoencoderKL

        self._vae: Any = AutoencoderKL.from_pretrained(
            base, subfolder="vae", dtype=torch.float32, local_files_only=True
        )
        self._vae.eval()

    def encode(self, pictures: Sequence[Image.Image], size: tuple[int, int]) -> Any:
        """Mean latents (N, C, h, w), a tensor in the autoencoder's own units.

        Args:
            pictures: Of any size and mode; covered and cropped to `size`.
            size: (width, height) in pixels, as the base draws.
        """
        import numpy as np
        import torch
        from PIL import ImageOps

        cut = [ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS) for picture in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in cut]))
        unit = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, 3, H, W) in -1..1
        with torch.inference_mode():
            return torch.cat([self._vae.encode(part).latent_dist.mean for part in unit.split(BATCH)])

    def decode(self, latents: Any) -> list[Image.Image]:
        """Pictures of latents (N, C, h, w)."""
        import torch

        out: list[Image.Image] = []
        with torch.inference_mode():
            for part in latents.split(BATCH):
                back = self._vae.decode(part).sample.clamp(-1, 1)
                bytes_ = ((back + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
                out += [Image.fromarray(picture) for picture in bytes_]
        return out


def through_autoencoder(
    base: Path, pictures: Sequence[Image.Image], size: tuple[int, int]
) -> list[Image.Image]:
    """What the base's autoencoder keeps of pictures; in fp32 on the CPU.

    Args:
        base: A diffusers folder.
        pictures: Of any size and mode; covered and cropped to `size`.
        size: (width, height) in pixels, as the base draws.
    """
    autoencoder = Autoencoder(base)
    return autoencoder.decode(autoencoder.encode(pictures, size))
