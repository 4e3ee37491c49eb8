"""A request made ready to be drawn: everything found and checked, nothing written yet.

What is wrong with a request is said here, before it waits behind a training run.
"""

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput, StudioError
from registry.formats.header import read_header
from registry.hashing import sha256_file
from registry.ids import new_id
from registry.records import Adapter, AdapterUse, Base, Job, JobKind, Sample
from studio.runs.checks import check_base
from studio.sampling.checks import check_modes
from studio.sampling.chosen import proven_file, ready_adapter
from studio.sampling.control.choosing import choose_net, mode_of
from studio.sampling.coverage import require_places
from studio.sampling.defaults import component_config
from studio.sampling.files import take_files
from studio.sampling.keys import picture_key
from studio.sampling.prompts.ready import ready
from studio.sampling.request import AdapterChoice, SampleRequest
from studio.sampling.schedulers import check_scheduler
from studio.sampling.strengths import check_blocks
from studio.sampling.task import SampleTask, TaskAdapter, TaskBase, TaskControl, TaskEmbedding, files_of
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.workspace import Workspace

_TEXT_INPUT = re.compile(r"attn2.*to_k")  # the layer of a UNet that reads the text encoder's output
_DOWN = re.compile(r"lora_A|lora[._]down|lora_linear_layer\.down|to_k_lora\.down")


@dataclass(frozen=True)
class Prepared:
    """A request with all that it names."""

    request: SampleRequest
    base: Base
    adapters: tuple[Adapter, ...]
    refiner: Base | None
    nets: tuple[Base, ...]
    words: dict[str, Path]  # embedding files by the word that they are
    key: str  # see `picture_key`


@dataclass
class Seen:
    """What was looked up for one of many requests that are alike, so that each thing is examined once."""

    bases: dict[str, Base] = field(default_factory=dict[str, Base])
    adapters: dict[str, Adapter] = field(default_factory=dict[str, Adapter])
    fitting: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])  # adapter, base
    complete: set[tuple[str, str, bool]] = field(default_factory=set[tuple[str, str, bool]])
    files: dict[str, str] = field(default_factory=dict[str, str])  # name -> sha256


def prepare(ws: "Workspace", request: SampleRequest, seen: Seen | None = None) -> Prepared:
    """Find and check all that a request names.

    Args:
        ws: Where it is known.
        request: What a person asks for.
        seen: Shared by requests that are prepared together.

    Raises:
        NotFound, BadInput: as `studio.sampling.submit.submit`.
    """
    seen = seen or Seen()
    base = _base(ws, request.base, seen)
    check_scheduler(request.scheduler, base.family)
    request, words = ready(ws, request, base.family)
    refiner = _base(ws, request.refiner, seen) if request.refiner else None
    check_modes(request, base, refiner)
    nets = tuple(choose_net(ws, base, choice) for choice in request.controls)
    controls = tuple(
        choice.model_copy(update={"model": net.id})
        for choice, net in zip(request.controls, nets, strict=True)
    )
    adapters = tuple(_adapter(ws, choice.id, seen) for choice in request.adapters)
    if len({adapter.id for adapter in adapters}) < len(adapters):
        raise BadInput("adapters", "name the same one twice", "give it one weight")
    _check_adapters(ws, request, base, adapters, seen)
    chosen = tuple(
        choice.model_copy(update={"id": adapter.id})
        for choice, adapter in zip(request.adapters, adapters, strict=True)
    )
    changes = {"base": base.id, "adapters": chosen, "controls": controls}
    request = request.model_copy(update=changes | {"refiner": refiner.id if refiner else ""})
    files = {name: _hash(ws, name, seen) for name in files_of(request)}
    key = picture_key(request, base, adapters, refiner, nets, files)
    return Prepared(request, base, adapters, refiner, nets, words, key)


def write(
    ws: "Workspace", prepared: Prepared, *, purpose: str = "", background: bool = False
) -> tuple[Sample, Job]:
    """Write what the sampler needs into the folder of a new sample; its row and job, not in the catalog yet.

    Raises:
        BadInput: a picture that it starts from cannot be read.
        StudioError: it cannot be written; nothing is left of it.
    """
    sample_id, base, refiner = new_id(), prepared.base, prepared.refiner
    request = take_files(ws, prepared.request, ws.sample_dir(sample_id))
    uses = list(zip(prepared.adapters, request.adapters, strict=True))
    nets = zip(prepared.nets, request.controls, strict=True)
    embeddings = prepared.words.items()
    task = SampleTask(
        id=sample_id,
        request=request,
        base=task_base(base),
        refiner=task_base(refiner) if refiner else None,
        adapters=tuple(_task_adapter(adapter, choice) for adapter, choice in uses),
        embeddings=tuple(TaskEmbedding(word=word, path=ws.relative(path)) for word, path in embeddings),
        controls=tuple(_task_control(net, choice.kind) for net, choice in nets),
    )
    write_task(ws, task)
    sample = Sample(
        id=sample_id,
        base_id=base.id,
        request=request.model_dump(mode="json"),
        adapters=tuple(_use(adapter, choice) for adapter, choice in uses),
        key=prepared.key,
        purpose=purpose,
    )
    return sample, Job(kind=JobKind.SAMPLE, subject_id=sample_id, background=background)


