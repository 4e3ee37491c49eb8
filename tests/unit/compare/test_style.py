"""The style distance: a metric that ranks what looks alike near, and cannot be had cheaply."""

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from registry.errors import BadInput
from studio.compare import style as style_module
from studio.compare.style import (
    _lab,
    closed_fraction,
    measure_style,
    style_distance,
)
from studio.pocket.grammar import sample_scene
from studio.pocket.pictures import demo_set
from studio.pocket.render import render


def scenes(count, seed):
    rng = random.Random(seed)
    return [render(sample_scene(rng), rng) for _ in range(count)]


@cache
def style(kind, seed, count=16):
    return [picture for picture, _ in demo_set(kind, count, seed)]


@pytest.fixture(scope="module", autouse=True)
def _described_once():
    """Most tests ask for the statistics of the same pictures."""
    known, describe = {}, style_module._describe

    def once(pictures):
        key = tuple((picture.mode, picture.size, picture.tobytes()) for picture in pictures)
        if key not in known:
            known[key] = describe(pictures)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style_module, "_describe", once)
        yield


@pytest.fixture(scope="module")
def sets():
    return {
        "style": style("style", 1),
        "character": style("character", 1),
        "concept": style("concept", 1),
        "plain": scenes(64, 1),
    }


def test_a_set_is_at_no_distance_from_itself_and_the_distance_is_symmetric(sets):
    assert style_distance(sets["style"], sets["style"]).total == 0
    there = style_distance(sets["style"], sets["plain"]).total
    assert there == pytest.approx(style_distance(sets["plain"], sets["style"]).total)


def test_new_pictures_of_a_style_are_nearer_than_any_other_style(sets):
    again = {
        "style": style("style", 2),
        "character": style("character", 2),
        "concept": style("concept", 2),
        "plain": scenes(64, 2),
    }
    for name, pictures in again.items():
        distances = {other: style_distance(pictures, sets[other]).total for other in sets}
        nearest, second = sorted(distances.values())[:2]
        assert distances[name] == nearest, distances
        assert nearest < 0.6 * second, distances


def test_a_blend_towards_a_style_comes_nearer_step_by_step(sets):
    steps = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        blended = [Image.blend(a, b, share) for a, b in zip(sets["plain"], style("style", 3), strict=False)]
        steps.append(style_distance(blended, sets["style"]).total)
    assert steps == sorted(steps, reverse=True)


def test_the_right_colours_alone_do_not_pass_for_the_style(sets):
    """Every pixel of the style, but in disorder: colour is at its floor, strokes and texture are not."""
    rng = np.random.default_rng(0)
    shuffled = []
    for picture in sets["style"]:
        pixels = np.asarray(picture).reshape(-1, 3)
        shuffled.append(Image.fromarray(rng.permutation(pixels).reshape(64, 64, 3)))
    seen = style_distance(shuffled, sets["style"])
    assert seen.colour < 0.05
    assert seen.total > 3 * style_distance(style("style", 2), sets["style"]).total


def test_the_right_strokes_in_other_colours_do_not_either(sets):
    seen = style_distance([ImageOps.invert(picture) for picture in sets["style"]], sets["style"])
    assert seen.colour > 1
    assert seen.total > 2 * style_distance(style("style", 2), sets["style"]).total


def test_one_picture_repeated_is_not_the_style(sets):
    """A collapsed set has no spread; the Frechet distance sees that."""
    one = [sets["style"][0]] * 16
    assert (
        style_distance(one, sets["style"]).total
        > 1.5 * style_distance(style("style", 2), sets["style"]).total
    )


def test_blur_is_seen(sets):
    blurred = [picture.filter(ImageFilter.GaussianBlur(3)) for picture in sets["style"]]
    assert style_distance(blurred, sets["style"]).strokes > 0.3


def test_sizes_and_modes_do_not_matter(sets):
    large = [picture.resize((320, 320), Image.Resampling.BICUBIC) for picture in sets["style"]]
    assert style_distance(large, sets["style"]).total < 0.15
    transparent = [picture.convert("RGBA") for picture in sets["style"]]
    assert style_distance(transparent, sets["style"]).total == 0


def test_lab_of_known_colours():
    """Reference values of CIELAB under D65 (Lindbloom's calculator): L, a, b."""
    rgb = np.array([[[[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]]], dtype=float)
    expected = np.array([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    np.testing.assert_allclose(_lab(rgb)[0, 0] * 100, expected, atol=0.03)


def test_the_closed_fraction():
    assert closed_fraction(2.0, 1.0) == 0.5
    assert closed_fraction(2.0, 1.0, 0.5) == pytest.approx(2 / 3)
    assert closed_fraction(2.0, 2.5, 0.5) < 0
    with pytest.raises(BadInput, match="as near as the floor"):
        closed_fraction(0.4, 0.3, 0.5)
    with pytest.raises(BadInput, match="fewer than two"):
        style_distance(style("style", 1, 1), style("style", 2))


@given(st.floats(0.01, 5), st.floats(0, 5), st.floats(0, 5))
def test_closing_is_linear_in_the_adapters_distance(gap, floor, adapter):
    base = floor + gap
    assert closed_fraction(base, base, floor) == 0
    assert closed_fraction(base, floor, floor) == pytest.approx(1)
    middle = (base + adapter) / 2
    assert closed_fraction(base, middle, floor) == pytest.approx(
        closed_fraction(base, adapter, floor) / 2, abs=1e-6
    )


def test_the_figures_of_an_adapter_agree_with_their_parts(sets):
    figures = measure_style(sets["style"], sets["plain"], style("style", 5), style("style", 6))
    assert figures.base == style_distance(sets["plain"], sets["style"])
    assert figures.closed == closed_fraction(figures.base.total, figures.adapter.total, figures.floor.total)
    assert figures.closed > 0.8
