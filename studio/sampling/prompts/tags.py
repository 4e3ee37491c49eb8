"""Adapters that a prompt names: `<lora:name:weight>`, taken out of its text."""

import re
from dataclasses import dataclass

# A name is bounded: of "<lora:<lora:<lora:..." every start would be read to its end.
_TAG = re.compile(r"[ \t]?<(?:lora|lyco|lycoris):([^<>\n]{1,300})>", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9})")


@dataclass(frozen=True)
class AdapterTag:
    """An adapter in a prompt.

    Args:
        name: As it stands there.
        weight: On the denoiser.
        text_weight: On the text encoders; None = the same.
    """

    name: str
    weight: float = 1.0
    text_weight: float | None = None


def take_tags(text: str) -> tuple[str, tuple[AdapterTag, ...]]:
    """The text without tags, and the tags in its order; a tag that makes no sense stays text.

    `<lora:name>`, `<lora:name:weight>`, `<lora:name:text weight:weight>` and `te=`, `unet=` by name, as A1111
    has them. A blank before a tag goes with it.
    """
    found: list[AdapterTag] = []

    def take(match: re.Match[str]) -> str:
        tag = _read(match[1])
        if tag is None:
            return match[0]
        found.append(tag)
        return ""

    plain = _TAG.sub(take, text)
    return (plain.strip() if found else text), tuple(found)


def _read(inside: str) -> AdapterTag | None:
    name, *rest = (part.strip() for part in inside.split(":"))
    numbers: list[float] = []
    named: dict[str, float] = {}
    for part in rest:
        key, equals, value = part.rpartition("=")
        if not _NUMBER.fullmatch(value):
            return None
        if equals:
            named[key.strip()] = float(value)
        else:
            numbers.append(float(value))
    if not name or len(numbers) > 2 or named.keys() - {"te", "unet"}:
        return None
    text_weight = named.get("te", numbers[0] if numbers else 1.0)
    weight = named.get("unet", numbers[-1] if numbers else text_weight)
    return AdapterTag(name, weight, None if text_weight == weight else text_weight)
