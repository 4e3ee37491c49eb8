"""Which checkpoint of a run is best, and why; and whether going on is worth it.

By what drawn pictures show (`evidence`), where somebody has looked; else by the probe's loss on held-out
pictures; else by its loss on training pictures, which cannot tell knowing them from copying them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt
from statistics import fmean
from typing import TYPE_CHECKING, Any

from registry.errors import StudioError
from registry.records import Checkpoint, Run
from studio.evidence.evaluations import scores
from trainers.rundir import PROBES

if TYPE_CHECKING:
    from studio.workspace import Workspace

LEAST = 7  # checkpoints before their spread says anything
AFTER = 3  # in a row, later than the best and clearly worse, before we say so
NEVER_LESS = 0.005  # of the loss: differences below it do not matter, however little it wobbles
NEAR, ENOUGH = 1.25, 5  # of the lowest loss; how many have to be left
ALIKE = 3.0  # standard deviations of a difference up to which two losses are: one is the lowest of many
CLEARLY = 4.0  # the same for advice, which is looked for at every checkpoint
_NAMES = {"held_out": "held-out pictures", "train": "training pictures"}

Evidence = Mapping[int, tuple[float, str, str]]  # step -> score (higher is better), stage, one sentence


@dataclass(frozen=True)
class Point:
    """What the probe found at a step: `train`, `held_out` and `prior`, as far as they are known."""

    step: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Ranked:
    """A checkpoint with its place.

    Args:
        step: Its step.
        stage: "undertrained", "good", "overtrained", or "" where that cannot be told.
        reason: One sentence.
        score: From evidence, higher is better; None without.
        figures: See `Point`.
    """

    step: int
    stage: str
    reason: str
    score: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Ranking:
    """The checkpoints of a run, best first.

    Args:
        rows: Those that are there.
        by: What says which is best: "evidence", "probe", or "" when nothing does.
        advice: One sentence when going on makes it worse; "" otherwise.
        held_out: Names of the pictures that are never trained on.
    """

    rows: tuple[Ranked, ...]
    by: str
    advice: str
    held_out: tuple[str, ...] = ()

    @property
    def best(self) -> Ranked | None:
        """The one to use; None when nothing says so."""
        return self.rows[0] if self.by else None

    def of(self, step: int) -> Ranked | None:
        """The checkpoint of a step."""
        return next((row for row in self.rows if row.step == step), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        rows = [
            {"step": row.step, "stage": row.stage, "reason": row.reason, "score": row.score}
            | {name: row.figures.get(name) for name in PROBES}
            for row in self.rows
        ]
        return {"by": self.by, "checkpoints": rows, "advice": self.advice, "held_out": list(self.held_out)}


def rank(
    points: Sequence[Point],
    there: Iterable[int],
    *,
    evidence: Evidence | None = None,
    held_out: Sequence[str] = (),
    going: bool = False,
) -> Ranking:
    """Put checkpoints in order.

    Args:
        points: What the probe found, also of checkpoints that are gone; rising steps.
        there: Steps of the checkpoints that are kept.
        evidence: What drawn pictures say of some of them; they come first.
        held_out: Names of the pictures that are held out, as far as they are known.
        going: Whether the run trains, so that it can still be stopped.
    """
    evidence = evidence or {}
    curve = _Curve.of(points, len(held_out))
    figures = {point.step: point.figures for point in points}
    best = curve.lowest(there := set(there))
    rows = [
        Ranked(step, stage, reason, score, figures.get(step, {}))
        for step in there
        for score, stage, reason in [evidence.get(step) or (None, *curve.judge(step, best, figures))]
    ]
    worst = float("inf")
    rows.sort(key=lambda row: (-(row.score or 0), curve.values.get(row.step, worst), row.step))
    rows.sort(key=lambda row: row.score is None)
    seen = "evidence" if any(row.score is not None for row in rows) else "probe" if best else ""
    return Ranking(tuple(rows), seen, curve.advice(there) if going else "", tuple(held_out))


def ranking_of(
    ws: "Workspace",
    run: Run,
    *,
    lines: Sequence[Mapping[str, Any]] | None = None,
) -> Ranking:
    """The ranking of a run as it is now, by its newest evidence sheet where there is one.

    Args:
        ws, run: The workspace; the run.
        lines: Its metric lines, when somebody has read them already.
    """
    rundir = ws.run_dir(run.id)
    rows = ws.catalog.list(Checkpoint, run_id=run.id)
    found: dict[int, Mapping[str, float]] = {row.step: probes_of(row.metrics) for row in rows}
    held: Sequence[str] = ()
    try:
        lines = rundir.read_metrics() if lines is None else lines
        found |= {point.step: point.figures for point in points_of(lines)}
        status = rundir.read_status()
        held = status.held_out if status else ()
    except (StudioError, ValueError, TypeError):  # its files may be damaged; its rows say enough
        pass
    points = [Point(step, found[step]) for step in sorted(found)]
    there = [row.step for row in rows]
    return rank(points, there, evidence=scores(ws, run), held_out=held, going=run.state.active)


def points_of(lines: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Metric lines of steps at which the probe was asked, as points."""
    asked = (line for line in lines if PROBES["train"] in line)  # one line of hundreds
    return [Point(int(line["step"]), found) for line in asked if (found := probes_of(line))]


