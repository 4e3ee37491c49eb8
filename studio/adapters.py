"""Adapters of a workspace: taking them in from runs, showing them, handing them on.

Order of things: a file is durable before its row appears, and a row goes before its file does.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, NotFound
from registry.files import file_stem, require_space
from registry.formats.convert import ToLora
from registry.formats.export import ExportReport, export_adapter
from registry.formats.header import read_header
from registry.formats.internal import AdapterForm
from registry.formats.load import load_adapter
from registry.formats.metadata import for_publication, training_metadata
from registry.formats.peft_config import PeftConfig
from registry.hashing import hash_adapter
from registry.ids import new_id
from registry.records import Adapter, Base, Dataset, FileState, Run, now
from studio.adapter_files import FOLDER, copy_file, judge, require_file, settled, verify
from studio.exporting import THUMBNAIL, refuse_originals, thumbnail_of
from studio.exports import captions_of, facts_for_export, remember, sidecar_for
from studio.keywords import keywords_of_run
from studio.provenance import inherited
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.workspace import Workspace


def register_run_adapter(ws: "Workspace", run: Run, file: Path, step: int, name: str = "") -> Adapter:
    """Take the adapter that `run` wrote at `step` into the catalog; doing it again gives the same record.

    Args:
        ws, run: The workspace; the run that made it.
        file: Its adapter file; copied to `adapters/<id>.safetensors`.
        step: Training step it is from.
        name: Its name, with a number when that is taken; default: the run's.

    Raises:
        BadInput: the file is unsound, or holds a value that is not finite (nothing is registered then).
        StudioError: the disk is full.
    """
    form, facts, _ = load_adapter(file, run.family)  # reads every value: a non-finite one stops here
    hashes = hash_adapter(file)
    known = ws.catalog.list(Adapter, tensor_sha256=hashes.tensor_sha256, run_id=run.id)
    if known:
        _keep_file(ws, known[0], file)
        return known[0]
    id = new_id()
    path = ws.resolve(f"{FOLDER}/{id}.safetensors")
    require_space(path.parent, file.stat().st_size, "the adapter")
    copy_file(file, path)
    dataset = ws.catalog.find(Dataset, run.dataset_id)
    licence, consent = inherited([dataset] if dataset else [])
    record = Adapter(
        id=id,
        name=_free_name(ws, name or run.name),
        tensor_sha256=hashes.tensor_sha256,
        file_sha256=hashes.sha256,
        path=ws.relative(path),
        size=path.stat().st_size,
        mtime_ns=path.stat().st_mtime_ns,
        checked_at=now(),
        family=run.family,
        method=facts.method,
        rank=facts.rank,
        alpha=facts.alpha,
        targets=form.targets,
        trigger_words=_trigger_words(run, dataset),
        licence=licence,
        consent=consent,
        keywords=keywords_of_run(run, captions_of(ws, run)),
        origin="run",
        run_id=run.id,
        step=step,
        base_id=run.base_id,
        preview=_keep_preview(ws, run, id, step),
        metadata=summary(form, facts.dtype),
    )
    new = False
    try:
        made, new = ws.catalog.register_adapter(record)
    finally:
        if not new:  # refused, or another process was faster
            path.unlink(missing_ok=True)
            if record.preview:
                ws.resolve(record.preview).unlink(missing_ok=True)
    return made


def show(ws: "Workspace", key: str) -> dict[str, Any]:
    """An adapter with its whole history as JSON types: file state, base, run, recipe and data set."""
    adapter = ws.catalog.get(Adapter, key)
    run = ws.catalog.find(Run, adapter.run_id) if adapter.run_id else None
    base = ws.catalog.find(Base, adapter.base_id) if adapter.base_id else None
    dataset = ws.catalog.find(Dataset, run.dataset_id) if run else None
    return {
        **asdict(adapter),
        "path": str(ws.resolve(adapter.path)),
        "file": verify(ws, adapter.id).to_dict(),
        "identified": adapter.metadata.get("identified", {}),
        "base_name": base.name if base else "",
        "base_why": adapter.metadata.get("base_link", {}).get("why", ""),  # of an imported one
        "run_name": run.name if run else "",
        "dataset_name": dataset.name if dataset else "",
        "recipe": run.recipe if run else {},
        "recipe_hash": run.recipe_hash if run else "",
    }


def export(
    ws: "Workspace",
    key: str,
    layout: str,
    out: Path,
    *,
    dtype: str = "",
    publish: bool = False,
    overwrite: bool = False,
    sidecar: bool = True,
    thumbnail: bool = True,
    convert: ToLora | None = None,
) -> ExportReport:
    """Write an adapter for other tools and prove it; see `registry.formats.export.export_adapter`.

    Args:
        ws, key: The workspace; id or name of the adapter.
        layout: auto, kohya, diffusers, peft or embedding (new words alone).
        out: File to write, or an existing folder that gets `<name>.safetensors`; a folder for peft.
        dtype: fp32, fp16, bf16; "" = as stored.
        publish: Leave out captions, folder names, prompts and notes.
        overwrite: Replace existing files.
        sidecar: Also write `<stem>.json` and `<stem>.png` with trigger words, weight and preview.
        thumbnail: Put a small preview into the file's metadata.
        convert: Make LoRA of other methods first, see `exporting.conversion`.

    Raises:
        NotFound: the adapter or its file is not there.
        Damaged: the file is not the one that was registered.
        BadInput: it is in the trash, cannot be converted, or something stands in the way.
    """
    adapter = settled(ws, ws.catalog.get(Adapter, key))
    path = require_file(ws, adapter)
    if out.is_dir() and layout != "peft":
        out = out / f"{file_stem(adapter.name)}.safetensors"
    refuse_originals(ws, out, layout)
    ours = training_metadata(facts_for_export(ws, adapter, publish=publish))
    header = read_header(path)
    # What an imported file says of its training is all that is known; a run knows better than its file.
    merged = header.metadata | ours if adapter.origin == "run" else ours | header.metadata
    merged |= {name: value for name, value in ours.items() if name.startswith("studio.")}
    if adapter.licence:
        merged["modelspec.license"] = adapter.licence
    if thumbnail:
        merged |= thumbnail_of(ws, adapter)
    else:
        merged.pop(THUMBNAIL, None)
    report = export_adapter(
        path,
        out,
        layout,
        metadata=for_publication(merged) if publish else merged,
        dtype=dtype,
        family=adapter.family,
        sidecar=sidecar_for(ws, adapter, publish=publish) if sidecar else None,
        overwrite=overwrite,
        convert=convert,
        strength=PeftConfig.from_json(adapter.metadata.get("peft")),
    )
    remember(ws, adapter, report, publish=publish)
    return report


def trash(ws: "Workspace", key: str) -> Adapter:
    """Put an adapter into the trash; its row stays, marked, so that its history stays readable.

    Raises:
        BadInput: it is there already.
    """
    adapter = ws.catalog.get(Adapter, key)
    if adapter.trashed_at is not None:
        raise BadInput(f"adapter {adapter.name}", "is in the trash already", "")
    path = ws.resolve(adapter.path)
    marked = ws.catalog.update(Adapter, adapter.id, trashed_at=now())
    if path.exists():  # a file that is gone cannot be moved, and the row may still go
        ws.trash.put(path, adapter.id)
    return marked


def restore(ws: "Workspace", key: str) -> Adapter:
    """Take an adapter out of the trash.

    Raises:
        BadInput: it is not there, or something else lies where it was.
        NotFound: the trash was emptied.
    """
    adapter = ws.catalog.get(Adapter, key)
    if adapter.trashed_at is None:
        raise BadInput(f"adapter {adapter.name}", "is not in the trash", "")
    path = ws.resolve(adapter.path)
    if path.exists():  # a trashing was cut short, or it lies there again
        _require_ours(ws, adapter, path)
    else:
        try:
            ws.trash.restore(adapter.id, path)
        except NotFound:
            if adapter.file_state is not FileState.MISSING:  # else there was none to put into the trash
                raise
    return ws.catalog.update(Adapter, adapter.id, trashed_at=None)


def _require_ours(ws: "Workspace", adapter: Adapter, path: Path) -> None:
    """Refuse to take `path` for the file of an adapter whose own lies in the trash."""
    if ws.trash.holds(adapter.id) and judge(ws, replace(adapter, trashed_at=None)).state == FileState.CHANGED:
        raise BadInput(
            str(path), f"is another file than that of adapter {adapter.name}", "move it away first"
        )


def set_family(ws: "Workspace", key: str, family: str) -> Adapter:
    """Say which family an adapter is for, when its file does not, or says it wrongly.

    Args:
        ws: The workspace.
        key: Id or name.
        family: One of FAMILIES; "" = unidentified again.

    Raises:
        BadInput: the family is unknown.
    """
    if family and family not in FAMILIES:
        raise BadInput("family", f"{family[:60]!r} is unknown", f"use one of {', '.join(FAMILIES)} or none")
    adapter = ws.catalog.get(Adapter, key)
    said = {"confidence": "high" if family else "none", "reason": "set by hand"}
    changes = {"family": family, "metadata": adapter.metadata | {"identified": said}}
    return ws.catalog.update(Adapter, adapter.id, **changes)


def _free_name(ws: "Workspace", name: str) -> str:
    """The first of "name", "name 2", "name 3", ... that no adapter has."""
    return next(n for n in numbered(name) if not ws.catalog.list(Adapter, name=n, limit=1))


def numbered(name: str) -> Iterator[str]:
    """ "name", "name 2", "name 3", ..., each at most 100 characters."""
    yield name
    yield from (_ended(name, str(number)) for number in count(2))


def step_name(run: Run, step: int) -> str:
    """What the adapter of a run's checkpoint is called: the run's own name is for what it finishes with."""
    return _ended(run.name, f"step {step}")


def _ended(name: str, ending: str) -> str:
    """ "name ending", at most 100 characters."""
    return f"{name[: 99 - len(ending)]} {ending}"


def _keep_file(ws: "Workspace", adapter: Adapter, file: Path) -> None:
    """Bring a registered adapter's file back when it was lost."""
    path = ws.resolve(adapter.path)
    if adapter.trashed_at is None and not path.exists():
        copy_file(file, path)


