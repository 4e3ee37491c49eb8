"""ComfyUI's `prompt`: the graph that drew the picture, {node: {"class_type", "inputs"}}; an input is a value
or a link [node, output].

Read from the sampler backwards: its own inputs, the texts behind `positive` and `negative`, the adapters and
the checkpoint behind `model`. Nodes are known by the names of their inputs, not of their classes, so nodes of
extensions are understood as far as they follow the usual names.
"""

import json
from collections import deque
from collections.abc import Iterator
from itertools import islice
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

KEY = "prompt"
CLASS, ZERO = "class_type", "ConditioningZeroOut"
MAX_NODES, MAX_INPUTS, MAX_SAMPLERS = 2000, 200, 20  # a picture must not cost minutes
_SAMPLER = ("positive", "guider")  # a node with one of these and a latent is what draws
_TEXTS = ("text", "text_g", "text_l", "t5xxl", "clip_l", "string", "value", "prompt")
_CHECKPOINTS = ("ckpt_name", "unet_name", "model_name")

Nodes = dict[str, dict[str, Any]]  # node -> its inputs


def parse_comfyui(said: str) -> PictureMetadata | None:
    """What a graph says; None when it is none that draws."""
    try:
        graph = entries(json.loads(said))
    except (ValueError, RecursionError):
        return None
    nodes = {key: _inputs(entries(node)) for key, node in list(graph.items())[:MAX_NODES]}
    sampler = _sampler(nodes)
    if sampler is None:
        return None
    # What SamplerCustomAdvanced leaves to other nodes (noise, sigmas, guider) is looked for behind it.
    around = [node for link in sampler.values() for node in _behind(nodes, link)]
    facts = _First([sampler, *around])
    guider = next((node for node in around if "positive" in node or "conditioning" in node), sampler)
    conditioned = sampler if "positive" in sampler else guider
    positive = conditioned.get("positive", conditioned.get("conditioning"))
    adapters, base = _models(nodes, sampler.get("model", guider.get("model")))
    sampler_name, schedule = text(facts.find("sampler_name")), text(facts.find("scheduler"))
    latent = _First(_behind(nodes, sampler.get("latent_image", sampler.get("latent"))))
    return PictureMetadata(
        source="comfyui",
        prompt=_words(nodes, positive),
        negative=_words(nodes, conditioned.get("negative")),
        seed=whole(facts.find("seed", "noise_seed")),
        steps=whole(facts.find("steps")),
        cfg=number(_First(_behind(nodes, positive)).find("guidance") or facts.find("cfg")),
        width=whole(latent.find("width")),
        height=whole(latent.find("height")),
        scheduler=our_scheduler(sampler_name, schedule),
        base_name=base,
        adapters=adapters,
    )


class _First:
    """The first plain value of a name among nodes."""

    def __init__(self, nodes: list[dict[str, Any]]) -> None:
        self._nodes = nodes

    def find(self, *names: str) -> Any:
        for node in self._nodes:
            for name in names:
                if isinstance(node.get(name), int | float | str):
                    return node[name]
        return None


def _inputs(node: dict[str, Any]) -> dict[str, Any]:
    """What goes into a node, and under CLASS what it is."""
    inputs = dict(islice(entries(node.get("inputs")).items(), MAX_INPUTS))
    return inputs | {CLASS: text(node.get(CLASS))}


def _sampler(nodes: Nodes) -> dict[str, Any] | None:
    """The node that draws; of several the first one: the others refine what it drew."""
    found = {
        key: node
        for key, node in nodes.items()
        if any(name in node for name in _SAMPLER) and ("latent_image" in node or "latent" in node)
    }
    for key, node in list(found.items())[:MAX_SAMPLERS]:
        latent = _keys_behind(nodes, node.get("latent_image", node.get("latent")))
        if not (found.keys() - {key}) & latent.keys():
            return node
    return next(iter(found.values()), None)


def _behind(nodes: Nodes, link: Any) -> list[dict[str, Any]]:
    """The node that a link leads to and all behind it, nearest first."""
    return [nodes[key] for key in _keys_behind(nodes, link)]


def _keys_behind(nodes: Nodes, link: Any) -> dict[str, None]:
    seen: dict[str, None] = {}
    waiting = deque([link])
    while waiting:
        key, _ = _target(waiting.popleft())
        if key in nodes and key not in seen:
            seen[key] = None
            waiting.extend(value for value in nodes[key].values() if isinstance(value, list))
    return seen


def _target(link: Any) -> tuple[str, int]:
    """Node and output of a link; "" for a value."""
    parts = items(link)
    return (str(parts[0]), whole(parts[1]) or 0) if len(parts) == 2 else ("", 0)


def _words(nodes: Nodes, link: Any) -> str:
    """The text that a conditioning was made of: the nearest node with a text.

    Nodes that pass both sides on (ControlNet) have the positive one as output 0, the negative as output 1.
    """
    seen: set[tuple[str, int]] = set()
    waiting = deque([link])
    while waiting:
        place = _target(waiting.popleft())
        if place in seen or place[0] not in nodes:
            continue
        seen.add(place)
        node = nodes[place[0]]
        if node[CLASS] == ZERO:
            continue
        if "positive" in node and "negative" in node:
            waiting.append(node["negative" if place[1] == 1 else "positive"])
            continue
        for name in _TEXTS:
            if found := text(node.get(name)).strip():
                return found
        waiting.extend(value for value in node.values() if isinstance(value, list))
    return ""


def _models(nodes: Nodes, link: Any) -> tuple[tuple[AdapterMark, ...], str]:
    """Adapters behind a model, the first applied first, and the checkpoint's name."""
    adapters: list[AdapterMark] = []
    base = ""
    for node in _behind(nodes, link):
        adapters += _adapters(node)
        base = base or next((file_name(node[name]) for name in _CHECKPOINTS if text(node.get(name))), "")
    return tuple(reversed(adapters)), base


def _adapters(node: dict[str, Any]) -> Iterator[AdapterMark]:
    """Adapters of one loader; a stack holds them as objects {"on", "lora", "strength"}."""
    if name := text(node.get("lora_name")):
        weight = number(node.get("strength_model", 1.0))
        clip = number(node.get("strength_clip")) if "strength_clip" in node else None
        weight = 1.0 if weight is None else weight
        yield AdapterMark(file_name(name), weight, None if clip == weight else clip)
    for value in node.values():
        held = entries(value)
        if (name := text(held.get("lora"))) and held.get("on", True):
            weight = number(held.get("strength", 1.0))
            yield AdapterMark(file_name(name), 1.0 if weight is None else weight)
