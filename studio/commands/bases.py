"""`studio bases`: the base models that adapters are trained on."""

from typing import Annotated

import typer

from studio.commands.shared import ago, open_workspace, plain, show_done, show_record, show_rows
from studio.sampling.control.kinds import kinds_help
from trainers.families import FAMILIES

app = typer.Typer(name="bases", help="Base models: add, list, show, remove.", no_args_is_help=True)


@app.command()
def add(
    name: str,
    location: Annotated[str, typer.Argument(help="Diffusers folder, .safetensors checkpoint, or hub id.")],
    family: Annotated[str, typer.Option(help=f"Overrides what was detected: {', '.join(FAMILIES)}.")] = "",
    config: Annotated[str, typer.Option(help="Folder with configs and tokenizer for a single file.")] = "",
    revision: Annotated[str, typer.Option(help="Commit of a hub id.")] = "",
    control: Annotated[
        str,
        typer.Option(
            help=f"Of a ControlNet or T2I-Adapter, where its name does not say: {kinds_help()}, union, any."
        ),
    ] = "",
) -> None:
    """Add a base, or what steers one or makes it move; the weights stay where they are.

    A base is for pictures, video, sound or 3D: what it is, is found out.

    Example: studio bases add sd15 ~/models/stable-diffusion-v1-5
    """
    from studio.bases import add_base
    from studio.control_facts import PART_LABELS
    from studio.media_facts import what_is_it

    base = add_base(
        open_workspace(),
        name,
        location,
        family=family,
        config=config,
        revision=revision,
        control=control,
    )
    what = PART_LABELS.get(base.part) or what_is_it(base.part, base.family) or "base"
    kind = f"{base.family} {base.variant}".strip()
    show_done(f"Added {what} {base.name} ({kind}).", plain(base))


@app.command("list")
def list_() -> None:
    """List the bases, those for video, sound and 3D, and what steers or moves them.

    Example: studio bases list
    """
    from studio.bases import list_bases, list_media, list_motions, list_parts

    workspace = open_workspace()
    listings = (list_bases, list_media, list_parts, list_motions)
    found = [base for listing in listings for base in listing(workspace)]
    show_rows(
        [plain(base) | {"_added": ago(base.created_at)} for base in found],
        [
            ("id", lambda r: r["id"]),
            ("name", lambda r: r["name"]),
            ("family", lambda r: r["family"]),
            ("variant", lambda r: r["variant"]),
            ("what", lambda r: r["part"] or "base"),
            ("where", lambda r: "shipped" if r["builtin"] else r["location"]),
            ("added", lambda r: r["_added"]),
        ],
        empty="No bases yet. Add one: studio bases add NAME FOLDER",
    )


@app.command()
def show(name: str) -> None:
    """Show one base.

    Example: studio bases show pocket
    """
    from registry.records import Base
    from studio.bases import base_path
    from studio.sampling.media.kinds import KINDS, kind_name

    workspace = open_workspace()
    base = workspace.catalog.get(Base, name)
    from studio.provenance import made_from

    more = {"made_from": line} if (line := made_from(base)) else {}
    if (kind := KINDS.get(kind_name(base))) is not None:
        settings = ", ".join(item.said for item in kind.settings)
        more |= {"makes": f"{kind.medium} ({kind.label})", "settings": settings}
    show_record(plain(base) | {"path": str(base_path(workspace, base))} | more)


@app.command()
def remove(name: str) -> None:
    """Forget a base; its files stay.

    Example: studio bases remove sd15
    """
    from studio.bases import remove_base

    base = remove_base(open_workspace(), name)
    show_done(f"Removed base {base.name}; its files are untouched.", {"id": base.id, "name": base.name})
