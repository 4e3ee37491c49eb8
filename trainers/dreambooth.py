"""What DreamBooth adds to the setup of a run: which parts learn, what is kept, where the result goes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainers.families.base import Conditioning, Family
from trainers.fitting import check_recipe
from trainers.full import attach_full, full_warnings, publish_model
from trainers.methods import Trainables, attach
from trainers.new_tokens import clip_encoders, learn_words
from trainers.preservation import PriorRows
from trainers.priors import taught_words
from trainers.recipe import Recipe

if TYPE_CHECKING:
    from trainers.checkpoints import Learning
    from trainers.setup import Setting


def check_dreambooth(recipe: Recipe) -> list[str]:
    """Warnings about what a run keeps and teaches.

    Raises:
        BadInput: it cannot be; names the field.
    """
    check_recipe(recipe)
    return full_warnings(recipe)


def live_encoders(family: Family, recipe: Recipe) -> tuple[str, ...]:
    """Text encoders that are asked at each step: those that learn, or whose new words do."""
    trained = family.trained_encoders(recipe.adapter)
    speaking = clip_encoders(family) if recipe.tokens.words else []
    return tuple(name for name in family.text_encoder_names if name in trained or name in speaking)


def prior_rows(recipe: Recipe, conditioning: Callable[[list[str]], Conditioning]) -> PriorRows | None:
    """What adds base-prediction preservation to batches; None when the recipe does not ask for it."""
    if recipe.preservation.mode != "base_prediction" or not recipe.preservation.loss_weight:
        return None
    return PriorRows(recipe.preservation, taught_words(recipe), conditioning)


def attach_all(family: Family, recipe: Recipe) -> Trainables:
    """The recipe's adapter and its new words, or one of them."""
    section = recipe.tokens
    if recipe.adapter.method == "full":
        return attach_full(family, recipe.adapter)
    if section.only:
        denoiser = {family.denoiser_name: family.denoiser}
        trainables = Trainables({}, {}, {}, denoiser)
    else:
        trainables = attach(family, recipe.adapter, recipe.train.seed)
    if section.words:
        trainables.tokens.update(learn_words(family, section, recipe.train.seed))
        trainables.components.update({name: family.part(name) for name in clip_encoders(family)})
    return trainables


def publisher(setting: "Setting", learning: "Learning") -> Callable[[], None]:
    """What writes the result when it is no adapter."""
    if learning.trainables.separable:
        return lambda: None
    return lambda: publish_model(setting, learning)
