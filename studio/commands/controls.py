"""Options of `studio sample` for pictures that steer the drawing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.records import Base
from studio.commands.modes import absolute
from studio.sampling.control.kinds import control_kind

if TYPE_CHECKING:
    from studio.workspace import Workspace

_NUMBERS = ("weight", "start", "end")


def choices(
    ws: "Workspace",
    texts: Sequence[str],
    models: Sequence[str],
    *,
    maps: bool = False,
    preprocessor: str = "",
    guess: bool = False,
) -> list[dict[str, Any]]:
    """KIND:FILE[:WEIGHT[:START:END]] -> fields of ControlChoice.

    Args:
        ws: The workspace.
        texts: One for each picture.
        models: Names of networks, in the same order; the rest is chosen by kind.
        maps: The pictures are finished maps.
        preprocessor: Folder or hub id of the model that reads depth or pose.
        guess: They steer only the half with the prompt.

    Raises:
        BadInput: not written so, no such kind, more networks than pictures.
        NotFound: no such network.
    """
    if len(models) > len(texts):
        wrong = f"is given {len(models)} times, --control {len(texts)} times"
        raise BadInput("--control-model", wrong, "give one --control for each")
    named = [ws.catalog.get(Base, name).id for name in models] + [""] * (len(texts) - len(models))
    shared = {"preprocess": not maps, "preprocessor": preprocessor, "guess": guess}
    return [{**_parts(text), "model": model, **shared} for text, model in zip(texts, named, strict=True)]


def _parts(text: str) -> dict[str, Any]:
    """What looks like numbers at the end is numbers; a file's name may hold colons all the same."""
    kind, _, file = text.partition(":")
    numbers: list[float] = []
    while len(numbers) < len(_NUMBERS):
        before, colon, last = file.rpartition(":")
        number = _number(last)
        if not colon or number is None:
            break
        file, numbers = before, [number, *numbers]
    if not file or len(numbers) == 2:
        do = "write for example canny:photo.png:0.8 or canny:photo.png:0.8:0:0.5"
        raise BadInput(f"--control {text[:80]!r}", "is not KIND:FILE[:WEIGHT[:START:END]]", do)
    values = dict(zip(_NUMBERS, numbers, strict=False))
    return {"kind": control_kind(kind).name, "image": absolute(Path(file)), **values}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
