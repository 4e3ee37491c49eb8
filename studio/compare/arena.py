"""Blind votes between pictures of a comparison: which pair next, what was said, and who is ahead.

The two pictures of a pair differ in the value of one axis and in nothing else.
"""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from registry.errors import BadInput
from registry.hashing import canonical_json
from registry.records import Comparison, Vote
from studio.compare.axes import Value
from studio.compare.grids import Cell, cells_of, spec_of
from studio.compare.ranking import Fit, best_pair, fit, votes_to_tell
from studio.compare.spec import Place, Spec

if TYPE_CHECKING:
    from studio.workspace import Workspace

OUTCOMES = ("left", "right", "tie")
NOT_VOTED_ON = ("prompt", "seed")  # what both pictures share is the point of the pair


@dataclass(frozen=True)
class Pair:
    """Two pictures to choose from."""

    axis: str
    left: str  # value, see `value_key`
    right: str
    left_sample: str
    right_sample: str
    prompt: str
    context: str  # values of all other axes, canonical JSON


@dataclass(frozen=True)
class Rank:
    """Where a value stands."""

    value: str
    label: str
    strength: float  # natural log units, mean of all 0
    low: float  # ends of the 95 % interval
    high: float
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class Ranking:
    """Values of an axis, best first."""

    rows: tuple[Rank, ...]
    votes: int
    advice: tuple[str, ...]  # lines: what is certain, and how many votes it would take

    def to_dict(self) -> dict[str, object]:
        """As JSON types."""
        rows = [{**vars(row)} for row in self.rows]
        return {"votes": self.votes, "rows": rows, "advice": list(self.advice)}


def value_key(value: Value) -> str:
    """A value as votes write it."""
    return json.dumps(value, ensure_ascii=False)


def axes_to_vote_on(spec: Spec) -> list[str]:
    """Axes whose values can be compared blindly."""
    return [row.name for row in spec.varied if row.name not in NOT_VOTED_ON]


def next_pair(
    ws: "Workspace",
    comparison: Comparison,
    axis: str,
    *,
    without: Sequence[Pair] = (),
    rng: random.Random | None = None,
) -> Pair | None:
    """The pair whose vote tells most, at the prompt and seed where it was shown least; sides by chance.

    Args:
        ws: Where.
        comparison: Whose pictures.
        axis: Whose values.
        without: Pairs that are not to come again now.
        rng: Chance; tests give one.

    Returns:
        None while no two pictures are drawn that can be compared.
    """
    rng = rng or random.Random()
    spec, votes = spec_of(comparison), _votes(ws, comparison, axis)
    contexts = _contexts(spec, cells_of(ws, comparison), axis)
    values = _values(spec, axis)
    wins, ties = _counted(votes, values)
    shown = Counter((frozenset((vote.left, vote.right)), vote.context) for vote in votes)
    left_out = {(frozenset((pair.left, pair.right)), pair.context) for pair in without}
    for i, j in best_pair(fit(wins, ties), wins + wins.T + ties):
        one, two = values[i], values[j]
        both = frozenset((one, two))
        fitting = [
            context
            for context, drawn in contexts.items()
            if one in drawn and two in drawn and drawn[one] != drawn[two] and (both, context) not in left_out
        ]
        if not fitting:
            continue
        fewest = min(shown[both, context] for context in fitting)
        context = rng.choice([item for item in fitting if shown[both, item] == fewest])
        left, right = (one, two) if rng.random() < 0.5 else (two, one)
        drawn = contexts[context]
        prompt = str(json.loads(context).get("prompt", spec.base.prompt))
        return Pair(axis, left, right, drawn[left], drawn[right], prompt, context)
    return None


def cast(ws: "Workspace", comparison: Comparison, pair: Pair, outcome: str) -> Vote:
    """Write down what a person chose.

    Raises:
        BadInput: it is neither left, right nor tie.
    """
    if outcome not in OUTCOMES:
        raise BadInput(f"vote {outcome[:20]!r}", "is unknown", f"use {', '.join(OUTCOMES)}")
    return ws.catalog.add(
        Vote(
            comparison_id=comparison.id,
            axis=pair.axis,
            left=pair.left,
            right=pair.right,
            outcome=outcome,
            prompt=pair.prompt,
            context=pair.context,
        )
    )


