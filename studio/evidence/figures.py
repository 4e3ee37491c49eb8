"""What is measured and judged, in the words of docs/evidence.md; kept in the catalog as JSON."""

from dataclasses import dataclass
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict

Stage = Literal["undertrained", "good", "overtrained"]
BASE = ""  # subject of the pictures that the base draws alone


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(_Kept):
    """What is drawn."""

    text: str
    about: bool
    """Whether it asks for what was trained; a prior prompt does not have the trigger word."""


@dataclass(frozen=True)
class Shot:
    """One drawn picture.

    Args:
        subject: Id of an adapter, or RUN@STEP; "" = the base alone.
        weight: Strength; 0 for the base.
        prompt: Index into the prompts.
        seed: Of its noise.
        picture: Of any size and mode.
    """

    subject: str
    weight: float
    prompt: int
    seed: int
    picture: Image.Image


class Near(_Kept):
    """A drawn picture and the training picture that it is nearest to."""

    prompt: int
    seed: int
    training: int
    """Index of the training picture."""
    similarity: float
    """Correlation of the two, mirrored or not: 1 = the same picture, 0 = nothing in common."""


class Figures(_Kept):
    """What a subject does at a strength."""

    likeness: float
    """0 = like the base's pictures, 1 = like the training pictures."""
    adherence: float
    """1 = answers prompts as the base does, 0 = not at all."""
    diversity: float
    """1 = as different from seed to seed as the base's pictures, 0 = all the same."""
    drift: float
    """Of prior prompts' pictures from the base's, in units of its own spread from seed to seed; 0 = none."""
    copying: float
    """Share of the pictures that are near copies of a training picture."""


class Point(_Kept):
    """A subject at a strength."""

    subject: str
    weight: float
    figures: Figures
    pictures: int
    """How many there are, prior prompts included."""
    nearest: tuple[Near, ...]
    """Closest pairs first, at most six."""


class Rank(_Kept):
    """A subject among the others."""

    subject: str
    score: float
    stage: Stage
    reason: str
    """One plain sentence."""


class Judgement(_Kept):
    """What is to be said about the subjects."""

    ranks: tuple[Rank, ...]
    """Best first."""
    pick: str
    reason: str
    weight: float
    """Recommended strength of the pick."""
    low: float
    high: float
    """Strengths from low to high are about as good."""
    weight_reason: str
    memorised: bool
    """Whether the pick copies its training pictures at its recommended strength."""
    memorised_reason: str
    sure: str
    """How sure all this is, in one plain sentence."""
