"""What was measured of each picture, and the figures that follow under any weights of prompts and seeds.

Weights make resampling cheap: a resample is another weighing of the same prompts and seeds, so nothing is
measured twice. Shapes: B weighings; A prompts about what was trained; R prior prompts; S seeds; V views, see
`features`; D statistics of a view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from studio.evidence.features import Floats
from studio.evidence.figures import Figures, Point

VARIANCE = 2**0.5 - 1  # of a resample's weights, of mean 1
LEAST = 1e-12  # a distance of nothing
MOST = 1.5  # of the base's answer to prompts: more is noise
NAMES = ("likeness", "adherence", "diversity", "drift", "copying")


@dataclass(frozen=True)
class Table:
    """The pictures of a subject at a strength.

    Args:
        look: Of each view (A, S, D), in units of the spread of a statistic.
        right: (A, A, S) whether the picture of the first prompt is more like the base's of the same prompt
            than like that of the second: 0, 1/2 or 1.
        unlike: Of each view (A, S, S): distance between the scenes of two seeds.
        moved: Of each view (R, S): distance from the base's picture, in units of a value's spread.
        spread: Of each view (R, S, S): the same between the pictures of two seeds.
        said: (A, S) how much more a picture answers its own prompt than the others; None without texts.
        copied: (A, S) 1 where the picture is a near copy of a training picture.
        which: (A, S) index of the training picture that it is nearest to.
    """

    look: tuple[Floats, ...]
    right: Floats
    unlike: tuple[Floats, ...]
    moved: tuple[Floats, ...]
    spread: tuple[Floats, ...]
    said: Floats | None
    copied: Floats
    which: NDArray[np.int64]

    @cached_property
    def noise(self) -> tuple[float, ...]:
        """Of each view the variance of one picture's look, summed over the statistics."""
        flat = [look.reshape(-1, look.shape[-1]) for look in self.look]
        return tuple(float(rows.var(0, ddof=1).sum()) if len(rows) > 1 else 0.0 for rows in flat)


@dataclass(frozen=True)
class Training:
    """The training pictures.

    Args:
        look: Of each view (D,) the mean.
        noise: Of each view the variance of that mean, summed over the statistics.
        unlike: Of each view the distance between the scenes of two, on average; 0 when there is only one.
        count: How many there are.
    """

    look: tuple[Floats, ...]
    noise: tuple[float, ...]
    unlike: tuple[float, ...]
    count: int


@dataclass(frozen=True)
class Weights:
    """B weighings of prompts and seeds, none of them negative: about (B, A), prior (B, R), seeds (B, S)."""

    about: Floats
    prior: Floats
    seeds: Floats

    @classmethod
    def even(cls, about: int, prior: int, seeds: int) -> "Weights":
        """One weighing in which all count the same."""
        return cls(np.ones((1, about)), np.ones((1, prior)), np.ones((1, seeds)))

    @classmethod
    def resampled(cls, about: int, prior: int, seeds: int, count: int, seed: int) -> "Weights":
        """`count` resamples over prompts and seeds at once, by a Bayesian bootstrap.

        Weights instead of whole numbers (Rubin 1981, "The Bayesian bootstrap"), so that two seeds are enough;
        the product of both sides for crossed data (Owen and Eckles 2012, "Bootstrapping data arrays of
        arbitrary order"). With a variance of 1 on each side a picture's own noise would count three times
        (Owen 2007, "The pigeonhole bootstrap"), and that is what is left when pictures of the same prompt and
        seed are compared. A variance v with (1 + v)^2 - 1 = 1 counts it once.
        """
        rng = np.random.default_rng(seed)
        return cls(*(rng.gamma(1 / VARIANCE, size=(count, n)) for n in (about, prior, seeds)))


@dataclass(frozen=True)
class Measured:
    """All points, and what they follow from.

    Args:
        points: Every subject at every strength, the base first.
        tables: By subject and strength.
        training: The training pictures.
        views: Names of the views.
        prompts: Number of prompts about what was trained, and of prior prompts.
        seeds: Number of seeds.
    """

    points: tuple[Point, ...]
    tables: Mapping[tuple[str, float], Table]
    training: Training
    views: tuple[str, ...]
    prompts: tuple[int, int]
    seeds: int

    def with_points(self, points: tuple[Point, ...]) -> "Measured":
        """The same, with these points."""
        return replace(self, points=points)

    @property
    def base(self) -> Table:
        """The base's own pictures."""
        return self.tables["", 0.0]

    @cached_property
    def room(self) -> float:
        """How much of the base's diversity the training pictures have among each other, at most 1.

        Of a subject they are more alike than the base's pictures; nobody is to blame for keeping to that.
        """
        if not any(self.training.unlike):
            return 1.0
        own = _diversity(self.base, Weights.even(*self.prompts, self.seeds))
        shares = [
            there / max(float(mean[0]), LEAST) for there, mean in zip(self.training.unlike, own, strict=True)
        ]
        return min(1.0, max(float(np.mean(shares)), LEAST))

    def figures(self, key: tuple[str, float], weights: Weights) -> dict[str, Floats]:
        """Of a point: (B,) of each figure, by its name."""
        table, base = self.tables[key], self.base
        return {
            "likeness": _likeness(table, base, self.training, weights),
            "adherence": _adherence(table, base, weights),
            "diversity": _ratio(_diversity(table, weights), _diversity(base, weights)),
            "drift": _drift(table, base, weights),
            "copying": _mean(table.copied, weights.about, weights.seeds),
        }


