"""Which pictures are copies of one another: mirrored, resized, recompressed, a little cropped.

Candidates come from the low frequencies (an 8 x 8 cosine transform, as perceptual hashes have it) of the
whole picture and of its middle; each is then laid over the other, as a crop of it, and has to agree in
light, in colour and in its most different part. Two pictures of one figure agree in some of these.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from studio.datasets.measures import THUMB, Measures

Floats = NDArray[np.float32]
Pair = tuple[int, int]
BLOCK = 1000  # pictures compared at once: (BLOCK, N) floats in memory
LOW = 8  # frequencies along each side
LIKE = 0.72  # cosine of the low frequencies from which a pair is looked at
TINT = 14.0  # grey levels by which the mean colour of a copy may differ in any channel
NEAREST = 8  # candidates of a picture at most
MIDDLES = (1.0, 0.9, 0.8)  # shares of the side that a cropped copy may show
ROUNDS = ((12, 6, 0.6), (24, 4, 0.85), (48, 4, 0.0))  # cells a side, steps of laying over, least agreement
LEAST = 0.70  # of the other's side that a copy shows at least
ASPECT = 0.04  # by which a copy's shape may differ from its part of the other
TIED = 0.01  # weight of that shape, beside 1 for what the pictures show
AGREE, FAR, PART = 0.98, 2.0, 6.0  # correlation, mean and largest part's mean difference in grey levels
PARTS = 5  # along each side
FINAL = 24  # cells a side that are compared; finer ones hold what hatching leaves of itself in a thumbnail
PLAIN, FAINT = 1.0, 0.3  # deviation in grey levels: less must agree to an eighth of it; shows nothing
EDGE = 2  # cells at the edges that do not count: half of them may lie outside


def copies(pictures: Sequence[Measures]) -> list[Pair]:
    """Pairs (i, j), i < j, of pictures of which one is a copy of the other, best first."""
    if len(pictures) < 2:
        return []
    thumbs = np.stack([picture.thumb for picture in pictures])
    aspects = np.log(np.array([p.width / p.height for p in pictures], np.float32))
    found: dict[Pair, float] = {}
    pairs = candidates(thumbs)
    for start in range(0, len(pairs), BLOCK):
        part = pairs[start : start + BLOCK]
        for (i, j, _), error in zip(part, _errors(thumbs, aspects, part), strict=True):
            if error is not None:
                key = (min(i, j), max(i, j))
                found[key] = min(found.get(key, error), error)
    return sorted(found, key=lambda pair: (found[pair], pair))


def candidates(thumbs: NDArray[np.uint8]) -> list[tuple[int, int, bool]]:
    """(i, j, mirrored): j, or its mirror image, may be a copy or a crop of i."""
    whole, tints = _signatures(thumbs, 1.0)
    mirrored = whole * np.tile((-1.0) ** np.arange(LOW), LOW).astype(np.float32)[: LOW * LOW]
    found: dict[tuple[int, int, bool], None] = {}
    for share in MIDDLES:
        middle, inner = (whole, tints) if share == 1 else _signatures(thumbs, share)
        for flip, other in ((False, whole), (True, mirrored)):
            for start in range(0, len(thumbs), BLOCK):
                like = middle[start : start + BLOCK] @ other.T
                like[np.arange(len(like)), start + np.arange(len(like))] = -1
                near = min(NEAREST, like.shape[1] - 1)
                best = np.argpartition(-like, near - 1, axis=1)[:, :near] if near else np.zeros((0, 0), int)
                near_enough = np.take_along_axis(like, best, 1) >= LIKE
                part = inner[start : start + BLOCK, None]
                near_enough &= np.abs(part - tints[best]).max(2) <= TINT
                rows, places = np.nonzero(near_enough)
                for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                    i, j = start + row, int(best[row, place])
                    if share == 1 and i > j and not flip:
                        continue  # both ways are tried when it is laid over
                    found[i, j, flip] = None
    return list(found)


def _signatures(thumbs: NDArray[np.uint8], share: float) -> tuple[Floats, Floats]:
    """Of the middle: (N, 64) lowest cosines without the mean, length 1; (N, 3) mean colours."""
    edge = round(THUMB * (1 - share) / 2)
    side = THUMB - 2 * edge
    waves = np.cos(np.pi * np.arange(LOW)[:, None] * (np.arange(side)[None] + 0.5) / side).astype(np.float32)
    waves /= np.sqrt(side)
    out, tints = np.empty((len(thumbs), LOW * LOW), np.float32), np.empty((len(thumbs), 3), np.float32)
    for start in range(0, len(thumbs), BLOCK):
        inner = slice(edge, edge + side)
        part = thumbs[start : start + BLOCK, inner, inner].astype(np.float32)
        tints[start : start + BLOCK] = part.mean((1, 2))
        grey = part.mean(3)
        out[start : start + BLOCK] = (waves @ grey @ waves.T).reshape(len(grey), -1)
    out[:, 0] = 0
    return out / (np.linalg.norm(out, axis=1, keepdims=True) + 1e-3), tints


def _errors(
    thumbs: NDArray[np.uint8], aspects: Floats, pairs: Sequence[tuple[int, int, bool]]
) -> list[float | None]:
    """Mean difference in grey levels of each pair that is one picture; None for the others."""
    first = thumbs[[i for i, _, _ in pairs]].astype(np.float32)
    second = thumbs[[j for _, j, _ in pairs]].astype(np.float32)
    flipped = np.array([flip for _, _, flip in pairs])
    second[flipped] = second[flipped, :, ::-1]
    shape = aspects[[j for _, j, _ in pairs]] - aspects[[i for i, _, _ in pairs]]
    there, back = _overlaid(first, second, shape), _overlaid(second, first, -shape)
    best = np.minimum(there, back)
    return [float(error) if np.isfinite(error) else None for error in best]


def _overlaid(whole: Floats, part: Floats, shape: Floats) -> Floats:
    """(P,) mean difference where `part` is a crop of `whole`, inf where it is none.

    Args:
        whole: (P, 48, 48, 3).
        part: (P, 48, 48, 3).
        shape: (P,) log of the part's aspect / the whole's.
    """
    out = np.full(len(whole), np.inf, np.float32)
    place = np.tile(np.array([1, 0, 1, 0], np.float32), (len(whole), 1))  # scale, shift along x; along y
    left = np.arange(len(whole))
    for cells, steps, least in ROUNDS:  # a few coarse cells tell most pairs apart
        if not len(left):
            return out
        a, b = _pooled(whole[left].mean(3), cells), _pooled(part[left].mean(3), cells)
        for _ in range(steps):
            place[left] = _step(a, b, place[left], shape[left])
        if least:
            agree = _agreement(_sampled(a[..., None], place[left])[..., 0], b)
            left = left[(agree > least) & _possible(place[left], shape[left], 3.0)]
    laid, other = (
        np.stack([_pooled(seen[..., c], FINAL)[:, EDGE:-EDGE, EDGE:-EDGE] for c in range(3)], 3)
        for seen in (_sampled(whole[left], place[left]), part[left])
    )
    difference = np.abs(laid - other).mean(3)
    mean = difference.mean((1, 2))
    side = (FINAL - 2 * EDGE) // PARTS
    parts = difference.reshape(len(left), PARTS, side, PARTS, side).mean((2, 4)).max((1, 2))
    shown = other.mean(3).std((1, 2))
    bare = (shown < PLAIN) & ((shown < FAINT) | (mean > shown / 8))  # too little to compare by
    agree = _agreement(laid.mean(3), other.mean(3))
    good = _possible(place[left], shape[left], 1.0) & (agree > AGREE) & (mean < FAR) & (parts < PART) & ~bare
    out[left[good]] = mean[good]
    return out


def _possible(place: Floats, shape: Floats, slack: float) -> NDArray[np.bool_]:
    """Whether the part is large enough and has the shape that its crop would have."""
    scale_x, scale_y = place[:, 0], place[:, 2]
    large = np.minimum(scale_x, scale_y) > LEAST
    return large & (np.abs(np.log(scale_x / scale_y) - shape) < ASPECT * slack)


def _agreement(one: Floats, other: Floats) -> Floats:
    """(P,) correlation of grey levels (P, n, n)."""
    g, h = one.reshape(len(one), -1), other.reshape(len(other), -1)
    g, h = g - g.mean(1, keepdims=True), h - h.mean(1, keepdims=True)
    return (g * h).sum(1) / (np.sqrt((g * g).sum(1) * (h * h).sum(1)) + 1e-3)


def _step(whole: Floats, part: Floats, place: Floats, shape: Floats) -> Floats:
    """One Gauss-Newton step of laying over, after Lucas and Kanade (1981), in two scales and two shifts.

    Where the pictures do not tell, as beside a single edge, the part has the shape that its crop has.
    """
    cells = whole.shape[1]
    laid = _sampled(whole[..., None], place)[..., 0]
    unit = ((np.arange(cells) + 0.5) / cells).astype(np.float32)
    inner = slice(1, cells - 1)
    # slope of the sampled picture / scale: of the picture itself, by its own coordinates
    gx = (laid[:, inner, 2:] - laid[:, inner, :-2]) * (cells / 2 / place[:, 0, None, None])
    gy = (laid[:, 2:, inner] - laid[:, :-2, inner]) * (cells / 2 / place[:, 2, None, None])
    columns = (gx * unit[None, None, inner], gx, gy * unit[None, inner, None], gy)
    slopes = np.stack([column.reshape(len(whole), -1) for column in columns], 2)
    wrong = (part - laid)[:, inner, inner].reshape(len(whole), -1, 1)
    wrong = wrong - wrong.mean(1, keepdims=True)
    limit = 3 * np.abs(wrong).mean(1, keepdims=True) + 1
    normal = slopes.transpose(0, 2, 1) @ slopes
    size = np.trace(normal, axis1=1, axis2=2)[:, None, None]
    normal += np.eye(4, dtype=np.float32) * (1e-3 * size + 1)
    aimed = slopes.transpose(0, 2, 1) @ np.clip(wrong, -limit, limit)
    aspect = np.exp(shape)
    tie = np.zeros((len(whole), 4, 1), np.float32)
    tie[:, 0, 0], tie[:, 2, 0] = 1, -aspect  # scale along x = aspect * scale along y
    off = (place[:, 0] - aspect * place[:, 2])[:, None, None]
    normal += TIED * size * (tie @ tie.transpose(0, 2, 1))
    aimed -= TIED * size * off * tie
    change = np.linalg.solve(normal, aimed)[..., 0]
    moved = place + np.clip(change, -0.08, 0.08)
    moved[:, 0::2] = np.clip(moved[:, 0::2], 0.6, 1.0)
    moved[:, 1::2] = np.clip(moved[:, 1::2], 0, 1 - moved[:, 0::2])  # a crop lies inside
    return moved


def _sampled(pictures: Floats, place: Floats) -> Floats:
    """(P, n, n, C): each picture seen through its crop, linearly between cells."""
    cells = pictures.shape[1]
    unit = ((np.arange(cells) + 0.5) / cells).astype(np.float32)
    x = np.clip((place[:, 1, None] + place[:, 0, None] * unit) * cells - 0.5, 0, cells - 1.001)
    y = np.clip((place[:, 3, None] + place[:, 2, None] * unit) * cells - 0.5, 0, cells - 1.001)
    rows, columns = _between(y, cells), _between(x, cells)  # (P, n, n) weights
    seen = [rows @ pictures[..., c] @ columns.transpose(0, 2, 1) for c in range(pictures.shape[3])]
    return np.stack(seen, 3).astype(np.float32, copy=False)


def _between(at: Floats, cells: int) -> Floats:
    """(P, n, cells) weights that read a row of cells at places (P, n), linearly."""
    return np.maximum(0, 1 - np.abs(at[..., None] - np.arange(cells, dtype=np.float32)))


def _pooled(grey: Floats, cells: int) -> Floats:
    """(P, cells, cells) means of (P, 48, 48), a little blurred: each is laid over in small steps."""
    step = THUMB // cells
    small = grey.reshape(len(grey), cells, step, cells, step).mean((2, 4))
    for axis in (1, 2):
        ends = [(0, 0)] * 3
        ends[axis] = (1, 1)
        wide = np.pad(small, ends, mode="edge")
        small = (np.take(wide, range(cells), axis) + 2 * small + np.take(wide, range(2, cells + 2), axis)) / 4
    return small
