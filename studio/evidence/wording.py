"""Judgements in plain sentences, with figures that a person understands."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from registry.errors import several
from studio.evidence.figures import Stage
from studio.evidence.scores import TERMS

if TYPE_CHECKING:
    from studio.evidence.judge import Bench
    from studio.evidence.tables import Measured


@dataclass(frozen=True)
class Facts:
    """What sentences are made from: the scores, the pick, its strength and the range about as good."""

    bench: "Bench"
    pick: str
    best: float
    low: float
    high: float

    def figures(self, subject: str) -> dict[str, float]:
        """Mean over the usual strengths."""
        bench = self.bench
        every = [bench.measured.figures((subject, weight), bench.even) for weight in bench.usual]
        return {name: float(np.mean([one[name] for one in every])) for name in every[0]}

    def losses(self, subject: str) -> dict[str, float]:
        """Mean over the usual strengths, each times its weight."""
        bench = self.bench
        every = [bench.lost(subject, weight, bench.even) for weight in bench.usual]
        return {term.name: term.weight * float(np.mean([one[term.name] for one in every])) for term in TERMS}


def called(subject: str) -> str:
    """A subject in a sentence."""
    _, mark, step = subject.rpartition("@")
    return f"step {step}" if mark and step.isdecimal() else subject


def percent(share: float) -> str:
    """A share as people read it; never below nothing."""
    return f"{100 * max(share, 0.0):.0f} %"


def reason(facts: Facts, subject: str, stage: Stage) -> str:
    """Why a subject is where it is."""
    own = facts.figures(subject)
    if subject == facts.pick:
        return _of_the_pick(facts, own, stage)
    if stage == "good":
        both = f"{percent(own['likeness'])} of the way to the training pictures"
        return f"About as good as {called(facts.pick)}: {both}, and it answers prompts {_as_base(own)}."
    return _why_worse(facts, subject, own, stage)


def _of_the_pick(facts: Facts, own: dict[str, float], stage: Stage) -> str:
    if stage == "undertrained":
        return f"It has gone only {percent(own['likeness'])} of the way to the training pictures."
    said = f"It has gone {percent(own['likeness'])} of the way to the training pictures"
    copied = f", but {percent(own['copying'])} of its pictures are near copies" if own["copying"] > 0 else ""
    if stage == "overtrained":
        weaker = f", but strength {facts.best:g} suits it better than any usual one"
        return f"{said}{weaker if facts.best < min(facts.bench.usual) else copied}."
    return f"{said} and answers prompts {_as_base(own)}{copied}."


def _why_worse(facts: Facts, subject: str, own: dict[str, float], stage: Stage) -> str:
    """The loss that differs most from the pick's, in words."""
    lost, best = facts.losses(subject), facts.losses(facts.pick)
    worst = max(lost, key=lambda name: lost[name] - best[name])
    theirs, pick = facts.figures(facts.pick), called(facts.pick)
    if worst == "held_out":
        above = facts.bench.held_out[subject]
        return f"Its loss on pictures that it was not trained on is {percent(above)} above the lowest."
    mine, its = percent(own[worst]), percent(theirs[worst])
    gone = "has gone only" if stage == "undertrained" else "is back at"
    return {
        "likeness": f"It {gone} {mine} of the way to the training pictures; {pick} has gone {its}.",
        "adherence": f"It answers prompts only {_as_base(own)}; {pick} does {its}.",
        "copying": f"{mine} of its pictures are near copies of training pictures; of those of {pick} {its}.",
        "diversity": f"Its seeds differ {mine} as much as the base's do; those of {pick} {its}.",
        "drift": f"It moves pictures without the trigger word by {own['drift']:.1f} times what another seed "
        f"does; {pick} by {theirs['drift']:.1f}.",
    }[worst]


def _as_base(own: dict[str, float]) -> str:
    return f"{percent(own['adherence'])} as well as the base"


def weight_reason(facts: Facts) -> str:
    """Why this strength of the pick."""
    bench = facts.bench

    def figures(weight: float) -> dict[str, float]:
        found = bench.measured.figures((facts.pick, weight), bench.even)
        return {name: float(values[0]) for name, values in found.items()}

    own = figures(facts.best)
    like = f"At strength {facts.best:g} it goes {percent(own['likeness'])} of the way"
    first = f"{like} and answers prompts {_as_base(own)}"
    if len(bench.strengths) == 1:
        return f"{first}; no other strength was drawn."
    around = f"{facts.low:g}" if facts.low == facts.high else f"{facts.low:g} to {facts.high:g}"
    if facts.low == facts.high:
        return f"{first}; every other strength that was drawn is clearly worse."
    return f"{first}; {around} are about as good."


def memorised(copies: int, pictures: int, sources: int, training: int, weight: float) -> str:
    """What is copied."""
    of = several(training, "training picture")
    which = f"{sources} of the {of}" if training > 1 else "the training picture"
    return f"At strength {weight:g} {copies} of {pictures} pictures are near copies of {which}."


def sure_of_subject(share: float, pick: str, measured: "Measured") -> str:
    """How often the pick is first."""
    name = called(pick)
    name = name[0].upper() + name[1:] if name != pick else pick
    return f"{name} comes first in {percent(share)} of {_resamples(measured)}."


def sure_of_strength(share: float, best: float, measured: "Measured") -> str:
    """How often this strength is the best."""
    return f"Strength {best:g} comes first in {percent(share)} of {_resamples(measured)}."


def _resamples(measured: "Measured") -> str:
    prompts = several(measured.prompts[0], "prompt")
    return f"the resamples of {prompts} and {several(measured.seeds, 'seed')}"
