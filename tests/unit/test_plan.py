"""Buckets, the batch plan and captions, as properties."""

import hashlib
import json
import math
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import BadInput
from trainers.captions import captions_needed, shown_caption
from trainers.plan import (
    Slot,
    assign_buckets,
    batch_plan,
    bucket_sizes,
    check_captions,
    draw,
    draw_seed,
    final_caption,
    load_items,
    replace_trigger,
    share,
    shown_flipped,
)
from trainers.recipe_fields import DataSection
from trainers.rundir import MANIFEST, ManifestItem, RunDir

SMALLEST = st.integers(64, 3000)
SHAPES = st.lists(st.tuples(SMALLEST, SMALLEST), min_size=1, max_size=30)


def source(width, height, name="a.png", **extra):
    extra = {"caption": "a cat", **extra}
    return ManifestItem(image=name, pixel_hash=name, width=width, height=height, name=name, **extra)


def items_of(shapes, *, resolution=512, step=64, repeats=1, **data):
    sources = [source(w, h, f"{i}.png") for i, (w, h) in enumerate(shapes)]
    return assign_buckets(
        sources, resolution=resolution, step=step, data=DataSection(repeats=repeats, **data)
    )[0]


def largest_shapes(resolution, step, max_aspect):
    """Independent of bucket_sizes: every shape within the area that cannot grow by a step either way."""
    sides = range(step, int(resolution * max_aspect) + step, step)
    area = resolution * resolution
    return {
        (h, w)
        for h in sides
        for w in sides
        if h * w <= area
        and max(h / w, w / h) <= max_aspect
        and (h + step) * w > area
        and h * (w + step) > area
    }


@given(st.sampled_from([(512, 64), (768, 64), (64, 16), (1024, 64), (500, 64), (96, 8)]), st.floats(1, 3))
def test_buckets_are_multiples_within_the_area_and_leave_no_better_shape_out(grid, max_aspect):
    resolution, step = grid
    sizes = set(bucket_sizes(resolution, step, max_aspect))
    for height, width in sizes:
        assert height % step == width % step == 0
        assert height * width <= resolution**2
        assert max(height / width, width / height) <= max_aspect
        assert (width, height) in sizes
    assert largest_shapes(resolution, step, max_aspect) <= sizes


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.booleans(), st.sampled_from(["center", "top"]))
def test_every_picture_gets_one_bucket_and_is_never_enlarged(shapes, buckets, crop):
    items = items_of(shapes, buckets=buckets, crop=crop)
    assert [item.index for item in items] == list(range(len(shapes)))
    for item, (width, height) in zip(items, shapes, strict=True):
        geometry = item.geometry
        (top, left), (th, tw), (rh, rw) = geometry.crop_origin, geometry.target, geometry.resized
        assert geometry.original == (height, width)
        assert th % 64 == tw % 64 == 0
        assert th * tw <= 512 * 512
        assert th <= height
        assert tw <= width
        assert geometry.scale <= 1
        assert 0 <= top <= rh - th
        assert 0 <= left <= rw - tw
        assert rh == th or rw == tw  # the resized picture just covers its bucket
        assert max(th / tw, tw / th) <= (2 if buckets else 1)
        assert crop == "center" or top == 0


@given(st.integers(1100, 4000), st.integers(1100, 4000))
def test_a_large_picture_gets_the_nearest_aspect(width, height):
    (item,) = items_of([(width, height)])
    error = abs(math.log(item.geometry.target[0] / item.geometry.target[1] * width / height))
    best = min(abs(math.log(h / w * width / height)) for h, w in largest_shapes(512, 64, 2.0))
    assert error <= best + 1e-12


def test_small_pictures_train_at_their_own_size():
    shapes = [(512, 512), (511, 511), (300, 200), (70, 90), (639, 384), (500, 70), (200, 600)]
    targets = [item.geometry.target for item in items_of(shapes)]
    assert targets == [(512, 512), (448, 448), (192, 256), (64, 64), (384, 576), (64, 128), (384, 192)]
    assert items_of([(300, 200)], buckets=False)[0].geometry.target == (192, 192)


