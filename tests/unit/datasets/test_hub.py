"""Hugging Face data sets, built on the spot: no network, the real library."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image as Pillow

from registry.errors import BadInput
from studio.datasets.ingest import create_dataset, images_of
from studio.workspace import Workspace
from tests.support.pictures import decoded, encoded, pixels

COUNT = 6


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's cache in a folder of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))


def built(column: str = "text", **more: Any) -> datasets.Dataset:
    cells = [{"bytes": encoded(pixels(i)), "path": f"{i}.png"} for i in range(COUNT)]
    rows = {"image": cells, column: [f"picture {i}" for i in range(COUNT)]} | more
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def check(ws: Workspace, spec: str, name: str = "hub") -> None:
    report = create_dataset(ws, name, [spec])
    images = images_of(ws, report.dataset)
    assert [image.caption for image in images] == [f"picture {i}" for i in range(COUNT)]
    for i, image in enumerate(images):
        assert np.array_equal(decoded(ws.blobs.path(image.blob).read_bytes()), pixels(i))


def test_parquet(ws: Workspace, tmp_path: Path):
    (tmp_path / "data").mkdir()
    built().to_parquet(tmp_path / "data" / "train-00000.parquet")
    check(ws, f"hf:{tmp_path / 'data'}")


def test_a_folder_of_parquet_needs_no_prefix(ws: Workspace, tmp_path: Path):
    (tmp_path / "data").mkdir()
    built("caption").to_parquet(tmp_path / "data" / "train-00000.parquet")
    check(ws, str(tmp_path / "data"))


def test_saved_to_disk(ws: Workspace, tmp_path: Path):
    built().save_to_disk(tmp_path / "saved")
    check(ws, f"hf:{tmp_path / 'saved'}")


def test_a_split_of_a_saved_dictionary(ws: Workspace, tmp_path: Path):
    datasets.DatasetDict({"test": built()}).save_to_disk(tmp_path / "saved")
    check(ws, f"hf:{tmp_path / 'saved'}:test")
    with pytest.raises(BadInput, match=r"has no such split .*'train'.*it has test"):
        create_dataset(ws, "other", [f"hf:{tmp_path / 'saved'}"])


def test_an_imagefolder(ws: Workspace, tmp_path: Path):
    folder = tmp_path / "imagefolder"
    folder.mkdir()
    rows: list[str] = []
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(encoded(pixels(i)))
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    check(ws, f"hf:{folder}")
    check(ws, str(folder), "plain")  # the same folder without the library


def test_bad_rows_are_refused_by_name(ws: Workspace, tmp_path: Path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(pixels(9)))
    cells = [
        {"bytes": encoded(pixels(0)), "path": "good.png"},
        {"bytes": b"not a picture", "path": "bad.png"},
        {"bytes": None, "path": str(outside)},
        None,
    ]
    features = datasets.Features({"image": datasets.Image()})
    made = datasets.Dataset.from_dict({"image": cells}, features=features)
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(made.data.table, tmp_path / "data" / "train.parquet")  # keeps the bare paths
    report = create_dataset(ws, "hub", [f"hf:{tmp_path / 'data'}"])
    assert report.added == 1
    assert [(name, message.split(".")[0]) for name, message in report.refused] == [
        ("bad.png", "is text, not a picture"),
        ("outside.png", "lies outside its data set"),
        ("row 000003", "has no picture in its row"),
    ]
    assert report.notes == ["no column looks like captions (columns: image)"]


def test_the_column_named_image_is_taken(ws: Workspace, tmp_path: Path):
    masks = [{"bytes": encoded(pixels(50)), "path": "m.png"}] * COUNT
    built(mask=masks).cast_column("mask", datasets.Image()).save_to_disk(tmp_path / "saved")
    report = create_dataset(ws, "hub", [f"hf:{tmp_path / 'saved'}"])
    assert report.notes == ["of the columns image, mask, image was taken for the pictures"]


def test_without_pictures(ws: Workspace, tmp_path: Path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(BadInput, match=r"has no column of pictures \(columns: text\)"):
        create_dataset(ws, "hub", [f"hf:{tmp_path / 'saved'}"])


def test_a_script_in_a_data_set_is_never_run(ws: Workspace, tmp_path: Path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(BadInput):
        create_dataset(ws, "hub", [f"hf:{folder}"])
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_nobody_is_named(ws: Workspace):
    with pytest.raises(BadInput, match="~nobody-at-all/pictures: has no home folder"):
        create_dataset(ws, "hub", ["hf:~nobody-at-all/pictures"])


def test_without_a_connection_there_is_one_line(ws: Workspace):
    with pytest.raises(BadInput) as raised:
        create_dataset(ws, "hub", ["hf:somebody/some-pictures"])
    assert "cannot be reached on the hub" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_library_decodes_nothing(ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built().save_to_disk(tmp_path / "saved")
    opened: list[Any] = []
    real = Pillow.open
    monkeypatch.setattr(Pillow, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    create_dataset(ws, "hub", [f"hf:{tmp_path / 'saved'}"])
    assert opened == []
    assert real(BytesIO(encoded(pixels()))).size == (40, 32)
