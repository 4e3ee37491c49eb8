"""A workspace in which a picture has gone all the way: data set, run, adapter; nothing is trained for it."""

from pathlib import Path
from typing import Any

from registry.records import Adapter, AdapterUse, Base, Dataset, Run, Sample
from studio.adapters import register_run_adapter
from studio.datasets.ingest import create_dataset
from studio.runs.launch import launch
from studio.workspace import Workspace
from tests.support.adapters import UNET, make_form, write_run_file
from tests.support.pictures import encoded, pixels
from trainers.recipe import apply_sets, preset

CAPTIONS = ("a red heron by the lake", "a red heron, standing", "moonrise over the harbour")
PROMPTS = "preview.prompts=['a lighthouse in fog, inkstyle']"
SETS = ("train.max_steps=20", "checkpoints.every=5", "preview.every=0", PROMPTS)


def picture(number: int) -> bytes:
    """The PNG file of picture `number`."""
    return encoded(pixels(number, 64, 64))


def make_dataset(ws: Workspace, name: str = "herons", numbers: tuple[int, ...] = (0, 1, 2)) -> Dataset:
    """A data set of generated pictures with captions, through the real ingest."""
    uploads = [(f"{n}.png", picture(n)) for n in numbers]
    uploads += [(f"{n}.txt", CAPTIONS[n % 3].encode()) for n in numbers]
    return create_dataset(ws, name, uploads, trigger="inkstyle").dataset


def make_run(ws: Workspace, dataset: Dataset, name: str = "ink", base: str = "pocket", **more: Any) -> Run:
    """A queued run."""
    recipe = apply_sets(preset("sd15", "style", "pocket"), list(SETS))
    return launch(ws, recipe, ws.catalog.get(Base, base), dataset, name, **more)


def make_adapter(ws: Workspace, run: Run, seed: int = 1) -> Adapter:
    """What the run would have left behind, registered."""
    form = make_form(dict(list(UNET.items())[:3]), seed=seed)
    return register_run_adapter(ws, run, write_run_file(form, ws.run_dir(run.id).adapter), 20)


def add_made(ws: Workspace, name: str, *parents: Adapter, origin: str = "merge") -> Adapter:
    """A row as an operation leaves it."""
    told = [{"id": p.id, "name": p.name, "tensor_sha256": p.tensor_sha256, "weight": 0.5} for p in parents]
    made = {"operation": origin, "parents": told, "settings": {"way": "sum"}}
    return ws.catalog.add(
        Adapter(
            name=name, tensor_sha256=f"t-{name}", file_sha256=f"f-{name}", path=f"adapters/{name}",
            family="sd15", origin=origin, parents=tuple(p.id for p in parents), metadata={"made": made},
        )
    )  # fmt: skip


def add_sample(
    ws: Workspace, *adapters: Adapter, base: str = "pocket", prompt: str = "a red circle"
) -> Sample:
    """A finished sample."""
    uses = tuple(AdapterUse(adapter_id=a.id, weight=0.8, tensor_sha256=a.tensor_sha256) for a in adapters)
    base_id = ws.catalog.get(Base, base).id
    request = {"prompt": prompt, "seed": 3}
    files = (f"samples/{prompt[:3]}/000.png",)
    return ws.catalog.add(Sample(base_id=base_id, request=request, files=files, adapters=uses))


def whole_chain(home: Path) -> None:
    """Fill a workspace: herons -> ink -> adapter ink -> merge "half" -> resize "small", and samples."""
    ws = Workspace.open(home)
    adapter = make_adapter(ws, make_run(ws, make_dataset(ws)))
    small = add_made(ws, "small", add_made(ws, "half", adapter), origin="resize")
    add_sample(ws, small, prompt="a heron at dusk")
    add_sample(ws, prompt="nothing of ours")
    ws.catalog.close()
