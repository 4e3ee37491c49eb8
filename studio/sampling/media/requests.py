"""Requests to bases that make video, sound or 3D: what they are made with, and what is refused of them.

No torch: command line, pages and the HTTP interface ask here before anything waits in the queue.
"""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.records import Base
from studio.sampling.media.kinds import ANIMATES, KINDS, MOTION, Configs, Kind, Setting, kind_name
from studio.sampling.request import SampleRequest
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.workspace import Workspace

ALWAYS = frozenset({"base", "kind", "motion", "settings", "steps", "cfg", "seed", "count", "memory"})
MEMORY = ("auto", "fast", "model", "sequential")  # ways that pipelines of diffusers have
MOST_PIXELS = 2**30  # of all frames together


def kind_of(ws: "Workspace", request: SampleRequest, base: Base) -> Kind | None:
    """What a request makes; None = pictures.

    Raises:
        BadInput: its motion adapter does not fit the base, or it is said to make something else.
    """
    if request.motion:
        motion_of(ws, request.motion, base)
    name = kind_name(base, request.motion)
    if request.kind not in ("", name):
        what = KINDS[name].label if name else "pictures"
        wrong = f"is not what base {base.name} makes, which is {what}"
        raise BadInput(f"kind {request.kind!r}", wrong, "leave it out")
    if not name:
        if request.settings:
            first = next(iter(request.settings))
            wrong = f"is for video, sound and 3D; base {base.name} makes pictures"
            raise BadInput(f"setting {first[:40]!r}", wrong, "leave it out, or choose another base")
        return None
    if name not in KINDS:
        raise BadInput(
            f"base {base.name}", f"is of a kind that this version does not know ({name})", "update"
        )
    return KINDS[name]


def motion_of(ws: "Workspace", key: str, base: Base) -> Base:
    """The motion adapter of that name or id.

    Raises:
        NotFound: there is none.
        BadInput: it is something else, or does not fit the base.
    """
    motion = ws.catalog.get(Base, key)
    label = FAMILIES[ANIMATES].label
    if motion.part != MOTION:
        raise BadInput(f"motion {motion.name}", "is no motion adapter", "choose one: `studio bases list`")
    if base.part or base.family != ANIMATES:
        wrong = f"moves bases of {label}, which {base.name} is not"
        raise BadInput(f"motion adapter {motion.name}", wrong, "choose another base, or leave it out")
    theirs, ours = (
        configs("unet").get("block_out_channels")
        for configs in (lambda _: _config(ws, motion), configs_of(ws, base))
    )
    if theirs and ours and list(theirs) != list(ours):
        wrong = f"has layers of {_listed(theirs)} channels, base {base.name} of {_listed(ours)}"
        raise BadInput(f"motion adapter {motion.name}", wrong, "choose one made for this base")
    return motion


