"""Draws the pictures and captions that everything learns from, on as many cores as there are, into files.

What a chunk shows depends on its number and the seed alone: any number of processes draws the same.
Nothing here loads torch: a process that draws starts in a fraction of a second.
"""

import json
import multiprocessing
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from registry.files import atomic_path
from studio.pocket.clutter import clutter
from studio.pocket.grammar import caption, sample_scene, varied_caption
from studio.pocket.render import SIDE, render
from studio.pocket.stray import with_stray

Kind = Literal["mixed", "captioned"]
Say = Callable[[str], None]

CHUNK = 500  # pictures that are drawn at a time
CLUTTER_SHARE = 0.5  # of the autoencoder's pictures
WORDINGS = 4  # captions of a picture: the plain one and three varied ones, some with stray words
SEEDS: dict[Kind, int] = {"mixed": 11, "captioned": 1000}


@dataclass(frozen=True)
class Chunk:
    """Part of an order: `count` pictures that go to a file from row `start`."""

    file: Path
    kind: Kind
    seed: int
    start: int
    count: int


def draw_files(folder: Path, kind: Kind, count: int, say: Say, *, processes: int = 1) -> None:
    """Write KIND.npy, (count, 3, 64, 64) uint8, and for captioned ones KIND.jsonl; nothing if both are there.

    Args:
        folder: Where to.
        kind: "mixed" = half scenes and half clutter, for the autoencoders; "captioned" = scenes with captions
            and none of the held-out combinations.
        count: How many.
        say: Told of the progress.
        processes: How many draw; 1 = this one.
    """
    pixels_file, captions_file = folder / f"{kind}.npy", folder / f"{kind}.jsonl"
    if pixels_file.exists() and captions_file.exists():
        return
    with atomic_path(captions_file) as captions, atomic_path(pixels_file, durable=False) as file:
        pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (count, 3, SIDE, SIDE))
        del pixels
        chunks = [
            Chunk(file, kind, SEEDS[kind], start, min(CHUNK, count - start))
            for start in range(0, count, CHUNK)
        ]
        with captions.open("w", encoding="utf-8") as lines:
            for number, texts in enumerate(_drawn(chunks, processes), 1):
                lines.writelines(json.dumps(text) + "\n" for text in texts)
                if number % max(1, len(chunks) // 5) == 0:
                    say(f"{kind} pictures: {min(count, number * CHUNK)} of {count}")


def draw_some(kind: Kind, count: int, seed: int) -> tuple[NDArray[np.uint8], list[list[str]]]:
    """`count` pictures (N, 3, 64, 64) and their captions; mixed ones have none."""
    rng, noise = random.Random(f"{kind}-{seed}"), np.random.default_rng(seed)
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    captions: list[list[str]] = []
    for index in range(count):
        if kind == "mixed" and rng.random() < CLUTTER_SHARE:
            pixels[index] = np.asarray(clutter(rng, noise))
            continue
        scene = sample_scene(rng)
        pixels[index] = np.asarray(render(scene, rng, apart=True))
        if kind == "captioned":
            varied = (with_stray(varied_caption(scene, rng), rng) for _ in range(WORDINGS - 1))
            captions.append([caption(scene), *varied])
    return pixels.transpose(0, 3, 1, 2), captions


def _drawn(chunks: list[Chunk], processes: int) -> Iterator[list[list[str]]]:
    """Captions of each chunk in order, its pixels being written."""
    if processes == 1:
        yield from map(_draw, chunks)
        return
    # Fresh processes: a fork of one with threads can hang, and these start quickly.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(_draw, chunks)


def _draw(chunk: Chunk) -> list[list[str]]:
    pixels, captions = draw_some(chunk.kind, chunk.count, chunk.seed * 1_000_003 + chunk.start // CHUNK)
    file = np.lib.format.open_memmap(chunk.file, "r+")
    file[chunk.start : chunk.start + chunk.count] = pixels
    return captions
