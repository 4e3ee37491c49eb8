"""Requests and adapters for the pocket base."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from registry.formats.header import read_header
from registry.hashing import hash_adapter
from registry.records import Adapter, Base
from studio.adapters import FOLDER
from studio.sampling.request import SampleRequest
from studio.sampling.task import SampleTask, TaskAdapter, TaskBase
from studio.workspace import Workspace
from tests.support.adapters import make_form, write_run_file

MODULES = (
    "unet.conv_in",
    "unet.down_blocks.0.attentions.0.proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    "unet.up_blocks.1.resnets.0.conv1",
)
TEXT_MODULES = ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj",)
ALL_MODULES = (*MODULES, *TEXT_MODULES)


def pocket_shapes(ws: Workspace, modules: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Weight shapes of modules of the pocket base, from its own files."""
    folder = ws.resolve(ws.catalog.get(Base, "pocket").location)
    found: dict[str, tuple[int, ...]] = {}
    for module in modules:
        component, _, path = module.partition(".")
        file = next((folder / component).glob("*.safetensors"))
        tensors = read_header(file).tensors
        plain = path.removeprefix("text_model.")
        found[module] = next(tensors[f"{p}.weight"].shape for p in (path, plain) if f"{p}.weight" in tensors)
    return found


def add_adapter(
    ws: Workspace, name: str, modules: tuple[str, ...] = MODULES, *, seed: int = 0, **form: Any
) -> Adapter:
    """A registered adapter with seeded random weights."""
    made = make_form(pocket_shapes(ws, modules), seed=seed, **form)
    return add_file(ws, name, write_run_file(made, ws.home / FOLDER / f"{name}.safetensors"))


def add_file(ws: Workspace, name: str, file: Path, family: str = "sd15") -> Adapter:
    """Register an adapter file of the workspace."""
    hashes = hash_adapter(file)
    adapter, _ = ws.catalog.register_adapter(
        Adapter(
            name=name, tensor_sha256=hashes.tensor_sha256, file_sha256=hashes.sha256, path=ws.relative(file),
            family=family, origin="import",
        )
    )  # fmt: skip
    return adapter


def request(ws: Workspace, **changes: Any) -> SampleRequest:
    """A small request to the pocket base."""
    values: dict[str, Any] = {
        "base": ws.catalog.get(Base, "pocket").id, "prompt": "a red circle", "steps": 4, "cfg": 3.0,
        "seed": 5, "width": 32, "height": 32,
    }  # fmt: skip
    return SampleRequest(**values | changes)


def task(ws: Workspace, *adapters: tuple[Any, ...], **changes: Any) -> SampleTask:
    """A resolved task; each adapter is (record, weight) or (record, weight, text weight)."""
    base = ws.catalog.get(Base, "pocket")
    uses = tuple(
        TaskAdapter(
            id=item.id, name=item.name, path=item.path, tensor_sha256=item.tensor_sha256,
            file_sha256=item.file_sha256, weight=weights[0], text_weight=weights[-1],
        )
        for item, *weights in adapters
    )  # fmt: skip
    where = TaskBase(**{field.name: getattr(base, field.name) for field in fields(TaskBase)})
    return SampleTask(id="x", request=request(ws, **changes), base=where, adapters=uses).resolved(ws.resolve)
