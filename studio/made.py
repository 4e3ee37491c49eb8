"""Adapters that an operation made of others: their file, their row, and what they inherit."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput, NotFound
from registry.files import atomic_path, check_name, require_space
from registry.formats import diffusers, words
from registry.formats.internal import AdapterForm
from registry.formats.load import load_adapter
from registry.formats.metadata import training_metadata, with_hashes
from registry.formats.tensors import DTYPES, cast, save
from registry.hashing import hash_adapter
from registry.ids import new_id
from registry.records import Adapter, Base
from studio.adapters import FOLDER, summary
from studio.exports import facts_for_export
from studio.provenance import inherited

if TYPE_CHECKING:
    from studio.workspace import Workspace


@dataclass(frozen=True)
class Parent:
    """An adapter that went into another, and how strongly."""

    adapter: Adapter
    weight: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """As lineage keeps it: the hash outlives the row."""
        adapter = self.adapter
        return {
            "id": adapter.id,
            "name": adapter.name,
            "tensor_sha256": adapter.tensor_sha256,
            "weight": self.weight,
        }


def register_made(
    ws: "Workspace",
    form: AdapterForm,
    *,
    name: str,
    origin: str,
    parents: Sequence[Parent],
    made: Mapping[str, Any],
    dtype: str = "fp32",
    base_id: str = "",
) -> Adapter:
    """Write an adapter that an operation made and take it into the catalog; the file comes before the row.

    It inherits what its parents say of licence and consent (see `provenance.inherited`), their trigger words,
    tags and words to be found by.

    Args:
        ws: The workspace.
        form: Plain LoRA, norms and biases, or new words alone.
        name: Its name.
        origin: "merge", "resize" or "extract".
        parents: What it was made of.
        made: What was done: `operation`, `settings`, `report`.
        dtype: Of the file: "fp32", "fp16", "bf16".
        base_id: The base it belongs to; "" = that of the parents, where they have the same.

    Raises:
        BadInput: the name is taken, these weights are in the catalog already, or a value does not fit
            the dtype.
        StudioError: the disk is full.
    """
    require_free_name(ws, name)
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r}", "is unknown", f"use one of {', '.join(DTYPES)}")
    tensors, strengths = diffusers.write_exact(form)
    tensors |= words.own(form.words)
    stored = cast(tensors, dtype)
    identity = with_hashes(stored, {})["sshs_model_hash"]
    _refuse_known(ws, identity)
    adapters = [parent.adapter for parent in parents]
    id = new_id()
    path = ws.resolve(f"{FOLDER}/{id}.safetensors")
    licence, consent = inherited(adapters)
    bases = {adapter.base_id for adapter in adapters}
    lineage = json.loads(json.dumps({**made, "parents": [parent.to_dict() for parent in parents]}))
    record = Adapter(
        id=id,
        name=name,
        tensor_sha256=identity,
        file_sha256="",
        path=ws.relative(path),
        family=form.family,
        rank=_usual([factors.rank for factors in form.modules.values()]),
        alpha=_usual([factors.alpha for factors in form.modules.values()]),
        method="lora" if form.modules else "norm" if form.others or form.biases else "embedding",
        targets=form.targets,
        trigger_words=united(adapter.trigger_words for adapter in adapters),
        tags=united(adapter.tags for adapter in adapters),
        keywords=" ".join(united(adapter.keywords.split() for adapter in adapters)),
        licence=licence,
        consent=consent,
        origin=origin,
        base_id=base_id or (bases.pop() if len(bases) == 1 else ""),
        parents=tuple(dict.fromkeys(adapter.id for adapter in adapters)),
        metadata=summary(form, dtype) | {"made": lineage},
    )
    texts = training_metadata(facts_for_export(ws, record, publish=False)) | strengths
    require_space(path.parent, 2 * sum(value.nbytes for value in stored.values()), "the adapter")
    with atomic_path(path) as temporary:
        save(temporary, stored, with_hashes(stored, texts))
        load_adapter(temporary, form.family)  # what we wrote is read before it gets its name
    return _register(ws, record, path)


def baked_from(
    base: Base, parents: Sequence[Parent], settings: Mapping[str, Any], modules: int
) -> dict[str, Any]:
    """Lineage of a base that adapters were baked into, as its row keeps it; hashes outlive the rows.

    Args:
        base: The one that was baked on.
        parents: The adapters.
        settings: Of the bake.
        modules: How many changed.
    """
    first = {"id": base.id, "name": base.name, "weight_hash": base.weight_hash}
    adapters = [parent.to_dict() for parent in parents]
    made = {"operation": "bake", "settings": settings, "modules": modules, "parents": [first, *adapters]}
    return json.loads(json.dumps(made))


def require_free_name(ws: "Workspace", name: str) -> None:
    """Refuse a name before anything is computed for it.

    Raises:
        BadInput: it is no name, or an adapter has it.
    """
    check_name(name)
    if ws.catalog.list(Adapter, name=name, limit=1):
        raise BadInput(f"adapter {name!r}", "exists already", "choose another name")


def united(lists: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """All entries, each once, in order."""
    return tuple(dict.fromkeys(entry for entries in lists for entry in entries))


def _refuse_known(ws: "Workspace", tensor_sha256: str) -> None:
    known = ws.catalog.list(Adapter, tensor_sha256=tensor_sha256, run_id="", limit=1)
    if not known:
        return
    trashed = known[0].trashed_at is not None
    do = f"studio adapters restore {known[0].id}" if trashed else "use that one"
    where = "in the trash" if trashed else "in the catalog"
    raise BadInput(f"adapter {known[0].name}", f"has these weights already and is {where}", do)


def _register(ws: "Workspace", record: Adapter, path: Path) -> Adapter:
    hashes = hash_adapter(path)
    status = path.stat()
    complete = replace(record, file_sha256=hashes.sha256, size=status.st_size, mtime_ns=status.st_mtime_ns)
    new = False
    try:
        if hashes.tensor_sha256 != record.tensor_sha256:
            raise NotFound(str(path), "is not what was written", "check the disk")
        registered, new = ws.catalog.register_adapter(complete)
    finally:
        if not new:  # refused, or another process made the same meanwhile
            path.unlink(missing_ok=True)
    return registered


def _usual(values: Sequence[Any]) -> Any:
    return max(set(values), key=lambda value: (values.count(value), value)) if values else 0
