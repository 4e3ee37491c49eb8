"""Ways to save memory on a GPU: the same picture, less memory at once."""

from pathlib import Path

import pytest
import torch

from studio.sampling.engine import Engine
from tests.support.bases import save_base
from tests.support.modes import floats, task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
@pytest.mark.parametrize("mode", ["slicing", "model", "group", "sequential"])
def test_every_way_draws_the_same_picture_with_less(tmp_path: Path, family: str, mode: str):
    folder = save_base(family, tmp_path / "base")
    pictures, left = [], []
    for memory in ("fast", mode):
        engine = Engine(device="cuda")
        pictures.append(floats(task(family, folder, steps=3, memory=memory), engine).cpu())
        engine._shelf.collect()
        left.append(torch.cuda.memory_allocated())
        engine.unload()
        del engine
    torch.testing.assert_close(pictures[0], pictures[1], atol=0.02, rtol=0)  # half precision
    if mode != "slicing":
        assert left[1] < left[0], "parts must not stay on the device"
