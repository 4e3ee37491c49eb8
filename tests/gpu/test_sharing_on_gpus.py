"""A base that two GPUs hold together: the run of two whole ones, with half of the blocks' weights on each."""

import pytest
import torch
from safetensors.torch import load_file

from studio.runs.executors import LocalExecutor
from tests.support.runs import KEY, ROOT, write_run
from tests.support.sharing_ranks import held

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize("family", ["flux1", "sdxl"])
def test_two_gpus_share_the_base(family, request, tmp_path, pictures):
    """Started as a worker does: accelerate's launcher, its configuration in the run directory, NCCL."""
    base, runs = request.getfixturevalue(f"tiny_{family}"), []
    for sharing in ("off", "on"):
        changes = {
            "train.processes": 2,
            "train.base_sharding": sharing,
            "train.max_steps": 4,
            "train.gradient_checkpointing": True,
            "preview.every": 4,
        }
        rundir = write_run(tmp_path / sharing, base, pictures, changes, family=family)
        executor = LocalExecutor(KEY, module="tests.support.sharing_ranks", extra={"PYTHONPATH": str(ROOT)})
        trainer = executor.spawn(rundir, 2)
        executor._children[trainer.pid].wait(600)
        assert executor.exit_code(trainer) == 0, rundir.file("log.txt").read_text()
        assert rundir.file("accelerate.json").exists()
        runs.append(rundir)
    whole, shared = runs
    assert [held(whole, rank) for rank in (0, 1)] == [1, 1]
    assert all(0.45 < held(shared, rank) < 0.55 for rank in (0, 1))
    assert [line["loss"] for line in shared.read_metrics()] == pytest.approx(
        [line["loss"] for line in whole.read_metrics()], rel=1e-2
    )  # half precision
    theirs = load_file(shared.adapter)
    assert all(torch.isfinite(theirs[key]).all() for key in load_file(whole.adapter))
    assert len(shared.previews()) == len(whole.previews())
