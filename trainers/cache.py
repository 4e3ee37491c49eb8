"""Latents and text conditioning on disk, keyed by what they were made from.

An entry is found by hash of its inputs (pixels, VAE weights, geometry, mirror; or caption, encoder weights,
precision), never by position or time, so a cache can be shared by runs, kept for ever and deleted at any
time. One small safetensors file per entry: of 10 000 pictures, opening costs seconds and encoding minutes.

What is kept of a picture is the posterior, not a draw from it: the mean in fp32 (fp16 would round it by up to
0.001, more than the posterior's own deviation in flat areas) and the deviation in fp16.
"""

import logging
import os
import zlib
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from registry.errors import StudioError
from registry.files import atomic_write
from registry.hashing import hash_json
from trainers.plan import Item, Size

log = logging.getLogger(__name__)

CHECKSUM = "crc32"
MEMORY = 2**31  # bytes of entries kept in memory by each cache; the rest is read again at each use
AHEAD = 2  # batches of pictures decoded while one is encoded

Tensors = dict[str, Tensor]
Picture = tuple[Item, bool]  # and whether it is mirrored
Progress = Callable[[int, int], None]  # done, total
T = TypeVar("T")


def _silent(done: int, total: int) -> None: ...


class Shelf:
    """Content-addressed tensor files: `<folder>/<first two digits>/<key>.safetensors`.

    Args:
        folder: Made when first written to.
        memory: Bytes of entries to keep in memory.
    """

    def __init__(self, folder: Path, memory: int = MEMORY) -> None:
        self.folder, self._room = folder, memory
        self._kept: dict[str, Tensors] = {}

    def path(self, key: str) -> Path:
        """Where the entry `key` lies."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Tensors | None:
        """The entry, proven to be what was written; None when it is missing or damaged (which is logged)."""
        if key in self._kept:
            return self._kept[key]
        path = self.path(key)
        try:
            tensors = load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            return _damaged(path, str(error))
        checksum = tensors.pop(CHECKSUM, None)
        if checksum is None or int(checksum) != _checksum(tensors):
            return _damaged(path, "checksum differs")
        self._keep(key, tensors)
        return tensors

    def write(self, key: str, tensors: Tensors) -> None:
        """Store an entry; not synced, because a lost one is only computed again."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        atomic_write(
            self.path(key), save(tensors | {CHECKSUM: torch.tensor(_checksum(tensors))}), durable=False
        )
        self._keep(key, tensors)

    def _keep(self, key: str, tensors: Tensors) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if key not in self._kept and size <= self._room:
            self._kept[key] = tensors
            self._room -= size


def _damaged(path: Path, why: str) -> None:
    log.warning("cache entry %s is damaged (%s); computing it again", path.name, why)


def _checksum(tensors: Tensors) -> int:
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value


class LatentCache:
    """Posterior of every picture in its bucket.

    Args:
        folder: The shared cache folder; entries go below `latents/`.
        vae_hash: `family.component_hash("vae")`.
        memory: Bytes to keep in memory.
    """

    def __init__(self, folder: Path, vae_hash: str, *, memory: int = MEMORY) -> None:
        self.shelf, self.vae_hash = Shelf(folder / "latents", memory), vae_hash

    def key(self, item: Item, *, flip: bool) -> str:
        """Hash of everything the latents depend on."""
        geometry = item.geometry
        return hash_json(
            {
                "pixels": item.source.pixel_hash,
                "vae": self.vae_hash,
                "original": geometry.original,
                "crop": geometry.crop_origin,
                "target": geometry.target,
                "flip": flip,
            }
        )

    def get(self, item: Item, *, flip: bool) -> tuple[Tensor, Tensor]:
        """Mean (fp32) and standard deviation (fp16) of the scaled posterior, each (C, h, w).

        Raises:
            StudioError: the entry went missing after `fill`.
        """
        entry = self.shelf.read(self.key(item, flip=flip))
        if entry is None:
            raise StudioError(item.label, "has lost its latents", "resume the run; they are computed again")
        return entry["mean"], entry["std"]

    def fill(
        self,
        items: Iterable[Item],
        *,
        flips: Collection[bool],
        read: Callable[[Item, bool], Tensor],
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
        batch_size: int = 8,
        progress: Progress = _silent,
    ) -> int:
        """Make every entry that is missing or damaged; returns how many were made.

        Pictures of a bucket are encoded together while the next ones are decoded in threads.

        Args:
            items: Pictures of the run.
            flips: (False,), or (False, True) when data.flip.
            read: Item and flip -> (3, H, W) in [-1, 1]; `data.read_pixels` at the item's path.
            encode: (B, 3, H, W) -> mean and deviation (B, C, h, w), scaled; `family.encode_image`.
            batch_size: Pictures per call of encode.
            progress: Told (done, total) after each batch.

        Raises:
            BadInput: a picture that cannot be read.
            StudioError: latents that are not finite; names the picture.
        """
        missing: defaultdict[Size, list[Picture]] = defaultdict(list)
        for item in items:
            for flip in flips:
                if self.shelf.read(self.key(item, flip=flip)) is None:
                    missing[item.geometry.target].append((item, flip))
        total, done = sum(map(len, missing.values())), 0
        chunks = [chunk for target in sorted(missing) for chunk in _chunks(missing[target], batch_size)]
        for chunk, pixels in _decoded(chunks, read):
            with torch.no_grad():
                mean, std = encode(pixels)
            for (item, flip), one_mean, one_std in zip(chunk, mean.cpu(), std.cpu(), strict=True):
                self._store(item, flip, one_mean, one_std)
            done += len(chunk)
            progress(done, total)
        return total

    def _store(self, item: Item, flip: bool, mean: Tensor, std: Tensor) -> None:
        entry = {"mean": mean.float(), "std": std.to(torch.float16)}
        if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
            raise StudioError(
                item.label, "the VAE makes values of it that are not finite", "check the picture and the base"
            )
        self.shelf.write(self.key(item, flip=flip), entry)


