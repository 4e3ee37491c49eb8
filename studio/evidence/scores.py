"""One number for a subject: what is lost of the best that could be, each loss with weight and reason.

    score = 1 - sum of weight x loss

The base alone is at 0, for it lacks all likeness and loses nothing else; 1 is a subject whose pictures look
like the training pictures, do what prompts ask as the base does, and repeat nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from studio.evidence.features import Floats


@dataclass(frozen=True)
class Term:
    """A loss that counts.

    Args:
        name: Of the loss.
        weight: What a loss of 1 costs.
        reason: Why so much.
    """

    name: str
    weight: float
    reason: str


TERMS = (
    Term("likeness", 1.0, "It is what the subject was trained for; without it there is only the base."),
    Term(
        "adherence",
        1.0,
        "A picture that does not show what was asked for is as useless as one without likeness.",
    ),
    Term("copying", 1.0, "A copy shows nothing new, and may not be anyone's to show."),
    Term("diversity", 0.5, "Seeds that all give one picture can be helped by other prompts, so half."),
    Term("drift", 0.1, "Harms only prompts without the trigger word; the unit is the base's whole spread."),
    Term(
        "held_out",
        0.5,
        "A loss that rises on unseen pictures says the same as the rest, but it is a noisy figure.",
    ),
)
ENOUGH = 0.5  # of the base's diversity: a style with one ground for all cannot have more
MOST_DRIFT = 2.0  # more is no worse: then the picture is another one anyway
MOST_HELD_OUT = 0.5  # share above the lowest


def losses(figures: Mapping[str, Floats], room: float, held_out: float = 0.0) -> dict[str, Floats]:
    """Each loss by its name, of figures (B,).

    Args:
        figures: As `Measured.figures` gives them.
        room: Diversity that the training pictures leave, see `Measured.room`.
        held_out: How much the loss on unseen pictures is above the lowest, as a share.
    """
    like = figures["likeness"]
    return {
        "likeness": np.abs(1 - like),
        "adherence": np.maximum(1 - figures["adherence"], 0),
        "copying": figures["copying"],
        "diversity": np.maximum(1 - figures["diversity"] / (ENOUGH * room), 0),
        "drift": np.minimum(figures["drift"], MOST_DRIFT),
        "held_out": np.full_like(like, min(max(held_out, 0.0), MOST_HELD_OUT)),
    }


def score(lost: Mapping[str, Floats]) -> Floats:
    """(B,) of losses."""
    total = np.zeros_like(lost["likeness"])
    for term in TERMS:
        total = total + term.weight * lost[term.name]
    return 1 - total
