"""What the text encoder gets of a picture's caption: for pages, the command line and the doctor."""

from registry.records import Dataset, Image
from trainers.captions import Wording
from trainers.recipe_fields import DataSection


def seen_captions(
    dataset: Dataset, image: Image, data: DataSection | None = None, seed: int = 0
) -> tuple[str, ...]:
    """All versions of the caption that training can show, without doubles, in order.

    Args:
        dataset: Its trigger word is used where the recipe names none.
        image: Its caption.
        data: The section of the recipe; None = what an unchanged recipe has.
        seed: train.seed, which decides the order of shuffled tags.
    """
    data = data or DataSection()
    if not data.trigger:
        data = data.model_copy(update={"trigger": dataset.trigger})
    return tuple(dict.fromkeys(Wording(image.caption, image.pixel_hash, data, seed).versions()))
