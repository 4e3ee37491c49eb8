"""InvokeAI's `invokeai_metadata`: one JSON object."""

import json
from typing import Any

from studio.sampling.metadata.said import (
    AdapterMark,
    PictureMetadata,
    entries,
    items,
    number,
    text,
    whole,
)
from studio.sampling.metadata.words import our_scheduler

KEY = "invokeai_metadata"


def parse_invokeai(said: str) -> PictureMetadata | None:
    """What it says; None when it is none of it."""
    try:
        value = entries(json.loads(said))
    except (ValueError, RecursionError):
        return None
    if "positive_prompt" not in value:
        return None
    name = text(value.get("scheduler")).casefold()
    sampler, schedule = (name.removesuffix("_k"), "karras") if name.endswith("_k") else (name, "")
    cfg = value.get("cfg_scale")
    more: dict[str, Any] = {}
    if skipped := whole(value.get("clip_skip")):
        more["clip_skip"] = skipped + 1  # it counts the layers that are left out
    if rescale := number(value.get("cfg_rescale_multiplier")):
        more["guidance_rescale"] = rescale
    return PictureMetadata(
        source="invokeai",
        prompt=text(value.get("positive_prompt")),
        negative=text(value.get("negative_prompt")),
        seed=whole(value.get("seed")),
        steps=whole(value.get("steps")),
        cfg=number(cfg if value.get("guidance") is None else value.get("guidance")),
        width=whole(value.get("width")),
        height=whole(value.get("height")),
        scheduler=our_scheduler(sampler, schedule),
        base_name=_name(value.get("model")),
        adapters=tuple(_adapters(value.get("loras"))),
        more=more,
    )


def _name(model: Any) -> str:
    held = entries(model)
    return text(held.get("name") or held.get("model_name"))


def _adapters(loras: Any) -> list[AdapterMark]:
    found: list[AdapterMark] = []
    for one in items(loras):
        held = entries(one)
        name, weight = _name(held.get("model") or held.get("lora")), number(held.get("weight"))
        if name:
            found.append(AdapterMark(name, 1.0 if weight is None else weight))
    return found
