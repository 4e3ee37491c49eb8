"""`studio datasets`: pictures with captions."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands.shared import (
    ago,
    confirmed,
    invocation,
    note,
    open_workspace,
    plain,
    show_done,
    show_record,
    show_rows,
)

if TYPE_CHECKING:
    from registry.records import Dataset
    from studio.datasets.captioners.table import CaptionOptions
    from studio.workspace import Workspace
    from trainers.recipe import Recipe

app = typer.Typer(name="datasets", help="Data sets: add, list, show, check, remove.", no_args_is_help=True)


@app.command()
def add(
    name: str,
    sources: Annotated[list[str], typer.Argument(help="Folders, zips, pictures, or hf:owner/name.")],
    trigger: Annotated[str, typer.Option(help="Word that will call up what is learned.")] = "",
    captions_from: Annotated[
        str, typer.Option(help="file or folder: where nothing else says it, the name is the caption.")
    ] = "",
    folder_repeats: Annotated[
        bool, typer.Option(help="Folders are named as for kohya: 10_dog comes 10 times an epoch.")
    ] = False,
    alpha_masks: Annotated[bool, typer.Option(help="Transparent parts do not count in the loss.")] = False,
) -> None:
    """Make a data set from pictures; captions come from .txt/.caption files or metadata.jsonl beside them.

    The table may have the columns repeats (showings an epoch) and weight (of the loss). Masks are
    001-masklabel.png, 001_mask.png, 001.mask.png or masks/001.png beside 001.jpg; white counts.

    Example: studio datasets add cat ~/pictures/cat --trigger sks
    """
    from registry.errors import BadInput, several
    from studio.datasets.ingest import create_dataset
    from studio.datasets.sources import Reading

    if captions_from not in ("", "file", "folder"):
        raise BadInput("--captions-from", f"is {captions_from!r}", "use file or folder")
    reading = Reading(captions_from=captions_from, folder_repeats=folder_repeats, alpha_masks=alpha_masks)
    report = create_dataset(open_workspace(), name, sources, trigger=trigger, reading=reading)
    for item, problem in report.refused:
        note(f"left out {item}: {problem}")
    for line in report.notes:
        note(f"note: {line}")
    message = f"Data set {report.dataset.name}: {several(report.added, 'picture')}"
    message += f", {several(report.duplicates, 'duplicate')} left out" if report.duplicates else ""
    message += f", {len(report.refused)} refused" if report.refused else ""
    message += f", {report.uncaptioned} without a caption" if report.uncaptioned else ""
    data = plain(report.dataset) | {
        "added": report.added,
        "duplicates": report.duplicates,
        "uncaptioned": report.uncaptioned,
        "refused": [{"name": item, "error": problem} for item, problem in report.refused],
        "notes": list(report.notes),
    }
    show_done(message + ".", data)


@app.command("list")
def list_() -> None:
    """List the data sets.

    Example: studio datasets list
    """
    from registry.records import Dataset

    show_rows(
        [plain(d) | {"_added": ago(d.created_at)} for d in open_workspace().catalog.list(Dataset)],
        [
            ("id", lambda r: r["id"]),
            ("name", lambda r: r["name"]),
            ("pictures", lambda r: r["image_count"]),
            ("trigger", lambda r: r["trigger"]),
            ("added", lambda r: r["_added"]),
        ],
        empty="No data sets yet. Make one: studio datasets add NAME FOLDER",
    )


@app.command()
def show(name: str) -> None:
    """Show a data set with its pictures, their captions and what training will see of them.

    Example: studio datasets show cat
    """
    from registry.records import Dataset, Image
    from studio.datasets.seen import seen_captions

    catalog = open_workspace().catalog
    dataset = catalog.get(Dataset, name)
    images = catalog.list(Image, dataset_id=dataset.id, order="position")
    kept = ("id", "name", "width", "height", "caption", "note", "repeats", "weight")
    shown = [
        {k: v for k, v in plain(image).items() if k in kept}
        | {"mask": bool(image.mask), "seen": list(seen_captions(dataset, image))}
        for image in images
    ]
    record = plain(dataset) | {"images": shown}
    if invocation.json:
        show_record(record)
        return
    show_record({key: value for key, value in record.items() if key != "images"})
    show_rows(
        shown,
        [
            ("picture", lambda r: r["name"]),
            ("size", lambda r: f"{r['width']}x{r['height']}"),
            ("what training sees", lambda r: " | ".join(text or "(nothing)" for text in r["seen"])),
            ("remarks", _remarks),
        ],
        empty="No pictures.",
    )


def _remarks(row: dict[str, Any]) -> str:
    parts = [
        row["note"],
        "" if row["caption"].strip() else "no caption",
        "mask" if row["mask"] else "",
        "" if row["repeats"] == 1 else f"{row['repeats']} times an epoch",
        "" if row["weight"] == 1 else f"weight {row['weight']:g}",
    ]
    return "; ".join(filter(None, parts))


@app.command()
def check(
    name: str,
    base: Annotated[str, typer.Option(help="Base model it is for; default: the only one, if so.")] = "",
    goal: Annotated[str, typer.Option(help="style, character or concept.")] = "style",
    crops: Annotated[bool, typer.Option("--crops", help="Show bucket and crop of each picture.")] = False,
    fix: Annotated[str, typer.Option(help="Code of a finding: do something about it.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take the last fix back.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Look at no pixels that are not known yet.")] = False,
) -> None:
    """Say what training would trip over; look at every new picture once for it.

    Example: studio datasets check cat --base sdxl
    Example: studio datasets check cat --fix near-duplicates
    """
    from registry.records import Dataset
    from studio.datasets import doctor

    workspace = open_workspace()
    dataset = workspace.catalog.get(Dataset, name)
    recipe, chosen = doctor.usual_recipe(workspace, base, goal), doctor.usual_base(workspace, base)
    if undo:
        from studio.datasets import fixes

        back = fixes.undo(workspace, dataset)
        show_done(f"Taken back: {back.text}", plain(back))
        return
    if crops:
        _show_crops(workspace, dataset, recipe)
        return
    if not quick:
        _examine(workspace, dataset)
    if fix:
        done = doctor.fix_finding(workspace, dataset, fix, recipe, chosen)
        show_done(f"{done.text} Take it back with `studio datasets check {name} --undo`.", plain(done))
        return
    show_rows(
        [plain(finding) for finding in doctor.check_dataset(workspace, dataset, recipe, chosen)],
        [
            ("severity", lambda r: r["severity"]),
            ("finding", lambda r: r["message"]),
            ("pictures", lambda r: len(r["images"])),
            ("what to do", lambda r: r["fix"] + _by_command(r)),
        ],
        empty="Nothing to complain about.",
    )


def _by_command(row: dict[str, Any]) -> str:
    """The option that does something about a finding, and what it does."""
    does = row["repair"]
    return f" Or {does[0].lower()}{does[1:]}: --fix {row['code']}" if does else ""


def _examine(workspace: "Workspace", dataset: "Dataset") -> None:
    """Look at the pictures that are not known yet; a line for every tenth of many."""
    from studio.datasets.examine import examine
    from studio.datasets.ingest import images_of

    def say(done: int, total: int) -> None:
        if total >= 100 and done * 10 // total != (done - 1) * 10 // total:
            note(f"looked at {done} of {total} pictures")

    examine(workspace, images_of(workspace, dataset), say)


def _show_crops(workspace: "Workspace", dataset: "Dataset", recipe: "Recipe | None") -> None:
    from registry.errors import BadInput
    from studio.datasets.crops import crops_of
    from studio.datasets.ingest import images_of

    if recipe is None:
        raise BadInput("--base", "is missing, and crops depend on it", "name one of `studio bases list`")
    images = images_of(workspace, dataset)
    found = crops_of(workspace, images, recipe)
    rows = [
        {"id": image.id, "name": image.name, "width": image.width, "height": image.height} | plain(crop)
        for image in images
        for crop in found.shown[image.id]
    ]
    show_rows(
        rows,
        [
            ("picture", lambda r: r["name"]),
            ("size", lambda r: f"{r['width']}x{r['height']}"),
            ("bucket", lambda r: f"{r['bucket'][0]}x{r['bucket'][1]}"),
            ("crop (left, top, right, bottom)", lambda r: ", ".join(f"{side:g}" for side in r["box"])),
            ("kept", lambda r: f"{r['kept']:.0%}"),
        ],
        empty="No pictures.",
    )
    for line in found.notes:
        note(f"{line}.")


@app.command()
def caption(
    name: str,
    picture: Annotated[str, typer.Argument(help="File name or id of a picture in the data set.")] = "",
    text: Annotated[str, typer.Argument(help="Its new caption; without both a model writes.")] = "",
    captioner: Annotated[str, typer.Option("--with", help="florence2, blip, qwen or wd.")] = "florence2",
    model: Annotated[str, typer.Option(help="Folder or hub id of the model; else the captioner's own.")] = "",
    revision: Annotated[str, typer.Option(help="Commit, tag or branch of a hub id.")] = "",
    prompt: Annotated[str, typer.Option(help="What the model is asked; else the captioner's own.")] = "",
    threshold: Annotated[float, typer.Option(help="Least probability of a tag, 0 to 1 (wd).")] = 0.35,
    leave_out: Annotated[list[str] | None, typer.Option(help="A tag that is never written (wd).")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest caption in tokens, 1 to 1024.")] = 200,
    batch: Annotated[int, typer.Option(help="Pictures at once, 1 to 64.")] = 4,
    overwrite: Annotated[bool, typer.Option(help="Also pictures that have a caption.")] = False,
) -> None:
    """Write one picture's caption, or let a model write those that are missing; Ctrl-C keeps what is there.

    Example: studio datasets caption cat 003.png "a black cat on a chair"
    Example: studio datasets caption cat --with wd --threshold 0.4
    """
    from studio.datasets.captioners.table import CaptionOptions

    if picture or text:
        _caption_one(name, picture, text)
        return
    options = CaptionOptions(
        captioner=captioner,
        model=model,
        revision=revision,
        prompt=prompt,
        max_tokens=max_tokens,
        threshold=threshold,
        leave_out=tuple(leave_out or ()),
        batch=batch,
    )
    _caption_all(name, options, overwrite)


def _caption_one(name: str, picture: str, text: str) -> None:
    from registry.errors import BadInput, NotFound
    from registry.records import Dataset, Image
    from studio.datasets.ingest import set_captions

    if not text:
        raise BadInput("text", f"for {picture} is missing", "write the caption behind the picture's name")
    workspace = open_workspace()
    dataset = workspace.catalog.get(Dataset, name)
    images = workspace.catalog.list(Image, dataset_id=dataset.id)
    found = [image for image in images if picture in (image.name, image.id)]
    if len(found) != 1:
        wrong = "is not in this data set" if not found else f"is the name of {len(found)} pictures"
        raise NotFound(f"picture {picture!r}", wrong, f"see `studio datasets show {name}` for names and ids")
    set_captions(workspace, dataset, {found[0].id: text})
    show_done(f"{found[0].name}: {text}", {"id": found[0].id, "name": found[0].name, "caption": text})


def _caption_all(name: str, options: "CaptionOptions", overwrite: bool) -> None:
    from registry.errors import several
    from registry.records import Dataset
    from studio.datasets.captioners.run import caption_dataset
    from studio.datasets.listing import some

    workspace = open_workspace()
    dataset = workspace.catalog.get(Dataset, name)
    told: list[object] = [None]

    def say(phase: str, done: int, total: int) -> None:
        if (phase, done) != told[0]:
            note(f"{phase}: {done} of {several(total, 'picture')}")
            told[0] = (phase, done)

    report = caption_dataset(workspace, dataset, options, overwrite=overwrite, progress=say)
    if report.empty:
        note(f"no words were found for: {some(report.empty)}")
    message = f"{several(report.written, 'caption')} written"
    message += f" with {report.model}" if report.model else ""
    message += f" at {report.revision[:12]}" if report.revision else ""
    message += f", {report.had} had one already" if report.had else ""
    show_done(message + ".", plain(report))


@app.command()
def remove(name: str, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Remove a data set for good, captions included; runs keep their own frozen copy. A terminal is asked.

    Example: studio datasets remove cat
    """
    from registry.errors import several
    from registry.records import Dataset

    catalog = open_workspace().catalog
    dataset = catalog.get(Dataset, name)
    what = f"data set {dataset.name} with {several(dataset.image_count, 'picture')}, captions included"
    if not yes and not confirmed(f"Remove {what} for good?"):
        note("Nothing was removed.")
        raise typer.Exit(1)
    catalog.delete(Dataset, dataset.id)
    show_done(f"Removed {what}.", {"id": dataset.id, "name": dataset.name})
