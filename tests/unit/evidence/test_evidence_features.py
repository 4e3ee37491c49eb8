"""What features see: the look without places, the layout with them."""

import random

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageOps

from studio.evidence.features import cut, latent_view, oklab, pixel_view
from studio.pocket.grammar import Scene
from studio.pocket.render import render


@pytest.fixture(scope="module")
def picture():
    return render(Scene("star", "yellow", "blue"), random.Random(1))


def apart(one, other):
    return float(np.abs(one - other).max())


def test_white_grey_and_the_sign_of_colours_are_oklabs():
    flat = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red", "blue")]
    lab = oklab(flat, 4)[:, 0, 0]
    assert lab[0] == pytest.approx([1, 0, 0], abs=1e-3)
    assert lab[1] == pytest.approx([0, 0, 0], abs=1e-3)
    assert lab[2] == pytest.approx([0.628, 0.225, 0.126], abs=2e-3)  # as published
    assert lab[3] == pytest.approx([0.452, -0.032, -0.312], abs=2e-3)


def test_the_look_stays_when_things_move_and_the_layout_does_not(picture):
    still, moved, turned = (
        pixel_view([p]) for p in (picture, ImageChops.offset(picture, 16, 16), ImageOps.mirror(picture))
    )
    assert apart(still.look, moved.look) < 1e-6
    assert apart(still.look, turned.look) < 0.05  # quantiles are read at every other pixel
    assert apart(still.layout, moved.layout) > 0.1
    assert sum(still.groups) == still.look.shape[1]


def test_another_look_of_the_same_layout_is_seen(picture):
    other = ImageOps.invert(picture)
    assert apart(pixel_view([picture]).look, pixel_view([other]).look) > 0.3


def test_latents_are_seen_at_two_scales_and_their_look_has_no_places():
    latents = np.random.default_rng(1).standard_normal((2, 4, 16, 16))
    view, rolled = latent_view(latents), latent_view(np.roll(latents, 2, axis=(2, 3)))
    assert view.look.shape == (2, 2 * (4 + 10 + 8))
    assert view.layout.shape == (2, 256, 4)
    slopes = 8  # their energy changes where the edges meet
    assert apart(view.look[:, : 22 - slopes], rolled.look[:, : 22 - slopes]) < 1e-9


def test_latents_of_any_size_have_a_layout_of_at_most_16_cells_a_side():
    view = latent_view(np.zeros((1, 16, 20, 33)))
    assert view.layout.shape == (1, 10 * 16, 16)


def test_pictures_are_cut_to_the_size_and_transparency_is_white():
    clear = Image.new("RGBA", (30, 90), (255, 0, 0, 0))
    cut_, grey = cut([clear, Image.new("L", (100, 10), 7)], (32, 16))
    assert cut_.size == grey.size == (32, 16)
    assert cut_.getpixel((3, 3)) == (255, 255, 255)
    assert grey.getpixel((3, 3)) == (7, 7, 7)
