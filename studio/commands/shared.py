"""What every command shares: the global options, the workspace, and printing as text or JSON."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

if TYPE_CHECKING:
    from registry.records import Adapter
    from studio.workspace import Workspace

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], Any]]


@dataclass
class Invocation:
    """The global options of this call of `studio`."""

    home: Path | None = None
    json: bool = False


invocation = Invocation()


def _place(given: object) -> Path:
    """A path that something is written to; `Path("")` would be the folder that we are in.

    A shell leaves the ~ of `--out=~/pictures` to us.
    """
    from registry.errors import BadInput
    from registry.files import expand_home

    try:
        if str(given).strip():
            return expand_home(str(given))
    except BadInput as error:
        raise typer.BadParameter(f"{error}") from error
    raise typer.BadParameter("it is empty, name a file or a folder")


PlaceOption = partial(typer.Option, parser=_place, metavar="<path>")  # of a command that writes there


def open_workspace() -> "Workspace":
    """The workspace named by --home, STUDIO_HOME or the platform's default."""
    from studio.workspace import Workspace  # SQLAlchemy costs 0.3 s that --help must not pay

    return Workspace.open(invocation.home)


def adapter_and_weights(workspace: "Workspace", text: str) -> tuple["Adapter", list[float]]:
    """NAME[:WEIGHT[:TEXT_WEIGHT]] -> the adapter and its numbers; a name may itself contain colons.

    NAME may be RUN@STEP, a checkpoint of a run.

    Raises:
        NotFound: there is no such adapter.
        BadInput: what follows its name is no number.
    """
    from registry.errors import BadInput
    from studio.sampling.chosen import chosen_adapter, find_adapter

    name, behind = text, list[str]()
    while len(behind) < 2 and ":" in name and find_adapter(workspace, name) is None:
        name, _, word = name.rpartition(":")
        behind.insert(0, word)
    numbers: list[float] = []
    for word in behind:
        try:
            numbers.append(float(word))
        except ValueError:
            if find_adapter(workspace, name) is None:
                name = text  # a colon of its own, perhaps: all of it is what was not found
                break
            do = f"write a number, as {name}:0.8"
            raise BadInput(f"adapter {text!r}", f"{word!r} is not a strength", do) from None
    return chosen_adapter(workspace, name), numbers


def plain(value: Any) -> Any:
    """`value` as JSON types: records become objects, times ISO 8601, paths and enums text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in cast("Iterable[Any]", value)]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def show_rows(rows: Iterable[Row], columns: Sequence[Column], *, empty: str) -> None:
    """Print a list: JSON array of objects, or a table; `empty` says what to do when there is nothing."""
    rows = list(rows)
    if invocation.json:
        write_json(rows)
        return
    if not rows:
        write_line(empty)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell(row))) for _, cell in columns))
    console().print(table)


def show_record(record: Row, *, title: str = "") -> None:
    """Print one object: JSON, or two columns of field and value."""
    if invocation.json:
        write_json(record)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, title=title or None, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in record.items():
        table.add_row(key, Text(clean(_as_text(value))))
    console().print(table)


def show_done(message: str, data: Row) -> None:
    """Print the outcome of an action: `message`, or `data` as JSON."""
    if invocation.json:
        write_json(data)
    else:
        write_line(message)


def note(message: str) -> None:
    """Say something on the way; on stderr, so that stdout stays the result."""
    sys.stderr.write(clean(message) + "\n")
    sys.stderr.flush()


def confirmed(question: str) -> bool:
    """Ask a person at a terminal; a script is not asked, it has said what it wants."""
    if not sys.stdin.isatty():
        return True
    sys.stderr.write(clean(question) + " [y/N] ")  # typer.confirm leaves a space on stdout
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def write_json(value: Any) -> None:
    """The one JSON document of this call."""
    json.dump(plain(value), sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")


def write_line(text: str) -> None:
    """One or more lines of plain text on stdout."""
    sys.stdout.write(clean(text) + "\n")


def clean(text: object) -> str:
    """`text` without control characters: foreign names must not drive the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def ago(time: datetime) -> str:
    """How long ago `time` was, in words."""
    from registry.records import now

    seconds = max(0, int((now() - time).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "just now"


def console() -> Any:
    """A rich console on stdout; 160 columns when the output is no terminal, so that pipes keep whole rows."""
    from rich.console import Console

    return Console(
        width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=not sys.stdout.isatty()
    )


def _as_text(value: Any) -> str:
    value = plain(value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)