def media_values(ws: "Workspace", base: Base, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request with the kind's own values where none were given.

    Args:
        ws: The workspace.
        base: What makes it; of the kind that it is with the motion adapter of `given`.
        given: Fields of a request.
    """
    name = kind_name(base, given.get("motion", ""))
    kind = KINDS[name]
    values: dict[str, Any] = {"base": base.id, "kind": name, "steps": kind.steps, "cfg": kind.cfg}
    if kind.sized:
        values["width"], values["height"] = kind.size or default_side(ws, base)
    return values | dict(given)


def default_side(ws: "Workspace", base: Base) -> tuple[int, int]:
    """(width, height) by the configs of a UNet and its VAE; 512 where they do not say."""
    configs = configs_of(ws, base)
    own, blocks = configs("unet").get("sample_size"), configs("vae").get("block_out_channels")
    side = own * 2 ** (len(blocks) - 1) if isinstance(own, int) and blocks else 512
    return side, side


def checked(ws: "Workspace", request: SampleRequest, base: Base, kind: Kind) -> SampleRequest:
    """The request as it is drawn: the kind's own numbers filled in.

    Raises:
        BadInput: something does not go with the kind, is missing, or out of bounds; in one line.
    """
    _refuse_others(request, kind)
    if "image" in kind.takes and not request.image:
        raise BadInput("image", f"is missing: {kind.label} starts from a picture", "give one")
    if "prompt" in kind.takes and not request.prompt.strip():
        raise BadInput("prompt", "is empty", f"say what the {kind.medium} is to be of")
    if request.memory not in MEMORY:
        raise BadInput(f"memory {request.memory}", f"is not for {kind.label}", f"use {', '.join(MEMORY)}")
    motion = motion_of(ws, request.motion, base) if request.motion else None
    configs = configs_of(ws, base, motion)
    for name, value in request.settings.items():
        _check_setting(_setting(kind, name), value, configs, base)
    settings = usual(kind, configs) | request.settings
    if kind.sized:
        _check_size(request, settings, kind.side(configs))
    return request.model_copy(update={"kind": kind_name(base, request.motion), "settings": settings})


def usual(kind: Kind, configs: Configs) -> dict[str, float]:
    """Settings where the person says nothing; those that are the base's own are left out."""
    return {
        item.name: min(item.default, limit_of(item, configs))
        for item in kind.settings
        if item.default is not None
    }


def limit_of(item: Setting, configs: Configs) -> float:
    """The most that a setting may be for a base."""
    own = item.limit(configs) if item.limit else None
    return item.most if own is None else min(item.most, own)


def configs_of(ws: "Workspace", base: Base, motion: Base | None = None) -> Configs:
    """config.json of components, by name; {} where there is none, or the base is on the hub."""
    from studio.sampling.defaults import component_config

    def found(component: str) -> dict[str, Any]:
        if motion is not None and component == "motion_adapter":
            return _config(ws, motion)
        return component_config(ws, base, component)

    return found


def _config(ws: "Workspace", part: Base) -> dict[str, Any]:
    from studio.base_kinds import config_of

    return {} if part.kind == "hub" else config_of(ws.resolve(part.location) / "config.json")


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in values)


def _refuse_others(request: SampleRequest, kind: Kind) -> None:
    """Fields that pictures have and this kind has not must be as they are by default."""
    takes = ALWAYS | kind.takes
    for name, field in SampleRequest.model_fields.items():
        if name in takes or getattr(request, name) == field.default:
            continue
        if name in ("width", "height"):  # of every request
            continue
        does = ", ".join(sorted(takes - {"base", "kind", "motion", "width", "height"}))
        raise BadInput(name, f"does not go with {kind.label}", f"leave it out; what counts is {does}")


def _setting(kind: Kind, name: str) -> Setting:
    for item in kind.settings:
        if item.name == name:
            return item
    known = [item.name for item in kind.settings]
    close = difflib.get_close_matches(name, known, 1)
    do = f"did you mean {close[0]}" if close else f"use {', '.join(item.said for item in kind.settings)}"
    raise BadInput(f"setting {name[:40]!r}", f"is none of {kind.label}", do)


def _check_setting(item: Setting, value: float, configs: Configs, base: Base) -> None:
    thing = f"{item.name} {value:g}"
    if item.whole and value != int(value):
        raise BadInput(thing, "is no whole number", f"use {item.said}")
    if not item.least <= value <= item.most:
        raise BadInput(thing, "is out of bounds", f"use {item.said}")
    if item.whole and int(value) % item.step:
        raise BadInput(thing, f"is no multiple of {item.step}", f"use {item.said}")
    _check_limit(item, value, configs, base)


def _check_limit(item: Setting, value: float, configs: Configs, base: Base) -> None:
    most = limit_of(item, configs)
    if value > most:
        wrong = f"is more than base {base.name} was made for"
        raise BadInput(f"{item.name} {value:g}", wrong, f"use at most {int(most) if item.whole else most:g}")


def _check_size(request: SampleRequest, settings: Mapping[str, float], side: int) -> None:
    if request.width % side or request.height % side:
        size = f"size {request.width}x{request.height}"
        raise BadInput(size, f"does not fit: sides are multiples of {side} for this base", "change the size")
    frames = settings.get("frames", 1)
    if request.width * request.height * frames > MOST_PIXELS:
        wrong = f"is too much for {frames:g} frames"
        raise BadInput(f"size {request.width}x{request.height}", wrong, "make it smaller or shorter")
