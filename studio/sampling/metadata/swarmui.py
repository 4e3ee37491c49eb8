"""SwarmUI's `parameters`: JSON with `sui_image_params`."""

import json
from typing import Any

from studio.sampling.metadata.said import (
    AdapterMark,
    PictureMetadata,
    entries,
    file_name,
    items,
    number,
    text,
    whole,
)
from studio.sampling.metadata.words import our_scheduler

MARK = "sui_image_params"


def parse_swarmui(said: str) -> PictureMetadata | None:
    """What it says; None when it is none of it."""
    if MARK not in said:
        return None
    try:
        value = entries(entries(json.loads(said)).get(MARK))
    except (ValueError, RecursionError):
        return None
    if not value:
        return None
    return PictureMetadata(
        source="swarmui",
        prompt=text(value.get("prompt")),
        negative=text(value.get("negativeprompt")),
        seed=whole(value.get("seed")),
        steps=whole(value.get("steps")),
        cfg=number(value.get("cfgscale")),
        width=whole(value.get("width")),
        height=whole(value.get("height")),
        scheduler=our_scheduler(text(value.get("sampler")), text(value.get("scheduler"))),
        base_name=file_name(value.get("model")),
        adapters=_adapters(value),
    )


def _adapters(value: dict[str, Any]) -> tuple[AdapterMark, ...]:
    """`loras` and `loraweights` are arrays, or texts with commas."""
    names, weights = (_array(value.get(key)) for key in ("loras", "loraweights"))
    marks: list[AdapterMark] = []
    for index, name in enumerate(names):
        weight = number(weights[index]) if index < len(weights) else None
        marks.append(AdapterMark(file_name(name), 1.0 if weight is None else weight))
    return tuple(mark for mark in marks if mark.name)


def _array(value: Any) -> list[Any]:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else items(value)
