"""Pictures as tensors and back."""

import numpy as np
from PIL import Image as Pixels
from torch import Tensor


def to_picture(pixels: Tensor) -> Pixels.Image:
    """(1, 3, H, W) in [-1, 1] -> an RGB picture."""
    scaled = (pixels[0].float().clamp(-1, 1) + 1) * 127.5
    return Pixels.fromarray(scaled.round().permute(1, 2, 0).cpu().numpy().astype(np.uint8))