def undo(ws: "Workspace", comparison: Comparison, axis: str) -> Vote | None:
    """Take the last vote on an axis back; None when there is none."""
    last = ws.catalog.list(Vote, comparison_id=comparison.id, axis=axis, limit=1)
    if not last:
        return None
    ws.catalog.delete(Vote, last[0].id)
    return last[0]


def ranking(ws: "Workspace", comparison: Comparison, axis: str, prompt: str | None = None) -> Ranking:
    """Who is ahead on an axis, by all votes or those at one prompt."""
    spec = spec_of(comparison)
    votes = [one for one in _votes(ws, comparison, axis) if prompt is None or one.prompt == prompt]
    values, labels = _values(spec, axis), labels_of(spec, axis)
    wins, ties = _counted(votes, values)
    fitted = fit(wins, ties)
    (low, high), strength = fitted.interval, fitted.strength[0]
    order = sorted(range(len(values)), key=lambda index: -strength[index])
    rows = tuple(
        Rank(
            values[i], labels[values[i]], float(strength[i]), float(low[0, i]), float(high[0, i]),
            int(wins[i].sum()), int(wins[:, i].sum()), int(ties[i].sum()),
        )
        for i in order
    )  # fmt: skip
    return Ranking(rows, len(votes), _advice(fitted, order, [row.label for row in rows], len(votes)))


def by_prompt(ws: "Workspace", comparison: Comparison, axis: str) -> dict[str, Ranking]:
    """A ranking for each prompt that was voted at, when there are several."""
    prompts = list(dict.fromkeys(vote.prompt for vote in _votes(ws, comparison, axis)))
    found = {prompt: ranking(ws, comparison, axis, prompt) for prompt in prompts}
    return found if len(found) > 1 else {}


def labels_of(spec: Spec, axis: str) -> dict[str, str]:
    """Value -> how it is said."""
    row = spec.axis(axis)
    assert row is not None
    return {value_key(value): row.label(index) for index, value in enumerate(row.values)}


def _votes(ws: "Workspace", comparison: Comparison, axis: str) -> list[Vote]:
    return ws.catalog.list(Vote, comparison_id=comparison.id, axis=axis, order="created_at")


def _values(spec: Spec, axis: str) -> list[str]:
    row = spec.axis(axis)
    if row is None or axis in NOT_VOTED_ON or len(row.values) < 2:
        able = ", ".join(axes_to_vote_on(spec)) or "none: add a second adapter, checkpoint or strength"
        raise BadInput(f"axis {axis[:40]!r}", "has no values to choose from", f"there is {able}")
    return [value_key(value) for value in row.values]


def _contexts(spec: Spec, cells: Mapping[Place, Cell], axis: str) -> dict[str, dict[str, str]]:
    """Context -> value -> sample, of what is drawn."""
    found: dict[str, dict[str, str]] = {}
    for place, cell in cells.items():
        if cell.state != "drawn":
            continue
        values = spec.values_at(place)
        value = value_key(values.pop(axis))
        found.setdefault(canonical_json(values), {})[value] = cell.sample_id
    return {context: drawn for context, drawn in sorted(found.items()) if len(drawn) > 1}


def _counted(votes: Sequence[Vote], values: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(K, K) wins and ties; votes about values that are gone are left out."""
    place = {value: index for index, value in enumerate(values)}
    wins, ties = np.zeros((2, len(values), len(values)))
    for vote in votes:
        if vote.left not in place or vote.right not in place:
            continue
        i, j = place[vote.left], place[vote.right]
        if vote.outcome == "tie":
            ties[i, j] += 1
            ties[j, i] += 1
        elif vote.outcome == "left":
            wins[i, j] += 1
        else:
            wins[j, i] += 1
    return wins, ties


def _advice(fitted: Fit, order: Sequence[int], labels: Sequence[str], votes: int) -> tuple[str, ...]:
    """A line for the best and the second, and one for the pair that is hardest to tell."""
    if not votes or len(order) < 2:
        return ("No votes yet.",)
    lines: list[str] = []
    for place, (i, j) in list(enumerate(pairwise(order)))[:2]:
        one, two = labels[place], labels[place + 1]
        more = votes_to_tell(fitted, i, j)
        if more == 0:
            lines.append(f"{one} is liked better than {two}: that is certain at 95 %.")
        elif more is None:
            lines.append(f"{one} and {two} may well be alike: it would take more than 1,000 votes.")
        else:
            lines.append(f"About {more:,} more votes between them to tell {one} from {two}.")
    return tuple(lines)
