"""What the networks see: pictures and captions, the same for the same seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from studio.pocket.clutter import clutter
from studio.pocket.grammar import caption, sample_scene, varied_caption
from studio.pocket.render import SIDE, render

CLUTTER_SHARE = 0.5  # of the autoencoder's pictures


@dataclass(frozen=True)
class Captioned:
    """Pictures (N, 3, 64, 64) uint8 and for each a plain and two varied captions."""

    pixels: Tensor
    captions: list[tuple[str, str, str]]


def mixed_pictures(count: int, seed: int, say: Callable[[str], None]) -> Tensor:
    """(N, 3, 64, 64) uint8: half scenes, half clutter, for the autoencoder."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for index in range(count):
        cluttered = rng.random() < CLUTTER_SHARE
        pixels[index] = np.asarray(clutter(rng, noise) if cluttered else render(sample_scene(rng), rng))
        _progress("pictures for the autoencoder", index, count, say)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def captioned_pictures(count: int, seed: int, say: Callable[[str], None]) -> Captioned:
    """Scenes with captions; none of the held-out combinations."""
    rng = random.Random(seed)
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    captions: list[tuple[str, str, str]] = []
    for index in range(count):
        scene = sample_scene(rng)
        pixels[index] = np.asarray(render(scene, rng))
        captions.append((caption(scene), varied_caption(scene, rng), varied_caption(scene, rng)))
        _progress("captioned pictures", index, count, say)
    return Captioned(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), captions)


def to_unit(pixels: Tensor) -> Tensor:
    """Uint8 0..255 -> float -1..1."""
    return pixels.float() / 127.5 - 1


def _progress(what: str, index: int, count: int, say: Callable[[str], None]) -> None:
    if index and index % 5000 == 0:
        say(f"{what}: {index} of {count}")
