"""What may differ from cell to cell of a comparison: one row for each axis.

A row says how a value changes the request, how it is said, and how it is read from text. A new axis is a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from studio.sampling.request import SampleRequest

if TYPE_CHECKING:
    from studio.workspace import Workspace

Value = str | int | float
NONE = "none"  # no adapter


@dataclass
class Draft:
    """A request as the axes change it."""

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    adapter: str = ""  # that the cell is about; "" = none
    weight: float | None = None  # of it; None = what the comparison says


Reader = Callable[["Workspace", str], list[Value]]


@dataclass(frozen=True)
class Axis:
    """One thing that may differ."""

    name: str
    label: str  # for people
    change: Callable[[Draft, Any], None]
    say: Callable[[Any, str], str]  # (value, label kept beside it) -> in a cell's own line
    read: Reader  # text of one value, or of several
    start: Callable[[SampleRequest], Value]  # what a request without this axis has
    label_of: Callable[["Workspace", Any], str] = lambda _ws, value: spoken(value)
    option: str = ""  # on the command line


def spoken(value: Value) -> str:
    """A value as a person writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _set(name: str) -> Callable[[Draft, Any], None]:
    def change(draft: Draft, value: Any) -> None:
        draft.fields[name] = value

    return change


def _set_adapter(draft: Draft, value: str) -> None:
    draft.adapter = "" if value == NONE else value


def _set_weight(draft: Draft, value: float) -> None:
    draft.weight = float(value)


def _plain(_value: Any, label: str) -> str:
    return label


def _with(word: str) -> Callable[[Any, str], str]:
    return lambda _value, label: f"{word} {label}"


def _number(name: str, kind: type[int] | type[float]) -> Reader:
    def read(_ws: "Workspace", text: str) -> list[Value]:
        try:
            return [kind(text)]
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise BadInput(f"{name} {text[:40]!r}", f"is not {wanted}", "write for example 1,2") from None

    return read


def _text(_ws: "Workspace", text: str) -> list[Value]:
    return [text]


def _adapter(ws: "Workspace", text: str) -> list[Value]:
    """NAME, RUN@STEP or none."""
    from studio.sampling.chosen import chosen_adapter

    if text == NONE:
        return [NONE]
    return [chosen_adapter(ws, text).id]


def _checkpoints(ws: "Workspace", text: str) -> list[Value]:
    """RUN:all, RUN:STEP, RUN@STEP or none."""
    from registry.records import Run
    from studio.sampling.chosen import steps_of

    name, mark, step = text.rpartition(":")
    if not mark:
        return _adapter(ws, text)
    run = ws.catalog.get(Run, name)
    if step != "all":
        return _adapter(ws, f"{run.id}@{step}")
    steps = steps_of(ws, run)
    if not steps:
        raise BadInput(f"run {run.name}", "has no checkpoint", "choose another run, or let it go on")
    return [f"{run.id}@{number}" for number in steps]


def _adapter_label(ws: "Workspace", value: str) -> str:
    from studio.sampling.chosen import chosen_adapter

    return NONE if value == NONE else chosen_adapter(ws, value).name


def _own_weight(request: SampleRequest) -> Value:
    return request.adapters[0].weight if len(request.adapters) == 1 else 1.0


_ROWS = (
    Axis("adapter", "Adapter", _set_adapter, _plain, _adapter, lambda _: NONE, _adapter_label, "--adapters"),
    Axis(
        "checkpoint", "Checkpoint", _set_adapter, _plain, _checkpoints, lambda _: NONE, _adapter_label,
        "--checkpoints",
    ),
    Axis("weight", "Strength", _set_weight, _with("strength"), _number("weight", float), _own_weight,
         option="--weights"),
    Axis("prompt", "Prompt", _set("prompt"), _plain, _text, lambda r: r.prompt, option="--prompt"),
    Axis("seed", "Seed", _set("seed"), _with("seed"), _number("seed", int), lambda r: r.seed,
         option="--seeds"),
    Axis("steps", "Steps", _set("steps"), _with("steps"), _number("steps", int), lambda r: r.steps,
         option="--steps"),
    Axis("guidance", "Guidance", _set("cfg"), _with("guidance"), _number("guidance", float), lambda r: r.cfg,
         option="--cfg"),
    Axis("scheduler", "Sampler", _set("scheduler"), _plain, _text, lambda r: r.scheduler,
         option="--schedulers"),
)  # fmt: skip
AXES: Mapping[str, Axis] = {row.name: row for row in _ROWS}
OF_ADAPTERS = ("adapter", "checkpoint")  # axes that choose what the cell is about


def axis(name: str) -> Axis:
    """The row of an axis.

    Raises:
        BadInput: there is no such axis.
    """
    if name not in AXES:
        raise BadInput(f"axis {name[:40]!r}", "is unknown", f"use one of {', '.join(AXES)}")
    return AXES[name]
