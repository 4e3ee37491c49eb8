"""Bases with rounded weights on a GPU: nearly the same picture, in less memory, with and without adapters."""

from pathlib import Path

import pytest
import torch
from torch import nn

from studio.sampling.engine import Engine
from tests.support.bases import save_base
from tests.support.modes import floats, task
from trainers.stored import ROUNDED, StoredLinear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
@pytest.mark.parametrize("precision", ROUNDED)
def test_rounded_weights_draw_alike_and_take_less(tmp_path: Path, family: str, precision: str):
    folder = save_base(family, tmp_path / "base")
    pictures, left = [], []
    for wanted in ("whole", precision):
        engine = Engine(device="cuda")
        pictures.append(floats(task(family, folder, steps=3, precision=wanted), engine).cpu())
        engine._shelf.collect()
        left.append(torch.cuda.memory_allocated())
        engine.unload()
        del engine
    # A toy base of random weights, and half precision beside it: 4 bits are 9 % off.
    near = {"int8": 0.05, "fp8": 0.15, "nf4": 0.3}[precision]
    torch.testing.assert_close(pictures[0], pictures[1], atol=near, rtol=0)
    assert left[1] < left[0]


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("memory", ["model", "group", "sequential"])
def test_rounded_weights_come_and_go(tmp_path: Path, precision: str, memory: str):
    folder = save_base("sd35", tmp_path / "base")
    resident = floats(task("sd35", folder, steps=3, precision=precision), Engine(device="cuda"))
    moving = floats(task("sd35", folder, steps=3, precision=precision, memory=memory), Engine(device="cuda"))
    torch.testing.assert_close(moving.cpu(), resident.cpu(), atol=0.02, rtol=0)


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_the_same_on_both_devices(precision: str, dtype: torch.dtype):
    torch.manual_seed(0)
    layer = nn.Linear(640, 320).to(dtype).requires_grad_(False)
    twin = nn.Linear(640, 320).to(dtype).requires_grad_(False)
    twin.load_state_dict(layer.state_dict())
    here = StoredLinear(layer, precision, torch.device("cpu"))
    there = StoredLinear(twin.cuda(), precision, torch.device("cuda"))
    torch.testing.assert_close(there.weight.cpu(), here.weight)
