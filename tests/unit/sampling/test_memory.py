"""How a base lies in memory: the fit as a pure function, and each way on a real toy base."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.sampling.engine import Engine
from studio.sampling.memory import DECODE_BYTES, TILE_PIXELS, choose, needed_bytes
from tests.support.bases import save_base
from tests.support.modes import floats, picture, saved, task

pytestmark = pytest.mark.filterwarnings("ignore")

GIB = 2**30
SDXL = {"text_encoder": GIB // 4, "text_encoder_2": 3 * GIB // 2, "unet": 5 * GIB, "vae": GIB // 3}
FLUX = {"text_encoder": GIB // 4, "text_encoder_2": 9 * GIB, "transformer": 22 * GIB, "vae": GIB // 3}
FULL_HD = needed_bytes(1024 * 1024)


@pytest.mark.parametrize(
    ("parts", "free", "mode"),
    [
        (SDXL, 24, "fast"),
        (SDXL, 9, "slicing"),
        (SDXL, 7, "model"),
        (SDXL, 4, "group"),
        (SDXL, 1, "sequential"),
        (FLUX, 80, "fast"),
        (FLUX, 24, "model"),
        (FLUX, 12, "group"),
    ],
)
def test_the_quickest_way_that_fits_is_taken(parts: dict[str, int], free: int, mode: str):
    assert choose("auto", parts, FULL_HD, free * GIB) == mode


@pytest.mark.parametrize("mode", ["fast", "slicing", "model", "sequential", "group"])
def test_what_the_request_says_goes_first(mode: str):
    assert choose(mode, SDXL, FULL_HD, GIB) == mode
    assert choose(mode, SDXL, FULL_HD, 80 * GIB, on_cpu=True) == mode


def test_on_the_cpu_nothing_is_changed_unasked():
    """Else the same request would draw another picture on a day with less free memory."""
    assert choose("auto", FLUX, FULL_HD, GIB, on_cpu=True) == "fast"


def test_pieces_bound_what_decoding_needs():
    whole, pieces = needed_bytes(4096 * 4096)
    assert whole == DECODE_BYTES * 4096 * 4096
    assert pieces < whole / 5
    assert needed_bytes(256 * 256)[0] == needed_bytes(256 * 256)[1]
    assert needed_bytes(TILE_PIXELS)[0] == DECODE_BYTES * TILE_PIXELS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@cache
def drawn_fast(family: str, root: Path) -> tuple[Path, list[tuple[dict[str, Any], torch.Tensor]]]:
    """A base, and what it draws unasked: from noise, and from a picture."""
    folder = save_base(family, root / family)
    image = saved(picture(), root / f"{family}.png")
    ways: list[dict[str, Any]] = [{}, {"image": image, "strength": 0.6}]
    return folder, [(fields, floats(task(family, folder, steps=2, **fields))) for fields in ways]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd35", "flux1"])
@pytest.mark.parametrize("mode", ["slicing", "model", "sequential", "group"])
def test_every_way_draws_the_same_picture(root: Path, family: str, mode: str):
    folder, ways = drawn_fast(family, root)
    for fields, plain in ways:
        saving = floats(task(family, folder, steps=2, memory=mode, **fields))
        torch.testing.assert_close(saving, plain, atol=1e-4, rtol=0)


def test_another_way_loads_the_base_anew_and_auto_keeps_it(tmp_path: Path):
    folder = save_base("sd15", tmp_path / "base")
    engine = Engine(device="cpu")
    modes: list[str] = []
    for memory in ("auto", "model", "auto", "slicing", "fast"):
        floats(task("sd15", folder, steps=1, memory=memory), engine)
        (loaded,) = engine._shelf.bases.values()
        modes.append(loaded.mode)
    assert modes == ["fast", "model", "model", "slicing", "fast"]
