"""Checkpoints in order, with a sentence each, and when to stop: honest about what is chance."""

import random

import pytest

from studio.runs.ranking import Point, Ranking, points_of, probes_of, rank, spread

STEPS = tuple(range(100, 1100, 100))
FALLING = [0.20, 0.18, 0.165, 0.155, 0.148, 0.143, 0.140, 0.138, 0.137, 0.1365]
TURNING = [0.20, 0.17, 0.15, 0.14, 0.145, 0.152, 0.16, 0.17, 0.18, 0.19]


def ranked(held: list[float] | None = None, **more: object) -> Ranking:
    """Of ten checkpoints that are all there; the loss on training pictures falls."""
    points = [
        Point(step, {"train": train, "prior": step / 1e5} | ({"held_out": held[n]} if held else {}))
        for n, (step, train) in enumerate(zip(STEPS, FALLING, strict=True))
    ]
    return rank(points, more.pop("there", STEPS), **more)  # pyright: ignore[reportArgumentType]


def test_held_out_pictures_say_which_is_best_and_what_the_others_lack():
    found = ranked(TURNING, held_out=["a.png", "b.png"])
    best = found.best
    assert found.by == "probe"
    assert (best.step, best.stage) == (400, "good")
    assert best.reason == "Its loss on 2 held-out pictures is the lowest, 0.1400."
    early, late = found.of(100), found.of(1000)
    assert early.stage == "undertrained"
    assert early.reason == "Still learning: its loss on 2 held-out pictures is 42.9% above step 400."
    assert late.stage == "overtrained"
    assert late.reason == "Past its best: its loss on 2 held-out pictures is 35.7% above step 400."
    order = [row.figures["held_out"] for row in found.rows]
    assert order == sorted(order)
    assert all("\n" not in row.reason and row.reason.endswith(".") for row in found.rows)


def test_training_pictures_alone_cannot_say_that_it_is_too_much():
    found = ranked()
    assert found.best.step == 1000
    assert "cannot tell knowing them from copying them" in found.best.reason
    assert {row.stage for row in found.rows} == {"good", "undertrained"}


def test_what_is_within_the_noise_is_called_so():
    noise = random.Random(1)
    flat = [0.14 + noise.gauss(0, 0.004) for _ in STEPS]
    found = ranked(flat, going=True)
    near = [row for row in found.rows if row.reason.startswith("As good as step")]
    assert len(near) >= 7
    assert all(row.stage == "good" for row in near)
    assert found.advice == ""


def test_a_checkpoint_as_good_that_moved_other_prompts_less_says_so():
    found = ranked([0.14, 0.1398, *TURNING[2:4], *[0.1395] * 6])
    assert found.best.step == 500
    assert found.of(100).reason.endswith(", and it moved prompts of other things less.")
    assert "moved" not in found.of(900).reason


def test_only_what_is_there_is_ranked():
    found = ranked(TURNING, there=[800, 900, 1000])
    assert [row.step for row in found.rows] == [800, 900, 1000]
    assert rank([], []).best is None
    nothing = rank([], [200, 100])
    assert (nothing.by, nothing.best) == ("", None)
    assert nothing.of(100).reason == "Nothing was measured of it."
    assert nothing.of(300) is None


def test_evidence_comes_first_and_brings_its_own_words():
    seen = {600: (0.7, "good", "Most like the pictures."), 300: (0.9, "good", "Draws what is asked.")}
    found = ranked(TURNING, evidence=seen)
    assert found.by == "evidence"
    assert [row.step for row in found.rows[:3]] == [300, 600, 400]
    assert found.best.reason == "Draws what is asked."
    assert found.rows[2].score is None


@pytest.mark.parametrize(
    ("held", "advised"),
    [
        (TURNING, True),
        (TURNING[:8], True),
        (TURNING[:7], False),  # not clear yet
        (TURNING[3:9], False),  # six checkpoints say little of their spread
        (FALLING, False),
        ([0.15, 0.14, 0.13, 0.1302, 0.1303, 0.1302, 0.1304], False),  # too little to matter
        ([0.15, 0.14, 0.13, 0.14, 0.1301, 0.15, 0.16], False),  # as good again in between
    ],
)
def test_advice_needs_several_checkpoints_that_are_clearly_worse(held: list[float], advised: bool):
    points = [Point(step, {"train": 0.1, "held_out": loss}) for step, loss in zip(STEPS, held, strict=False)]
    found = rank(points, STEPS[: len(held)], going=True)
    assert bool(found.advice) is advised
    assert rank(points, STEPS[: len(held)]).advice == ""  # it cannot be stopped any more


def test_advice_is_one_sentence_with_its_figures():
    assert ranked(TURNING, held_out=["a.png"], going=True).advice == (
        "The loss on held-out pictures has risen since step 400 (0.1400, now 0.1900): stopping now loses "
        "nothing, step 400 is kept."
    )
    pruned = ranked(TURNING, there=[900, 1000], going=True).advice
    assert pruned.endswith("stopping now loses nothing, step 400 was the best.")
    points = [Point(step, {"train": loss}) for step, loss in zip(STEPS, TURNING, strict=True)]
    assert rank(points, STEPS, going=True).advice.endswith("a lower optimizer.lr may go further.")


def test_noise_alone_rarely_brings_advice():
    """A flat loss that wobbles by 3 %: at most one run of fifty is ever told to stop."""
    draws, told = random.Random(4), 0
    for _ in range(300):
        flat = [Point(step, {"held_out": 0.14 * (1 + draws.gauss(0, 0.03))}) for step in STEPS]
        told += any(rank(flat[:count], STEPS, going=True).advice for count in range(1, len(flat) + 1))
    assert told <= 6


def test_the_spread_does_not_count_a_slope():
    assert spread([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.0)
    assert spread([1.0]) == 0.0
    draws = random.Random(2)
    wobble = [n / 10 + draws.gauss(0, 0.5) for n in range(4000)]
    assert spread(wobble) == pytest.approx(0.5, rel=0.1)


def test_figures_are_read_from_lines_and_rows():
    lines = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1.0, "probe_loss": 0.5, "probe_held_out": 0.6, "probe_prior": None},
        {"step": 3, "probe_loss": float("nan")},
    ]
    assert points_of(lines) == [Point(2, {"train": 0.5, "held_out": 0.6})]
    assert probes_of({"probe_loss": "x", "probe_prior": 1}) == {"prior": 1.0}


def test_the_steep_beginning_of_a_real_curve_is_no_noise():
    """Every 20 steps, of a run on the pocket base that learned 8 pictures by heart; 4 are held out."""
    held = [488, 319, 298, 310, 322, 321, 326, 349, 364, 385, 385, 357, 390]
    points = [Point(20 * n, {"train": 0.01, "held_out": loss / 1e4}) for n, loss in enumerate(held, 1)]
    steps = [point.step for point in points]
    told = [n for n in range(1, 14) if rank(points[:n], steps, going=True).advice]
    assert [20 * n for n in told] == [180, 200, 220, 240, 260]
    found = rank(points, steps)
    assert found.best.step == 60
    assert [row.step for row in found.rows if row.stage == "overtrained"] == [160, 240, 180, 200, 220, 260]
