"""The least distance that a base can reach: pictures through its autoencoder and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trainers.spared import spare

BATCH = 16


def through_autoencoder(
    base: Path, pictures: Sequence[Image.Image], size: tuple[int, int]
) -> list[Image.Image]:
    """What the base's autoencoder keeps of pictures; in fp32 on the CPU.

    Args:
        base: A diffusers folder.
        pictures: Of any size and mode; covered and cropped to `size`.
        size: (width, height) in pixels, as the base draws.
    """
    spare("bitsandbytes")  # an autoencoder needs no 8-bit optimizer
    import numpy as np
    import torch
    from diffusers import AutoencoderKL
    from PIL import ImageOps

    vae: Any = AutoencoderKL.from_pretrained(
        base, subfolder="vae", dtype=torch.float32, local_files_only=True
    )
    vae.eval()
    cut = [ImageOps.fit(picture.convert("RGB"), size, Image.Resampling.LANCZOS) for picture in pictures]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in cut]))
    unit = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # (N, 3, H, W) in -1..1
    out: list[Image.Image] = []
    with torch.inference_mode():
        for part in unit.split(BATCH):
            back = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
            bytes_ = ((back + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            out += [Image.fromarray(picture) for picture in bytes_]
    return out
