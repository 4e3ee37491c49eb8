"""`studio adapters`: what came out of training, and what was kept of it."""

from pathlib import Path
from typing import Annotated

import typer

from studio.commands.shared import ago, note, open_workspace, plain, show_done, show_record, show_rows
from trainers.families import FAMILIES

app = typer.Typer(
    name="adapters",
    help="Adapters: list, show, verify, export, tag, trash.",
    no_args_is_help=True,
)


@app.command("list")
def list_(
    query: Annotated[str, typer.Argument(help="Words to look for in names, tags, triggers and notes.")] = "",
    base_family: Annotated[str, typer.Option(help=f"Only this family: {', '.join(FAMILIES)}.")] = "",
    tag: Annotated[str, typer.Option(help="Only with this tag.")] = "",
    sort: Annotated[str, typer.Option(help="newest, oldest, name, rating or size.")] = "newest",
    trashed: Annotated[bool, typer.Option("--trashed", help="What is in the trash instead.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 1000,
) -> None:
    """List adapters.

    Example: studio adapters list ink --base-family sd15 --sort rating
    """
    workspace = open_workspace()
    found, total = workspace.catalog.search_adapters(
        query, family=base_family, tag=tag, sort=sort, trashed=trashed, limit=limit
    )
    show_rows(
        [plain(a) | {"_added": ago(a.created_at), "path": str(workspace.resolve(a.path))} for a in found],
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
        if query or base_family or tag or trashed
        else "No adapters. Train one: studio train --help",
    )
    if total > len(found):
        note(f"{total - len(found)} more; raise --limit or narrow the search.")


@app.command()
def show(adapter: str) -> None:
    """Show an adapter: where it came from and what it is.

    Example: studio adapters show ink
    """
    from studio.adapters import show as show_adapter

    show_record(show_adapter(open_workspace(), adapter))


@app.command()
def verify(
    adapter: str,
    path: Annotated[Path | None, typer.Argument(help="Where the file is now, when it was moved.")] = None,
) -> None:
    """Say whether the file is still what was registered; link a moved file again by its hash.

    Example: studio adapters verify ink
    """
    from studio.adapters import verify as verify_adapter

    state = verify_adapter(open_workspace(), adapter, path)
    line = f"{state.adapter.name}: {state.state}. {state.detail}".strip()
    if state.state in {"missing", "changed"}:
        line = f"{line.rstrip('.')}. When it was moved: studio adapters verify {state.adapter.name} FILE"
    show_done(line, state.to_dict())
    if state.state in {"missing", "changed"}:
        raise typer.Exit(1)


@app.command()
def export(
    adapter: str,
    out: Annotated[Path, typer.Option(help="File to write (a folder for peft).")],
    format: Annotated[str, typer.Option(help="auto, kohya, diffusers, peft or embedding.")] = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16; default: as stored.")] = "",
    publish: Annotated[bool, typer.Option("--publish", help="Leave captions and folder names out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write an adapter for other tools, read it back and prove it.

    Example: studio adapters export ink --format kohya --out ink.safetensors
    """
    from studio.adapters import export as export_adapter

    report = export_adapter(
        open_workspace(), adapter, format, out, dtype=dtype, publish=publish, overwrite=overwrite
    ).to_dict()
    verdict = f"{report['matched']} of {report['modules']} modules read back"
    show_done(
        f"Wrote {report['path']} ({report['layout']}): {verdict}, worst error {report['worst_error']:.1e}.",
        report,
    )


@app.command()
def tag(adapter: str, tags: list[str]) -> None:
    """Set the tags of an adapter.

    Example: studio adapters tag ink drawing monochrome
    """
    from registry.files import check_name

    chosen = tuple(dict.fromkeys(check_name(tag, "tag") for tag in tags))
    _change(adapter, f"tags: {', '.join(chosen)}", tags=chosen)


@app.command("note")
def note_(adapter: str, text: str) -> None:
    """Write the note of an adapter.

    Example: studio adapters note ink "best between 0.7 and 0.9"
    """
    _change(adapter, f"note: {text}", note=text)


@app.command()
def rate(adapter: str, stars: Annotated[int, typer.Argument(min=0, max=5)]) -> None:
    """Rate an adapter from 1 to 5; 0 takes the rating back.

    Example: studio adapters rate ink 5
    """
    _change(adapter, f"rating: {stars}", rating=stars)


@app.command()
def trash(adapter: str) -> None:
    """Put an adapter into the trash; `restore` brings it back.

    Example: studio adapters trash ink
    """
    from studio.adapters import trash as trash_adapter

    record = trash_adapter(open_workspace(), adapter)
    show_done(f"{record.name} is in the trash; undo: studio adapters restore {record.id}", plain(record))


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
