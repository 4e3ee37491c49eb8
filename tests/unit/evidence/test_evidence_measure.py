"""Figures of toy subjects: what the base is, what a style is, what copies are."""

import numpy as np
import pytest

from registry.errors import BadInput
from studio.evidence.figures import Prompt, Shot
from studio.evidence.measure import measure
from studio.pocket.check import MODEL
from studio.pocket.pictures import demo_set
from tests.support.evidence import (
    ABOUT,
    BY_HEART,
    FAINT,
    GOOD,
    PROMPTS,
    SEEDS,
    SIZE,
    picture,
    shots,
    training,
)


def point(measured, subject, weight=1.0):
    return next(p for p in measured.points if (p.subject, p.weight) == (subject, weight))


def test_the_base_is_where_it_starts(measured):
    base = measured.points[0]
    assert (base.subject, base.weight, base.pictures) == ("", 0.0, 12)
    assert base.figures.model_dump() == {
        "likeness": 0.0, "adherence": 1.0, "diversity": 1.0, "drift": 0.0, "copying": 0.0,
    }  # fmt: skip


def test_every_subject_at_every_strength_has_its_point(measured):
    assert {(p.subject, p.weight) for p in measured.points} == set(measured.tables)
    assert len(measured.points) == 7
    assert all(1 <= len(p.nearest) <= 6 for p in measured.points)


def test_a_style_goes_its_way_by_strength(measured):
    faint, half, whole = (
        point(measured, *at).figures.likeness for at in ((FAINT, 1.0), (GOOD, 0.5), (GOOD, 1.0))
    )
    assert faint < half < whole
    assert whole > 0.7


def test_a_style_that_answers_prompts_keeps_adherence_and_one_learnt_by_heart_does_not(measured):
    good, heart = point(measured, GOOD).figures, point(measured, BY_HEART).figures
    assert good.adherence > 0.8
    assert heart.adherence < 0.4
    assert good.drift == 0 < heart.drift


def test_copies_are_found_also_mirrored_and_named(measured):
    assert point(measured, BY_HEART).figures.copying == 1
    assert point(measured, GOOD).figures.copying == point(measured, FAINT).figures.copying == 0
    first = point(measured, BY_HEART).nearest[0]
    assert first.training in {0, 1, 2}
    assert first.similarity > 0.99
    assert first.seed in SEEDS


def test_a_mirrored_copy_is_a_copy():
    from PIL import ImageOps

    turned = [
        Shot(s.subject, s.weight, s.prompt, s.seed, ImageOps.mirror(s.picture))
        for s in shots([BY_HEART], [1.0])
    ]
    found = measure(turned, PROMPTS, training(), base=None, size=SIZE)
    assert point(found, BY_HEART).figures.copying == 1


def test_a_uniform_set_is_not_said_to_be_copied():
    """New pictures of what always looks about the same are near to the old ones, but no copies."""
    robots = [picture for picture, _ in demo_set("character", 24, 1)]
    fresh = [picture for picture, _ in demo_set("character", 8, 2)]
    drawn = [s for s in shots([], []) if s.prompt < len(ABOUT)]
    drawn += [Shot("robot", 1.0, n // 2, SEEDS[n % 2], fresh[n]) for n in range(8)]
    found = measure(drawn, PROMPTS, robots, base=None, size=SIZE)
    assert point(found, "robot").figures.copying == 0
    assert point(found, "robot").nearest[0].similarity > 0.8


def test_few_pictures_of_the_kind_are_not_far_away_for_being_few():
    """New neon signs are as near as it gets; with the noise left in four of them would seem half way."""
    fresh = [picture for picture, _ in demo_set("style", 4, 3)]
    drawn = [s for s in shots([], []) if s.prompt < 2]
    drawn += [Shot("new", 1.0, n // 2, SEEDS[n % 2], fresh[n]) for n in range(4)]
    found = measure(drawn, PROMPTS, training(), base=None, size=SIZE)
    assert point(found, "new").figures.likeness > 0.75


def test_seeds_that_give_the_same_picture_are_no_variety():
    drawn = [
        Shot(s.subject, s.weight, s.prompt, s.seed, picture(GOOD, 1, s.prompt, 5)) if s.subject else s
        for s in shots([GOOD], [1.0])
    ]
    found = measure(drawn, PROMPTS, training(), base=None, size=SIZE)
    assert point(found, GOOD).figures.diversity < 0.05


def test_progress_is_told_and_the_base_brings_its_latents():
    told = []
    found = measure(
        shots([GOOD], [1.0]), PROMPTS, training(), base=MODEL, size=SIZE, say=lambda *at: told.append(at)
    )
    assert found.views == ("pixels", "latents")
    assert told[-1] == (44, 44)
    assert point(found, GOOD).figures.likeness > 0.6


def test_without_prior_prompts_there_is_no_drift():
    drawn = [s for s in shots([GOOD], [1.0]) if s.prompt < len(ABOUT)]
    found = measure(drawn, PROMPTS, training(1), base=None, size=SIZE)
    assert point(found, GOOD).figures.drift == 0
    assert np.isfinite(point(found, GOOD).figures.likeness)


def refused(drawn, prompts=PROMPTS, pictures=None, **more):
    with pytest.raises(BadInput) as caught:
        measure(drawn, prompts, training(3) if pictures is None else pictures, base=None, size=SIZE, **more)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path):
    every = shots([FAINT, GOOD])
    assert "no training pictures" in refused(every, pictures=[])
    assert "pictures of the base" in refused([s for s in every if s.subject])
    assert "1 seed" in refused([s for s in every if s.seed == SEEDS[0]])
    assert "prompt" in refused([s for s in every if s.prompt == 0])
    assert "no prompt" in refused([s for s in every if s.prompt > 3])
    weightless = [s for s in every if (s.subject, s.weight) != (GOOD, 0.5)]
    assert f"{GOOD}: has no pictures at strength 0.5" in refused(weightless)
    assert f"{GOOD}: has no picture of prompt 2" in refused(
        [s for s in every if (s.subject, s.prompt, s.seed) != (GOOD, 2, 9)]
    )
    assert "there are 2" in refused(every, prompts=[Prompt(text="a", about=True)] * 2)
    with pytest.raises(BadInput, match="no autoencoder"):
        measure(every, PROMPTS, training(3), base=tmp_path, size=SIZE)