def write_task(ws: "Workspace", task: SampleTask) -> None:
    """Into the folder of its sample; on a full disk nothing is left of that.

    Raises:
        StudioError: it cannot be written.
    """
    folder = ws.sample_dir(task.id)
    try:
        task.write(folder)
    except StudioError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_adapter(ws: "Workspace", adapter: Adapter, base: Base) -> None:
    """Refuse an adapter that is gone, changed, or made for another base; both dimensions are named.

    Raises:
        NotFound, Damaged, BadInput: in one line.
    """
    path = proven_file(ws, adapter)
    theirs = _text_width_of_adapter(path)
    ours = component_config(ws, base, "unet").get("cross_attention_dim")
    if theirs and ours and theirs != ours:
        raise BadInput(
            f"adapter {adapter.name}",
            f"reads text of width {theirs} ({adapter.family or 'unknown family'}), "
            f"base {base.name} gives {ours} ({base.family})",
            "use the base it was trained on",
        )
    if adapter.family and adapter.family != base.family:
        there, here = (
            FAMILIES[name].cross_attention_dim if name in FAMILIES else "?"
            for name in (adapter.family, base.family)
        )
        wrong = f"is for {adapter.family} (text width {there}), base {base.name} is {base.family} ({here})"
        raise BadInput(f"adapter {adapter.name}", wrong, "use a base of its family")


def _base(ws: "Workspace", key: str, seen: Seen) -> Base:
    """A base that can be drawn with."""
    if key not in seen.bases:
        base = ws.catalog.get(Base, key)
        check_base(ws, base)
        seen.bases[key] = base
    return seen.bases[key]


def _adapter(ws: "Workspace", key: str, seen: Seen) -> Adapter:
    if key not in seen.adapters:
        seen.adapters[key] = ready_adapter(ws, key)
    return seen.adapters[key]


def _check_adapters(
    ws: "Workspace", request: SampleRequest, base: Base, adapters: tuple[Adapter, ...], seen: Seen
) -> None:
    """Whether they fit the base, and all of them has a place in it."""
    for adapter, choice in zip(adapters, request.adapters, strict=True):
        check_blocks(adapter.name, choice.blocks)
        if (adapter.id, base.id) not in seen.fitting:
            check_adapter(ws, adapter, base)
            seen.fitting.add((adapter.id, base.id))
    partial = request.partial
    new = [adapter for adapter in adapters if (adapter.id, base.id, partial) not in seen.complete]
    if new:
        require_places(ws, new, base, partial=partial)
        seen.complete |= {(adapter.id, base.id, partial) for adapter in new}


def _hash(ws: "Workspace", name: str, seen: Seen) -> str:
    """Of a file's bytes; "" of one that is not there, which `take_files` says better."""
    if name not in seen.files:
        path = ws.resolve(name)
        seen.files[name] = sha256_file(path) if path.is_file() else ""
    return seen.files[name]


def _use(adapter: Adapter, choice: AdapterChoice) -> AdapterUse:
    return AdapterUse(
        adapter_id=choice.id,
        weight=choice.weight,
        text_weight=choice.text_weight,
        tensor_sha256=adapter.tensor_sha256,
    )


def task_base(base: Base) -> TaskBase:
    """Where a base lies, as the sampler is told."""
    return TaskBase(**{name: getattr(base, name) for name in TaskBase.__dataclass_fields__})


def _task_control(net: Base, kind: str) -> TaskControl:
    return TaskControl(
        id=net.id,
        name=net.name,
        location=net.location,
        kind=net.kind,
        map_kind=kind,
        mode=mode_of(net, kind),
        revision=net.revision,
        weight_hash=net.weight_hash,
    )


def _task_adapter(adapter: Adapter, choice: AdapterChoice) -> TaskAdapter:
    return TaskAdapter(
        id=adapter.id,
        name=adapter.name,
        path=adapter.path,
        tensor_sha256=adapter.tensor_sha256,
        file_sha256=adapter.file_sha256,
        weight=choice.weight,
        text_weight=choice.weight if choice.text_weight is None else choice.text_weight,
        blocks=choice.blocks,
        schedule=choice.schedule,
        peft=adapter.metadata.get("peft"),
    )


def _text_width_of_adapter(path: Path) -> int | None:
    """Width of the text that the adapter's cross-attention reads; None when it has none."""
    for name, info in read_header(path).tensors.items():
        if _TEXT_INPUT.search(name) and _DOWN.search(name) and len(info.shape) >= 2:
            return info.shape[1]
    return None