def _decoded(
    chunks: Iterable[Sequence[Picture]], read: Callable[[Item, bool], Tensor]
) -> Iterator[tuple[Sequence[Picture], Tensor]]:
    """Chunks with their pixels (B, 3, H, W), a few decoded ahead in threads: Pillow releases the lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[Sequence[Picture], list[Future[Tensor]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, [pool.submit(read, item, flip) for item, flip in chunk]))
                if len(waiting) > AHEAD:
                    yield _gathered(*waiting.popleft())
            while waiting:
                yield _gathered(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _gathered(chunk: Sequence[Picture], futures: list[Future[Tensor]]) -> tuple[Sequence[Picture], Tensor]:
    return chunk, torch.stack([future.result() for future in futures])


def _chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


class TextCache:
    """Conditioning of every caption, the empty one included.

    Args:
        folder: The shared cache folder; entries go below `text/`.
        encoder_hash: Hash over tokenizer and text encoder; what else changes the result belongs in it too.
        dtype: Precision the encoder computes in.
        memory: Bytes to keep in memory.
    """

    def __init__(self, folder: Path, encoder_hash: str, *, dtype: torch.dtype, memory: int = MEMORY) -> None:
        self.shelf, self.encoder_hash, self.dtype = Shelf(folder / "text", memory), encoder_hash, dtype

    def key(self, caption: str) -> str:
        """Hash of everything the conditioning depends on."""
        return hash_json({"caption": caption, "encoder": self.encoder_hash, "dtype": str(self.dtype)})

    def get(self, captions: list[str]) -> Tensors:
        """Conditioning of a batch, every value (B, ...).

        Raises:
            StudioError: an entry went missing after `fill`.
        """
        rows: list[Tensors] = []
        for caption in captions:
            row = self.shelf.read(self.key(caption))
            if row is None:
                raise StudioError(
                    _named(caption), "has lost its conditioning", "resume the run; it is computed again"
                )
            rows.append(row)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def fill(
        self,
        captions: Iterable[str],
        *,
        encode: Callable[[list[str]], Tensors],
        batch_size: int = 16,
        progress: Progress = _silent,
    ) -> int:
        """Encode every caption that is missing or damaged; returns how many.

        Args:
            captions: From `plan.captions_needed`, which includes the empty one.
            encode: Captions -> (B, ...) tensors; `family.encode_text`.
            batch_size: Captions per call of encode.
            progress: Told (done, total) after each batch.

        Raises:
            StudioError: conditioning that is not finite; names the caption.
        """
        missing = [c for c in dict.fromkeys(captions) if self.shelf.read(self.key(c)) is None]
        done = 0
        for chunk in _chunks(missing, batch_size):
            with torch.no_grad():
                encoded = {name: value.cpu() for name, value in encode(list(chunk)).items()}
            for row, caption in enumerate(chunk):
                entry = {name: value[row].clone() for name, value in encoded.items()}
                if not all(bool(tensor.isfinite().all()) for tensor in entry.values()):
                    raise StudioError(
                        _named(caption), "the text encoder gives values that are not finite", "check the base"
                    )
                self.shelf.write(self.key(caption), entry)
            done += len(chunk)
            progress(done, len(missing))
        return len(missing)


def _named(caption: str) -> str:
    return f"caption {caption[:60]!r}"
