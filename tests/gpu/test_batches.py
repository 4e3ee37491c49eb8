"""Batches on a GPU."""

import pytest
import torch

from trainers.data import Batch
from trainers.plan import Geometry


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_whole_on_the_gpu():
    square = Geometry((8, 8), (0, 0), (8, 8))
    batch = Batch(
        latents=torch.randn(2, 4, 8, 8),
        cond={"hidden": torch.randn(2, 77, 96), "input_ids": torch.arange(154).reshape(2, 77)},
        geometry=[square, square],
        weight=torch.tensor([1.0, 0.5]),
        names=["a", "b"],
        captions=["a", ""],
        epoch=1,
        index=2,
    )
    moved = batch.to(torch.device("cuda"))
    torch.cuda.synchronize()
    assert moved.latents.is_cuda
    assert torch.equal(moved.latents.cpu(), batch.latents)
    assert torch.equal(moved.weight.cpu(), batch.weight)
    assert all(torch.equal(moved.cond[name].cpu(), value) for name, value in batch.cond.items())
    assert (moved.names, moved.epoch, moved.index) == (["a", "b"], 1, 2)
