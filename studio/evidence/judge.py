"""Which subject at which strength, why, and how sure: from what `measure` found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from registry.errors import BadInput
from studio.evidence import wording
from studio.evidence.features import Floats
from studio.evidence.figures import BASE, Judgement, Rank, Stage
from studio.evidence.scores import losses, score
from studio.evidence.tables import Measured, Weights

RESAMPLES, SEED = 1000, 6
USUAL = (0.75, 1.25)  # strengths that people use; a subject is ranked by its mean over them
FULL = 1.0  # strength as trained
# Share of the resamples in which the second is not worse, from which both are about as good: a standard
# error, as in the rule of Breiman et al. 1984 ("Classification and regression trees", 3.4.3).
TIED = 0.16
COPIES, SHARE = 2, 1 / 3  # pictures, and share of them, that have to be copies: a few may be by chance
WEAK = 0.5  # likeness below which a single subject has not learnt enough


@dataclass(frozen=True)
class Bench:
    """All scores: even ones, and those of the resamples.

    Args:
        measured: What was found.
        order: Subjects from the least to the most trained.
        held_out: Of each subject how much its loss on unseen pictures is above the lowest, as a share.
    """

    measured: Measured
    order: tuple[str, ...]
    held_out: Mapping[str, float]

    @cached_property
    def resamples(self) -> Weights:
        """The same for all points, so that differences are paired."""
        return Weights.resampled(*self.measured.prompts, self.measured.seeds, RESAMPLES, SEED)

    @cached_property
    def even(self) -> Weights:
        """All count the same."""
        return Weights.even(*self.measured.prompts, self.measured.seeds)

    @cached_property
    def strengths(self) -> tuple[float, ...]:
        """Rising."""
        return tuple(sorted({weight for subject, weight in self.measured.tables if subject == self.order[0]}))

    @cached_property
    def usual(self) -> tuple[float, ...]:
        """Those that people use; all when there are none of these."""
        return tuple(w for w in self.strengths if USUAL[0] <= w <= USUAL[1]) or self.strengths

    def lost(self, subject: str, weight: float, weights: Weights) -> dict[str, Floats]:
        """Losses of a point."""
        figures = self.measured.figures((subject, weight), weights)
        return losses(figures, self.measured.room, self.held_out.get(subject, 0.0))

    @cached_property
    def resampled(self) -> dict[tuple[str, float], Floats]:
        """(resamples,) scores of each point."""
        return {
            (subject, weight): score(self.lost(subject, weight, self.resamples))
            for subject in self.order
            for weight in self.strengths
        }

    def score(self, subject: str, weight: float) -> float:
        """Of a point."""
        return float(score(self.lost(subject, weight, self.even))[0])

    def overall(self, subject: str) -> float:
        """Mean score over the usual strengths."""
        return float(np.mean([self.score(subject, weight) for weight in self.usual]))

    def overall_resampled(self, subject: str) -> Floats:
        """(resamples,) the same."""
        return np.mean([self.resampled[subject, weight] for weight in self.usual], axis=0)


def judge(
    measured: Measured, order: Sequence[str], probes: Mapping[str, Mapping[str, float]] | None = None
) -> Judgement:
    """Rank subjects, and recommend one at a strength.

    A subject is ranked by its mean score over the strengths from 0.75 to 1.25, for one that is good at a
    single strength only is hard to use. See `scores.TERMS` for what counts how much.

    Args:
        measured: From `measure`.
        order: Subjects from the least to the most trained; one for a single adapter.
        probes: Of each subject losses "train", "held_out", "prior", as far as they are known.

    Raises:
        BadInput: no subject, or one that was not measured.
    """
    _check(measured, order)
    bench = Bench(measured, tuple(order), _above_lowest(order, probes or {}))
    sorted_ = sorted(order, key=bench.overall, reverse=True)
    pick = sorted_[0]
    best = max(bench.strengths, key=lambda weight: bench.score(pick, weight))
    low, high = _range(bench, pick, best)
    memorised, memorised_reason = _memorised(bench, pick, best)
    stages: dict[str, Stage] = {subject: _stage(bench, subject, pick, best) for subject in sorted_}
    if memorised and len(order) == 1:
        stages[pick] = "overtrained"
    facts = wording.Facts(bench, pick, best, low, high)
    ranks = tuple(
        Rank(
            subject=subject,
            score=round(bench.overall(subject), 4),
            stage=stages[subject],
            reason=wording.reason(facts, subject, stages[subject]),
        )
        for subject in sorted_
    )
    return Judgement(
        ranks=ranks,
        pick=pick,
        reason=ranks[0].reason,
        weight=best,
        low=low,
        high=high,
        weight_reason=wording.weight_reason(facts),
        memorised=memorised,
        memorised_reason=memorised_reason,
        sure=_sure(bench, sorted_, best),
    )


def _check(measured: Measured, order: Sequence[str]) -> None:
    if not order:
        raise BadInput("evidence", "there is no adapter to judge", "name one or more")
    known = {subject for subject, _ in measured.tables} - {BASE}
    for subject in order:
        if subject not in known:
            raise BadInput(f"evidence of {subject}", "it was not measured", "draw its pictures first")
    if len(set(order)) < len(order):
        raise BadInput("evidence", "an adapter is named twice", "name each once")


def _above_lowest(order: Sequence[str], probes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How much the loss on unseen pictures is above the lowest; nothing unless it is known of all."""
    found = {subject: probes.get(subject, {}).get("held_out") for subject in order}
    known = {subject: value for subject, value in found.items() if value is not None and value > 0}
    if len(known) < max(2, len(found)):
        return {}
    least = min(known.values())
    return {subject: value / least - 1 for subject, value in known.items()}


