"""Quicker ways to compute on a GPU: the same picture but for rounding, adapters without compiling anew."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from studio.sampling.engine import Engine
from studio.sampling.task import TaskAdapter
from tests.support.bases import save_base
from tests.support.methods import save, trained
from tests.support.modes import floats, task
from trainers.recipe import AdapterSection

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
@pytest.mark.parametrize("speed", ["channels_last", "compiled"])
def test_both_draw_alike(tmp_path: Path, family: str, speed: str):
    folder, engine = save_base(family, tmp_path / "base"), Engine(device="cuda")
    plain = floats(task(family, folder, steps=3), engine).cpu()
    quick = floats(task(family, folder, steps=3, speed=speed), engine).cpu()
    torch.testing.assert_close(quick, plain, atol=0.03, rtol=0)  # half precision


def test_adapters_compile_nothing_anew(tmp_path: Path):
    folder, engine = save_base("sd15", tmp_path / "base"), Engine(device="cuda")
    adapters: list[TaskAdapter] = []
    for rank in (2, 9):
        section = AdapterSection(rank=rank)
        path = save(trained("sd15", folder, section)[1], tmp_path / f"{rank}.safetensors")
        adapters.append(
            TaskAdapter(
                id=str(rank), name=str(rank), path=str(path), tensor_sha256=str(rank), file_sha256="",
                weight=0.8, text_weight=0.8,
            )
        )  # fmt: skip
    compiled: list[int] = []
    for chosen in ([], [0], [1], [0, 1], []):
        wanted = task("sd15", folder, steps=2, speed="compiled")
        floats(replace(wanted, adapters=tuple(adapters[number] for number in chosen)), engine)
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled == [compiled[0]] * 5
