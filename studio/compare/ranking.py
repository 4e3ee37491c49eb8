"""Strengths of things from votes between two of them: Bradley-Terry with ties, and how sure they are.

Model (Davidson 1970, "On extending the Bradley-Terry model to accommodate ties"), strengths p_i = exp(t_i):

    P(i beats j) = p_i / Z,   P(tie) = nu sqrt(p_i p_j) / Z,   Z = p_i + p_j + nu sqrt(p_i p_j)

This is a logit of three outcomes, so the log likelihood is concave in (t, log nu). What is maximised has a
weak prior beside it, t_i ~ N(0, 3^2) and log nu ~ N(0, 3^2): who won every vote has a finite strength (odds
of 20 : 1 are one standard deviation), and where there are many votes it moves next to nothing.

Intervals are 95 % Wald intervals: mode +- 1.96 standard errors, from the inverse negative Hessian there.
Strengths only mean something beside each other: they and their errors are those around the mean of all.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PRIOR = 3.0  # standard deviation, in natural log units
Z95 = 1.959964  # two-sided 95 %
MOST = 1000  # votes; beyond, "alike" is the better word
_STEPS, _ENOUGH = 60, 1e-9


@dataclass(frozen=True)
class Fit:
    """Strengths of K things, for each of S sets of votes.

    Attributes:
        strength: (S, K) t, mean 0.
        covariance: (S, K, K) of it.
        log_tie: (S,) log nu.
    """

    strength: Array
    covariance: Array
    log_tie: Array

    @property
    def error(self) -> Array:
        """(S, K) standard errors."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance, axis1=-2, axis2=-1), 0))

    @property
    def interval(self) -> tuple[Array, Array]:
        """Lower and upper ends of the 95 % intervals, (S, K) each."""
        return self.strength - Z95 * self.error, self.strength + Z95 * self.error


def fit(wins: Any, ties: Any) -> Fit:
    """Fit S sets of votes at once by Newton's method.

    Args:
        wins: (S, K, K) or (K, K); [i, j] = votes for i against j.
        ties: The same shape, symmetric; [i, j] = ties between i and j.
    """
    won, tied = (np.asarray(x, dtype=np.float64) for x in (wins, ties))
    won, tied = (x[None] if x.ndim == 2 else x for x in (won, tied))
    sets, things = won.shape[0], won.shape[1]
    x = np.zeros((sets, things + 1))  # t_1 ... t_K, log nu
    for _ in range(_STEPS):
        slope, bend = _derivatives(x, won, tied)
        step = np.linalg.solve(bend, slope[..., None])[..., 0]
        x += step * np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        if np.abs(step).max() < _ENOUGH:
            break
    _, bend = _derivatives(x, won, tied)
    centre = np.eye(things) - 1.0 / things
    inverse = np.linalg.inv(bend)[:, :things, :things]
    return Fit(x[:, :things] @ centre, centre @ inverse @ centre, x[:, things])


def outcomes(difference: Any, log_tie: Any) -> tuple[Array, Array, Array]:
    """Chances that the first wins, the second wins, and of a tie, at t_first - t_second = `difference`."""
    half = np.asarray(difference, dtype=np.float64) / 2
    parts = np.stack(np.broadcast_arrays(half, -half, np.asarray(log_tie, dtype=np.float64)))
    parts = np.exp(parts - parts.max(axis=0))
    first, second, tie = parts / parts.sum(axis=0)
    return first, second, tie


def information(difference: Any, log_tie: Any) -> Array:
    """What a vote tells of the difference (Fisher information): variance of (1/2, -1/2, 0) over outcomes."""
    first, second, _ = outcomes(difference, log_tie)
    return (first + second) / 4 - ((first - second) / 2) ** 2


def best_pair(fitted: Fit, counts: Array) -> list[tuple[int, int]]:
    """Pairs from the one whose next vote is expected to tell most to the one that tells least.

    Worth of a vote: log(1 + variance of the difference x information of a vote), twice what it is expected to
    take from the entropy of the difference. Of equals the one with fewer votes comes first.

    Args:
        fitted: One set.
        counts: (K, K) votes so far.
    """
    strength, covariance = fitted.strength[0], fitted.covariance[0]
    found: list[tuple[float, float, int, int]] = []
    for i in range(len(strength)):
        for j in range(i + 1, len(strength)):
            told = float(information(strength[i] - strength[j], fitted.log_tie[0]))
            worth = math.log1p(max(0.0, _variance(covariance, i, j)) * told)
            found.append((-round(worth, 9), float(counts[i, j]), i, j))
    return [(i, j) for _, _, i, j in sorted(found)]


def votes_to_tell(fitted: Fit, i: int, j: int) -> int | None:
    """About how many more votes between i and j would make their difference certain, if it stays as it is.

    Returns:
        0 = it is certain now (its 95 % interval is on one side of zero); None = more than MOST.
    """
    difference = float(fitted.strength[0, i] - fitted.strength[0, j])
    variance = _variance(fitted.covariance[0], i, j)
    wanted = (difference / Z95) ** 2
    if variance <= wanted:
        return 0
    told = float(information(difference, fitted.log_tie[0]))
    if wanted <= 0 or told <= 0:
        return None
    votes = math.ceil((1 / wanted - 1 / variance) / told)
    return votes if votes <= MOST else None


def _variance(covariance: Array, i: int, j: int) -> float:
    """Of the difference of two strengths."""
    return float(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])


def _derivatives(x: Array, won: Array, tied: Array) -> tuple[Array, Array]:
    """Gradient (S, K+1) of what is maximised, and its negative Hessian (S, K+1, K+1)."""
    things = won.shape[1]
    slope = -x / PRIOR**2
    bend = np.zeros((x.shape[0], things + 1, things + 1))
    bend[:, range(things + 1), range(things + 1)] = 1 / PRIOR**2
    for i in range(things):
        for j in range(i + 1, things):
            sides = np.zeros((3, things + 1))  # what an outcome adds to the exponent: i wins, j wins, tie
            sides[0, i] = sides[1, j] = sides[2, things] = 1
            sides[2, [i, j]] = 0.5
            votes = np.stack([won[:, i, j], won[:, j, i], tied[:, i, j]], axis=1)  # (S, 3)
            number = votes.sum(axis=1)
            chances = np.stack(outcomes(x[:, i] - x[:, j], x[:, things]), axis=1)  # (S, 3)
            slope += (votes - number[:, None] * chances) @ sides
            mean = chances @ sides
            spread = np.einsum("so,oa,ob->sab", chances, sides, sides) - mean[:, :, None] * mean[:, None, :]
            bend += number[:, None, None] * spread
    return slope, bend