def _stage(bench: Bench, subject: str, pick: str, best: float) -> Stage:
    if len(bench.order) == 1:
        return _stage_alone(bench, subject, best)
    if subject == pick or _not_worse(bench.overall_resampled(subject), bench.overall_resampled(pick)):
        return "good"
    return "undertrained" if bench.order.index(subject) < bench.order.index(pick) else "overtrained"


def _stage_alone(bench: Bench, subject: str, best: float) -> Stage:
    """Without others to compare with: it says by the strength that suits it whether it does too much."""
    like = float(bench.measured.figures((subject, best), bench.even)["likeness"][0])
    if best < USUAL[0] and not _not_worse(
        bench.resampled[subject, min(bench.usual)], bench.resampled[subject, best]
    ):
        return "overtrained"
    return "undertrained" if like < WEAK else "good"


def _range(bench: Bench, pick: str, best: float) -> tuple[float, float]:
    """The strengths around the best one whose score is within the noise of its own."""
    place = bench.strengths.index(best)
    low = high = place
    good = [_not_worse(bench.resampled[pick, w], bench.resampled[pick, best]) for w in bench.strengths]
    while low > 0 and good[low - 1]:
        low -= 1
    while high + 1 < len(good) and good[high + 1]:
        high += 1
    return bench.strengths[low], bench.strengths[high]


def _not_worse(one: Floats, best: Floats) -> bool:
    return float((one >= best).mean()) >= TIED


def _memorised(bench: Bench, pick: str, best: float) -> tuple[bool, str]:
    """At the recommended strength, or at a weaker or the full one: a copy at full strength is in the adapter.

    What is said is of the strength with the most copies.
    """
    measured = bench.measured
    looked = [weight for weight in bench.strengths if weight <= max(best, FULL)] or list(bench.strengths)
    most = max(looked, key=lambda weight: (measured.tables[pick, weight].copied.sum(), weight == best))
    table = measured.tables[pick, most]
    copies, pictures = int(table.copied.sum()), table.copied.size
    if copies < COPIES or copies < SHARE * pictures:
        return False, ""
    sources = len(set(table.which[table.copied > 0].tolist()))
    return True, wording.memorised(copies, pictures, sources, measured.training.count, most)


def _sure(bench: Bench, sorted_: Sequence[str], best: float) -> str:
    pick = sorted_[0]
    if len(sorted_) == 1:
        scores = np.stack([bench.resampled[pick, weight] for weight in bench.strengths])
        first = float((scores.argmax(0) == bench.strengths.index(best)).mean())
        return wording.sure_of_strength(first, best, bench.measured)
    scores = np.stack([bench.overall_resampled(subject) for subject in sorted_])
    return wording.sure_of_subject(float((scores.argmax(0) == 0).mean()), pick, bench.measured)
