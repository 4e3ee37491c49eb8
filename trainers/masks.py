"""Masks in the loss: which parts of a picture count, and how much.

With m the mask in latent cells (1 = counts, 0 = does not) and f = data.mask_floor, the weight of a cell is

    w = f + (1 - f) m,   scaled so that its mean over the picture is 1,

and the error of a sample becomes mean(w * penalty) = sum(w * penalty) / sum(w): a small subject counts as
much as a large one. Shapes: B batch; h, w latent height and width; factor = pixels per latent cell.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from registry.errors import BadInput, StudioError
from registry.hashing import hash_json, sha256_file
from trainers.cache import MEMORY, Shelf
from trainers.focus import focus_of, open_mask, unreadable
from trainers.plan import Geometry, Item

__all__ = ["MaskCache", "focus_of", "read_mask"]

BLACK = 0.5 / 255  # a cell below half a grey level is black
ANOTHER = "paint white what counts, or take the mask away"


class MaskCache:
    """Latent-size masks of the run's pictures, kept on disk like their latents.

    Args:
        folder: The shared cache folder; entries go below `masks/`.
        resolve: Path in the manifest -> real path; `rundir.resolve`.
        factor: Pixels per latent cell; `family.latent_factor`.
        floor: data.mask_floor, 0 to 1.
        memory: Bytes to keep in memory.
    """

    def __init__(
        self,
        folder: Path,
        resolve: Callable[[str], Path],
        factor: int,
        floor: float,
        *,
        memory: int = MEMORY // 8,
    ) -> None:
        self.shelf, self.factor, self.floor = Shelf(folder / "masks", memory), factor, floor
        self._resolve = resolve
        self._hashes: dict[str, str] = {}

    def key(self, item: Item) -> str:
        """Hash of everything a mask depends on; the mirror is applied afterwards."""
        geometry = item.geometry
        return hash_json(
            {
                "mask": self._hash(item),
                "original": geometry.original,
                "crop": geometry.crop_origin,
                "target": geometry.target,
                "factor": self.factor,
            }
        )

    def fill(self, items: Sequence[Item]) -> int:
        """Make every entry that is missing; returns how many were made.

        Raises:
            BadInput: a mask that cannot be read, or that leaves nothing of the crop.
        """
        made = 0
        for item in items:
            if item.source.mask and self.shelf.read(self.key(item)) is None:
                mask = read_mask(self._resolve(item.source.mask), item, self.factor)
                self.shelf.write(self.key(item), {"mask": mask})
                made += 1
        return made

    def get(self, item: Item, *, flip: bool) -> Tensor:
        """Weight of each latent cell, (1, h, w) fp32, mean 1; ones for a picture without a mask.

        Raises:
            StudioError: the entry went missing after `fill`.
        """
        height, width = (side // self.factor for side in item.geometry.target)
        if not item.source.mask:
            return torch.ones(1, height, width)
        entry = self.shelf.read(self.key(item))
        if entry is None:
            raise StudioError(item.label, "has lost its mask", "resume the run; it is computed again")
        weight = self.floor + (1 - self.floor) * entry["mask"]
        return (weight.flip(2) if flip else weight) / weight.mean()

    def batch(self, shown: Sequence[tuple[Item, bool]]) -> Tensor | None:
        """(B, 1, h, w) weights of (item, mirrored) pairs; None when no picture of them has a mask."""
        if not any(item.source.mask for item, _ in shown):
            return None
        return torch.stack([self.get(item, flip=flip) for item, flip in shown])

    def _hash(self, item: Item) -> str:
        path = item.source.mask
        if path not in self._hashes:
            try:
                self._hashes[path] = sha256_file(self._resolve(path))
            except OSError as error:
                raise unreadable(item.label, error) from error
        return self._hashes[path]


def read_mask(path: Path, item: Item, factor: int) -> Tensor:
    """A mask at the item's crop, each cell the mean of the original pixels below it.

    A mask of another size than its picture is laid over the whole of it.

    Returns:
        (1, h, w) fp32 in [0, 1].

    Raises:
        BadInput: missing, unreadable, or black all over what is shown.
    """
    grey = open_mask(path, item.label)
    height, width = (side // factor for side in item.geometry.target)
    small = grey.convert("F").resize(
        (width, height), Image.Resampling.BOX, box=_box(item.geometry, grey.width, grey.height)
    )
    mask = torch.from_numpy(np.array(small, dtype=np.float32) / 255).clamp(0, 1)[None]
    if mask.max() < BLACK:
        where = "all over" if grey.getextrema()[1] == 0 else "in all of the part that is shown"
        raise BadInput(item.label, f"has a mask that is black {where}", ANOTHER)
    return mask.contiguous()


def _box(geometry: Geometry, width: int, height: int) -> tuple[float, float, float, float]:
    """The crop in pixels of the mask."""
    left, top, right, bottom = geometry.box
    across, down = width / geometry.original[1], height / geometry.original[0]
    return left * across, top * down, min(right * across, width), min(bottom * down, height)
