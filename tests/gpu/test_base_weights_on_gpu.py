"""Training over a rounded or streamed base on a GPU: the same numbers as resident, in less memory."""

import pytest
import torch

from tests.support.runs import write_run
from tests.unit.test_streaming import Tower, step
from trainers.metrics import Reporter
from trainers.run import run
from trainers.signals import StopFlag
from trainers.stored import ROUNDED, StoredLayer, compress_part
from trainers.streaming import stream_part

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["whole", *ROUNDED])
def test_streamed_blocks_give_the_numbers_of_resident_ones(precision, checkpointed):
    torch.manual_seed(0)
    resident, streamed = Tower(checkpointed=checkpointed), Tower(checkpointed=checkpointed)
    streamed.load_state_dict(resident.state_dict())
    for tower in (resident, streamed):
        tower.requires_grad_(False)
        compress_part(tower, precision, CUDA)
    resident.to(CUDA)
    stream = stream_part(streamed, CUDA)
    torch.set_default_device(CUDA)
    try:
        for _ in range(5):
            assert all(torch.equal(*pair) for pair in zip(step(resident), step(streamed), strict=True))
    finally:
        torch.set_default_device("cpu")
    assert stream.most <= stream.room
    assert all(layer.resting[0].is_pinned() for layer in streamed.modules() if isinstance(layer, StoredLayer))


@pytest.mark.parametrize("changes", [{"base_weights": "nf4"}, {"base_streaming": "on"}])
def test_a_run_ends_in_less_memory(changes, tmp_path, tiny_sdxl, pictures):
    peaks = []
    for name, more in (("plain", {}), ("less", changes)):
        settings = {f"train.{key}": value for key, value in more.items()}
        rundir = write_run(tmp_path / name, tiny_sdxl, pictures, settings, family="sdxl")
        reporter = Reporter(rundir)
        torch.cuda.empty_cache()
        assert run(reporter, StopFlag()) == 0
        assert reporter.status.warnings == []
        peaks.append(rundir.read_metrics()[-1]["peak_memory"])
    assert peaks[1] < peaks[0]
