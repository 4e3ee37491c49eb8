"""Pictures as tensors and back."""

import numpy as np
import torch
from PIL import Image as Pixels
from torch import Tensor


def to_picture(pixels: Tensor) -> Pixels.Image:
    """(1, 3, H, W) in [-1, 1] -> an RGB picture."""
    scaled = (pixels[0].float().clamp(-1, 1) + 1) * 127.5
    return Pixels.fromarray(scaled.round().permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def to_tensor(picture: Pixels.Image) -> Tensor:
    """An RGB picture -> (1, 3, H, W) in [-1, 1]."""
    values = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return values.permute(2, 0, 1)[None].contiguous() * 2 - 1


def mask_tensor(mask: Pixels.Image) -> Tensor:
    """A grey picture -> (1, 1, H, W), 1 where it is white."""
    return (torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255) >= 0.5).float()[None, None]