def plain_figures(measured: Measured, key: tuple[str, float]) -> Figures:
    """The figures of a point when all prompts and seeds count the same."""
    found = measured.figures(key, Weights.even(*measured.prompts, measured.seeds))
    return Figures(**{name: round(float(found[name][0]), 4) for name in NAMES})


def _likeness(table: Table, base: Table, training: Training, weights: Weights) -> Floats:
    """Mean over the views of 1 - d / d_base; d is the distance of the mean looks, without its bias.

    The square of the distance of two sample means is too large by the variance of both, so that few pictures
    always seem to be far away; it is subtracted: d^2 = |mean - mean_t|^2 - noise sum w^2 - noise_t.
    """
    w = weights.about[:, :, None] * weights.seeds[:, None, :]
    w = (w / w.sum((1, 2), keepdims=True)).reshape(len(w), -1)
    few = (w**2).sum(1)
    parts: list[Floats] = []
    for place, (target, noise_t) in enumerate(zip(training.look, training.noise, strict=True)):
        square = _squared(table, place, target, w) - table.noise[place] * few - noise_t
        least = base.noise[place] * few + noise_t + LEAST
        whole = np.maximum(_squared(base, place, target, w) - base.noise[place] * few - noise_t, least)
        parts.append(1 - np.sqrt(np.maximum(square, 0) / whole))
    return np.mean(parts, axis=0)


def _squared(table: Table, place: int, target: Floats, w: Floats) -> Floats:
    look = table.look[place]
    return ((w @ look.reshape(-1, look.shape[-1]) - target) ** 2).sum(1)


def _adherence(table: Table, base: Table, weights: Weights) -> Floats:
    """By texts the share of the base's own answer, where it has one; else 2 AUC - 1."""
    if table.said is not None and base.said is not None and base.said.mean() > 0:
        own = np.maximum(_mean(base.said, weights.about, weights.seeds), LEAST)
        return np.clip(_mean(table.said, weights.about, weights.seeds) / own, 0, MOST)
    pairs = weights.about[:, :, None] * weights.about[:, None, :]
    pairs = pairs * (1 - np.eye(pairs.shape[1]))
    total = pairs.sum((1, 2)) * weights.seeds.sum(1)
    share = np.einsum("bpq,bs,pqs->b", pairs, weights.seeds, table.right) / total
    return np.clip(2 * share - 1, 0, 1)


def _diversity(table: Table, weights: Weights) -> list[Floats]:
    return [_between_seeds(unlike, weights.about, weights.seeds) for unlike in table.unlike]


def _between_seeds(values: Floats, prompts: Floats, seeds: Floats) -> Floats:
    """(B,) mean over prompts and pairs of seeds of values (P, S, S)."""
    pairs = seeds[:, :, None] * seeds[:, None, :] * (1 - np.eye(seeds.shape[1]))
    total = prompts.sum(1) * pairs.sum((1, 2))
    return np.einsum("bp,bst,pst->b", prompts, pairs, values) / total


def _drift(table: Table, base: Table, weights: Weights) -> Floats:
    if not weights.prior.shape[1]:
        return np.zeros(len(weights.prior))
    moved = [_mean(values, weights.prior, weights.seeds) for values in table.moved]
    return _ratio(moved, [_between_seeds(values, weights.prior, weights.seeds) for values in base.spread])


def _ratio(one: list[Floats], other: list[Floats]) -> Floats:
    """Mean over the views of the ratio."""
    return np.mean([a / np.maximum(b, LEAST) for a, b in zip(one, other, strict=True)], axis=0)


def _mean(values: Floats, prompts: Floats, seeds: Floats) -> Floats:
    """(B,) weighted mean of values (P, S)."""
    return np.einsum("bp,bs,ps->b", prompts, seeds, values) / (prompts.sum(1) * seeds.sum(1))
