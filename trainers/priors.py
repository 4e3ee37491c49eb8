"""Which captions and pictures stand for the class, and how they mix with the pictures that teach. Torch-free.

"Instance" is a picture of what is learned; "prior" a picture that shows what the base should keep knowing: a
class picture, or one of a regularisation set.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from registry.errors import BadInput

if TYPE_CHECKING:
    from trainers.plan import Item
    from trainers.recipe import Recipe

CLASS, REGULARISATION = "class", "regularisation"  # values of ManifestItem.role; "" = an instance


def check_preservation(recipe: "Recipe") -> None:
    """Refuse preservation that would keep the model from learning, or has nothing to keep.

    Raises:
        BadInput: names the field.
    """
    section, method = recipe.preservation, recipe.adapter.method
    if section.mode == "base_prediction" and method == "full":
        raise BadInput(
            "preservation.mode",
            "is base_prediction, and a full fine-tune leaves no base to ask",
            "set it to class_pictures, or to none",
        )
    if section.mode == "class_pictures" and not section.class_prompt.strip():
        raise BadInput("preservation.class_prompt", "is empty", 'say what the class is called, as in "a dog"')
    for word in ("[trigger]", *taught_words(recipe)) if section.mode != "none" else ():
        if word_pattern(word).search(section.class_prompt):
            wrong = f"names {word}, which would be kept from being learned"
            raise BadInput("preservation.class_prompt", wrong, 'say what the class is called, as in "a dog"')
    if section.mode == "base_prediction" and not section.class_prompt.strip() and not taught_words(recipe):
        raise BadInput(
            "trigger word",
            "there is none, so what is learned cannot be told from what has to stay as it is",
            'give the data set one, or set preservation.class_prompt ("a dog") or preservation.mode=none',
        )


def check_words(recipe: "Recipe") -> None:
    """Refuse new words that cannot be learned.

    Raises:
        BadInput: names the field.
    """
    section = recipe.tokens
    words = [word.lower() for word in section.words]
    if words and recipe.adapter.method == "full":
        do = "use a LoRA, or leave them empty"
        raise BadInput("tokens.words", "are saved with an adapter, and a full fine-tune has none", do)
    if section.only and not words:
        raise BadInput("tokens.only", "is true and there are no words to learn", "name them in tokens.words")
    if len(set(words)) < len(words):
        raise BadInput("tokens.words", "has a word twice", "name each once")
    if len(section.init) > len(words):
        raise BadInput("tokens.init", "has more texts than there are words", "give one for each word")
    if words and recipe.optimizer.name == "prodigy" and section.lr != recipe.optimizer.lr:
        raise BadInput(
            "tokens.lr", "prodigy has one rate for everything", f"set it to {recipe.optimizer.lr:g}"
        )


def check_words_named(recipe: "Recipe", captions: Sequence[str]) -> None:
    """Refuse new words that no caption names: they would learn nothing.

    Raises:
        BadInput: names the word.
    """
    for word in recipe.tokens.words:
        if not any(word_pattern(word).search(caption) for caption in captions):
            do = "set data.trigger to it, or write it into the captions"
            raise BadInput("tokens.words", f"{word!r} is in no caption", do)


def taught_words(recipe: "Recipe") -> tuple[str, ...]:
    """The words that the run teaches: the trigger word and the new ones."""
    return tuple(word for word in dict.fromkeys((recipe.data.trigger, *recipe.tokens.words)) if word)


def class_caption(shown: str, taught: Sequence[str], class_prompt: str) -> str:
    """What a prior row is asked with: the class's name, or the caption without the words that are taught.

    A caption that was dropped stays empty: then it is the unconditional prediction that is kept.
    """
    if not shown or class_prompt.strip():
        return class_prompt.strip() if shown else ""
    for word in taught:
        shown = word_pattern(word).sub("", shown)
    parts = (" ".join(part.split()) for part in shown.split(","))
    return ", ".join(part for part in parts if part)


def word_pattern(word: str) -> re.Pattern[str]:
    """A word by itself, not as a part of a longer one."""
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def with_class_captions(captions: Iterable[str], recipe: "Recipe") -> list[str]:
    """`captions`, and for each of them the one that prior rows are asked with; sorted."""
    captions = set(captions)
    if recipe.preservation.mode == "base_prediction":
        prompt, taught = recipe.preservation.class_prompt, taught_words(recipe)
        captions |= {class_caption(caption, taught, prompt) for caption in captions}
    return sorted(captions)


def showings(items: Sequence["Item"], epoch: int) -> Iterator[tuple[int, int]]:
    """(position, copy) of everything that an epoch shows: instances with their repeats, as many priors.

    Priors take turns over the epochs. Each bucket shows the same number of them in every epoch, in proportion
    to how many it has and at least one, so that all epochs have equally many batches.
    """
    priors: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    instances = 0
    for position, item in enumerate(items):
        if item.source.role:
            priors[item.geometry.target].append(position)
            continue
        instances += item.repeats
        yield from ((position, copy) for copy in range(item.repeats))
    total = sum(map(len, priors.values()))
    for target in sorted(priors):
        positions = priors[target]
        quota = max(1, round(instances * len(positions) / total))
        for turn in range(epoch * quota, (epoch + 1) * quota):
            yield positions[turn % len(positions)], turn // len(positions)
