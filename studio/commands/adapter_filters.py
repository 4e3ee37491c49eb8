"""Which adapters a command is about: words, filters by option, and searches kept under a name."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.shared import ago, open_workspace, plain, show_done, show_rows
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from registry.search import AdapterQuery
    from studio.workspace import Workspace

app = typer.Typer(
    name="filters", help="Searches of adapters that are kept under a name.", no_args_is_help=True
)

MEGABYTE = 1_000_000
Options = dict[str, Any]  # fields of `registry.search.AdapterQuery` that were asked for


def _options(
    base_family: Annotated[
        str, typer.Option(help=f"Only this family: {', '.join(FAMILIES)} or unidentified.")
    ] = "",
    method: Annotated[str, typer.Option(help="Only this method: lora, dora, loha, lokr, oft.")] = "",
    tag: Annotated[
        list[str] | None, typer.Option(help="Only with this tag; all of them when given again.")
    ] = None,
    trigger: Annotated[str, typer.Option(help="Only with this trigger word.")] = "",
    origin: Annotated[str, typer.Option(help="Only from: run, import, merge, resize, extract, edit.")] = "",
    base: Annotated[str, typer.Option(help="Only for this registered base.")] = "",
    min_rank: Annotated[int | None, typer.Option(help="Rank at least.")] = None,
    max_rank: Annotated[int | None, typer.Option(help="Rank at most.")] = None,
    min_rating: Annotated[int | None, typer.Option(min=1, max=5, help="Stars at least.")] = None,
    favourite: Annotated[
        bool | None, typer.Option("--favourite/--no-favourite", help="Favourites or others.")
    ] = None,
    preview: Annotated[
        bool | None, typer.Option("--preview/--no-preview", help="With a picture or without.")
    ] = None,
    licence: Annotated[
        bool | None, typer.Option("--licence/--no-licence", help="With a licence or without.")
    ] = None,
    min_size: Annotated[float | None, typer.Option(min=0, help="File size at least, MB.")] = None,
    max_size: Annotated[float | None, typer.Option(min=0, help="File size at most, MB.")] = None,
    since: Annotated[str, typer.Option(help="Added on this day or later, as 2026-01-31.")] = "",
    until: Annotated[str, typer.Option(help="Added before this day.")] = "",
    file_state: Annotated[
        str, typer.Option(help="File last seen as: new, ok, edited, changed, missing.")
    ] = "",
    trashed: Annotated[bool, typer.Option("--trashed", help="What is in the trash instead.")] = False,
) -> Options:
    asked = {
        "family": _family(base_family), "method": method, "origin": origin, "tags": tuple(tag or ()),
        "trigger": trigger, "base_id": _base(base), "min_rank": min_rank, "max_rank": max_rank,
        "min_rating": min_rating, "favourite": favourite, "has_preview": preview, "has_licence": licence,
        "min_size": _bytes(min_size), "max_size": _bytes(max_size), "since": _date("--since", since),
        "until": _date("--until", until), "file_state": file_state, "trashed": trashed or None,
    }  # fmt: skip
    return {name: value for name, value in asked.items() if value not in ("", (), None)}


def with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `filters: Options` one command line option for each filter in its place."""
    own = inspect.signature(command, eval_str=True).parameters
    given = inspect.signature(_options, eval_str=True).parameters

    @wraps(command)
    def run(**arguments: Any) -> None:
        chosen = _options(**{name: arguments.pop(name) for name in given})
        command(**arguments, filters=chosen)

    parameters = [p for name, p in own.items() if name != "filters"] + list(given.values())
    by_word = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__dict__["__signature__"] = inspect.Signature(by_word)
    run.__annotations__ = {p.name: p.annotation for p in by_word}
    return run


def adapter_query(
    ws: "Workspace", query: str, saved: str = "", filters: Options | None = None
) -> "AdapterQuery":
    """What to look for: the saved filter of that name, more words, and options, which win over it.

    Raises:
        NotFound: no filter has that name.
    """
    from registry.search import AdapterQuery

    begin = AdapterQuery.from_json(_saved(ws, saved).query) if saved else AdapterQuery()
    return replace(begin, query=f"{begin.query} {query}".strip(), **(filters or {}))


def _family(name: str) -> str:
    from registry.errors import BadInput
    from registry.search import UNIDENTIFIED

    known = ("", *FAMILIES, UNIDENTIFIED)
    if name not in known:
        raise BadInput(f"family {name[:40]!r}", "is unknown", f"use one of {', '.join(known[1:])}")
    return name


def _base(key: str) -> str:
    from registry.records import Base

    return open_workspace().catalog.get(Base, key).id if key else ""


def _bytes(megabytes: float | None) -> int | None:
    from registry.search import LARGEST

    if megabytes is None:
        return None
    return int(megabytes * MEGABYTE) if megabytes * MEGABYTE < LARGEST else LARGEST  # also of infinity


def _date(option: str, text: str) -> datetime | None:
    """A day or a time of ISO 8601; UTC unless it says otherwise."""
    from registry.errors import BadInput

    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadInput(option, f"{text[:40]!r} is no date", "write it as 2026-01-31") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _saved(ws: "Workspace", name: str) -> Any:
    from registry.records import SavedFilter

    return ws.catalog.get(SavedFilter, name)


@app.command("list")
def list_() -> None:
    """List the saved filters.

    Example: studio adapters filters list
    """
    from registry.records import SavedFilter

    kept = open_workspace().catalog.list(SavedFilter, order="name")
    show_rows(
        [plain(record) | {"_saved": ago(record.created_at)} for record in kept],
        [
            ("name", lambda r: r["name"]),
            ("looks for", lambda r: ", ".join(f"{field}: {value}" for field, value in r["query"].items())),
            ("saved", lambda r: r["_saved"]),
        ],
        empty="No saved filters. Keep one: studio adapters filters save NAME WORDS --tag T",
    )


@app.command()
@with_filters
def save(
    name: str,
    query: Annotated[str, typer.Argument(help="Words to look for.")] = "",
    *,
    filters: Options,
) -> None:
    """Keep a search under a name, in place of an earlier one.

    Example: studio adapters filters save inks "ink drawing" --base-family sd15 --min-rating 3
    """
    from studio.filters import save_filter

    ws = open_workspace()
    wanted = adapter_query(ws, query, filters=filters)
    record = save_filter(ws, name, wanted)
    found = ws.catalog.count_adapters(wanted)
    show_done(f"Filter {name} is saved; it finds {found:,} now.", plain(record) | {"found": found})


@app.command()
def remove(name: str) -> None:
    """Forget a saved filter; the adapters stay.

    Example: studio adapters filters remove inks
    """
    from registry.records import SavedFilter

    ws = open_workspace()
    record = _saved(ws, name)
    ws.catalog.delete(SavedFilter, record.id)
    show_done(f"Filter {record.name} is gone.", plain(record))
