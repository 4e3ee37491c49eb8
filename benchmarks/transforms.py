"""Stands in for torchvision's `transforms` where that is not installed: what diffusers' script takes of it.

From pictures of PIL to tensors of (3, height, width).
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

InterpolationMode = Image.Resampling
Step = Callable[[Any], Any]


def Resize(size: int, interpolation: Image.Resampling) -> Step:  # noqa: N802 - torchvision's names
    """The shorter side becomes `size` pixels."""

    def resize(picture: Image.Image) -> Image.Image:
        scale = size / min(picture.size)
        wide, high = (round(side * scale) for side in picture.size)
        return picture.resize((wide, high), interpolation)

    return resize


def RandomCrop(size: int) -> Step:  # noqa: N802
    """A square of `size` pixels, anywhere."""
    return lambda picture: _cut(picture, size, lambda room: random.randint(0, room))


def CenterCrop(size: int) -> Step:  # noqa: N802
    """A square of `size` pixels, in the middle."""
    return lambda picture: _cut(picture, size, lambda room: room // 2)


def ToTensor() -> Step:  # noqa: N802
    """Bytes to numbers from 0 to 1."""
    return lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


def Normalize(mean: Sequence[float], std: Sequence[float]) -> Step:  # noqa: N802
    """(x - mean) / std."""
    middle, spread = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return lambda pixels: (pixels - middle) / spread


def Compose(steps: Sequence[Step]) -> Step:  # noqa: N802
    """One after the other."""

    def every(picture: Any) -> Any:
        for step in steps:
            picture = step(picture)
        return picture

    return every


def _cut(picture: Image.Image, size: int, place: Callable[[int], int]) -> Image.Image:
    left, top = (place(side - size) for side in picture.size)
    return picture.crop((left, top, left + size, top + size))
