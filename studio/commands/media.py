"""`studio sample` with a base that makes video, sound or 3D."""

from typing import TYPE_CHECKING, Any

import typer

from registry.errors import BadInput
from registry.records import Base
from studio.commands import modes

if TYPE_CHECKING:
    from studio.sampling.request import SampleRequest
    from studio.workspace import Workspace

_AS_THEY_ARE = ("prompt", "negative", "steps", "cfg", "seed", "count", "quality", "memory")
_CALL = ("base", "out", "image", "size", "motion", "set_")


def request(ws: "Workspace", context: typer.Context, base: Base) -> "SampleRequest":
    """The request of a call; what was not given is the kind's own.

    Raises:
        BadInput: an option that is for pictures, a value that cannot be read or is out of bounds.
    """
    from studio.sampling.media.kinds import KINDS, kind_name
    from studio.sampling.media.requests import media_values, motion_of
    from studio.sampling.request import SampleRequest

    given, options = modes.given(context), context.params
    label = KINDS[kind_name(base, options["motion"])].label
    if others := sorted(given - {*_AS_THEY_ARE, *_CALL}):
        option = "--" + others[0].replace("_", "-")
        raise BadInput(option, f"does not go with {label}, which base {base.name} makes", "leave it out")
    values: dict[str, Any] = {name: options[name] for name in _AS_THEY_ARE if name in given}
    if "image" in given:
        values["image"] = modes.absolute(options["image"])
    if "size" in given:
        values["width"], values["height"] = modes.size(options["size"])
    if "motion" in given:
        values["motion"] = motion_of(ws, options["motion"], base).id
    values["settings"] = dict(_setting(text) for text in options["set_"] or ())
    return modes.validated(SampleRequest, **media_values(ws, base, values))


def _setting(text: str) -> tuple[str, float]:
    """NAME=VALUE."""
    name, equals, value = text.partition("=")
    try:
        number = float(value) if equals else None
    except ValueError:
        number = None
    if not name.strip() or number is None:
        raise BadInput(f"--set {text[:40]!r}", "is not NAME=NUMBER", "write for example frames=14")
    whole = number.is_integer() and abs(number) < 2**53
    return name.strip(), int(number) if whole else number
