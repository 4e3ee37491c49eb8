"""Several resolutions and several crops: who trains where, and that every draw has its place."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.placing import place_items, shown_view, views
from trainers.plan import batch_plan
from trainers.recipe_fields import DataSection
from trainers.rundir import ManifestItem


def sources(*shapes):
    return [
        ManifestItem(image=f"{n}.png", pixel_hash=f"p{n}", width=w, height=h, caption="", name=f"{n}.png")
        for n, (w, h) in enumerate(shapes)
    ]


def place(shapes, sizes=(512,), focus=None, seed=0, **data):
    more = {} if focus is None else {"focus": lambda _: focus}
    return place_items(sources(*shapes), sizes=sizes, step=64, data=DataSection(**data), seed=seed, **more)


def test_a_picture_gets_every_resolution_that_does_not_enlarge_it():
    items, notes = place([(2000, 2000), (800, 800), (1200, 600), (400, 400)], (512, 768, 1024))
    targets = {n: [i.geometry.target for i in items if i.source.image == f"{n}.png"] for n in range(4)}
    assert targets[0] == [(512, 512), (768, 768), (1024, 1024)]
    assert targets[1] == [(512, 512), (768, 768)]
    assert targets[2] == [(384, 640), (576, 1024)]  # 1024 would be 704 x 1408
    assert targets[3] == [(384, 384)]
    assert len({item.index for item in items}) == len(items) == 8
    assert [item.index for item in items[:4]] == [0, 1, 2, 3]
    assert notes[0].startswith("8 showings an epoch in buckets 384x384: 1")
    assert "1 picture is too small for 768 px and not shown there: 3.png" in notes
    assert "3 pictures are too small for 1024 px and not shown there: 1.png, 2.png, 3.png" in notes


def test_one_resolution_is_as_before():
    shapes = [(2000, 2000), (800, 500), (70, 90)]
    items, notes = place(shapes)
    assert [item.index for item in items] == [0, 1, 2]
    assert notes[0].startswith("3 pictures in buckets")
    assert place(shapes, (512,))[0] == items


def test_upscale_takes_every_resolution():
    items, _ = place([(100, 100)], (512, 768), upscale=True)
    assert [item.geometry.target for item in items] == [(512, 512), (768, 768)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(64, 2500), st.integers(64, 2500)), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_batches_never_mix_sizes_and_show_everything(shapes, batch_size, epoch):
    items, _ = place(shapes, (256, 512, 1024))
    shown = Counter()
    for batch in batch_plan(items, 3, epoch, batch_size):
        assert len({items[slot.item].geometry.target for slot in batch}) == 1
        shown.update(slot.item for slot in batch)
    assert set(shown) == set(range(len(items)))
    per_picture = Counter((i.source.image, i.geometry.target) for i in items)
    assert set(per_picture.values()) == {1}
    for item in items:
        assert item.geometry.scale <= 1
    assert batch_plan(items, 3, epoch, batch_size) == batch_plan(items, 3, epoch, batch_size)


def test_random_crops_are_few_fixed_and_all_shown():
    (item,), _ = place([(1000, 600)], crop="random", crop_variants=5, buckets=False)
    crops = views(item)
    assert 2 <= len(crops) <= 5
    assert item.geometry == item.crops[0]
    for view in crops:
        top, left = view.geometry.crop_origin
        assert view.geometry.target == (512, 512)
        assert top == 0
        assert 0 <= left <= view.geometry.resized[1] - 512
        assert view.crops == ()
        assert views(view) == [view]
    seen = Counter(
        shown_view(item, copy, seed=1, epoch=epoch).geometry for epoch in range(200) for copy in range(2)
    )
    assert set(seen) == set(item.crops)
    assert min(seen.values()) > 400 / len(item.crops) / 2
    assert place([(1000, 600)], crop="random", crop_variants=5, buckets=False)[0] == [item]
    (other,), _ = place([(1000, 600)], crop="random", crop_variants=5, buckets=False, seed=1)
    assert other.crops != item.crops


def test_nothing_to_choose_is_one_crop():
    (item,), _ = place([(512, 512)], crop="random", crop_variants=5)
    assert item.crops == ()
    assert shown_view(item, 0, seed=0, epoch=0) is item


def test_focus_puts_the_point_in_the_middle_as_far_as_edges_allow():
    def left(x, y=0.5):
        (item,), _ = place([(1024, 512)], crop="focus", focus=(x, y), buckets=False)
        assert item.geometry.crop_origin[0] == 0
        return item.geometry.crop_origin[1]

    assert [left(0.0), left(0.5), left(0.6), left(1.0)] == [0, 256, 358, 512]
    (plain,), _ = place([(1024, 512)], crop="focus", buckets=False)
    assert plain.geometry.crop_origin == (0, 256)
