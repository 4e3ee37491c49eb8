"""One small record of every kind, and a catalog to put it in."""

from pathlib import Path
from typing import Any

from registry.catalog import Catalog
from registry.records import (
    Adapter,
    AdapterUse,
    Base,
    Checkpoint,
    Comparison,
    Dataset,
    Evaluation,
    Export,
    Image,
    Job,
    JobKind,
    Run,
    Sample,
    SavedFilter,
    Vote,
    Watch,
)  # fmt: skip

KINDS: tuple[type[Any], ...] = (
    Base, Dataset, Image, Run, Checkpoint, Adapter, Sample, Job, Export, SavedFilter, Watch, Comparison, Vote,
    Evaluation,
)  # fmt: skip


def open_catalog(folder: Path) -> Catalog:
    """The catalog of `folder`, made when missing."""
    return Catalog.open(f"sqlite:///{folder / 'catalog.sqlite'}")


def base(**fields: Any) -> Base:
    return Base(**({"name": "b", "family": "sd15", "location": "bases/b", "kind": "folder"} | fields))


def image(n: int = 0, **fields: Any) -> Image:
    values = {"blob": f"{n:064x}", "pixel_hash": f"p{n}", "name": f"{n}.png", "width": 64, "height": 48}
    return Image(**(values | fields))


def run(base_id: str, **fields: Any) -> Run:
    values = {
        "name": "r", "family": "sd15", "base_id": base_id, "dataset_id": "d",
        "recipe": {"train": {"seed": 3}}, "recipe_hash": "rh", "dataset_hash": "dh", "base_hash": "bh",
        "seed": 3, "steps": 100,
    }  # fmt: skip
    return Run(**(values | fields))


def adapter(n: int = 0, **fields: Any) -> Adapter:
    values = {
        "name": f"a{n}", "tensor_sha256": f"t{n}", "file_sha256": f"f{n}", "path": f"adapters/{n}.safetensors"
    }  # fmt: skip
    return Adapter(**(values | fields))


def add_one(catalog: Catalog, kind: type[Any]) -> Any:
    """Add a record of the kind, with what it refers to; returns it."""
    if kind is Base:
        return catalog.add(base(name="one"))
    if kind is Dataset:
        return catalog.add(Dataset(name="one", trigger="sks"))
    if kind is Image:
        owner = catalog.add(Dataset(name="owner"))
        return catalog.add(image(dataset_id=owner.id, position=0, tags=("x", "y")))
    if kind is Adapter:
        return catalog.add(adapter(tags=("x",), metadata={"k": [1]}, alpha=0.5))
    if kind is Job:
        return catalog.add(Job(kind=JobKind.TRAIN, subject_id="s", payload={"n": 1}))
    if kind is Export:
        return catalog.add(Export(adapter_id="a", path="x", layout="kohya", dtype="fp16", report={"n": 1}))
    if kind is SavedFilter:
        return catalog.add(SavedFilter(name="one", query={"family": "sd15"}))
    if kind is Watch:
        return catalog.add(Watch(path="/somewhere"))
    parent = catalog.add(base(name="parent"))
    if kind is Run:
        return catalog.add(run(parent.id))
    if kind in {Comparison, Vote, Evaluation}:
        return _compared(catalog, kind, parent.id)
    if kind is Sample:
        uses = (AdapterUse(adapter_id="x", weight=0.5, text_weight=None), AdapterUse(adapter_id="w"))
        return catalog.add(Sample(base_id=parent.id, request={"prompt": "p"}, adapters=uses))
    owner = catalog.add(run(parent.id))
    return catalog.add(Checkpoint(run_id=owner.id, step=10, path="runs/x/checkpoints/step-000010", loss=0.25))


def _compared(catalog: Catalog, kind: type[Any], base_id: str) -> Any:
    grid = catalog.add(Comparison(name="one", base_id=base_id, spec={"axes": []}))
    more = {
        Vote: Vote(comparison_id=grid.id, axis="steps", left="1", right="2", outcome="tie"),
        Evaluation: Evaluation(comparison_id=grid.id, plan={"seeds": [1]}, plan_hash="ph"),
    }
    return catalog.add(more[kind]) if kind in more else grid