def _trigger_words(run: Run, dataset: Dataset | None) -> tuple[str, ...]:
    """The word that the run trained with, the recipe's own or else the data set's, and its new words."""
    data: Any = run.recipe.get("data") or {}
    tokens: Any = run.recipe.get("tokens") or {}
    word = str(data.get("trigger") or (dataset.trigger if dataset else "") or "").strip()
    return tuple(dict.fromkeys([*([word] if word else []), *map(str, tokens.get("words") or ())]))


def _keep_preview(ws: "Workspace", run: Run, adapter_id: str, step: int) -> str:
    """Copy the run's last preview up to `step`; "" when there is none (a picture is no reason to fail).

    The one of step 0 shows the base alone: it says nothing of an adapter that has learned.
    """
    rundir, first = ws.run_dir(run.id), min(step, 1)
    for item in reversed(rundir.previews()):
        file = rundir.path / str(item.get("file", ""))
        if not item.get("base") and first <= int(item.get("step", 0)) <= step and file.is_file():
            target = ws.resolve(f"{FOLDER}/{adapter_id}{file.suffix}")
            copy_file(file, target)
            return ws.relative(target)
    return ""


def summary(form: AdapterForm, dtype: str) -> dict[str, Any]:
    """What the pages show of a file without opening it."""
    others = form.others.values()
    alphas = sorted({f.alpha for f in form.modules.values()} | {f.strength for f in others})
    ranks = sorted({f.rank for f in form.modules.values()} | {f.rank for f in others})
    return {"modules": len(form.everything), "dtype": dtype, "ranks": ranks, "alphas": alphas}
