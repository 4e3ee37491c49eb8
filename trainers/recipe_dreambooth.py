"""The sections of a recipe that belong to DreamBooth: what is kept of the class, and new words."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainers.recipe_fields import LearningRate, Prompt, Section

_WORD = re.compile(r"[\w<>-]{2,50}")


class PreservationSection(Section):
    """What keeps the class from drifting while one of its members is learned ("a dog" while "zork" is)."""

    mode: Literal["none", "base_prediction", "class_pictures"] = "none"
    """base_prediction: the base itself, asked with the class's caption, is the target of extra rows.
    class_pictures: pictures of the class, drawn by the base before training, are shown in turn (Ruiz et al.
    2022, "DreamBooth"). none: nothing."""
    weight: Annotated[float | None, Field(ge=0, le=10)] = None
    """Weight of the preservation loss, also of regularisation pictures; none = 0.5 for base_prediction, else
    1."""
    class_prompt: Prompt = ""
    """What the class is called, "a dog"; empty = every caption without its trigger word (base_prediction
    only)."""
    rows: Annotated[int, Field(ge=1, le=4)] = 1
    """base_prediction: extra rows per picture, each with noise of its own; each costs a little more than a
    picture."""
    count: Annotated[int, Field(ge=1, le=10_000)] = 100
    """class_pictures: how many are drawn; those of earlier runs are used again."""
    steps: Annotated[int, Field(ge=1, le=200)] = 30
    """class_pictures: sampling steps."""
    cfg: Annotated[float | None, Field(ge=0, le=50)] = None
    """class_pictures: guidance scale; 1 = no guidance; none = preview.cfg, which suits the base."""
    scheduler: Annotated[str, Field(max_length=50)] = "default"
    """class_pictures: sampler; default = the base's own."""

    @property
    def loss_weight(self) -> float:
        """Weight in force: `weight`, or the usual one of the mode."""
        if self.weight is not None:
            return self.weight
        return 0.5 if self.mode == "base_prediction" else 1.0


class TokensSection(Section):
    """New words: vectors of the text encoder's input that are learned (Gal et al. 2022, "An Image is Worth
    One Word")."""

    words: Annotated[tuple[Prompt, ...], Field(max_length=16, strict=False)] = ()
    """The new words; usual: one, the trigger word. Captions have to name them. Empty = none."""
    init: Annotated[tuple[Prompt, ...], Field(max_length=16, strict=False)] = ()
    """What each word means at the start, as "dog"; empty = random."""
    vectors: Annotated[int, Field(ge=1, le=16)] = 2
    """Vectors per word; more = more detail, and fewer other words fit beside it."""
    only: bool = False
    """Learn the words alone, without an adapter: a textual inversion. Off = both (pivotal tuning)."""
    lr: LearningRate = 1e-3
    """Peak learning rate of the vectors."""
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the steps after which the words are frozen and the adapter goes on alone."""

    @field_validator("words")
    @classmethod
    def _words_are_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_WORD.fullmatch(word) for word in value):
            raise ValueError("words of 2 to 50 letters, digits, _, -, < or >, without spaces")
        return value
