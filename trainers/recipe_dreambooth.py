"""The sections of a recipe that belong to DreamBooth: what is kept of the class, and new words."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainers.recipe_section import DIFFUSION, LearningRate, Needs, Prompt, SamplerName, Section

_DRAWN = Needs("preservation.mode", ("class_pictures",))
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
    class_prompt: Annotated[Prompt, Needs("preservation.mode", ("base_prediction", "class_pictures"))] = ""
    """What the class is called, "a dog"; empty = every caption without its trigger word (base_prediction
    only)."""
    rows: Annotated[int, Field(ge=1, le=4), Needs("preservation.mode", ("base_prediction",))] = 1
    """base_prediction: extra rows per picture, each with noise of its own; each costs a little more than a
    picture."""
    count: Annotated[int, Field(ge=1, le=10_000), _DRAWN] = 100
    """class_pictures: how many are drawn; those of earlier runs are used again."""
    steps: Annotated[int, Field(ge=1, le=200), _DRAWN] = 30
    """class_pictures: sampling steps."""
    cfg: Annotated[float | None, Field(ge=0, le=50), _DRAWN] = None
    """class_pictures: guidance scale; 1 = no guidance; none = preview.cfg, which suits the base."""
    scheduler: Annotated[SamplerName, _DRAWN, DIFFUSION] = "default"
    """class_pictures: sampler; default = the base's own, which is the only one for flow matching."""

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
    init: Annotated[tuple[Prompt, ...], Field(max_length=16, strict=False), Needs("tokens.words")] = ()
    """What each word means at the start, as "dog"; empty = random."""
    vectors: Annotated[int, Field(ge=1, le=16), Needs("tokens.words")] = 2
    """Vectors per word; more = more detail, and fewer other words fit beside it."""
    only: Annotated[bool, Needs("tokens.words")] = False
    """Learn the words alone, without an adapter: a textual inversion. Off = both (pivotal tuning)."""
    lr: Annotated[LearningRate, Needs("tokens.words")] = 1e-3
    """Peak learning rate of the vectors."""
    until: Annotated[float, Field(gt=0, le=1), Needs("tokens.words")] = 1.0
    """Fraction of the steps after which the words are frozen and the adapter goes on alone."""

    @field_validator("words")
    @classmethod
    def _words_are_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_WORD.fullmatch(word) for word in value):
            raise ValueError("words of 2 to 50 letters, digits, _, -, < or >, without spaces")
        return value
