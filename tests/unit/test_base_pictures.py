"""Previews of the base that later runs need not draw again."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from trainers.base_pictures import BasePictures

SIZE = (8, 8)


def cond(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"hidden": torch.full((1, 2, 3), value, dtype=dtype), "pooled": torch.ones(1, 2)}


def test_what_a_picture_depends_on_is_in_its_name(tmp_path: Path):
    kept = BasePictures(tmp_path, {"base": "a", "steps": 20})
    path = kept.path(0, SIZE, cond(1), cond(0))
    assert kept.path(0, SIZE, cond(1), cond(0)) == path
    others = {
        kept.path(1, SIZE, cond(1), cond(0)),
        kept.path(0, (8, 16), cond(1), cond(0)),
        kept.path(0, SIZE, cond(0), cond(1)),
        kept.path(0, SIZE, cond(1, torch.bfloat16), cond(0)),
        kept.path(0, SIZE, cond(1), {"hidden": cond(0)["hidden"]}),
        BasePictures(tmp_path, {"base": "b", "steps": 20}).path(0, SIZE, cond(1), cond(0)),
    }
    assert len(others | {path}) == 7


def test_it_is_kept_and_a_damaged_one_is_drawn_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = BasePictures(tmp_path / "previews", {})
    path, picture = kept.path(0, SIZE, cond(1)), Image.effect_noise(SIZE, 80).convert("RGB")
    assert kept.read(path) is None
    kept.write(path, picture)
    read = kept.read(path)
    assert read is not None
    assert read.tobytes() == picture.tobytes()
    path.write_bytes(path.read_bytes()[:60])
    assert kept.read(path) is None
    assert "damaged" in caplog.text
    (tmp_path / "file").touch()
    BasePictures(tmp_path / "file", {}).write(tmp_path / "file" / "x.png", picture)
    assert "not kept" in caplog.text  # a run does not fail of it
