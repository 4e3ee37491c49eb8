"""`python -m tests.support.sharing_ranks DIR...`: trains one run directory after the other in this rank, and
writes into each what the rank holds of the base between steps.

Where a directory has a file `short-RANK`, memory ends in the dry run of that rank; with `nan-RANK` its loss
is not finite, with `damaged-RANK` it cannot read the base.
"""

import json
import sys
from pathlib import Path

import torch

import trainers.loop
import trainers.setup
from registry.errors import BadInput
from trainers import run
from trainers.dry_run import Rehearsal
from trainers.metrics import process_rank
from trainers.rundir import RunDir
from trainers.sharing import blocks, held_bytes


def held(rundir: RunDir, rank: int) -> float:
    """The part of the blocks' frozen weights, in bytes, that lay in a rank."""
    facts = json.loads((rundir.path / f"held-{rank}.json").read_text())
    return facts["here"] / facts["all"]


def _train(session) -> None:
    try:
        _real(session)
    finally:
        part = session.family.denoiser
        frozen = {p for block in blocks(part) for p in block.parameters() if not p.requires_grad}
        facts = {"here": held_bytes(part), "all": sum(p.numel() * p.element_size() for p in frozen)}
        path = session.setting.rundir.path / f"held-{session.accelerator.process_index}.json"
        path.write_text(json.dumps(facts))


def _marked(rundir: RunDir, word: str) -> bool:
    return (rundir.path / f"{word}-{process_rank()}").exists()


def _backward(*arguments, **options) -> torch.Tensor:
    loss = _summed(*arguments, **options)
    return loss * torch.nan if _marked(RunDir(Path(_now[0])), "nan") else loss


def _attempt(rehearsal: Rehearsal) -> BaseException | None:
    if _marked(rehearsal.setting.rundir, "short"):
        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return _tried(rehearsal)


def _load_part(*arguments) -> None:
    if _marked(RunDir(Path(_now[0])), "damaged"):
        raise BadInput("unet", "cannot be loaded", "check the base")
    _loaded(*arguments)


_now: list[str] = []  # the directory whose turn it is
_real, _summed, _tried = trainers.loop.train, trainers.loop.backward, Rehearsal.attempt
_loaded = trainers.setup.load_part

if __name__ == "__main__":
    from accelerate import Accelerator

    trainers.loop.train, trainers.loop.backward, Rehearsal.attempt = _train, _backward, _attempt
    trainers.setup.load_part = _load_part
    end = Accelerator.end_training
    Accelerator.end_training = lambda _: None  # the group of processes is there for all runs
    codes = []
    for folder in sys.argv[1:]:
        _now[:] = [folder]
        codes.append(run.main([folder]))
    end(Accelerator())
    sys.exit(max(codes))
