"""Masks, repeats and weights on the way in: found, checked, kept, and never taken for pictures."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pixels

from registry.errors import BadInput, NotFound
from registry.records import Image
from studio.datasets.captions import folder_repeats, read_numbers
from studio.datasets.decode import decode
from studio.datasets.ingest import IngestReport, Upload, create_dataset, images_of, set_mask
from studio.datasets.sources import Reading
from studio.workspace import Workspace
from tests.support.pictures import encoded, pixels


def grey(value: int = 255, size: tuple[int, int] = (32, 24)) -> bytes:
    """A mask, white in its right half."""
    picture = Pixels.new("L", size, 0)
    picture.paste(value, (size[0] // 2, 0, *size))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def photo(n: int = 0, size: tuple[int, int] = (32, 24)) -> bytes:
    return encoded(np.random.default_rng(n).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def make(ws: Workspace, folder: Path, **reading: object) -> tuple[IngestReport, list[Image]]:
    report = create_dataset(ws, "set", [folder], reading=Reading(**reading))  # type: ignore[arg-type]
    return report, images_of(ws, report.dataset)


def files(folder: Path, contents: dict[str, bytes | str]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def stored(ws: Workspace, blob: str) -> Pixels.Image:
    picture = Pixels.open(ws.blobs.path(blob))
    assert picture.format == "PNG"
    assert picture.mode == "L"
    return picture


@pytest.mark.parametrize(
    "mask", ["1-masklabel.png", "1_mask.png", "1.mask.png", "masks/1.png", "masks/1.jpg.png", "1_MASK.PNG"]
)
def test_a_mask_is_found_beside_its_picture_and_is_none_itself(ws: Workspace, tmp_path: Path, mask: str):
    folder = files(tmp_path / "a", {"1.jpg": photo(1), "2.jpg": photo(2), mask: grey()})
    report, images = make(ws, folder)
    assert [image.name for image in images] == ["1.jpg", "2.jpg"]
    assert stored(ws, images[0].mask).getpixel((31, 0)) == 255
    assert images[1].mask == ""
    assert report.notes == ["masks came with 1 of 2 pictures"]
    assert report.refused == []


def test_masks_in_a_sibling_folder_a_zip_and_an_upload(ws: Workspace, tmp_path: Path):
    folder = files(tmp_path / "a", {"pictures/1.png": photo(1), "masks/1.png": grey()})
    assert [bool(image.mask) for image in make(ws, folder)[1]] == [True]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("1.png", photo(1))
        archive.writestr("1_mask.png", grey())
    uploads = [Upload("3.png", photo(3)), Upload("3-masklabel.png", grey())]
    report = create_dataset(ws, "more", [tmp_path / "b.zip", *uploads])
    assert [(i.name, bool(i.mask)) for i in images_of(ws, report.dataset)] == [
        ("1.png", True),
        ("3.png", True),
    ]
    files(tmp_path / "c", {"1.png": photo(1), "masks/1.png": grey(), "2.png": photo(2)})
    report = create_dataset(ws, "single", [tmp_path / "c" / "1.png", tmp_path / "c" / "2.png"])
    assert [bool(image.mask) for image in images_of(ws, report.dataset)] == [True, False]


def test_a_name_like_a_masks_without_a_picture_is_a_picture(ws: Workspace, tmp_path: Path):
    folder = files(tmp_path / "a", {"gas_mask.png": photo(1), "masks/venice.png": photo(2)})
    report, images = make(ws, folder)
    assert [image.name for image in images] == ["gas_mask.png", "masks/venice.png"]
    assert report.notes == []


def test_a_mask_of_nothing_among_masks_is_told(ws: Workspace, tmp_path: Path):
    folder = files(tmp_path / "a", {"1.png": photo(1), "masks/1.png": grey(), "masks/9.png": grey(200)})
    report, images = make(ws, folder)
    assert [image.name for image in images] == ["1.png", "masks/9.png"]
    assert "masks without a picture, taken as pictures: masks/9.png" in report.notes


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (b"hello", "1_mask.png"),
        (grey(0), "is black all over: nothing of its picture would count. paint white what does"),
        (grey(size=(24, 32)), "is 24x32 pixels, its picture 32x24. give a mask of the picture's shape"),
        (photo(5), "has colours, so it is no mask"),
    ],
)
def test_a_bad_mask_is_named_and_its_picture_stays(ws: Workspace, tmp_path: Path, mask: bytes, said: str):
    report, images = make(ws, files(tmp_path / "a", {"1.png": photo(1), "1_mask.png": mask}))
    assert [(image.name, image.mask) for image in images] == [("1.png", "")]
    ((name, reason),) = report.refused
    assert name == "1_mask.png"
    assert said in f"{name} {reason}"


def test_a_mask_of_half_the_size_fits(ws: Workspace, tmp_path: Path):
    folder = files(tmp_path / "a", {"1.png": photo(1, (64, 48)), "1_mask.png": grey()})
    assert make(ws, folder)[1][0].mask


def test_alpha_is_kept_only_when_asked_for(ws: Workspace, tmp_path: Path):
    cut = Pixels.fromarray(pixels(1)).convert("RGBA")
    cut.putalpha(Pixels.open(io.BytesIO(grey(128, cut.size))))
    buffer = io.BytesIO()
    cut.save(buffer, "PNG")
    folder = files(tmp_path / "a", {"1.png": buffer.getvalue(), "2.png": photo(2)})
    plain = create_dataset(ws, "plain", [folder]).dataset
    assert [image.mask for image in images_of(ws, plain)] == ["", ""]
    _, images = make(ws, folder, alpha_masks=True)
    mask = stored(ws, images[0].mask)
    assert (mask.size, mask.getextrema()) == (cut.size, (0, 128))
    assert images[0].note == "transparency laid on white and kept as a mask"
    assert images[1].mask == ""
    files(folder, {"1_mask.png": grey(255, cut.size)})  # a file comes before alpha
    report = create_dataset(ws, "both", [folder], reading=Reading(alpha_masks=True))
    assert stored(ws, images_of(ws, report.dataset)[0].mask).getextrema() == (0, 255)


def test_masks_are_decoded_by_the_child_alone():
    decoded = decode(photo(1), "a.png")
    assert (decoded.mask, decoded.mask_error) == (b"", None)


def test_repeats_and_weight_come_from_the_table(ws: Workspace, tmp_path: Path):
    rows = [
        {"file_name": "1.png", "text": "one", "repeats": 3, "weight": 0.5},
        {"file_name": "2.png", "repeats": "4"},
        {"file_name": "3.png", "text": "three", "weight": 2},
        {"file_name": "4.png", "text": "four", "repeats": 0},
    ]
    contents = {f"{n}.png": photo(n) for n in range(1, 5)}
    lines = "\n".join(map(json.dumps, rows))
    report, images = make(ws, files(tmp_path / "a", {**contents, "metadata.jsonl": lines}))
    assert [(i.caption, i.repeats, i.weight) for i in images] == [
        ("one", 3, 0.5), ("", 4, 1.0), ("three", 1, 2.0), ("", 1, 1.0)
    ]  # fmt: skip
    assert report.refused == [
        (
            "metadata.jsonl line 4",
            "has repeats '0', which is not a whole number from 1 to 1000. correct the line.",
        )
    ]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({}, None),
        ({"repeats": "", "weight": None}, None),
        ({"repeats": 1}, (1, 1.0)),
        ({"weight": "0"}, (1, 0.0)),
        ({"repeats": "2.0", "weight": "1e1"}, (2, 10.0)),
    ],
)
def test_numbers_of_a_row(row: dict[str, object], found: object):
    assert read_numbers(row) == found


@pytest.mark.parametrize(
    "row",
    [
        {"repeats": value} for value in (1.5, -1, "many", True, 1001, "nan", [2])
    ] + [{"weight": value} for value in (-0.1, "inf", 101, False, {})],
)  # fmt: skip
def test_numbers_that_cannot_be(row: dict[str, object]):
    with pytest.raises(ValueError, match=r"has (repeats|weight) .* which is not a"):
        read_numbers(row)


def test_folder_names_hold_repeats_when_asked(ws: Workspace, tmp_path: Path):
    folder = files(
        tmp_path / "a", {"10_sks dog/1.png": photo(1), "2_cat/2.png": photo(2), "x/3.png": photo(3)}
    )
    report = create_dataset(ws, "plain", [folder])
    assert {image.repeats for image in images_of(ws, report.dataset)} == {1}
    assert report.notes == [
        "folder names hold repeats, which were not used: 2_cat, 10_sks dog; "
        "add with --folder-repeats to use them"
    ]
    report, images = make(ws, folder, folder_repeats=True, captions_from="folder")
    assert [(i.caption, i.repeats) for i in images] == [("cat", 2), ("sks dog", 10), ("x", 1)]
    assert report.notes == [
        "repeats taken from folder names: 2_cat (2 times an epoch), 10_sks dog (10 times an epoch)"
    ]


def test_folder_names():
    assert folder_repeats("10_sks dog/1.png") == 10
    assert folder_repeats("a/5_x/1.png") == 5
    assert [folder_repeats(name) for name in ("1.png", "dog/1.png", "10/1.png", "0_x/1.png", "10_x.png")] == [
        0
    ] * 5


def test_the_hash_of_a_set_follows_repeats_weight_and_mask(ws: Workspace, tmp_path: Path):
    from dataclasses import replace

    dataset = make(ws, files(tmp_path / "a", {"1.png": photo(1)}))[0].dataset
    (image,) = images_of(ws, dataset)
    hashes = {dataset.content_hash}
    for change in ({"repeats": 2}, {"weight": 0.5}, {"mask": "m"}, {"repeats": 2, "weight": 0.5}):
        hashes.add(ws.catalog.replace_images(dataset.id, [replace(image, **change)]).content_hash)
    assert len(hashes) == 5
    assert ws.catalog.replace_images(dataset.id, [image]).content_hash == dataset.content_hash


def test_the_command_line_shows_them(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from studio.cli import run

    monkeypatch.setenv("STUDIO_HOME", str(ws.home))
    folder = files(tmp_path / "a", {"3_dog/1.png": photo(1), "3_dog/1_mask.png": grey()})
    add = ["datasets", "add", "set", str(folder), "--folder-repeats", "--captions-from"]
    assert run([*add, "dreams"]) == 2
    assert run([*add, "folder"]) == 0
    capsys.readouterr()
    assert run(["--json", "datasets", "show", "set"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["images"]
    assert (shown["repeats"], shown["weight"], shown["mask"], shown["caption"]) == (3, 1.0, True, "dog")
    assert shown["seen"] == ["dog"]


def test_a_mask_is_given_and_taken_away_later(ws: Workspace, tmp_path: Path):
    report, images = make(ws, files(tmp_path / "a", {"1.jpg": photo(1), "2.jpg": photo(2)}))
    first, second = images
    changed = set_mask(ws, report.dataset, second.id, ("half.png", grey(size=(64, 48))))
    assert changed.content_hash != report.dataset.content_hash
    kept = images_of(ws, report.dataset)
    assert [bool(image.mask) for image in kept] == [False, True]
    assert [(i.id, i.blob, i.caption) for i in kept] == [(i.id, i.blob, i.caption) for i in images]
    assert stored(ws, kept[1].mask).size == (64, 48)
    set_mask(ws, report.dataset, second.id, None)
    assert not any(image.mask for image in images_of(ws, report.dataset))
    with pytest.raises(NotFound, match="is not in this data set"):
        set_mask(ws, report.dataset, "nobody", None)
    assert first.id == images_of(ws, report.dataset)[0].id


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (
            grey(size=(32, 32)),
            "m.png: is 32x32 pixels, its picture 32x24. give a mask of the",
        ),
        (photo(3), "m.png: has colours, so it is no mask"),
        (b"hello", "m.png: "),
        (b"", "m.png: "),
    ],
)
def test_a_mask_that_does_not_fit_changes_nothing(ws: Workspace, tmp_path: Path, content: bytes, wrong: str):
    report, images = make(ws, files(tmp_path / "a", {"1.jpg": photo(1), "1_mask.png": grey()}))
    with pytest.raises(BadInput, match=wrong) as caught:
        set_mask(ws, report.dataset, images[0].id, ("m.png", content))
    assert "\n" not in str(caught.value)
    assert images_of(ws, report.dataset) == images
