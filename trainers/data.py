"""Batches: the plan of `trainers.plan` filled from the caches. No DataLoader, no workers.

Shapes: B batch; C latent channels; h, w latent height and width. All batches of a bucket have one (C, h, w).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from registry.errors import BadInput
from trainers.captions import captions_needed, shown_caption
from trainers.masks import MaskCache
from trainers.placing import shown_view
from trainers.plan import (
    Geometry,
    Item,
    Slot,
    assign_buckets,
    batch_plan,
    check_captions,
    draw_seed,
    final_caption,
    load_items,
    replace_trigger,
    share,
    shown_flipped,
)
from trainers.preservation import PriorRows
from trainers.recipe_fields import DataSection

__all__ = [
    "Batch", "BatchSource", "Geometry", "Item", "LatentSource", "Slot", "assign_buckets", "batch_plan",
    "captions_needed", "check_captions", "final_caption", "load_items", "read_pixels", "replace_trigger",
]  # fmt: skip

Conditioning = dict[str, Tensor]  # every value has the batch as axis 0
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF")
PIXELS_MAX = 64_000_000


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs. Made on the CPU; `to` moves it."""

    latents: Tensor  # (B, C, h, w) fp32, scaled as the denoiser expects; one draw of the VAE's posterior
    cond: Conditioning  # (B, ...) text conditioning, or tokens when the text encoder is trained
    geometry: list[Geometry]  # B crops
    weight: Tensor  # (B,) fp32 loss weight of each sample, 1 for ordinary pictures
    names: list[str]  # B labels for messages
    captions: list[str]  # B captions as shown, "" where dropped
    epoch: int
    index: int  # of this batch in its epoch; resume with BatchSource.batches(epoch, index + 1)
    mask: Tensor | None = None  # (B, 1, h, w) fp32 weight of each latent cell, mean 1 a sample; None = all 1
    from_base: Tensor | None = None  # (B,) bool, on the CPU: rows whose target the base gives
    rank: int = 0  # whose share of all processes' batch this is
    world: int = 1
    total: int = 0  # pictures of all processes' batch; 0 = this one's alone

    @property
    def portion(self) -> float:
        """What this share counts in a mean over the processes; 1 but where shares differ by a picture."""
        return len(self.names) * self.world / self.total if self.total and self.from_base is None else 1.0

    @property
    def drawn(self) -> tuple[torch.Size, slice]:
        """Shape (N, C, h, w) of the batch of all processes, and this share's rows of it.

        Each process draws for all of them and takes its rows, so that several draw what one would.
        """
        own, total = len(self.latents), self.total
        first = share(total, self.rank, self.world).start if total else 0
        if self.from_base is not None:  # every share has rows of its own beside the pictures
            first, total = self.rank * own, self.world * own
        shape = torch.Size((total or own, *self.latents.shape[1:]))
        return shape, slice(first, first + own)

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; copies to a GPU are from pinned memory and do not wait."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            if device.type == "cuda":
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        cond = {key: move(value) for key, value in self.cond.items()}
        mask = None if self.mask is None else move(self.mask)
        return replace(self, latents=move(self.latents), cond=cond, weight=move(self.weight), mask=mask)

    def rows(self, rows: slice) -> "Batch":
        """Some of its pictures; views, no copies."""
        if rows == slice(0, len(self.names)):
            return self

        def cut(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: part[rows] for key, part in cast(Conditioning, value).items()}
            return value[rows] if isinstance(value, Tensor | list) else value

        return replace(self, **{field.name: cut(getattr(self, field.name)) for field in fields(self)})


