"""ComfyUI's `prompt`: the graph that drew the picture, {node: {"class_type", "inputs"}}; an input is a value
or a link [node, output].

Read from the sampler backwards: its own inputs, the texts behind `positive` and `negative`, the adapters and
the checkpoint behind `model`. Nodes are known by the names of their inputs, not of their classes, so nodes of
extensions are understood as far as they follow the usual names.
"""

import json
from collections.abc import Iterator
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
MAX_NODES = 2000
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
    nodes = {key: entries(entries(node).get("inputs")) for key, node in list(graph.items())[:MAX_NODES]}
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


def _sampler(nodes: Nodes) -> dict[str, Any] | None:
    """The node that draws; of several the first one: the others refine what it drew."""
    found = [
        node
        for node in nodes.values()
        if any(name in node for name in _SAMPLER) and ("latent_image" in node or "latent" in node)
    ]
    for node in found:
        latent = _behind(nodes, node.get("latent_image", node.get("latent")))
        if not any(other in latent for other in found):
            return node
    return found[0] if found else None


def _behind(nodes: Nodes, link: Any) -> list[dict[str, Any]]:
    """The node that a link leads to and all behind it, nearest first."""
    seen: dict[str, None] = {}
    waiting = [link]
    while waiting:
        target = items(waiting.pop(0))
        key = str(target[0]) if len(target) == 2 else ""
        if key not in nodes or key in seen:
            continue
        seen[key] = None
        waiting += list(nodes[key].values())
    return [nodes[key] for key in seen]


def _words(nodes: Nodes, link: Any) -> str:
    """The text that a conditioning was made of: the nearest node with a text."""
    for node in _behind(nodes, link):
        for name in _TEXTS:
            if found := text(node.get(name)).strip():
                return found
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
