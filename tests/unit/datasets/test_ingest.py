"""Pictures into the workspace: all or nothing per data set, one bad file never stops the rest."""

import resource
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from registry.errors import BadInput, NotFound, StudioError
from registry.records import Dataset, Image
from studio.datasets.ingest import (
    Upload,
    add_images,
    create_dataset,
    images_of,
    remove_images,
    set_captions,
    set_trigger,
)  # fmt: skip
from studio.datasets.sources import Reading
from studio.workspace import Workspace
from tests.support.pictures import decoded, encoded, hash_of, pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures, eleven with a caption, one in a folder of its own."""
    folder = tmp_path / "cats"
    (folder / "more").mkdir(parents=True)
    for i in range(12):
        place = folder / ("more/img11.png" if i == 11 else f"img{i}.png")
        place.write_bytes(encoded(pixels(i)))
        if i:
            place.with_suffix(".txt").write_text(f"cat {i}")
    return folder


def test_a_folder(ws: Workspace, folder: Path):
    report = create_dataset(ws, "cats", [folder], trigger="sks")
    assert (report.added, report.duplicates, report.refused, report.notes) == (12, 0, [], [])
    assert report.uncaptioned == 1
    dataset = ws.catalog.get(Dataset, "cats")
    assert dataset == report.dataset
    assert (dataset.trigger, dataset.image_count, dataset.source) == ("sks", 12, str(folder))
    images = images_of(ws, dataset)
    assert [image.name for image in images] == [f"img{i}.png" for i in range(11)] + ["more/img11.png"]
    assert [image.caption for image in images] == ["", *(f"cat {i}" for i in range(1, 12))]
    for i, image in enumerate(images):
        content = decoded(ws.blobs.path(image.blob).read_bytes())
        assert np.array_equal(content, pixels(i))
        assert image.pixel_hash == hash_of(content)


def test_without_recursion_inner_folders_stay_out(ws: Workspace, folder: Path):
    assert create_dataset(ws, "cats", [folder], reading=Reading(recursive=False)).added == 11


def test_every_kind_of_source_at_once(ws: Workspace, folder: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("z1.png", encoded(pixels(100)))
        archive.writestr("z1.txt", "from the zip")
    (tmp_path / "single.webp").write_bytes(encoded(pixels(101), "WEBP", lossless=True))
    (tmp_path / "single.txt").write_text("beside it")
    zipped_upload = (tmp_path / "a.zip").read_bytes().replace(b"z1.", b"y1.")
    sources = [
        folder, str(tmp_path / "a.zip"), tmp_path / "single.webp",
        Upload("up.png", encoded(pixels(102))), Upload("up.txt", b"uploaded"), ("b.zip", zipped_upload),
    ]  # fmt: skip
    report = create_dataset(ws, "all", sources)
    captions = {image.name: image.caption for image in images_of(ws, report.dataset)}
    assert report.added == 15
    assert report.duplicates == 1  # y1.png is z1.png
    assert captions["z1.png"] == "from the zip"
    assert captions["single.webp"] == "beside it"
    assert captions["up.png"] == "uploaded"


def test_bad_files_are_named_and_the_rest_comes_in(ws: Workspace, folder: Path):
    (folder / "img3.png").write_bytes(b"")
    (folder / "img5.png").write_bytes(encoded(pixels(5))[:-30])
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    report = create_dataset(ws, "cats", [folder])
    assert report.added == 10
    assert report.refused == [
        ("img3.png", "is empty (0 bytes). copy or download it again."),
        ("img5.png", "is cut off: the end of the picture is missing. copy or download it again."),
        ("photo.heic", "is a HEIC picture, which is not read here. export it as JPEG or PNG."),
    ]
    assert report.notes == ["left out, no pictures: notes.pdf"]


def test_what_was_converted_is_reported_and_kept_with_the_picture(ws: Workspace, folder: Path):
    rgba = np.dstack([pixels(50), np.full((32, 40), 9, np.uint8)])
    (folder / "img2.png").write_bytes(encoded(rgba))
    report = create_dataset(ws, "cats", [folder])
    assert report.notes == ["transparency laid on white: img2.png"]
    assert images_of(ws, report.dataset)[2].note == "transparency laid on white"


def test_the_same_pixels_come_in_once(ws: Workspace, folder: Path):
    (folder / "again.bmp").write_bytes(encoded(pixels(4), "BMP"))
    report = create_dataset(ws, "cats", [folder])
    assert (report.added, report.duplicates) == (12, 1)
    assert report.notes == ["left out, there already: img4.png = again.bmp"]


def test_a_source_without_a_usable_picture_leaves_nothing(ws: Workspace, folder: Path, tmp_path: Path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"not a picture")
    for sources in ([bad], [folder, bad]):
        with pytest.raises(BadInput, match=r"bad: has no picture that can be used \(a\.png is text"):
            create_dataset(ws, "cats", sources)
    (bad / "a.png").unlink()
    with pytest.raises(BadInput, match="has no picture that can be used"):
        create_dataset(ws, "cats", [bad])
    assert ws.catalog.list(Dataset) == []
    assert ws.catalog.count(Image) == 0


def test_single_bad_files_are_refused_beside_good_ones(ws: Workspace, folder: Path, tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"")
    report = create_dataset(ws, "cats", [folder / "img1.png", tmp_path / "bad.png"])
    assert report.added == 1
    assert [name for name, _ in report.refused] == ["bad.png"]
    with pytest.raises(BadInput, match=r"^bad\.png: is empty"):
        create_dataset(ws, "other", [tmp_path / "bad.png"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/at/all", "/nowhere/at/all: is not there"),
        ("https://example.org/cats.zip", "is a web address"),
        ("", "source: is empty"),
        ("x" * 5000, "is not there"),
    ],
)
def test_sources_that_are_none(ws: Workspace, source: str, message: str):
    with pytest.raises(BadInput, match=message):
        create_dataset(ws, "cats", [source])
    with pytest.raises(BadInput, match="sources: are missing"):
        create_dataset(ws, "cats", [])


@pytest.mark.parametrize("name", ["", "..", "a/b", "CON", "x" * 101, "a\u202eb"])
def test_bad_names_are_refused_before_anything_is_read(ws: Workspace, folder: Path, name: str):
    with pytest.raises(BadInput):
        create_dataset(ws, name, [folder])


def test_a_name_is_taken_once(ws: Workspace, folder: Path):
    create_dataset(ws, "cats", [folder])
    with pytest.raises(BadInput, match="data set 'cats': exists already"):
        create_dataset(ws, "cats", [folder])


def test_captions_from_names(ws: Workspace, folder: Path):
    create_dataset(ws, "cats", [folder], reading=Reading(captions_from="folder"))
    images = images_of(ws, ws.catalog.get(Dataset, "cats"))
    assert images[-1].caption == "cat 11"  # its own file wins
    assert images[0].caption == ""  # the top of a source has no folder name
    (folder / "more" / "img11.txt").unlink()
    report = create_dataset(ws, "again", [folder], reading=Reading(captions_from="folder"))
    assert images_of(ws, report.dataset)[-1].caption == "more"


def test_progress_counts_every_picture(ws: Workspace, folder: Path):
    seen: list[tuple[int, int]] = []
    create_dataset(ws, "cats", [folder], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 12) for i in range(12)]


def test_adding_keeps_what_is_there(ws: Workspace, folder: Path, tmp_path: Path):
    dataset = create_dataset(ws, "cats", [folder]).dataset
    before = images_of(ws, dataset)
    (tmp_path / "new.png").write_bytes(encoded(pixels(77)))
    report = add_images(ws, dataset, [tmp_path / "new.png", folder / "img1.png"])
    assert (report.added, report.duplicates, report.dataset.image_count) == (1, 1, 13)
    after = images_of(ws, dataset)
    assert after[:12] == before
    assert after[12].name == "new.png"
    assert report.dataset.content_hash != dataset.content_hash


def test_captions_trigger_and_removal(ws: Workspace, folder: Path):
    dataset = create_dataset(ws, "cats", [folder]).dataset
    images = images_of(ws, dataset)
    changed = set_captions(ws, dataset, {images[0].id: "  a new cat\n"})
    assert images_of(ws, dataset) == [replace(images[0], caption="a new cat"), *images[1:]]
    assert changed.content_hash != dataset.content_hash
    assert set_trigger(ws, dataset, " my  word ").trigger == "my word"
    assert remove_images(ws, dataset, [images[1].id]).image_count == 11
    assert [image.name for image in images_of(ws, dataset)][:2] == ["img0.png", "img2.png"]
    with pytest.raises(NotFound, match="is not in this data set"):
        set_captions(ws, dataset, {images[1].id: "gone"})
    with pytest.raises(BadInput, match="would be empty"):
        remove_images(ws, dataset, [image.id for image in images_of(ws, dataset)])
    with pytest.raises(BadInput, match="trigger: has 101 characters"):
        set_trigger(ws, dataset, "x" * 101)


def test_a_disk_that_cannot_be_written_stops_everything(ws: Workspace, folder: Path):
    ws.blobs.root.rmdir()
    ws.blobs.root.write_text("in the way")
    with pytest.raises(StudioError, match="cannot be written"):
        create_dataset(ws, "cats", [folder])
    assert ws.catalog.list(Dataset) == []


def test_a_folder_that_links_to_itself_ends(ws: Workspace, folder: Path):
    (folder / "loop").symlink_to(folder)
    (folder / "linked.png").symlink_to(folder / "img0.png")  # a link to a file is a picture like any other
    report = create_dataset(ws, "cats", [folder])
    assert (report.added, report.duplicates) == (12, 1)


def test_a_thousand_pictures_take_little_time_and_memory(ws: Workspace, tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(1000):
        (folder / f"{i}.png").write_bytes(encoded(pixels(i, 128, 128), compress_level=1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    report = create_dataset(ws, "many", [folder])
    seconds = time.monotonic() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert report.added == 1000
    assert [image.name for image in images_of(ws, report.dataset)] == [f"{i}.png" for i in range(1000)]
    assert seconds < 20
    assert grown < 60  # MiB; all pictures together have 47 MiB as pixels, and much more at true size
