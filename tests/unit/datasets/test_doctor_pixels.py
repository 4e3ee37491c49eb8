"""Planted faults are found, and nothing else; looks are kept; fixes can be taken back."""

import random
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pixels
from PIL import ImageDraw, ImageFilter

from registry.errors import BadInput, NotFound
from registry.records import Base, Dataset, Image
from studio.datasets import examine as examining
from studio.datasets.alike import copies
from studio.datasets.crops import crops_of
from studio.datasets.doctor import check_dataset, fix_finding
from studio.datasets.doctor_pixels import BREAKS, LIKELY, PLACES, REPEATS, UNKNOWN
from studio.datasets.examine import examine, known
from studio.datasets.findings import Finding
from studio.datasets.fixes import made_fixes, undo
from studio.datasets.ingest import images_of, set_captions
from studio.datasets.measures import Measures, measure, softness
from studio.workspace import Workspace
from tests.support.painted import painted
from tests.support.planted import FAULTS, Planted, enter, plant
from trainers.recipe import Recipe, apply_sets, preset

COUNT = 44  # pictures: enough for each fault twice, few enough for a second test


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Dataset, Planted]:
    ws = Workspace.open(tmp_path_factory.mktemp("planted") / "home")
    made = plant(COUNT, seed=5, share=0.045, side=448)
    made.faults.pop("watermark")  # two pictures are not many
    dataset = enter(ws, made)
    examine(ws, images_of(ws, dataset))
    return ws, dataset, made


def recipe(*sets: str) -> Recipe:
    return apply_sets(preset("sd15", "style", "pocket"), ["train.resolution=384", *sets])


def findings(ws: Workspace, dataset: Dataset) -> dict[str, Finding]:
    found = check_dataset(ws, dataset, recipe(), ws.catalog.get(Base, "pocket"))
    return {finding.code: finding for finding in found}


def names(ws: Workspace, dataset: Dataset, finding: Finding | None) -> set[str]:
    named = {image.id: image.name for image in images_of(ws, dataset)}
    return {named[key] for key in finding.images} if finding else set()


def test_planted_faults_are_found_and_nothing_else(planted: tuple[Workspace, Dataset, Planted]):
    ws, dataset, made = planted
    found = findings(ws, dataset)
    right = wrong = missed = 0
    for code in FAULTS:
        if code not in made.faults:
            continue
        seen = names(ws, dataset, found.get(code))
        seen = {name if name in made.faults[code] else f"copy-{name}" for name in seen}
        right += len(seen & made.faults[code])
        wrong += len(seen - made.faults[code])
        missed += len(made.faults[code] - seen)
    assert right / (right + wrong) >= 0.95
    assert right / (right + missed) >= 0.9  # 18 in all: one may hide


def test_a_second_look_measures_nothing_and_a_new_picture_only_itself(
    planted: tuple[Workspace, Dataset, Planted], monkeypatch: pytest.MonkeyPatch
):
    ws, dataset, _ = planted
    images = images_of(ws, dataset)
    looked: list[str] = []
    plain = examining._measured

    def measured(ws: Workspace, new: dict[str, Path]):
        looked.extend(new)
        return plain(ws, new)

    monkeypatch.setattr(examining, "_measured", measured)
    assert examine(ws, images) is known(ws, images)
    assert known(ws, images[1:]) is None
    assert looked == []
    gone = images[0].pixel_hash
    examining._place(ws, gone).unlink()
    some = [images[0], *(image for image in images[2:] if image.pixel_hash != gone)]
    assert gone in examine(ws, some).edges
    assert looked == [gone]


