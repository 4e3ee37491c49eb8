"""Where things come from: commands of the groups datasets, runs and adapters that read the chain."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.commands import adapters, datasets, runs
from studio.commands.runs import Sets, Wait, show_started
from studio.commands.shared import (
    Row,
    ago,
    invocation,
    open_workspace,
    plain,
    show_done,
    show_rows,
    write_json,
    write_line,
)

if TYPE_CHECKING:
    from registry.records import Adapter, Dataset

SHOWN = 20  # of many


def uses(
    picture: Annotated[str, typer.Argument(help="A picture file, or at least 4 digits of its hash.")],
) -> None:
    """Say what holds a picture: data sets, runs, adapters and what was made from them, samples.

    Example: studio datasets uses ~/pictures/cat/003.jpg
    """
    from studio.provenance import uses_of_picture

    found = uses_of_picture(open_workspace(), picture)
    if invocation.json:
        write_json(found.to_dict())
        return
    made = [
        *(("data set", d.id, d.name, f"{d.image_count} pictures") for d in found.datasets),
        *(("run", r.id, r.name, str(r.state)) for r in found.runs),
        *(("base", b.id, b.name, "full fine-tune") for b in found.bases),
        *(
            ("adapter", a.id, a.name, f"{a.origin}{', in the trash' * bool(a.trashed_at)}")
            for a in found.adapters
        ),
        *(("sample", s.id, str(s.request.get("prompt", "")), ago(s.created_at)) for s in found.samples),
    ]
    show_rows(
        [{"cells": cells} for cells in made],
        [(title, lambda r, i=i: r["cells"][i]) for i, title in enumerate(("what", "id", "name", "how"))],
        empty="No data set, run or adapter of this workspace holds this picture.",
    )
    if found.unknown_line:
        write_line(found.unknown_line)


def origin(adapter: str) -> None:
    """Tell where an adapter comes from: parents, run, base, data set, pictures; samples and exports of it.

    Example: studio adapters origin ink
    """
    from registry.records import Adapter
    from studio.provenance import origin_of

    workspace = open_workspace()
    story = origin_of(workspace, workspace.catalog.get(Adapter, adapter))
    if invocation.json:
        write_json(story)
        return
    write_line("\n".join([*_told(story), *_made_with(story)]))


def which(file: Annotated[Path, typer.Argument(help="Adapter file, or folder of a PEFT export.")]) -> None:
    """Say which adapter a file is, by its content: ours, an export of ours, or what it is when it is neither.

    Example: studio adapters which ~/Downloads/ink_v2.safetensors
    """
    from studio.exports import which as which_adapter

    found = which_adapter(open_workspace(), file)
    show_done(found["line"], found)


def exports(adapter: str) -> None:
    """List the files that were written from an adapter, with their proof in --json.

    Example: studio adapters exports ink
    """
    from registry.records import Adapter
    from studio.exports import exports_of

    workspace = open_workspace()
    record = workspace.catalog.get(Adapter, adapter)
    show_rows(
        exports_of(workspace, record),
        [
            ("id", lambda r: r["id"]),
            ("written", lambda r: r["created_at"][:16].replace("T", " ")),
            ("layout", lambda r: r["layout"]),
            ("precision", lambda r: r["dtype"]),
            ("published", lambda r: "yes" if r["publish"] else ""),
            ("file", lambda r: r["path"] + ("" if r["present"] else "  (not there any more)")),
        ],
        empty=f"Nothing was written from it. studio adapters export {record.id} --out FILE",
    )


def adapter_licence(adapter: str, text: str) -> None:
    """Note the licence of an adapter; it goes into exported files, and merges inherit it.

    Example: studio adapters licence ink "CC BY-NC 4.0"
    """
    _note_adapter(adapter, "licence", text)


def adapter_consent(adapter: str, text: str) -> None:
    """Note who an adapter shows and whether they agreed; merges inherit it, published files leave it out.

    Example: studio adapters consent ink "my sister, agreed in writing 2026-03"
    """
    _note_adapter(adapter, "consent", text)


def dataset_licence(name: str, text: str) -> None:
    """Note the licence of a data set's pictures; adapters trained from now on inherit it.

    Example: studio datasets licence cat "own photos, CC BY 4.0"
    """
    _note_dataset(name, "licence", text)


def dataset_consent(name: str, text: str) -> None:
    """Note who a data set shows and whether they agreed; adapters trained from now on inherit it.

    Example: studio datasets consent portraits "the sitters agreed, 2026-03-02"
    """
    _note_dataset(name, "consent", text)


def again(
    run: str,
    sets: Sets = None,
    present: Annotated[
        bool, typer.Option("--present", help="Take data set and base as they are now, though changed.")
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the new run.")] = "",
    wait: Wait = False,
) -> None:
    """Start a run once more: same recipe, base, pictures and seed, but for what --set changes.

    Example: studio runs again 01hv3k9x2m --set train.seed=2
    """
    from registry.records import Run
    from studio.runs.again import run_again

    workspace = open_workspace()
    record = workspace.catalog.get(Run, run)
    made = run_again(workspace, record, sets or [], present=present, name=name)
    show_started(workspace, made, wait=wait)


def diff(a: str, b: str) -> None:
    """Say what tells two runs apart: recipe, pictures, base, versions, results.

    Example: studio runs diff 01hv3k9x2m 01hv3m0q7t
    """
    from registry.records import Run
    from studio.runs.diff import diff_runs

    workspace = open_workspace()
    one, other = workspace.catalog.get(Run, a), workspace.catalog.get(Run, b)
    found = [difference.to_dict() for difference in diff_runs(workspace, one, other)]
    if invocation.json:
        pair = {side: {"id": run.id, "name": run.name} for side, run in (("a", one), ("b", other))}
        write_json(pair | {"differences": found})
        return
    show_rows(
        found,
        [
            ("part", lambda r: r["part"]),
            ("what", lambda r: r["key"]),
            ("meaning", lambda r: r["what"]),
            (f"{one.name} ({one.id})", lambda r: _value(r["a"])),
            (f"{other.name} ({other.id})", lambda r: _value(r["b"])),
        ],
        empty="They do not differ in anything that is written down.",
    )


COMMANDS: tuple[tuple[typer.Typer, str, Callable[..., None]], ...] = (
    (datasets.app, "uses", uses),
    (datasets.app, "licence", dataset_licence),
    (datasets.app, "consent", dataset_consent),
    (runs.app, "again", again),
    (runs.app, "diff", diff),
    (adapters.app, "origin", origin),
    (adapters.app, "which", which),
    (adapters.app, "exports", exports),
    (adapters.app, "licence", adapter_licence),
    (adapters.app, "consent", adapter_consent),
)


def _note_adapter(key: str, field: str, text: str) -> None:
    from registry.records import Adapter
    from studio.notes import set_note

    workspace = open_workspace()
    _show_note(set_note(workspace, workspace.catalog.get(Adapter, key), field, text), field)


def _note_dataset(key: str, field: str, text: str) -> None:
    from registry.records import Dataset
    from studio.notes import set_note

    workspace = open_workspace()
    _show_note(set_note(workspace, workspace.catalog.get(Dataset, key), field, text), field)


def _show_note(record: "Adapter | Dataset", field: str) -> None:
    show_done(f"{record.name}: {field}: {getattr(record, field) or 'not stated'}", plain(record))


def _value(value: Any) -> str:
    return "none" if value in (None, "", [], ()) else str(value)


def _told(story: Row, indent: str = "") -> Iterator[str]:
    """An adapter's tree, a fact a line."""
    weight = f" at {story['weight']:g}" if "weight" in story else ""
    yield f"{indent}{story['name']} ({story['id']}){weight}{_remark(story)}"
    inner = indent + "  "
    if "origin" not in story:
        yield from _of_base(story, inner)
        return
    for field in ("licence", "consent", "source"):
        if story[field]:
            yield f"{inner}{field}: {story[field]}"
    if story["base"]:
        yield f"{inner}base {story['base']['name']} ({story['base']['weight_hash'][:12] or 'no hash'})"
        yield from _of_base(story["base"], inner + "  ")
    if story["run"]:
        yield from _of_run(story["run"], inner)
    for parent in story["parents"]:
        yield from _told(parent, inner)