def probes_of(numbers: Mapping[str, Any]) -> dict[str, float]:
    """`train`, `held_out` and `prior` from a metric line or from `Checkpoint.metrics`; finite ones only."""
    found = {name: numbers.get(key) for name, key in PROBES.items()}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, float | int) and isfinite(value)
    }


@dataclass(frozen=True)
class _Curve:
    """The loss that counts, step by step, and how much of it is chance."""

    name: str  # key of `Point.figures`
    values: Mapping[int, float]  # by step, rising
    pictures: int

    @classmethod
    def of(cls, points: Sequence[Point], pictures: int) -> "_Curve":
        name = "held_out" if any("held_out" in point.figures for point in points) else "train"
        return cls(name, {p.step: p.figures[name] for p in points if name in p.figures}, pictures)

    @property
    def where(self) -> str:
        """What the loss is on, in words."""
        count = f"{self.pictures} " if self.name == "held_out" and self.pictures > 1 else ""
        return count + _NAMES[self.name]

    def margin(self, times: float) -> float:
        """Differences up to it are chance, at so many standard deviations, or too small to matter."""
        values = list(self.values.values())
        least = NEVER_LESS * min(map(abs, values), default=0.0)
        if len(values) < LEAST:
            return least
        return max(least, times * sqrt(2) * spread(settled(values)))

    def lowest(self, steps: Iterable[int]) -> int | None:
        """The step with the lowest loss, of equals the earliest; None when nothing is known of any."""
        return min((s for s in steps if s in self.values), key=lambda s: (self.values[s], s), default=None)

    def judge(
        self, step: int, best: int | None, figures: Mapping[int, Mapping[str, float]]
    ) -> tuple[str, str]:
        """Stage and sentence of a checkpoint."""
        if best is None or step not in self.values:
            return "", "Nothing was measured of it."
        low, value = self.values[best], self.values[step]
        if step == best:
            doubt = "" if self.name == "held_out" else ", which cannot tell knowing them from copying them"
            return "good", f"Its loss on {self.where} is the lowest, {low:.4f}{doubt}."
        more = f"{(value - low) / low:.1%}" if low > 0 else f"{value - low:.4f}"
        if value - low <= self.margin(ALIKE):
            calm = _moved_less(figures.get(step, {}), figures.get(best, {}))
            return "good", f"As good as step {best:,} within the noise ({more} more){calm}."
        if step < best:
            return "undertrained", f"Still learning: its loss on {self.where} is {more} above step {best:,}."
        if self.name == "held_out":
            return "overtrained", f"Past its best: its loss on {self.where} is {more} above step {best:,}."
        return "", f"Its loss on {self.where} is {more} above step {best:,}."

    def advice(self, there: Iterable[int]) -> str:
        """Whether to stop: the last `AFTER` losses have to be clearly above the lowest."""
        best = self.lowest(self.values)
        later = [value for step, value in self.values.items() if best is not None and step > best]
        if best is None or len(self.values) < LEAST or len(later) < AFTER:
            return ""
        low = self.values[best]
        if min(later[-AFTER:]) - low <= self.margin(CLEARLY):
            return ""
        kept = f"step {best:,} is kept" if best in there else f"step {best:,} was the best"
        risen = f"The loss on {self.where} has risen since step {best:,} ({low:.4f}, now {later[-1]:.4f})"
        if self.name == "held_out":
            return f"{risen}: stopping now loses nothing, {kept}."
        return f"{risen}: stopping now loses nothing, {kept}; a lower optimizer.lr may go further."


def settled(values: Sequence[float]) -> Sequence[float]:
    """A curve without its steep beginning, which bends more than it wobbles; see `NEAR`."""
    first = next(n for n, value in enumerate(values) if value <= NEAR * min(values))
    return values[first:] if len(values) - first >= ENOUGH else values


def spread(values: Sequence[float]) -> float:
    """Standard deviation of chance in a curve: from its third differences, whatever its slope and bend.

    For independent errors of variance s^2 a third difference has 20 s^2.
    """
    for _ in range(3):
        values = [b - a for a, b in pairwise(values)]
    return sqrt(fmean(value * value for value in values) / 20) if values else 0.0


def _moved_less(one: Mapping[str, float], other: Mapping[str, float]) -> str:
    """What to add when a checkpoint left prompts of other things more alone than the best did."""
    if "prior" in one and "prior" in other and one["prior"] < 0.8 * other["prior"]:
        return ", and it moved prompts of other things less"
    return ""
