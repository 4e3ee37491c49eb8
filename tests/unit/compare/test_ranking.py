"""Bradley-Terry with ties: known preferences come back, and the intervals keep their promise."""

import numpy as np
import pytest

from studio.compare.ranking import best_pair, fit, information, outcomes, votes_to_tell

SETS = 1000
TRUE = np.array([0.9, 0.3, -0.2, -1.0])
LOG_TIE = np.log(0.6)


def draw(each: int, seed: int, true: np.ndarray = TRUE, sets: int = SETS) -> tuple[np.ndarray, np.ndarray]:
    """Votes of simulated people: `each` for every pair, in `sets` sets."""
    rng = np.random.default_rng(seed)
    size = len(true)
    wins, ties = np.zeros((2, sets, size, size))
    for i in range(size):
        for j in range(i + 1, size):
            chances = np.stack(outcomes(true[i] - true[j], LOG_TIE))
            found = rng.multinomial(each, chances, size=sets)
            wins[:, i, j], wins[:, j, i] = found[:, 0], found[:, 1]
            ties[:, i, j] = ties[:, j, i] = found[:, 2]
    return wins, ties


def test_outcomes_are_davidsons():
    p, q, nu = 2.5, 0.7, 0.6
    whole = p + q + nu * (p * q) ** 0.5
    found = [float(x) for x in outcomes(np.log(p) - np.log(q), np.log(nu))]
    assert found == pytest.approx([p / whole, q / whole, nu * (p * q) ** 0.5 / whole])


def test_known_preferences_come_back():
    wins, ties = draw(3000, 1, sets=1)
    fitted = fit(wins, ties)
    assert fitted.strength[0] == pytest.approx(TRUE - TRUE.mean(), abs=0.06)
    assert fitted.log_tie[0] == pytest.approx(LOG_TIE, abs=0.06)
    assert list(np.argsort(-fitted.strength[0])) == [0, 1, 2, 3]


@pytest.mark.parametrize("each", [8, 20, 60])
def test_intervals_cover_the_truth_in_95_of_100(each: int, record_property):
    fitted = fit(*draw(each, each))
    low, high = fitted.interval
    true = TRUE - TRUE.mean()
    covered = ((low <= true) & (true <= high)).mean(axis=0)
    record_property("coverage", covered.tolist())
    print(f"{each} votes a pair: covered {covered.mean():.1%}, by thing {np.round(covered, 3)}")  # noqa: T201
    assert 0.93 <= covered.mean() <= 0.97
    assert covered.min() >= 0.93
    assert covered.max() <= 0.975


def test_intervals_of_differences_cover_the_truth_too():
    fitted = fit(*draw(20, 5))
    difference = fitted.strength[:, 0] - fitted.strength[:, 1]
    variance = fitted.covariance[:, 0, 0] + fitted.covariance[:, 1, 1] - 2 * fitted.covariance[:, 0, 1]
    covered = (np.abs(difference - (TRUE[0] - TRUE[1])) <= 1.96 * np.sqrt(variance)).mean()
    assert 0.93 <= covered <= 0.97


def test_who_wins_every_vote_has_a_finite_strength():
    wins = np.array([[0, 9], [0, 0]])
    fitted = fit(wins, np.zeros((2, 2)))
    assert 1 < fitted.strength[0, 0] < 6
    assert fitted.interval[0][0, 0] < fitted.strength[0, 0] < fitted.interval[1][0, 0]
    nothing = fit(np.zeros((3, 3)), np.zeros((3, 3)))
    assert nothing.strength[0] == pytest.approx([0, 0, 0])
    assert (nothing.error > 1).all()


def test_ties_alone_say_that_two_are_alike():
    ties = np.array([[0, 40], [40, 0]])
    fitted = fit(np.zeros((2, 2)), ties)
    assert fitted.strength[0] == pytest.approx([0, 0])
    assert votes_to_tell(fitted, 0, 1) is None


def test_the_pair_that_is_least_known_comes_first():
    wins, ties = draw(40, 3, sets=1)
    counts = (wins + wins.transpose(0, 2, 1) + ties)[0]
    for one in (wins[0], ties[0]):
        one[1, 2] = one[2, 1] = 0
    counts[1, 2] = counts[2, 1] = 0
    assert best_pair(fit(wins, ties), counts)[0] == (1, 2)
    assert float(information(0.0, -9.0)) > float(information(3.0, -9.0)), "a sure thing tells little"


def test_how_many_votes_it_takes_is_about_how_many_it_takes():
    """With twice what it asks for, the difference is certain in most simulations; with a quarter not."""
    true = np.array([0.25, -0.25])
    wins, ties = (np.array([[[0, 22], [14, 0]]]), np.array([[[0, 10], [10, 0]]]))
    asked = votes_to_tell(fit(wins, ties), 0, 1)
    assert asked is not None
    certain = []
    for each in ((46 + asked) * 2, (46 + asked) // 4):
        fitted = fit(*draw(each, each, true, 400))
        certain.append(float((fitted.interval[0][:, 0] > 0).mean()))
    assert certain[0] > 0.7
    assert certain[1] < 0.45
    assert votes_to_tell(fit(wins * 20, ties * 20), 0, 1) == 0
