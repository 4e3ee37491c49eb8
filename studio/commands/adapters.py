"""`studio adapters`: what came out of training, and what was kept of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands import adapter_filters, adapters_many
from studio.commands.adapter_filters import Options, adapter_query, with_filters
from studio.commands.imports import import_, verify_all, watch
from studio.commands.shared import (
    ago,
    invocation,
    note,
    open_workspace,
    plain,
    show_done,
    show_record,
    show_rows,
)
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from registry.catalog import Catalog
    from registry.records import Adapter
    from registry.search import AdapterQuery

AT_ONCE = 1000  # adapters of one page

app = typer.Typer(
    name="adapters",
    help="Adapters: import, find, show, verify, export, tag, trash.",
    no_args_is_help=True,
)
app.add_typer(adapter_filters.app)
for _many in (
    adapters_many.tag, adapters_many.rate, adapters_many.favourite, adapters_many.trash, adapters_many.export,
):  # fmt: skip
    app.command()(_many)
app.command("import")(import_)
app.add_typer(watch)


@app.command("list")
@with_filters
def list_(
    query: Annotated[str, typer.Argument(help="Words to look for in names, tags, triggers and notes.")] = "",
    filter: Annotated[str, typer.Option(help="A saved filter; see studio adapters filters.")] = "",
    sort: Annotated[str, typer.Option(help="newest, oldest, name, rating, size or best.")] = "newest",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 1000,
    *,
    filters: Options,
) -> None:
    """List adapters.

    Example: studio adapters list ink --base-family sd15 --sort rating
    """
    ws = open_workspace()
    wanted = adapter_query(ws, query, filter, filters)
    found, more = _pages(ws.catalog, wanted, sort, limit)
    show_rows(
        [plain(a) | {"_added": ago(a.created_at), "path": str(ws.resolve(a.path))} for a in found],
        [
            ("id", lambda r: r["id"]),
            ("name", lambda r: r["name"]),
            ("family", lambda r: r["family"] or "unidentified"),
            ("rank", lambda r: r["rank"]),
            ("trigger", lambda r: ", ".join(r["trigger_words"])),
            ("rating", lambda r: "*" * r["rating"]),
            ("added", lambda r: r["_added"]),
        ],
        empty="No adapter fits. See all: studio adapters list"
        if wanted.to_json()
        else "No adapters. Train one: studio train --help",
    )
    if more:
        note(f"{ws.catalog.count_adapters(wanted) - len(found):,} more; raise --limit or narrow the search.")


def _pages(catalog: "Catalog", wanted: "AdapterQuery", sort: str, limit: int) -> "tuple[list[Adapter], bool]":
    """The first `limit` adapters, page by page; and whether there are more."""
    found: list[Adapter] = []
    after = ""
    while len(found) < limit:
        page = catalog.search_adapters(wanted, sort=sort, limit=min(AT_ONCE, limit - len(found)), after=after)
        found += page.adapters
        after = page.next
        if not after:
            break
    return found, bool(after)


@app.command()
def show(adapter: str) -> None:
    """Show an adapter: where it came from and what it is.

    Example: studio adapters show ink
    """
    from studio.adapters import show as show_adapter
    from studio.commands.recipes import changes

    facts = show_adapter(open_workspace(), adapter)
    if not invocation.json:
        facts["recipe"] = changes(facts["recipe"], facts["base_name"])
    show_record(facts)


@app.command()
def verify(
    adapter: Annotated[str, typer.Argument(help="Id or name; nothing with --all.")] = "",
    path: Annotated[Path | None, typer.Argument(help="Where the file is now, when it was moved.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Look at the files of all adapters.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With --all: read also files that look untouched.")
    ] = False,
    search: Annotated[
        list[Path] | None, typer.Option(help="With --all: folder where missing files may be; repeatable.")
    ] = None,
) -> None:
    """Say whether the file is still what was registered; link a moved file again by its hash.

    Example: studio adapters verify --all --search /media/loras
    """
    from registry.errors import BadInput
    from studio.adapter_files import verify as verify_adapter

    if every and adapter:
        raise BadInput("adapter", "is named beside --all", "give one of them")
    if every:
        verify_all(full=full, search=search or [])
        return
    if not adapter:
        raise BadInput("adapter", "is missing", "name one, or use --all")
    state = verify_adapter(open_workspace(), adapter, path)
    said = ". ".join(part.rstrip(".") for part in (state.detail, state.do) if part)
    line = f"{state.adapter.name}: {state.state}. {said}".strip()
    show_done(line, state.to_dict())
    if state.state in {"missing", "changed"}:
        raise typer.Exit(1)


@app.command("note")
def note_(adapter: str, text: str) -> None:
    """Write the note of an adapter.

    Example: studio adapters note ink "best between 0.7 and 0.9"
    """
    _change(adapter, f"note: {text}", note=text)


@app.command("set-family")
def set_family(
    adapter: str,
    family: Annotated[str, typer.Argument(help=f"{', '.join(FAMILIES)}, or none to unset it.")],
) -> None:
    """Say which family an adapter is for, when its file does not, or says it wrongly.

    Example: studio adapters set-family mystery sdxl
    """
    from studio.adapters import set_family as set_adapter_family

    record = set_adapter_family(open_workspace(), adapter, "" if family == "none" else family)
    show_done(f"{record.name}: family: {family}", plain(record))


@app.command()
def restore(adapter: str) -> None:
    """Take an adapter out of the trash.

    Example: studio adapters restore ink
    """
    from studio.adapters import restore as restore_adapter

    record = restore_adapter(open_workspace(), adapter)
    show_done(f"{record.name} is back.", plain(record))


def _change(adapter: str, message: str, **changes: object) -> None:
    from registry.records import Adapter

    catalog = open_workspace().catalog
    record = catalog.update(Adapter, catalog.get(Adapter, adapter).id, **changes)
    show_done(f"{record.name}: {message}", plain(record))