def test_a_fix_is_taken_back_and_keeps_what_was_done_since(planted: tuple[Workspace, Dataset, Planted]):
    ws, dataset, _ = planted
    base, chosen, before = ws.catalog.get(Base, "pocket"), recipe(), images_of(ws, dataset)
    copies = names(ws, dataset, findings(ws, dataset)["near-duplicates"])
    done = fix_finding(ws, dataset, "near-duplicates", chosen, base)
    assert {image.name for image in done.before} == copies
    assert not copies & {image.name for image in images_of(ws, dataset)}
    other = images_of(ws, dataset)[3]
    set_captions(ws, dataset, {other.id: "written since"})
    undo(ws, dataset)
    after = images_of(ws, dataset)
    assert [image.id for image in after] == [image.id for image in before]
    assert next(image for image in after if image.id == other.id).caption == "written since"
    ws.catalog.replace_images(dataset.id, before)
    assert made_fixes(ws, dataset) == []
    with pytest.raises(NotFound, match="no fix to take back"):
        undo(ws, dataset)
    with pytest.raises(NotFound, match="is not there"):
        fix_finding(ws, dataset, "nothing", chosen, base)
    with pytest.raises(BadInput, match="cannot be fixed with one click"):
        fix_finding(ws, dataset, "path-captions", chosen, base)


def test_captions_are_mended_and_put_back(planted: tuple[Workspace, Dataset, Planted]):
    ws, dataset, _ = planted
    base, chosen, before = ws.catalog.get(Base, "pocket"), recipe(), images_of(ws, dataset)
    for code in ("trigger-misspelt", "long-captions"):
        assert code in findings(ws, dataset)
        fix_finding(ws, dataset, code, chosen, base)
        assert code not in findings(ws, dataset)
    undo(ws, dataset)
    undo(ws, dataset)
    assert [image.caption for image in images_of(ws, dataset)] == [image.caption for image in before]


def test_crops_are_those_of_the_trainer(planted: tuple[Workspace, Dataset, Planted]):
    from studio.runs.frozen import manifest_item
    from trainers.placing import place_items, views

    ws, dataset, _ = planted
    images, chosen = images_of(ws, dataset)[:6], recipe("data.crop=random", "train.resolutions=[192]")
    found = crops_of(ws, images, chosen)
    sources = [manifest_item(ws, ws.home, image) for image in images]
    items, notes = place_items(
        sources, sizes=chosen.train.sizes, step=16, data=chosen.data, seed=chosen.train.seed
    )
    wanted: dict[str, list[tuple[float, ...]]] = {image.id: [] for image in images}
    for item in items:
        wanted[images[item.index % 6].id] += [view.geometry.box for view in views(item)]
    assert {key: [crop.box for crop in crops] for key, crops in found.shown.items()} == {
        key: [pytest.approx(box, abs=0.01) for box in boxes] for key, boxes in wanted.items()
    }
    assert sum(found.buckets.values()) == len(items)
    assert found.notes == tuple(notes)


def test_a_picture_without_a_bucket_does_not_hide_the_crops_of_others(
    planted: tuple[Workspace, Dataset, Planted],
):
    ws, dataset, _ = planted
    first, second = images_of(ws, dataset)[:2]
    wide = replace(first, name="wide.png", width=2000, height=60)
    found = crops_of(ws, [wide, second], recipe("data.bucket_step=64"))
    assert found.shown[wide.id] == ()
    assert len(found.shown[second.id]) == 1
    assert found.notes[0] == "1 picture is smaller than the smallest bucket, 64x64: wide.png"
    assert crops_of(ws, [wide], recipe("data.bucket_step=64")).shown == {wide.id: ()}


def test_a_picture_that_cannot_be_read_is_said_to_be_so(ws: Workspace):
    blob = ws.blobs.put(b"\xff\xd8\xff no picture")
    images = [Image(blob=blob, pixel_hash="p", name="a.jpg", width=512, height=512, caption="zibbo")]
    dataset = ws.catalog.add_dataset(Dataset(name="d", trigger="zibbo"), images)
    assert examine(ws, images_of(ws, dataset)).unreadable == ["p"]
    assert findings(ws, dataset)["unreadable"].severity == "bad"


def measured(picture: Pixels.Image, quality: int = 0) -> Measures:
    buffer = BytesIO()
    picture.save(buffer, "JPEG" if quality else "PNG", quality=quality)
    return measure(buffer.getvalue())


