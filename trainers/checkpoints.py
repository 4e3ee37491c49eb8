"""Checkpoints: everything a run needs to go on bit for bit, without a pickle anywhere.

    adapter.safetensors   the result as it would be at this step (running mean applied), diffusers layout
    state.safetensors     `weights.<key>`, `mean.<group>`, `optimizer.<group>.<name>`, `initial.<key>` (PiSSA)
    state.json            step, losses, and the optimizer's structure and numbers
    manifest.json         sizes, hashes, signature; see `trainers.rundir`

There is no random state to save: every draw is a function of (seed, step, place), see
`trainers.plan.draw_seed`.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from registry.errors import Damaged, StudioError
from registry.files import atomic_folder, atomic_path, read_json, remove_tree, require_space, write_json
from registry.hashing import hash_json
from trainers.ema import Ema
from trainers.flat import Flat, refresh
from trainers.methods import Trainables, load_initial, load_tensors
from trainers.optim import page_state
from trainers.rundir import (
    ADAPTER,
    CHECKPOINTS,
    RunDir,
    checkpoint_name,
    checkpoint_step,
    verify_checkpoint,
    write_manifest,
)

log = logging.getLogger(__name__)

STATE, NUMBERS = "state.safetensors", "state.json"
FORMAT = 1  # of state.json


@dataclass(frozen=True)
class Learning:
    """The parts of a run that change with every step."""

    trainables: Trainables
    flats: list[Flat]  # the same parameters, as the optimizer sees them
    optimizer: Optimizer
    ema: Ema

    @property
    def parameters(self) -> list[nn.Parameter]:
        """One flat parameter per group."""
        return [flat.parameter for flat in self.flats]

    def adapter(self) -> dict[str, Tensor]:
        """Tensors of the adapter file, fp32 on the CPU; none in a full fine-tune, whose state is enough."""
        if not self.trainables.separable:
            return {}
        values = zip(self.flats, self.ema.values(), strict=True)
        views = {key: view for flat, value in values for key, view in flat.views(value).items()}
        views = self.trainables.file_tensors(views)
        return {key: _copied(view) for key, view in views.items()}


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds, apart from the training: on the CPU, in memory of its own.

    Args:
        step: Optimizer steps done.
        tensors: Of the state file.
        adapter: Of the adapter file; empty in a full fine-tune.
        numbers: state.json.
        metadata: Of the adapter file.
    """

    step: int
    tensors: Mapping[str, Tensor]
    adapter: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    metadata: Mapping[str, str]


def snapshot(
    step: int, learning: Learning, numbers: Mapping[str, Any], metadata: Mapping[str, str]
) -> Snapshot:
    """Copy what a checkpoint of `step` has to hold; `numbers`: more for state.json, losses and the scaler."""
    tensors, structure = _pack(learning)
    head = {"format": FORMAT, "step": step, **numbers, "learning": structure}
    return Snapshot(step, tensors, learning.adapter(), head, metadata)


class Store:
    """The checkpoints of one run.

    Args:
        rundir: The run.
        key: Workspace key that signs.
        keep: How many of the newest stay; a named best one stays too.
    """

    def __init__(self, rundir: RunDir, key: bytes, keep: int) -> None:
        self.rundir, self.key, self.keep = rundir, key, keep

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies; a damaged newer one is named in the log."""
        for folder in reversed(self.rundir.checkpoints()):
            if verify_checkpoint(folder, self.key):
                return folder
            log.warning("%s does not verify and is left out", folder.name)
        return None

    def save(
        self,
        step: int,
        learning: Learning,
        numbers: Mapping[str, Any],
        metadata: Mapping[str, str],
        best: int | None,
    ) -> Path:
        """`snapshot` and `write` in one."""
        return self.write(snapshot(step, learning, numbers, metadata), best)

    def write(self, taken: Snapshot, best: int | None) -> Path:
        """Write a checkpoint, then remove what is no longer kept.

        Args:
            taken: What it holds.
            best: Step whose checkpoint stays beside the newest.

        Raises:
            StudioError: the disk is full or broken; older checkpoints are intact.
            Damaged: what was written does not read back.
        """
        size = sum(tensor.nbytes for part in (taken.tensors, taken.adapter) for tensor in part.values())
        require_space(self.rundir.path, size + 2**20, f"checkpoint {taken.step}")
        folder = self.rundir.file(CHECKPOINTS) / checkpoint_name(taken.step)
        with atomic_folder(folder) as temporary:
            if taken.adapter:
                write_tensors(temporary / ADAPTER, taken.adapter, taken.metadata)
            write_tensors(temporary / STATE, taken.tensors, {"format": "pt"})
            write_json(temporary / NUMBERS, dict(taken.numbers), durable=False)
            write_manifest(temporary, taken.step, self.key)
        if not verify_checkpoint(folder, self.key):
            raise Damaged(str(folder), "does not read back as it was written", "check the disk")
        self._prune(best)
        return folder

    def _prune(self, best: int | None) -> None:
        folders = self.rundir.checkpoints()
        for folder in folders[: -self.keep]:
            if checkpoint_step(folder) != best:
                remove_tree(folder)

    def sweep(self, after: int) -> None:
        """Remove half-written folders, and checkpoints later than step `after`, which this attempt
        replaces."""
        for folder in self.rundir.file(CHECKPOINTS).glob("*.partial"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.rundir.checkpoints():
            if checkpoint_step(folder) > after:
                remove_tree(folder)

    def publish(self, folder: Path) -> None:
        """Make a checkpoint's adapter the result of the run, if it has one."""
        if not (folder / ADAPTER).exists():
            return
        with atomic_path(self.rundir.adapter) as temporary:
            shutil.copyfile(folder / ADAPTER, temporary)