def test_upscale_gives_small_pictures_the_full_size():
    (item,) = items_of([(100, 100)], upscale=True)
    assert item.geometry.target == (512, 512)
    assert item.geometry.scale == 5.12


def test_a_picture_that_fits_nowhere_is_refused_by_name():
    with pytest.raises(BadInput, match=r"0\.png: is 63x500, smaller than the smallest bucket 64x64"):
        items_of([(63, 500)])
    with pytest.raises(BadInput, match=r"train\.resolution: is 32, below the bucket step of 64"):
        items_of([(500, 500)], resolution=32)


def test_notes_name_what_is_small_enlarged_and_cropped():
    sources = [source(512, 512, "ok.png"), source(200, 200, "small.png"), source(2000, 500, "wide.png")]
    data = DataSection()
    text = "\n".join(assign_buckets(sources, resolution=512, step=64, data=data)[1])
    assert "3 pictures in buckets" in text
    assert "1 picture is smaller than the training resolution and not enlarged for it: small.png" in text
    assert "wide.png (keeps" in text
    up = assign_buckets(sources, resolution=512, step=64, data=DataSection(upscale=True))[1]
    assert "small.png (200x200)" in next(note for note in up if "enlarged" in note)


def test_mirrored_geometry_has_the_crop_on_the_other_side():
    geometry = items_of([(2000, 500)])[0].geometry
    (top, left), width = geometry.crop_origin, geometry.target[1]
    mirrored = geometry.mirrored()
    assert mirrored.crop_origin == (top, geometry.resized[1] - width - left)
    assert mirrored.mirrored() == geometry


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 7), st.integers(1, 3))
def test_plan_covers_every_showing_in_batches_of_one_bucket(shapes, seed, epoch, batch_size, repeats):
    items = items_of(shapes, repeats=repeats)
    plan = batch_plan(items, seed, epoch, batch_size)
    slots = Counter(slot for batch in plan for slot in batch)
    wanted = {Slot(i, copy) for i in range(len(items)) for copy in range(repeats)}
    assert set(slots) == wanted
    assert all(1 <= len(batch) <= batch_size for batch in plan)
    assert all(len({items[slot.item].geometry.target for slot in batch}) == 1 for batch in plan)
    if len({item.geometry.target for item in items}) > 1:
        assert set(slots.values()) == {1}
    else:  # one bucket: one shape for all batches, filled up from the epoch's beginning
        assert {len(batch) for batch in plan} == {batch_size}
        assert sum(slots.values()) - len(wanted) < batch_size
    assert plan == batch_plan(items, seed, epoch, batch_size)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(0, 99), st.integers(1, 4), st.integers(2, 4))
def test_ranks_share_each_batch_and_take_the_same_number_of_steps(shapes, seed, batch_size, world):
    items = items_of(shapes)
    seen = set()
    for slots in batch_plan(items, seed, 1, batch_size, world=world):
        parts = [slots[share(len(slots), rank, world)] for rank in range(world)]
        assert sum(parts, ()) == slots
        sizes = [len(part) for part in parts]
        assert 1 <= min(sizes) <= max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert len({items[slot.item].geometry.target for part in parts for slot in part}) == 1
        seen |= {slot.item for part in parts for slot in part}
    assert seen == set(range(len(items)))


def test_epochs_and_seeds_shuffle_and_every_epoch_has_as_many_batches():
    items = items_of([(600, 600)] * 10 + [(900, 600)] * 9)
    plans = [batch_plan(items, 3, epoch, 4) for epoch in range(20)]
    assert len({str(plan) for plan in plans}) == 20
    assert {len(plan) for plan in plans} == {3 + 3}
    assert batch_plan(items, 4, 0, 4) != plans[0]
    first = Counter(items[plan[0][0].item].geometry.target for plan in plans)
    assert len(first) == 2  # buckets are mixed over the epoch


