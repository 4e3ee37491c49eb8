"""How figures of an evidence sheet are said: in the terminal, on pages, in the report."""

from dataclasses import dataclass

from studio.evidence.figures import Figures


@dataclass(frozen=True)
class Measure:
    """A figure for people."""

    name: str  # field of `Figures`
    label: str
    hint: str


MEASURES = (
    Measure("likeness", "Likeness", "0 = like the base's pictures, 100 % = like the training pictures"),
    Measure("adherence", "Follows prompts", "100 % = answers prompts as the base does, 0 = not at all"),
    Measure(
        "diversity",
        "Variety",
        "100 % = as different from seed to seed as the base's pictures, 0 = all the same",
    ),
    Measure("drift", "Drift", "how far pictures of other prompts moved, in units of the base's own variety"),
    Measure("copying", "Copies", "share of the pictures that are near copies of a training picture"),
)
STAGES = {"undertrained": "could learn more", "good": "good", "overtrained": "past its best"}


def said(name: str, figures: Figures | None) -> str:
    """A figure in percent; a dash when it is not known."""
    value = getattr(figures, name) if figures is not None else None
    return "–" if value is None else f"{value:.0%}".replace("-0%", "0%")


def strength_line(weight: float, low: float, high: float) -> str:
    """ "0.75; 0.5 to 1 are about as good"."""
    return f"{weight:g}" if low == high else f"{weight:g}; {low:g} to {high:g} are about as good"