class LatentSource(Protocol):
    """Where latents come from; `cache.LatentCache` is one."""

    def get(self, item: Item, *, flip: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, each (C, h, w), scaled."""
        ...


@dataclass(frozen=True)
class BatchSource:
    """The endless, resumable stream of batches of one process.

    Args:
        items: From `assign_buckets`.
        latents: Filled for all items (and their mirror images when data.flip).
        conditioning: Captions -> batched tensors: `TextCache.get`, or `family.tokenize` when the text
            encoder is trained.
        data: The section of the recipe.
        seed: train.seed.
        batch_size: Pictures per process.
        rank: This process, 0 .. world - 1.
        world: How many processes.
        masks: Filled for all items; None = masks do not count.
        prior: Adds rows whose target is the base's own prediction.
    """

    items: Sequence[Item]
    latents: LatentSource
    conditioning: Callable[[list[str]], Conditioning]
    data: DataSection
    seed: int
    batch_size: int
    rank: int = 0
    world: int = 1
    masks: MaskCache | None = None
    prior: PriorRows | None = None

    def plan(self, epoch: int) -> list[tuple[Slot, ...]]:
        """The batches of an epoch, of all processes together."""
        return batch_plan(self.items, self.seed, epoch, self.batch_size, world=self.world)

    @property
    def batches_per_epoch(self) -> int:
        """The same for every epoch and process."""
        return len(self.plan(0))

    def batches(self, epoch: int = 0, index: int = 0) -> Iterator[Batch]:
        """Batches from (epoch, index) on, for ever; an index past the end goes on with the next epoch."""
        while True:
            plan = self.plan(epoch)
            for position in range(index, len(plan)):
                yield self.load(plan[position], epoch, position)
            epoch, index = epoch + 1, 0

    def load(self, slots: Sequence[Slot], epoch: int, index: int) -> Batch:
        """Collate this process's share of one batch of the plan."""
        generator = torch.Generator().manual_seed(draw_seed(self.seed, "posterior", epoch, index, 0))
        own = share(len(slots), self.rank, self.world)
        latents: list[Tensor] = []
        geometry: list[Geometry] = []
        captions: list[str] = []
        shown: list[tuple[Item, bool]] = []
        for slot in slots[own]:
            item = shown_view(self.items[slot.item], slot.copy, seed=self.seed, epoch=epoch)
            flip = shown_flipped(item, slot.copy, data=self.data, seed=self.seed, epoch=epoch)
            mean, std = self.latents.get(item, flip=flip)
            for _ in range(0 if latents else own.start):  # what the shares before this one draw, one by one:
                torch.randn(mean.shape, generator=generator)  # the generator counts in sixteens
            latents.append(mean.float() + std.float() * torch.randn(mean.shape, generator=generator))
            geometry.append(item.geometry.mirrored() if flip else item.geometry)
            captions.append(shown_caption(item, slot.copy, data=self.data, seed=self.seed, epoch=epoch))
            shown.append((item, flip))
        batch = Batch(
            latents=torch.stack(latents),
            cond=self.conditioning(captions),
            geometry=geometry,
            weight=torch.tensor([item.source.weight for item, _ in shown], dtype=torch.float32),
            names=[item.label for item, _ in shown],
            captions=captions,
            epoch=epoch,
            index=index,
            mask=self.masks.batch(shown) if self.masks else None,
            rank=self.rank,
            world=self.world,
            total=len(slots),
        )
        return self.prior.added(batch, [item.source.role for item, _ in shown]) if self.prior else batch


def read_pixels(path: Path, item: Item, *, flip: bool = False) -> Tensor:
    """Decode a picture, resize and crop it in one Lanczos pass, and mirror it if asked to.

    Transparent parts become white. EXIF orientation was applied when the picture was taken in.

    Returns:
        (3, H, W) fp32 in [-1, 1], H and W those of the item's bucket.

    Raises:
        BadInput: missing, unreadable, or of another size than the manifest says.
    """
    geometry = item.geometry
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.size != (item.source.width, item.source.height):
                was = f"{item.source.width}x{item.source.height}"
                raise BadInput(
                    item.label,
                    f"is {picture.width}x{picture.height} now and was {was} when the run was made",
                    "restore the picture, or start a new run",
                )
            if picture.width * picture.height > PIXELS_MAX:
                raise BadInput(item.label, "has more than 64 megapixels", "make it smaller")
            rgb = _flattened(picture)
    except FileNotFoundError as error:
        raise BadInput(
            item.label, f"is missing ({path})", "restore it, or start a new run without it"
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            item.label, f"cannot be decoded ({error})", "replace it and start a new run"
        ) from error
    pixels = np.asarray(_fitted(rgb, geometry), dtype=np.float32) / 127.5 - 1
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    return (tensor.flip(2) if flip else tensor).contiguous()


def _flattened(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture.copy()
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _fitted(picture: Image.Image, geometry: Geometry) -> Image.Image:
    """Resize and crop at once: the crop's box is given in original pixels."""
    height, width = geometry.target
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=geometry.box)
