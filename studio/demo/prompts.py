"""What the demo draws: prompts that no training picture has."""

from collections.abc import Collection

from registry.errors import BadInput
from studio.pocket.grammar import COLOURS

COUNT = 9
# With colours where the training captions name colours, without where nothing was said about any: a prompt
# that asks for blue should get blue, and no caption taught this style what its blue is.
WITH_COLOURS = (
    "a red heart on a white background", "a large yellow star on a blue background",
    "two blue circles on a yellow background", "a green diamond on a pink background",
    "a large pink ring on a white background", "a white cross on a red background",
    "a purple triangle on a yellow background", "a large orange circle on a gray background",
    "two green hearts on a white background", "two pink stars on a green background",
    "a yellow square on a purple background", "a large red diamond on a white background",
)  # fmt: skip
WITHOUT_COLOURS = (
    "a heart", "a large star", "two circles", "a diamond", "a large ring", "three squares", "a triangle",
    "a large circle", "two hearts", "a cross", "a square", "two stars",
)  # fmt: skip


def held_out_prompts(trigger: str, captions: Collection[str]) -> list[str]:
    """Nine prompts with the trigger that are no training caption.

    Args:
        trigger: Word that calls the adapter.
        captions: The training captions, trigger included; whether they name colours decides whether the
            prompts do.
    """
    seen = [caption.lower().split() for caption in captions]
    colours = any(word.strip(",.") in COLOURS for words in seen for word in words)
    candidates = (f"{words}, {trigger}" for words in (WITH_COLOURS if colours else WITHOUT_COLOURS))
    prompts = [prompt for prompt in candidates if prompt.lower().split() not in seen][:COUNT]
    if len(prompts) < COUNT:
        raise BadInput("demo", "the pictures' captions are the demo's own prompts", "caption them otherwise")
    return prompts
