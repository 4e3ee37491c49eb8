"""Which pictures are near copies, by layouts alone."""

import numpy as np
import pytest

from studio.evidence.copying import COPY, closeness, correlations, line, unlike, usual


@pytest.fixture(scope="module")
def layouts():
    return np.random.default_rng(1).standard_normal((6, 64, 3))


def near(drawn, training):
    flipped = training[:, ::-1]
    return closeness([drawn], [training], [flipped]).nearest


def test_contrast_and_brightness_do_not_matter(layouts):
    assert correlations(layouts, 3 * layouts + 2).diagonal() == pytest.approx(np.ones(6))
    assert unlike(np.array([1.0, 0.0, -1.0])) == pytest.approx([0, 1, 2**0.5])


def test_a_blurred_or_mirrored_copy_is_near_its_picture_and_a_new_one_is_not(layouts):
    noise = np.random.default_rng(2).standard_normal(layouts.shape)
    share, which = near(layouts + 0.1 * noise, layouts)
    assert share.max() < COPY
    assert which.tolist() == [0, 1, 2, 3, 4, 5]
    assert near(layouts[:, ::-1], layouts)[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert near(noise, layouts)[0].min() > 0.8


def test_a_picture_that_is_in_the_set_twice_is_still_found(layouts):
    twice = np.concatenate([layouts, layouts[:1] + 1e-6])
    noise = np.random.default_rng(2).standard_normal(layouts.shape)
    assert near(layouts[:1] + 0.1 * noise[:1], twice)[0] < COPY


def test_of_one_picture_and_of_one_many_times_the_usual_is_what_is_drawn(layouts):
    drawn = np.full((3, 1), 0.8)
    assert usual(layouts[:1], layouts[:1], drawn).tolist() == [0.8]
    same = np.repeat(layouts[:1], 4, axis=0)
    assert usual(same, same, np.full((3, 4), 0.8)).tolist() == [0.8] * 4


def test_what_the_base_draws_by_itself_is_no_copy():
    assert line(np.array([0.9, 0.2])) == 0.2
    assert line(np.array([0.9, 0.8])) == COPY
