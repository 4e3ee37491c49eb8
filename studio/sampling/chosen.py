"""Which adapter a request means: one of the catalog, or a checkpoint of a run, written RUN@STEP.

A checkpoint is handed out as an `Adapter` that has no row: it is there as long as the run keeps it.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput, NotFound
from registry.formats.inspect import inspect_adapter
from registry.hashing import hash_adapter
from registry.records import Adapter, Run
from studio.adapter_files import require_file, settled
from studio.runs.checkpoints import verified, verified_checkpoints
from trainers.rundir import ADAPTER, CHECKPOINTS, checkpoint_name, checkpoint_step

if TYPE_CHECKING:
    from studio.workspace import Workspace

CHECKPOINT = "checkpoint"  # origin of an adapter that is a checkpoint of a run
DIGITS = 18  # of a step at most: a longer number is no step, and Python refuses to read one of thousands
_SHOWN = 12  # steps in a message


def find_adapter(ws: "Workspace", key: str) -> Adapter | None:
    """Like `chosen_adapter`, but None when there is neither such an adapter nor such a run."""
    found = ws.catalog.find(Adapter, key)
    if found is not None:
        return found
    run, _, step = key.rpartition("@")
    number = step.isdecimal() and len(step) <= DIGITS
    known = ws.catalog.find(Run, run) if run and number else None
    return checkpoint_of(ws, known, int(step)) if known is not None else None


def chosen_adapter(ws: "Workspace", key: str) -> Adapter:
    """The adapter with this id or name, or the checkpoint RUN@STEP of a run, named by its id or name.

    An adapter whose own name has an @ comes first.

    Raises:
        NotFound: there is none; of a checkpoint, which steps there are.
        BadInput: it fits several, or the step is no number.
    """
    found = find_adapter(ws, key)
    if found is not None:
        return found
    run, mark, step = key.rpartition("@")
    if mark and run and ws.catalog.find(Run, run) is not None:
        raise BadInput(f"adapter {key!r}", f"{step!r} is not a step", "write RUN@STEP, for example ink@400")
    if mark and run and step.isdecimal():
        ws.catalog.get(Run, run)  # says which runs there are
    return ws.catalog.get(Adapter, key)


def ready_adapter(ws: "Workspace", key: str) -> Adapter:
    """`chosen_adapter` with its identity: one that was only listed is hashed now."""
    found = chosen_adapter(ws, key)
    return found if found.origin == CHECKPOINT else settled(ws, found)


def proven_file(ws: "Workspace", adapter: Adapter) -> Path:
    """The file of an adapter or checkpoint, proven to be the one that is meant.

    Raises:
        NotFound, Damaged, BadInput: it is not, in one line.
    """
    if adapter.origin == CHECKPOINT:  # was verified when it was found
        return ws.resolve(adapter.path)
    return require_file(ws, adapter)


def steps_of(ws: "Workspace", run: Run) -> list[int]:
    """Steps of the checkpoints of a run that verify, rising. Reads every file of them that is new."""
    return list(verified_checkpoints(ws.run_dir(run.id), ws.key, {}))


def steps_listed(ws: "Workspace", run: Run) -> list[int]:
    """Steps of the checkpoints of a run that seem to be there, rising; reads no file."""
    steps: list[int] = []
    for folder in ws.run_dir(run.id).checkpoints():
        with suppress(ValueError):  # a folder of somebody else's
            steps.append(checkpoint_step(folder))
    return sorted(steps)


def checkpoint_of(ws: "Workspace", run: Run, step: int) -> Adapter:
    """The adapter that a checkpoint of a run holds.

    Raises:
        NotFound: the run has none at this step, or not any more.
        BadInput: it is damaged, or holds no adapter.
    """
    name = f"checkpoint {run.name}@{step}"
    steps = steps_listed(ws, run)
    folder = ws.run_dir(run.id).path / CHECKPOINTS / checkpoint_name(step)
    if step not in steps or not folder.is_dir():
        every = int(run.recipe.get("checkpoints", {}).get("every", 0) or 0)
        passed = 0 < step <= run.step and every > 0 and step % every == 0
        wrong = "is not kept any more: the run keeps the newest and the best" if passed else "does not exist"
        shown = ", ".join(map(str, steps[-_SHOWN:]))
        earlier = f" and {len(steps) - _SHOWN} earlier ones" if len(steps) > _SHOWN else ""
        do = f"there are {shown}{earlier}" if steps else f"run {run.name} has no checkpoint"
        raise NotFound(name, wrong, do)
    if not verified(folder, ws.key):
        raise BadInput(name, "is incomplete or was changed after it was written", "use another step")
    file = folder / ADAPTER
    if not file.is_file():
        raise BadInput(name, "holds no adapter: the run trains a whole model", "use its finished base")
    facts, hashes = inspect_adapter(file), hash_adapter(file)
    trigger = str(run.recipe.get("data", {}).get("trigger") or "")
    return Adapter(
        id=f"{run.id}@{step}",
        name=f"{run.name}@{step}",
        tensor_sha256=hashes.tensor_sha256,
        file_sha256=hashes.sha256,
        path=ws.relative(file),
        size=file.stat().st_size,
        family=run.family,
        method=facts.method,
        rank=facts.rank,
        alpha=facts.alpha,
        targets=facts.targets,
        trigger_words=(trigger,) if trigger else (),
        origin=CHECKPOINT,
        run_id=run.id,
        step=step,
        base_id=run.base_id,
    )
