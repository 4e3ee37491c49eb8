"""Judgements: order, stages, strength, copies, and what is said about them."""

from dataclasses import replace

import pytest

from registry.errors import BadInput
from studio.evidence.figures import Judgement
from studio.evidence.judge import judge
from studio.evidence.measure import measure
from studio.evidence.scores import TERMS
from tests.support.evidence import BY_HEART, FAINT, GOOD, ORDER, PROMPTS, SIZE, shots, training


@pytest.fixture(scope="module")
def said(measured):
    return judge(measured, ORDER)


def test_the_good_one_comes_first_and_each_has_its_stage(said):
    assert said.pick == GOOD
    assert {rank.subject: rank.stage for rank in said.ranks} == {
        GOOD: "good", FAINT: "undertrained", BY_HEART: "overtrained",
    }  # fmt: skip
    assert said.ranks[0].score > said.ranks[1].score >= said.ranks[2].score


def test_reasons_are_plain_sentences_with_figures(said):
    reasons = {rank.subject: rank.reason for rank in said.ranks}
    assert "of the way to the training pictures" in reasons[GOOD]
    assert "only" in reasons[FAINT]
    assert "step 400" in reasons[FAINT]
    assert "step 400" in reasons[BY_HEART]
    every = [*reasons.values(), said.weight_reason, said.sure]
    assert all(text.endswith(".") and "\n" not in text and "%" in text for text in every)
    assert said.reason == reasons[GOOD]


def test_the_strength_is_the_best_point_and_lies_in_its_range(said):
    assert said.weight == 1.0
    assert said.low <= said.weight <= said.high
    assert not said.memorised
    assert said.memorised_reason == ""


def test_a_subject_that_copies_is_called_memorised_with_numbers(measured):
    said = judge(measured, [BY_HEART])
    assert said.memorised
    assert "of 8 pictures are near copies of 3 of the 10 training pictures" in said.memorised_reason
    assert said.ranks[0].stage == "overtrained"


def test_the_same_figures_give_the_same_judgement_and_it_survives_json(measured, said):
    assert judge(measured, ORDER) == said
    assert Judgement.model_validate(said.model_dump(mode="json")) == said


def test_how_sure_it_is_is_said_in_shares_of_resamples(measured, said):
    assert said.sure == "Step 400 comes first in 100 % of the resamples of 4 prompts and 2 seeds."
    assert judge(measured, [GOOD]).sure.startswith("Strength 1 comes first in ")


def test_a_single_adapter_is_judged_by_itself(measured):
    assert judge(measured, [GOOD]).ranks[0].stage == "good"
    faint = judge(measured, [FAINT]).ranks[0]
    assert faint.stage == "undertrained"
    assert "only" in faint.reason


@pytest.fixture(scope="module")
def twins():
    """Two subjects that draw the same."""
    one = shots([GOOD])
    again = [replace(shot, subject="run@500") for shot in one if shot.subject]
    return measure([*one, *again], PROMPTS, training(), base=None, size=SIZE)


def test_what_is_as_good_within_the_noise_is_good(twins):
    said = judge(twins, [GOOD, "run@500"])
    assert [rank.stage for rank in said.ranks] == ["good", "good"]
    assert said.ranks[1].reason.startswith("About as good as step 400")


def test_a_loss_that_rises_on_unseen_pictures_decides_between_equals(twins):
    losses = {GOOD: {"held_out": 0.1, "train": 0.1}, "run@500": {"held_out": 0.13, "train": 0.05}}
    said = judge(twins, [GOOD, "run@500"], losses)
    assert said.pick == GOOD
    assert "30 % above the lowest" in said.ranks[1].reason
    assert said.ranks[1].stage == "overtrained"
    one_known = judge(twins, [GOOD, "run@500"], {GOOD: {"held_out": 9.0}})
    assert [rank.stage for rank in one_known.ranks] == ["good", "good"]


def test_every_weight_has_its_reason():
    assert len({term.name for term in TERMS}) == len(TERMS)
    assert all(term.weight > 0 and term.reason.endswith(".") for term in TERMS)


def test_what_cannot_be_judged_is_refused_in_one_line(measured):
    with pytest.raises(BadInput, match="no adapter"):
        judge(measured, [])
    with pytest.raises(BadInput, match=r"evidence of run@7: it was not measured"):
        judge(measured, [GOOD, "run@7"])
    with pytest.raises(BadInput, match="twice"):
        judge(measured, [GOOD, GOOD])