def test_plan_is_the_same_in_another_process():
    code = (
        "import json; from tests.unit.test_plan import items_of; from trainers.plan import batch_plan;"
        "print(json.dumps(batch_plan(items_of([(600, 600)] * 7 + [(900, 600)] * 5), 5, 2, 3)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    ours = batch_plan(items_of([(600, 600)] * 7 + [(900, 600)] * 5), 5, 2, 3)
    assert json.loads(result.stdout) == json.loads(json.dumps(ours))


def test_draws_are_the_stated_hash_and_look_uniform():
    digest = hashlib.blake2b(b"7:caption:3:11:0", digest_size=8).digest()
    assert draw_seed(7, "caption", 3, 11, 0) == int.from_bytes(digest, "big") // 2
    values = [draw(1, "x", n) for n in range(4000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 4000 - 0.5) < 0.02
    assert all(300 < sum(low / 10 <= v < (low + 1) / 10 for v in values) < 500 for low in range(10))


@pytest.mark.parametrize(
    ("caption", "trigger", "shown"),
    [
        ("a cat", "", "a cat"),
        ("a cat", "sks", "sks, a cat"),
        ("", "sks", "sks"),
        ("", "", ""),
        ("photo of sks cat", "sks", "photo of sks cat"),
        ("photo of SKS, sitting", "sks", "photo of SKS, sitting"),
        ("a sksy thing", "sks", "sks, a sksy thing"),
        ("a [trigger] cat", "sks", "a sks cat"),
        ("a [trigger] cat", "", "a cat"),
        ("[trigger], a cat", "", "a cat"),
        ("  a\n cat  ", "", "a cat"),
        ("a c++ book", "c++", "a c++ book"),
    ],
)
def test_captions_get_their_trigger(caption, trigger, shown):
    assert final_caption(caption, trigger) == shown


def test_prompts_get_the_trigger_only_where_they_ask_for_it():
    assert replace_trigger("a [trigger] by a lake", "sks") == "a sks by a lake"
    assert replace_trigger("a dog", "sks") == "a dog"
    assert replace_trigger("a house, [trigger]", "") == "a house"


def test_dropout_and_flips_depend_on_place_alone_and_come_as_often_as_asked():
    (item,) = items_of([(600, 600)], repeats=4)
    data = DataSection(caption_dropout=0.25, flip=True, trigger="sks")
    shown = [shown_caption(item, 0, data=data, seed=1, epoch=epoch) for epoch in range(2000)]
    assert set(shown) == {"", "sks, a cat"}
    assert abs(shown.count("") / 2000 - 0.25) < 0.04
    flips = [shown_flipped(item, 0, data=data, seed=1, epoch=epoch) for epoch in range(2000)]
    assert abs(sum(flips) / 2000 - 0.5) < 0.04
    assert flips == [shown_flipped(item, 0, data=data, seed=1, epoch=epoch) for epoch in range(2000)]
    assert flips != [shown_flipped(item, 1, data=data, seed=1, epoch=epoch) for epoch in range(2000)]
    assert not any(
        shown_flipped(item, 0, data=DataSection(flip=False), seed=1, epoch=epoch) for epoch in range(50)
    )
    never = DataSection(caption_dropout=0.0)
    assert all(shown_caption(item, 0, data=never, seed=1, epoch=e) == "a cat" for e in range(200))


def test_needed_captions_hold_the_empty_one():
    items = items_of([(600, 600), (600, 600)])
    assert captions_needed(items, DataSection(trigger="sks"), 0) == ["", "sks, a cat"]


def test_missing_captions_are_refused_when_they_are_required():
    items = [
        *items_of([(600, 600)]),
        *assign_buckets([source(64, 64, "b.png", caption=" ")], resolution=64, step=64, data=DataSection())[
            0
        ],
    ]
    check_captions(items, DataSection())
    with pytest.raises(BadInput, match=r"captions: 1 of 2 pictures without one: b\.png"):
        check_captions(items, DataSection(require_captions=True))


def test_an_empty_or_damaged_manifest_is_refused(tmp_path):
    path = tmp_path / MANIFEST
    path.write_text("")
    with pytest.raises(BadInput, match="has no pictures"):
        load_items(RunDir(tmp_path))
    line = {"image": "x", "pixel_hash": "h", "width": 0, "height": 4, "caption": "", "name": "x.png"}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(BadInput, match=r"x\.png: has a damaged line"):
        load_items(RunDir(tmp_path))
    path.write_text(json.dumps(line | {"width": 3}) + "\n")
    assert load_items(RunDir(tmp_path))[0].width == 3
