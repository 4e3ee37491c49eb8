"""Marks that come again in the same corner of many pictures: watermarks, signatures, dates, frames.

Slopes of light at one place of many unrelated pictures have nothing in common; those of a mark are the same
in all that have it. Pictures are compared with a sample of them, and what the best of it have in common
with all. Cells with steep slopes count hardly more than others: else one hard edge would decide.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from studio.datasets.measures import Measures

CORNER_NAMES = ("top left", "top right", "bottom left", "bottom right")
SAMPLE = 200  # pictures that all are compared with
LEAST, SHARE = 6, 0.03  # pictures that have a mark, and their share of the set
SOFT = 6.0  # grey levels of slope that count half
PAIR, WHOLE = 0.25, 0.5  # cosine with another picture, and with the mark where it is
STEADY, MARK_CELLS = 0.3, 40  # mean softened slope of a mark's cells, and how many it has
FAINT = 1.5  # length of the slopes below which there is nothing
TRIES = 40  # pictures of the sample that are taken for one with a mark
BLOCK = 2000  # pictures at a time: 15 MB of slopes

Floats = NDArray[np.float32]


def repeated_marks(pictures: Sequence[Measures]) -> dict[str, list[int]]:
    """Corner -> pictures that share a mark there.

    Args:
        pictures: Without copies of each other: these share everything.
    """
    found: dict[str, list[int]] = {}
    needed = max(LEAST, int(SHARE * len(pictures)))
    if len(pictures) < LEAST:
        return found
    chosen = np.linspace(0, len(pictures) - 1, min(SAMPLE, len(pictures))).astype(int)
    for corner, name in enumerate(CORNER_NAMES):
        sample = _slopes([pictures[int(k)] for k in chosen], corner)
        count = np.zeros(len(sample), int)
        for part in _blocks(pictures, corner):
            count += (_unit(part) @ _unit(sample).T > PAIR).sum(0)
        for seed in np.argsort(-count)[:TRIES]:
            members = _members(pictures, corner, sample[seed], needed) if count[seed] >= 3 else None
            if members is not None:
                found[name] = np.flatnonzero(members).tolist()
                break
    return found


def _members(
    pictures: Sequence[Measures], corner: int, seed: Floats, needed: int
) -> NDArray[np.bool_] | None:
    """Which pictures have the mark that is in `seed` and others like it; None when it is no mark."""
    members = np.concatenate(
        [_unit(part) @ _unit(seed[None])[0] > PAIR for part in _blocks(pictures, corner)]
    )
    for _ in range(3):
        common = _mean(pictures, corner, members)
        cells = np.linalg.norm(common, axis=0) > STEADY
        if cells.sum() < MARK_CELLS or not _many_ways(common[:, cells]):
            return None
        mark = _unit(common[:, cells].reshape(1, -1))[0]
        seen = [
            _unit(part.reshape(len(part), 2, -1)[:, :, cells].reshape(len(part), -1)) @ mark > WHOLE
            for part in _blocks(pictures, corner)
        ]
        members = np.concatenate(seen)
        if members.sum() < 3:
            return None
    return members if members.sum() >= needed else None


def _many_ways(slopes: Floats) -> bool:
    """Whether slopes (2, n) point into several directions, as those of letters; not so of one edge."""
    low, high = np.linalg.eigvalsh(slopes @ slopes.T)
    return bool(low > 0.15 * high)


def _mean(pictures: Sequence[Measures], corner: int, members: NDArray[np.bool_]) -> Floats:
    """(2, cells) mean slopes of the members."""
    total = np.zeros(0, np.float32)
    for start, part in enumerate(_blocks(pictures, corner)):
        chosen = part[members[start * BLOCK : start * BLOCK + len(part)]].sum(0)
        total = total + chosen if total.size else chosen
    mean = total / max(1, int(members.sum()))
    return mean.astype(np.float32, copy=False).reshape(2, -1)


def _unit(rows: Floats) -> Floats:
    """Rows at length 1; 0 where there is next to nothing."""
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(size > FAINT, rows / np.maximum(size, 1e-6), 0).astype(np.float32)


def _blocks(pictures: Sequence[Measures], corner: int) -> Iterator[Floats]:
    for start in range(0, len(pictures), BLOCK):
        yield _slopes(pictures[start : start + BLOCK], corner)


def _slopes(pictures: Sequence[Measures], corner: int) -> Floats:
    """(N, 2 * cells) slopes of one corner, softened: -1 to 1."""
    raw = np.stack([picture.corners[corner] for picture in pictures]).astype(np.float32)
    soft = raw / (SOFT + np.abs(raw))
    return soft.astype(np.float32, copy=False).reshape(len(raw), -1)
