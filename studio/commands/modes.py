"""Options of `studio sample` and `studio compare` that stand for several values."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from registry.errors import BadInput
from registry.files import expand_home
from registry.records import Base

if TYPE_CHECKING:
    from studio.sampling.request import SampleRequest
    from studio.workspace import Workspace


Model = TypeVar("Model")

CHANGEABLE = {"out", "like", "seed", "count"}  # what may be said beside --from


def given(context: typer.Context) -> set[str]:
    """Parameters that were written on the command line."""
    return {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }


def again(ws: "Workspace", context: typer.Context, path: Path) -> "SampleRequest":
    """The request of a picture, with the seed and count that were given.

    Raises:
        BadInput: another option was given too, or the picture cannot be made again.
    """
    from studio.sampling.again import request_of

    if others := sorted(given(context) - CHANGEABLE):
        option = "--" + others[0].replace("_", "-")
        raise BadInput(option, "does not go with --from", "leave it out; --seed and --count may be given")
    request = request_of(ws, Path(absolute(path)))
    changes = {name: context.params[name] for name in ("seed", "count") if name in given(context)}
    return request.model_copy(update=changes)


def absolute(path: Path | None) -> str:
    """A file as the request names it; "" for none."""
    return "" if path is None else str(expand_home(str(path)).absolute())


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> two numbers."""
    width, _, height = text.lower().partition("x")
    if not all(side.isascii() and side.isdecimal() and len(side) <= 5 for side in (width, height)):
        raise BadInput(f"--size {text!r}", "is not WIDTHxHEIGHT", "write for example 512x768")
    return int(width), int(height)


def validated(kind: "type[Model]", /, **values: Any) -> "Model":
    """A pydantic model from option values, its complaint as our one line."""
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = f"{field} {first.get('input')!r}"
        given = given if len(given) <= 80 else given[:77] + "..."
        raise BadInput(
            given,
            first["msg"].removeprefix("Input ").removeprefix("Value error, ").lower(),
            "see `studio sample --help`",
        ) from None


def sides(text: str) -> tuple[int, ...]:
    """LEFT,TOP,RIGHT,BOTTOM -> four numbers; none: zeros."""
    if not text:
        return (0, 0, 0, 0)
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and len(part.strip()) <= 5 for part in parts):
        raise BadInput(f"--outpaint {text[:40]!r}", "is not four numbers", "write for example 0,0,128,0")
    return tuple(int(part) for part in parts)


def hires(text: str) -> dict[str, Any] | None:
    """SCALE[:STRENGTH[:STEPS[:UPSCALER]]] -> fields of HiresChoice."""
    return _fields(text, ("scale", "strength", "steps", "upscaler"), "--hires", "2:0.5")


def upscale(text: str) -> dict[str, Any] | None:
    """SCALE[:OVERLAP] -> fields of UpscaleChoice."""
    return _fields(text, ("scale", "overlap"), "--upscale", "2:64")


def refiner(ws: "Workspace", text: str) -> dict[str, Any]:
    """BASE[:FROM] -> fields of the request; a name may itself contain a colon."""
    if not text:
        return {}
    name, _, at = text.rpartition(":")
    if name and _is_number(at) and ws.catalog.find(Base, text) is None:
        return {"refiner": ws.catalog.get(Base, name).id, "refiner_at": at}
    return {"refiner": ws.catalog.get(Base, text).id}


def variation(text: str) -> dict[str, Any]:
    """SUBSEED:STRENGTH -> fields of the request."""
    fields = _fields(text, ("subseed", "subseed_strength"), "--variation", "7:0.2")
    if fields and len(fields) < 2:
        raise BadInput(f"--variation {text[:40]!r}", "lacks its strength", "write for example 7:0.2")
    return fields or {}


def _fields(text: str, names: tuple[str, ...], option: str, example: str) -> dict[str, Any] | None:
    if not text:
        return None
    values = text.split(":")
    if len(values) > len(names) or not _is_number(values[0]):
        raise BadInput(f"{option} {text[:40]!r}", "cannot be read", f"write for example {example}")
    return dict(zip(names, values, strict=False))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
