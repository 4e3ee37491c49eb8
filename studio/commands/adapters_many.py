"""Commands of `studio adapters` that take one adapter, several, or all that a search finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.adapter_filters import adapter_query
from studio.commands.shared import PlaceOption, note, open_workspace, plain, show_done

if TYPE_CHECKING:
    from registry.formats.convert import ToLora
    from studio.adapters_many import ManyReport
    from studio.workspace import Workspace

Query = Annotated[str, typer.Option("--query", help="All that have these words, instead of naming them.")]
Saved = Annotated[str, typer.Option("--filter", help="All that this saved filter finds.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it for more than one that a search found.")]
Several = Annotated[list[str] | None, typer.Argument(metavar="[ADAPTER]...", help="Adapters, by name or id.")]


def tag(
    adapter: Several = None,
    add: Annotated[list[str] | None, typer.Option(help="Give this tag to all of them.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Take this tag from all of them.")] = None,
    query: Query = "",
    filter: Saved = "",
    yes: Yes = False,
) -> None:
    """Set the tags of one adapter (its name, then the tags), or give and take tags of several.

    Example: studio adapters tag ink drawing monochrome

    Example: studio adapters tag ink chalk --add drawing --remove draft
    """
    from registry.errors import BadInput
    from registry.files import check_name
    from registry.records import Adapter

    ws = open_workspace()
    names = adapter or []
    if not add and not remove:
        if query or filter or len(names) < 2:
            raise BadInput("tags", "are missing", "name an adapter and its tags, or give --add or --remove")
        key, *tags = names
        chosen = tuple(dict.fromkeys(check_name(tag, "tag") for tag in tags))
        record = ws.catalog.update(Adapter, ws.catalog.get(Adapter, key).id, tags=chosen)
        show_done(f"{record.name}: tags: {', '.join(chosen)}", plain(record))
        return
    ids = _chosen(ws, names, query, filter, yes)
    given = [check_name(tag, "tag") for tag in add or []]
    changed = ws.catalog.tag_adapters(ids, given, remove or [])
    show_done(f"Tags of {_count(changed)} changed.", {"adapters": ids, "changed": changed})


def rate(
    arguments: Annotated[
        list[str], typer.Argument(metavar="[ADAPTER]... STARS", help="0 takes the rating back.")
    ],
    query: Query = "",
    filter: Saved = "",
    yes: Yes = False,
) -> None:
    """Rate adapters from 1 to 5; 0 takes the rating back.

    Example: studio adapters rate ink 5
    """
    from registry.errors import BadInput

    *names, stars = arguments
    if stars not in {"0", "1", "2", "3", "4", "5"}:
        raise BadInput(f"rating {stars[:40]!r}", "is no number from 0 to 5", "end with the stars: rate ink 5")
    _change(names, query, filter, yes, f"rating: {stars}", rating=int(stars))


def favourite(
    adapter: Several = None,
    off: Annotated[bool, typer.Option("--off", help="Take them out of the favourites.")] = False,
    query: Query = "",
    filter: Saved = "",
    yes: Yes = False,
) -> None:
    """Mark adapters as favourites.

    Example: studio adapters favourite ink chalk
    """
    said = "no favourite any more" if off else "a favourite"
    _change(adapter or [], query, filter, yes, said, favourite=not off)


def trash(adapter: Several = None, query: Query = "", filter: Saved = "", yes: Yes = False) -> None:
    """Put adapters into the trash; `restore` brings them back.

    Example: studio adapters trash ink
    """
    from registry.records import Adapter
    from studio.adapters import trash as trash_one
    from studio.adapters_many import trash_many

    ws = open_workspace()
    ids = _chosen(ws, adapter or [], query, filter, yes)
    if len(ids) == 1:
        record = trash_one(ws, ids[0])
        undo = f"studio adapters restore {record.id}"
        show_done(f"{record.name} is in the trash; undo: {undo}", plain(ws.catalog.get(Adapter, ids[0])))
        return
    report = trash_many(ws, ids)
    _show(report, f"{_count(len(report.done))} in the trash; back: studio adapters restore ID")


def export(
    adapter: Several = None,
    out: Annotated[Path | None, PlaceOption(help="File to write; a folder for peft and for several.")] = None,
    format: Annotated[str, typer.Option(help="auto, kohya, diffusers, peft or embedding.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16; default: as stored.")] = "",
    publish: Annotated[bool, typer.Option("--publish", help="Leave captions and folder names out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    thumbnail: Annotated[bool, typer.Option(help="Put a small preview into the metadata.")] = True,
    convert: Annotated[str, typer.Option(help="lora: make LoRA of every other method first.")] = "",
    rank: Annotated[int, typer.Option(min=0, help="With --convert: the highest rank; 0 = any.")] = 0,
    max_error: Annotated[
        float, typer.Option(min=0, help="With --convert: what a module may lose, 0.01 = 1 % (the default).")
    ] = 0.0,
    base: Annotated[str, typer.Option(help="With --convert, for DoRA and OFT: the base.")] = "",
    query: Query = "",
    filter: Saved = "",
    yes: Yes = False,
) -> None:
    """Write adapters for other tools, read them back and prove it.

    Example: studio adapters export ink --format kohya --out ink.safetensors
    """
    from registry.errors import BadInput
    from studio.adapters import export as export_one
    from studio.adapters_many import export_many
    from studio.exporting import conversion

    if out is None:
        raise BadInput("--out", "is missing", "name the file, or the folder for several adapters")
    ws = open_workspace()
    ids = _chosen(ws, adapter or [], query, filter, yes)
    options: dict[str, Any] = {
        "dtype": dtype, "publish": publish, "overwrite": overwrite, "thumbnail": thumbnail,
    }  # fmt: skip

    def how(id: str) -> "ToLora | None":
        return conversion(ws, id, convert, rank=rank, max_error=max_error, base=base)

    _warn_of_copies(ws, ids)
    if len(adapter or []) == 1:
        report = export_one(ws, ids[0], format, out, convert=how(ids[0]), **options).to_dict()
        verdict = f"{report['matched']} of {report['modules']} modules read back"
        verdict += f", worst error {report['worst_error']:.1e}"
        show_done(f"Wrote {report['path']} ({report['layout']}): {verdict}.", report)
        return
    many = export_many(ws, ids, format, out, conversion=how, **options)
    _show(many, f"Wrote {_count(len(many.done))} into {out}, each read back.")


def _warn_of_copies(ws: "Workspace", ids: Sequence[str]) -> None:
    """Say which of them are known to copy pictures that they were trained on."""
    from registry.records import Adapter
    from studio.evidence.evaluations import memorised

    for record in ws.catalog.list(Adapter, id=tuple(ids)):
        if why := memorised(ws, record):
            note(f"warning: {record.name}: {why}")


def _chosen(ws: "Workspace", names: Sequence[str], query: str, saved: str, yes: bool) -> list[str]:
    """Ids of the adapters that are named or found; many found ones have to be confirmed."""
    from registry.errors import BadInput, NotFound
    from studio.adapters_many import chosen

    wanted = adapter_query(ws, query, saved) if query.strip() or saved else None
    if wanted is not None and wanted.trashed:
        raise BadInput(f"filter {saved}", "looks into the trash", "choose another one")
    ids = chosen(ws, names, wanted)
    if not ids:
        raise NotFound("search", "finds no adapter", "see all: studio adapters list")
    if wanted is not None and len(ids) > 1 and not yes:
        raise BadInput(
            "search", f"finds {len(ids):,} adapters", "look at them with `adapters list`, then add --yes"
        )
    return ids


def _change(names: Sequence[str], query: str, saved: str, yes: bool, said: str, **changes: object) -> None:
    from registry.records import Adapter

    ws = open_workspace()
    ids = _chosen(ws, names, query, saved, yes)
    changed = ws.catalog.update_many(Adapter, ids, **changes)
    if len(ids) == 1:
        record = ws.catalog.get(Adapter, ids[0])
        show_done(f"{record.name}: {said}", plain(record))
    else:
        show_done(f"{_count(changed)}: {said}", {"adapters": ids, "changed": changed})


def _show(report: "ManyReport", said: str) -> None:
    for _, error in report.failed:
        note(f"error: {error}")
    show_done(said, report.to_dict())
    if report.failed:
        raise typer.Exit(1)


def _count(number: int) -> str:
    return f"{number:,} adapter{'' if number == 1 else 's'}"
