"""What was written for other tools: what such a file says, which ones there are, and whose a file is."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, NotFound
from registry.formats.export import ExportReport, Sidecar
from registry.formats.header import read_header
from registry.formats.inspect import facts_of
from registry.formats.metadata import TrainingFacts
from registry.formats.peft import WEIGHTS
from registry.hashing import hash_adapter
from registry.lineage import noted_parents
from registry.records import Adapter, Base, Dataset, Export, Run, now

if TYPE_CHECKING:
    from studio.workspace import Workspace

_PREDICTIONS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def remember(ws: "Workspace", adapter: Adapter, report: ExportReport, *, publish: bool) -> None:
    """Keep the proof of a file that is durable by now; the same weights at the same place are one export.

    In a catalog that is read-only nothing is kept: the file is there all the same.
    """
    if ws.catalog.read_only:
        return
    proof = report.to_dict()
    made = Export(
        adapter_id=adapter.id,
        path=ws.relative(Path(report.path)),
        layout=report.layout,
        dtype=report.dtype,
        publish=publish,
        sha256=report.sha256,
        report=proof,
    )
    same = ("adapter_id", "path", "layout", "dtype", "publish")
    for known in ws.catalog.list(Export, **{name: getattr(made, name) for name in same}):
        if known.report.get("tensor_sha256") == report.tensor_sha256:
            ws.catalog.update(Export, known.id, created_at=now(), sha256=made.sha256, report=proof)
            return
    ws.catalog.add(made)


def exports_of(ws: "Workspace", adapter: Adapter) -> list[dict[str, Any]]:
    """The files that were written from an adapter, newest first; `present`: it is still there as written."""
    rows = ws.catalog.list(Export, adapter_id=adapter.id, order="-created_at")
    return [_export(ws, row) for row in rows]


def which(ws: "Workspace", file: Path) -> dict[str, Any]:
    """Which adapter of this workspace a file is, by what is in it and never by its name.

    Args:
        ws: The workspace.
        file: A safetensors file, or the folder of a PEFT export.

    Returns:
        `how`: "file" (the same bytes), "weights" (the same tensors, other metadata), "export" (a file that
        was written from it), "export weights", "claim" (its metadata name it), or "none"; `line` in words;
        `adapters` and `exports`; `facts` of the header (None when it holds no adapter weights).

    Raises:
        NotFound: there is no such file.
        BadInput: it is no sound safetensors file.
    """
    path = _weights(file)
    header = read_header(path)
    hashes = hash_adapter(path)
    catalog = ws.catalog
    claim = header.metadata.get("studio.tensor_sha256", "")
    exports = catalog.lineage.exports_like(hashes.sha256, hashes.tensor_sha256)
    exact = [export for export in exports if export.sha256 == hashes.sha256]
    ways = (
        ("file", catalog.list(Adapter, file_sha256=hashes.sha256)),
        ("weights", catalog.list(Adapter, tensor_sha256=hashes.tensor_sha256)),
        ("export", _adapters(ws, exact)),
        ("export weights", _adapters(ws, exports)),
        ("claim", catalog.list(Adapter, tensor_sha256=claim) if claim else []),
    )
    lost = "export" if exports else "none"  # of an adapter that is gone
    how, found = next(((how, found) for how, found in ways if found), (lost, []))
    try:
        facts = facts_of(path, header)
        said = asdict(facts) | {"metadata": {}}
    except BadInput:
        said = None
    return {
        "path": str(path),
        "how": how,
        "line": _line(file, how, found, exact or exports, said),
        "sha256": hashes.sha256,
        "tensor_sha256": hashes.tensor_sha256,
        "adapters": [{"id": a.id, "name": a.name, "trashed": a.trashed_at is not None} for a in found],
        "exports": [_export(ws, export) for export in exports],
        "facts": said,
    }


def facts_for_export(ws: "Workspace", adapter: Adapter, *, publish: bool) -> TrainingFacts:
    """What a written file says of the adapter and of its history."""
    run = ws.catalog.find(Run, adapter.run_id) if adapter.run_id else None
    base = ws.catalog.find(Base, adapter.base_id) if adapter.base_id else None
    dataset = ws.catalog.find(Dataset, run.dataset_id) if run else None
    facts = TrainingFacts(
        name=adapter.name,
        family=adapter.family,
        rank=adapter.rank,
        alpha=adapter.alpha,
        created_at=adapter.created_at,
        tensor_sha256=adapter.tensor_sha256,
        trigger_words=adapter.trigger_words,
        recommended_weight=adapter.recommended_weight,
        description="" if publish else adapter.note,
        license=adapter.licence,
        consent="" if publish else adapter.consent,
        tags=adapter.tags,
        base_name=base.name if base else "",
        base_hash=base.weight_hash if base else "",
        variant=base.variant if base else "",
        prediction_type=_PREDICTIONS.get(base.variant, "") if base else "",
        run_id=adapter.run_id,
        step=adapter.step,
        parents=_parent_hashes(ws, adapter),
    )
    if run is None:
        return facts
    return replace(
        facts,
        recipe=run.recipe,
        recipe_hash=run.recipe_hash,
        base_hash=run.base_hash,
        dataset_name=dataset.name if dataset else "",
        dataset_hash=run.dataset_hash,
        captions=[] if publish else captions_of(ws, run),
        started_at=run.started_at,
        ended_at=run.ended_at,
        versions=run.versions,
    )


def captions_of(ws: "Workspace", run: Run) -> list[str]:
    """Captions as the run saw them; none when its directory is gone."""
    try:
        return [item.caption for item in ws.run_dir(run.id).read_manifest()]
    except OSError:
        return []


def sidecar_for(ws: "Workspace", adapter: Adapter, *, publish: bool) -> Sidecar:
    """What A1111 and its kin read beside the file."""
    return Sidecar(
        trigger_words=adapter.trigger_words,
        weight=adapter.recommended_weight,
        notes="" if publish else adapter.note,
        description=_described(adapter) if adapter.step else "",
        picture=ws.resolve(adapter.preview) if adapter.preview else None,
    )


def _described(adapter: Adapter) -> str:
    """`LoRA, rank 16, step 2000`; without a rank where the method has none."""
    names = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "oft": "OFT"}
    rank = f"rank {adapter.rank}" if adapter.rank else ""
    parts = (names.get(adapter.method, adapter.method), rank, f"step {adapter.step}")
    return ", ".join(filter(None, parts))


def _parent_hashes(ws: "Workspace", adapter: Adapter) -> list[str]:
    """Tensor hashes of the adapters that it was made from: ids mean nothing outside of this workspace."""
    there = {parent.id: parent.tensor_sha256 for parent in ws.catalog.lineage.adapters(adapter.parents)}
    noted = {str(p["id"]): str(p.get("tensor_sha256", "")) for p in noted_parents(adapter.metadata)}
    return [found for key in adapter.parents if (found := there.get(key) or noted.get(key, ""))]


def _weights(file: Path) -> Path:
    """The file with the weights: the given one, or the first of a PEFT folder."""
    try:
        if file.is_dir():
            inside = sorted(path for path in (file / WEIGHTS, *file.glob(f"*/{WEIGHTS}")) if path.is_file())
            if not inside:
                raise BadInput(str(file), f"is a folder without {WEIGHTS}", "give an adapter file")
            return inside[0]
        if not file.exists():
            raise NotFound(str(file)[:200], "is not there", "check the path")
    except OSError as error:
        raise NotFound(str(file)[:200], "is not there", "check the path") from error
    return file


def _adapters(ws: "Workspace", exports: list[Export]) -> list[Adapter]:
    return ws.catalog.lineage.adapters({export.adapter_id for export in exports})


def _line(
    file: Path, how: str, found: list[Adapter], exports: list[Export], facts: dict[str, Any] | None
) -> str:
    names = ", ".join(f"{adapter.name} ({adapter.id})" for adapter in found)
    if how in {"export", "export weights"}:
        export = exports[0]
        names = names or f"adapter {export.adapter_id}, which is gone"
        kept = "" if how == "export" else ", its metadata changed since"
        what = f"an export of {names} ({export.layout}, {export.dtype}, {export.created_at:%Y-%m-%d}{kept})"
    else:
        what = {
            "file": f"the file of {names}",
            "weights": f"{names} with other metadata: the weights are the same",
            "claim": f"by its own metadata a copy of {names}, in another precision or layout",
            "none": f"no adapter of this workspace{_told(facts)}",
        }[how]
    return f"{file.name} is {what}."


def _told(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return ", and no adapter at all"
    family = facts["family"] or "a family that could not be told"
    trigger = f", trigger words {', '.join(facts['trigger_words'])}" if facts["trigger_words"] else ""
    return f". It is a {facts['method']} of rank {facts['rank']} for {family} ({facts['reason']}){trigger}"


def _export(ws: "Workspace", export: Export) -> dict[str, Any]:
    path = ws.resolve(export.path)
    shown = {
        name: getattr(export, name) for name in ("id", "adapter_id", "layout", "dtype", "publish", "sha256")
    }
    try:  # a folder has no hash
        present = ws.memo.sha256(path) == export.sha256 if export.sha256 else path.exists()
    except OSError:
        present = False
    when = export.created_at.isoformat()
    return shown | {"path": str(path), "created_at": when, "present": present, "report": export.report}