def _of_base(base: Row, indent: str) -> Iterator[str]:
    """The run that made a base, or what was baked into it."""
    if base.get("run"):
        yield from _of_run(base["run"], indent)
    for parent in base.get("parents", ()):
        yield from _told(parent, indent)


def _remark(story: Row) -> str:
    if story.get("gone"):
        return ": no longer in the catalog"
    if story.get("repeated"):
        return ": told above"
    if "origin" not in story:
        return ": base model, baked from" if story.get("parents") else ": base model"
    made = story["made"]["operation"] or {"run": "trained", "import": "imported"}.get(
        story["origin"], story["origin"]
    )
    return f": {made}{', in the trash' if story['trashed'] else ''}"


def _of_run(run: Row, indent: str) -> Iterator[str]:
    if run.get("repeated"):
        yield f"{indent}run {run['name']} ({run['id']}): told above"
        return
    yield f"{indent}run {run['name']} ({run['id']}): {run['goal']}, {run['step']} steps, seed {run['seed']}"
    dataset, pictures = run["dataset"], run["pictures"]
    name = dataset["name"] or "since removed"
    state = {"changed": ", changed since", "gone": ""}.get(dataset["state"], "")
    yield f"{indent}  data set {name}{state}: {run['picture_count']} pictures"
    for picture in pictures[:SHOWN]:
        caption = " ".join(picture["caption"].split())[:80]
        yield f"{indent}    {picture['name']} {picture['pixel_hash'][:12]}  {caption}".rstrip()
    if len(pictures) > SHOWN:
        yield f"{indent}    and {len(pictures) - SHOWN} more; all with --json"


def _made_with(story: Row) -> Iterator[str]:
    for sample in story["samples"][:SHOWN]:
        yield f"sample {sample['id']}: {sample['prompt'][:80]}"
    if len(story["samples"]) > SHOWN:
        yield f"and {len(story['samples']) - SHOWN} more samples; all with --json"
    for export in story["exports"]:
        yield f"export {export['id']}: {export['layout']}, {export['path']}"
