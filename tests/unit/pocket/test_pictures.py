"""The picture grammar, the checker and the demo's pictures."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from studio.pocket.checker import components, fidelity, read_picture
from studio.pocket.clutter import clutter
from studio.pocket.grammar import (
    COLOURS,
    Scene,
    caption,
    evaluation_scenes,
    sample_scene,
    varied_caption,
)
from studio.pocket.pictures import TRIGGERS, demo_set
from studio.pocket.render import render
from studio.pocket.shapes import SHAPES, mask


@pytest.mark.parametrize("shape", SHAPES)
def test_the_checker_names_a_large_shape_and_its_colours(shape):
    seen = read_picture(render(Scene(shape, "red", "white", size="large"), random.Random(0)))
    assert (seen.background, seen.colour, seen.count, seen.shape) == ("white", "red", 1, shape)


def test_the_checker_counts_and_reads_any_size_and_mode():
    picture = render(Scene("circle", "blue", "yellow", count=3), random.Random(3))
    seen = read_picture(picture.resize((256, 256)).convert("RGBA"))
    assert (seen.count, seen.colour, seen.background) == (3, "blue", "yellow")


@pytest.mark.parametrize("shape", SHAPES)
def test_three_of_a_kind_can_be_told_apart_where_bases_learn_from_them(shape):
    scene, rng = Scene(shape, "black", "white", count=3), random.Random(2)
    seen = [read_picture(render(scene, rng, apart=True)) for _ in range(6)]
    assert [reading.count for reading in seen] == [3] * 6


def test_an_empty_picture_shows_nothing():
    seen = read_picture(Image.new("RGB", (64, 64), COLOURS["green"]))
    assert (seen.background, seen.colour, seen.count, seen.shape) == ("green", "", 0, "")


def test_the_checker_agrees_with_renders_and_not_with_other_captions():
    scenes, rng = evaluation_scenes(64), random.Random(5)
    pictures = [render(scene, rng) for scene in scenes]
    right, wrong = fidelity(pictures, scenes), fidelity(pictures, scenes[1:] + scenes[:1])
    assert right.both == 1.0
    assert right.all > 0.85
    assert wrong.all < 0.1


def test_components_are_joined_by_edges_not_by_corners():
    area = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], dtype=bool)
    assert [sorted(map(tuple, part.tolist())) for part in components(area)] == [
        [(1, 2), (2, 2), (2, 3)],
        [(0, 0), (0, 1)],
    ]


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (Scene("circle", "red", "white"), "a red circle on a white background"),
        (Scene("cross", "orange", "black"), "an orange cross on a black background"),
        (Scene("cross", "blue", "orange", count=2), "two blue crosses on an orange background"),
        (
            Scene("star", "pink", "gray", size="small", position="on the left"),
            "a small pink star on the left on a gray background",
        ),
        (Scene("heart", "red", "blue", texture="outlined"), "an outlined red heart on a blue background"),
    ],
)
def test_captions_read_as_english(scene, text):
    assert caption(scene) == text


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.booleans())
def test_scenes_keep_to_their_side_of_the_split_and_captions_name_what_is_shown(seed, held_out):
    rng = random.Random(seed)
    scene = sample_scene(rng, held_out=held_out)
    assert scene.held_out == held_out
    assert scene.colour != scene.background
    words = varied_caption(scene, rng)
    assert all(word in words for word in (scene.colour, scene.background, scene.shape, scene.texture))


def test_one_combination_in_ten_is_held_out():
    every = [Scene(s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b]
    assert 0.07 < sum(scene.held_out for scene in every) / len(every) < 0.13


def test_a_ring_has_a_hole_and_a_circle_has_none():
    middle = (32, 32)
    assert mask("ring", middle, 20, 64).getpixel(middle) == 0
    assert mask("circle", middle, 20, 64).getpixel(middle) == 255


@pytest.mark.parametrize("kind", ["style", "character", "concept"])
def test_demo_sets_repeat_themselves_and_name_their_trigger(kind):
    one, same, other = demo_set(kind, 6, 1), demo_set(kind, 6, 1), demo_set(kind, 6, 2)
    assert [(p.tobytes(), c) for p, c in one] == [(p.tobytes(), c) for p, c in same]
    assert [p.tobytes() for p, _ in one] != [p.tobytes() for p, _ in other]
    for picture, words in one:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
        assert TRIGGERS[kind] in words


def test_the_demo_style_follows_the_caption_in_colour():
    for picture, words in demo_set("style", 24, 4):
        brightest = np.asarray(picture, float).reshape(-1, 3)
        brightest = brightest[brightest.sum(1).argsort()[-200:]].mean(0)
        subject = words.partition(" on a")[0]
        for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
            if f" {name} " in subject:
                assert brightest.argmax() == channel, words


def test_clutter_is_varied_and_repeatable():
    draw = lambda seed: clutter(random.Random(seed), np.random.default_rng(seed))  # noqa: E731
    assert draw(1).tobytes() == draw(1).tobytes()
    assert len({draw(seed).tobytes() for seed in range(12)}) == 12