@pytest.fixture(scope="module")
def photo() -> Pixels.Image:
    return painted("photo", random.Random(3), (448, 512))


@pytest.mark.parametrize("quality", [0, 85])
@pytest.mark.parametrize(
    ("how", "factor"),
    [
        (Pixels.Resampling.BILINEAR, 2.3),
        (Pixels.Resampling.BICUBIC, 3.0),
        (Pixels.Resampling.LANCZOS, 2.6),
        (Pixels.Resampling.BICUBIC, 3.4),
    ],
)
def test_enlarging_repeats(photo: Pixels.Image, how: Pixels.Resampling, factor: float, quality: int):
    small = photo.resize((round(448 / factor), round(512 / factor)), Pixels.Resampling.BOX)
    seen = measured(small.resize(photo.size, how), quality)
    assert seen.repeats >= REPEATS
    assert seen.places >= PLACES
    cut = small.resize(photo.size, how).crop((5, 3, 448, 512))  # the old pixels lie elsewhere
    assert measured(cut, quality).repeats >= REPEATS


@pytest.mark.parametrize("quality", [0, 85])
@pytest.mark.parametrize("filter_", [ImageFilter.GaussianBlur(1.6), ImageFilter.BoxBlur(2)])
def test_a_soft_picture_repeats_nothing(photo: Pixels.Image, filter_: ImageFilter.Filter, quality: int):
    seen = measured(photo.filter(filter_), quality)
    assert seen.edge > 3
    assert 0 < seen.repeats < LIKELY


@pytest.mark.parametrize("quality", [0, 85])
def test_an_edge_of_straight_pieces_breaks(quality: int):
    drawing = split(150, 320, (30, 30, 40), (230, 220, 200))
    small = drawing.resize((600 * 10 // 42, 500 * 10 // 42), Pixels.Resampling.BICUBIC)
    seen = measured(small.resize(drawing.size, Pixels.Resampling.BILINEAR), quality)
    assert seen.edge > UNKNOWN
    assert seen.places < PLACES  # what repeats proves nothing
    assert seen.breaks > BREAKS
    for filter_ in (ImageFilter.GaussianBlur(1.9), ImageFilter.GaussianBlur(2.3), ImageFilter.BoxBlur(3)):
        soft = measured(drawing.filter(filter_), quality)
        assert soft.edge > UNKNOWN
        assert soft.breaks < BREAKS


def test_faint_edges_do_not_hide_that_strong_ones_are_wide():
    faint = np.repeat([0, 5, 13, 18, 13, 5], [14, 1, 1, 14, 1, 1])  # 18 grey levels within 3 pixels
    strong = np.linspace(0, 150, 21).round()  # within 20
    line = np.concatenate([np.tile(faint, 8), strong, np.full(107, 150.0)])
    grey = np.tile(line, (256, 1)).astype(np.uint8)
    edge, *_ = softness(grey)
    assert 15 < edge < 21
    assert softness(grey[:, :256])[0] < 3


@pytest.mark.parametrize(
    ("left", "right", "box"),
    [(106, 305, (35, 6, 573, 470)), (264, 315, (29, 0, 575, 474)), (319, 409, (2, 24, 580, 474))],
)
def test_a_crop_with_a_single_edge_is_a_copy(left: int, right: int, box: tuple[int, int, int, int]):
    drawing = split(left, right)
    seen = [measured(picture, 90) for picture in (drawing, drawing.crop(box), split(20, 480))]
    assert copies(seen) == [(0, 1)]


def split(
    left: int,
    right: int,
    above: tuple[int, int, int] = (40, 90, 160),
    below: tuple[int, int, int] = (200, 180, 90),
) -> Pixels.Image:
    """Two colours, and the line between them from one side to the other at these heights."""
    drawing = Pixels.new("RGB", (600, 500), above)
    ImageDraw.Draw(drawing).polygon([(0, left), (600, right), (600, 500), (0, 500)], below)
    return drawing
