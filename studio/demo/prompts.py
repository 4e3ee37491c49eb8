"""What the demo draws: prompts that no training picture has."""

from collections.abc import Collection

from registry.errors import BadInput

COUNT = 9
# In the words that the base was trained on, ground included: its own pictures are as good as they can be,
# and what the adapter changes is the style.
PROMPTS = (
    "a red heart on a white background", "a large yellow star on a blue background",
    "two blue circles on a yellow background", "a green diamond on a pink background",
    "a large pink ring on a white background", "a white cross on a red background",
    "a purple triangle on a yellow background", "a large orange circle on a gray background",
    "two green hearts on a white background", "two pink stars on a green background",
    "a yellow square on a purple background", "a large red diamond on a white background",
)  # fmt: skip


def held_out_prompts(trigger: str, captions: Collection[str]) -> list[str]:
    """Nine prompts that end with the trigger and are no training caption.

    Args:
        trigger: Word that calls the adapter.
        captions: The training captions, trigger included.

    Raises:
        BadInput: hardly any is left.
    """
    seen = [caption.lower().split() for caption in captions]
    candidates = (f"{words}, {trigger}" for words in PROMPTS)
    prompts = [prompt for prompt in candidates if prompt.lower().split() not in seen][:COUNT]
    if len(prompts) < COUNT:
        raise BadInput("demo", "the pictures' captions are the demo's own prompts", "caption them otherwise")
    return prompts
