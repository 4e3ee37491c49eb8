"""The data set doctor: each check finds its fault, with the pictures, and nothing in a sound set."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image as Pixels

from registry.errors import NotFound
from registry.records import Base, Dataset, Image
from studio.datasets.doctor import CHECKS, Finding, check_dataset, usual_recipe
from studio.workspace import Workspace
from trainers.recipe import Recipe, apply_sets, preset


def image(n: int, **fields: Any) -> Image:
    values = {
        "blob": f"{n:064x}", "pixel_hash": f"p{n}", "name": f"{n}.png", "width": 768, "height": 640,
        "caption": f"sks, a cat number {n}",
    }  # fmt: skip
    return Image(**(values | fields))


def recipe(*sets: str) -> Recipe:
    return apply_sets(preset("sd15", "style"), list(sets))


def check(
    ws: Workspace, images: list[Image], trigger: str = "sks", chosen: Recipe | None = None
) -> dict[str, Finding]:
    """Findings by code, with names in place of ids."""
    for picture in images:  # something to find
        blob = ws.blobs.path(picture.blob)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(b"picture")
    dataset = ws.catalog.add_dataset(Dataset(name="d", trigger=trigger), images)
    names = {i.id: i.name for i in ws.catalog.list(Image, dataset_id=dataset.id)}
    found = check_dataset(ws, dataset, chosen)
    for finding in found:
        assert finding.message
        assert finding.fix
    return {f.code: replace(f, images=tuple(names[i] for i in f.images)) for f in found}


SOUND = [image(n) for n in range(8)]


def test_a_sound_set_has_no_findings(ws: Workspace):
    assert check(ws, SOUND) == {}


@pytest.mark.parametrize(
    ("odd", "code", "severity"),
    [
        ({"caption": ""}, "uncaptioned", "warn"),
        ({"caption": "a cat"}, "trigger-missing", "info"),
        ({"caption": "asksb, a cat"}, "trigger-missing", "info"),  # no word of its own
        ({"width": 300, "height": 300}, "small", "info"),
        ({"width": 2000, "height": 600}, "extreme-aspect", "warn"),
        ({"pixel_hash": "p0"}, "duplicates", "warn"),
        ({"caption": "sks.png"}, "path-captions", "warn"),
        ({"caption": "/home/me/sks/1.txt"}, "path-captions", "warn"),
        ({"caption": "sks " + "word " * 75}, "long-captions", "warn"),
    ],
)
def test_each_fault_is_found_with_its_picture(ws: Workspace, odd: dict[str, Any], code: str, severity: str):
    found = check(ws, [*SOUND, image(99, **odd)])
    assert list(found) == [code]
    assert found[code].images == ("99.png",)
    assert found[code].severity == severity
    assert "99.png" in found[code].message


def test_lines_are_judged_one_by_one_and_counted(ws: Workspace):
    lines = "sks, a cat\n" + "sks " + "word " * 40 + "\nsks " + "other " * 40
    found = check(ws, [*SOUND, image(99, caption=lines)])
    assert list(found) == ["versions"]
    assert "1 caption comes in up to 3 versions, one at each showing: 99.png" in found["versions"].message
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "d").id)
    joined = recipe("data.variations=false")
    assert list(check(ws, [*SOUND, image(99, caption=lines)], chosen=joined)) == ["long-captions"]


def test_shuffling_is_counted_or_finds_no_tags(ws: Workspace):
    shuffled = recipe("data.shuffle_tags=true", "data.caption_variants=6")
    found = check(ws, [image(n, caption=f"sks, a, b, c, d, {n}") for n in range(6)], chosen=shuffled)
    assert found["versions"].images == tuple(f"{n}.png" for n in range(6))
    assert "up to 6 versions" in found["versions"].message
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "d").id)
    found = check(ws, [image(n, caption=f"sks cat number {n}") for n in range(6)], chosen=shuffled)
    assert list(found) == ["no-tags"]


def mask(ws: Workspace, shade: int, width: int = 768, height: int = 640) -> str:
    buffer = BytesIO()
    Pixels.new("L", (width, height), shade).save(buffer, "PNG")
    return ws.blobs.put(buffer.getvalue())


def test_masks(ws: Workspace):
    sound = [replace(one, mask=mask(ws, 200)) for one in SOUND]
    assert check(ws, sound) == {}
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "d").id)
    odd = [
        image(20, mask=mask(ws, 0)),
        image(21, mask=mask(ws, 255, 100, 200)),
        image(22, mask="f" * 64),
        image(23, mask=mask(ws, 255, 384, 320)),  # half the size is all right
        image(24),
    ]
    found = check(ws, [*sound, *odd])
    assert list(found) == ["masks-unusable", "masks-partly"]
    unusable = found["masks-unusable"]
    assert (unusable.severity, unusable.images) == ("bad", ("20.png", "21.png", "22.png"))
    for why in ("black all over", "of another shape than its picture", "lost or damaged"):
        assert why in unusable.message
    assert found["masks-partly"].images == ("24.png",)
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "d").id)
    assert list(check(ws, sound, chosen=recipe("data.masks=false"))) == ["masks-unused"]


def test_pictures_that_count_nothing(ws: Workspace):
    found = check(ws, [*SOUND, image(99, weight=0.0)])
    assert list(found) == ["weightless"]
    assert found["weightless"].images == ("99.png",)


@pytest.mark.parametrize("caption", ["SKS, a cat", "a cat of [trigger]", "cat (sks)"])
def test_ways_to_have_the_trigger(ws: Workspace, caption: str):
    assert check(ws, [*SOUND, image(99, caption=caption)]) == {}


def test_few_or_no_pictures(ws: Workspace):
    assert list(check(ws, SOUND[:4])) == ["too-few"]


def test_an_empty_set_is_bad(ws: Workspace):
    found = check(ws, [])
    assert {code: finding.severity for code, finding in found.items()} == {"empty": "bad"}


def test_no_trigger(ws: Workspace):
    assert list(check(ws, SOUND, trigger="")) == ["no-trigger"]


def test_the_recipe_decides_the_resolution_and_what_happens_to_small_pictures(ws: Workspace):
    small = check(ws, SOUND, chosen=recipe("train.resolution=1024", "data.upscale=true"))["small"]
    assert small.severity == "warn"
    assert "1024 x 1024" in small.message
    assert "enlarged" in small.message
    assert len(small.images) == 8


def test_without_enlarging_it_is_only_said(ws: Workspace):
    small = check(ws, SOUND, chosen=recipe("train.resolution=1024"))["small"]
    assert small.severity == "info"
    assert "kept at that size" in small.message


def test_a_picture_that_no_bucket_takes_is_bad_and_can_be_left_out(ws: Workspace):
    odd = image(99, width=2000, height=60)
    found = check(ws, [*SOUND, odd], chosen=recipe("data.bucket_step=64"))
    assert (found["no-bucket"].severity, found["no-bucket"].images) == ("bad", ("99.png",))
    assert found["no-bucket"].repair == "Leave them out"
    assert "small" not in found  # which says that it is kept
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "d").id)
    assert "no-bucket" not in check(ws, [*SOUND, odd], chosen=recipe("data.upscale=true"))


def test_a_recipe_that_needs_captions_makes_their_lack_bad(ws: Workspace):
    found = check(ws, [*SOUND, image(9, caption="")], chosen=recipe("data.require_captions=true"))
    assert found["uncaptioned"].severity == "bad"


def test_the_recipes_own_trigger_counts(ws: Workspace):
    found = check(ws, SOUND, trigger="", chosen=recipe("data.trigger=cat"))
    assert found == {}


def test_the_worst_comes_first(ws: Workspace):
    odd = [image(8, caption=""), image(9, caption="a cat"), image(10, width=100, height=1000)]
    found = list(check(ws, [*SOUND, *odd], chosen=recipe("data.require_captions=true")).values())
    assert [f.severity for f in found] == ["bad", "warn", "info", "info"]
    assert found[0].code == "uncaptioned"


def test_every_check_is_documented():
    assert all(check.__doc__ for check in CHECKS)


def test_size_is_judged_by_the_base(ws: Workspace):
    tiny = [replace(one, width=64, height=64) for one in SOUND]
    assert check(ws, tiny, chosen=usual_recipe(ws)) == {}  # nobody has added a base: the pocket base
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "d").id)
    ws.catalog.add(Base(name="other", family="sd15", location="/somewhere", kind="folder"))
    assert usual_recipe(ws) is None
    found = check(ws, tiny, chosen=usual_recipe(ws))
    assert "8 pictures are smaller than 512 x 512 pixels, for a 512 px base" in found["small"].message
    ws.catalog.delete(Dataset, ws.catalog.get(Dataset, "d").id)
    assert check(ws, tiny, chosen=usual_recipe(ws, "pocket")) == {}
    with pytest.raises(NotFound):
        usual_recipe(ws, "nobody")
