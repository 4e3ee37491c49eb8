"""The strength curve as SVG: how each figure goes with the strength, the recommended range shaded."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from studio.evidence.figures import Judgement, Point
from studio.evidence.words import MEASURES

WIDTH, HEIGHT = 680, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 150, 16, 36  # pixels around the plot
TOP_VALUE = 1.25  # of the vertical axis at least


def strength_curve(points: Sequence[Point], judgement: Judgement) -> str:
    """The chart.

    Args:
        points: Of one subject, strengths rising.
        judgement: Says which strength is recommended.
    """
    weights = [point.weight for point in points]
    if len(weights) < 2:
        return ""
    values = {m.name: [getattr(point.figures, m.name) for point in points] for m in MEASURES}
    high = max(TOP_VALUE, *(value for row in values.values() for value in row))
    low = min(0.0, *(value for row in values.values() for value in row))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(weight: float) -> float:
        return LEFT + plot_width * (weight - weights[0]) / (weights[-1] - weights[0])

    def y(value: float) -> float:
        return TOP + plot_height * (high - value) / (high - low)

    start, end = x(max(judgement.low, weights[0])) - 4, x(min(judgement.high, weights[-1])) + 4
    mark, bottom = x(judgement.weight), TOP + plot_height
    parts = [
        f'<rect class="band" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{plot_height}"/>',
        f'<line class="pick" x1="{mark:.1f}" x2="{mark:.1f}" y1="{TOP}" y2="{bottom}"/>',
        *(_rule(y(share), share) for share in (0.0, 0.5, 1.0)),
        *(_text("axis", x(weight), HEIGHT - 12, f"{weight:g}", "middle") for weight in weights),
    ]
    places = _apart([y(row[-1]) for row in values.values()])
    for number, (measure, place) in enumerate(zip(MEASURES, places, strict=True)):
        row = values[measure.name]
        path = " ".join(f"{x(w):.1f},{y(v):.1f}" for w, v in zip(weights, row, strict=True))
        parts.append(f'<polyline class="line c{number}" points="{path}"/>')
        parts.append(_text(f"name c{number}", WIDTH - RIGHT + 10, place + 4, measure.label, "start"))
    said = f"Figures by strength; recommended: {judgement.weight:g}"
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said, quote=True)}"'
    return f'<svg class="curve" {box}>{"".join(parts)}</svg>'


def _rule(at: float, share: float) -> str:
    """A level line with its label."""
    line = f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
    return line + _text("axis", LEFT - 8, at + 4, f"{share:.0%}", "end")


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _apart(places: Sequence[float], least: float = 16.0) -> list[float]:
    """Heights of labels, moved so that they do not lie on each other; in the given order."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + least)
    over = max(0.0, max(moved, default=0.0) - (HEIGHT - BOTTOM))
    return [place - over for place in moved]