def read_numbers(folder: Path) -> dict[str, Any]:
    """state.json of a verified checkpoint.

    Raises:
        Damaged: written by another version of this format.
    """
    numbers = read_json(folder / NUMBERS)
    if numbers.get("format") != FORMAT:
        raise Damaged(
            str(folder), f"has format {numbers.get('format')}, this version reads {FORMAT}", "update"
        )
    return numbers


def restore(folder: Path, learning: Learning, *, optimizer: bool = True) -> dict[str, Any]:
    """Put a verified checkpoint into a run that was set up with the same recipe; returns its state.json.

    Args:
        folder: The checkpoint.
        learning: Filled in place.
        optimizer: False keeps the fresh optimizer, for a branch that uses another one.

    Raises:
        BadInput: its layers or ranks are not the recipe's.
    """
    numbers = read_numbers(folder)
    tensors = load_file(folder / STATE)
    weights = _below("weights.", tensors)
    load_tensors(learning.trainables, weights)
    load_initial(learning.trainables, _below("initial.", tensors))
    refresh(learning.flats)
    structure = numbers["learning"]
    same_groups = _layout(learning.flats) == structure.get("layout", _layout(learning.flats))
    for index, mean in enumerate(learning.ema.means):  # of other groups: it begins anew, at the weights
        found = tensors.get(f"mean.{index}") if same_groups else None
        mean.copy_(learning.parameters[index].detach() if found is None else found)
    learning.ema.updates = structure["ema_updates"]
    if optimizer:
        state: dict[str, Any] = {
            "state": {int(index): _unpack(value, tensors) for index, value in structure["optimizer"].items()},
            "param_groups": _unpack(structure["groups"], tensors),
        }
        learning.optimizer.load_state_dict(state)
        page_state(learning.optimizer)
    return numbers


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """safetensors at `path`, with a full disk reported as such (the library hides the error number)."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file that we wrote."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _pack(learning: Learning) -> tuple[dict[str, Tensor], dict[str, Any]]:
    named, state = learning.trainables.named, learning.optimizer.state_dict()
    tensors = {f"weights.{key}": _copied(parameter) for key, parameter in named.items()}
    tensors |= {f"initial.{key}": p.detach().cpu() for key, p in learning.trainables.initial.items()}
    tensors |= {f"mean.{index}": _copied(mean) for index, mean in enumerate(learning.ema.means)}
    optimizer = {
        str(index): _lift(value, f"optimizer.{index}", tensors) for index, value in state["state"].items()
    }
    groups = _lift(state["param_groups"], "groups", tensors)
    head = {"ema_updates": learning.ema.updates, "layout": _layout(learning.flats)}
    return tensors, {"optimizer": optimizer, "groups": groups, **head}


def _copied(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own: training goes on while the copy is written."""
    return tensor.detach().to("cpu", copy=True)


def _layout(flats: Sequence[Flat]) -> list[str]:
    """A hash of each group's keys in their order: what a flat buffer means."""
    return [hash_json(list(flat.named)) for flat in flats]


def _lift(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON form of nested optimizer state; tensors go to `tensors` and leave their name behind."""
    if isinstance(value, Tensor):
        tensors[name] = _copied(value).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[key, _lift(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_lift(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {type(value).__name__: items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StudioError("optimizer", f"keeps {name} as {type(value).__name__}, which cannot be saved")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *_ = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def same_optimizer(numbers: Mapping[str, Any], learning: Learning) -> bool:
    """Whether a checkpoint's optimizer state fits: same class, same parameters in the same groups."""
    structure = numbers["learning"]
    groups = _unpack(structure["groups"], {})
    same_class = numbers.get("optimizer_class") == optimizer_class(learning.optimizer)
    same_groups = structure.get("layout", _layout(learning.flats)) == _layout(learning.flats)
    return same_class and same_groups and len(groups) == len(learning.optimizer.param_groups)


def optimizer_class(optimizer: Optimizer) -> str:
    """Name of its class; of the one inside where bf16 weights are rounded."""
    return type(getattr(optimizer, "inner", optimizer)).__name__
