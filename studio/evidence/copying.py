"""Which drawn pictures are near copies of training pictures, mirrored or not.

Two pictures are as unlike as u = sqrt(1 - r), where r is the correlation of their layouts: 0 for the same
picture whatever its contrast, 1 for two that have nothing in common.

A fixed line for u would call every picture of a simple, uniform set a copy. So u is compared with what is
usual among the training pictures, as Carlini et al. 2023 do ("Extracting training data from diffusion
models", eq. 2):

    near(x) = min over t of u(x, t) / usual(t)

usual(t) is how unlike t and the training picture nearest to it are, and at least half the median of that,
so that a picture that is in the set twice is still found. A new picture of the same kind is about 1; a copy
is far below. It counts as a copy below `COPY`, and only when it is nearer than any picture that the base
draws by itself: what the base draws without having seen the pictures is no copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from studio.evidence.features import Floats

COPY = 0.35  # of what is usual; docs/benchmarks.md has what copies and others reach
SAME = 0.01  # unlike: less is one picture saved twice
TINY = 1e-9


@dataclass(frozen=True)
class Closeness:
    """N drawn pictures beside M training pictures.

    Args:
        near: (N, M) how unlike, as a share of what is usual among the training pictures.
        similarity: (N, M) correlation.
    """

    near: Floats
    similarity: Floats

    @property
    def nearest(self) -> tuple[Floats, NDArray[np.int64]]:
        """(N,) the smallest share, and the index of its training picture."""
        which = self.near.argmin(1)
        return self.near[np.arange(len(which)), which], which


def correlations(one: Floats, other: Floats) -> Floats:
    """(N, M) correlation of layouts (N, places, channels) and (M, places, channels), each channel centred."""
    return _centred(one) @ _centred(other).T


def unlike(correlation: Floats) -> Floats:
    """How unlike pictures of this correlation are, 0 to 1.41."""
    return np.sqrt(np.maximum(1 - correlation, 0))


def closeness(drawn: Sequence[Floats], training: Sequence[Floats], mirrored: Sequence[Floats]) -> Closeness:
    """Of layouts in one or more views.

    Shares are averaged over the views as logarithms, so that one view alone can find a copy that the others
    only half see.

    Args:
        drawn: Of each view (N, places, channels).
        training: Of each view (M, places, channels).
        mirrored: The same of the mirrored training pictures.
    """
    shares: list[Floats] = []
    similarities: list[Floats] = []
    for x, t, flipped in zip(drawn, training, mirrored, strict=True):
        similar = np.maximum(correlations(x, t), correlations(x, flipped))
        shares.append(np.log(unlike(similar) / usual(t, flipped, unlike(similar)) + TINY))
        similarities.append(similar)
    return Closeness(np.exp(np.mean(shares, axis=0)), np.mean(similarities, axis=0))


def usual(training: Floats, mirrored: Floats, drawn: Floats) -> Floats:
    """(M,) how unlike each training picture and the one nearest to it are.

    Of a single picture, or many times the same, there is no such thing: then it is the middle of what is
    `drawn` (N, M).
    """
    alone = np.full(len(training), max(float(np.median(drawn)), TINY))
    if len(training) < 2:
        return alone
    apart = unlike(np.maximum(correlations(training, training), correlations(training, mirrored)))
    np.fill_diagonal(apart, np.inf)
    nearest = apart.min(1)
    if np.median(nearest) < SAME:
        return alone
    return np.maximum(np.maximum(nearest, np.median(nearest) / 2), TINY)


def line(base: Floats) -> float:
    """Below which a picture is a copy, given what the base's pictures (N,) reach."""
    return min(COPY, float(base.min())) if base.size else COPY


def _centred(layout: Floats) -> Floats:
    """(N, places * channels) without the mean of each channel, of length 1."""
    rest = (layout - layout.mean(1, keepdims=True)).reshape(len(layout), -1)
    return rest / (np.linalg.norm(rest, axis=1, keepdims=True) + TINY)
