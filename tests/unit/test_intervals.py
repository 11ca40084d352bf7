import numpy as np
import pytest

from mixdistill.evaluation.intervals import accuracy, crossed, difference, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433), (250, 500, 0.4563, 0.5437)],
)
def test_wilson_against_published_values(successes, trials, low, high):
    found = wilson(successes, trials)
    assert found == pytest.approx((successes / trials, low, high), abs=1e-4)


def test_no_trials_no_interval():
    assert np.isnan(wilson(0, 0)).all()


def test_one_seed_is_wilson_and_more_seeds_stay_in_zero_to_one():
    correct = np.ones((1, 20), bool)
    assert accuracy(correct) == wilson(20, 20)
    correct = np.ones((3, 20), bool)
    correct[0, 0] = False
    assert 0 <= accuracy(correct).low <= accuracy(correct).mean <= accuracy(correct).high == 1.0


def test_crossed_covers_the_true_mean_as_often_as_it_says():
    """Other seeds and problems each time: 95 % of the intervals, or somewhat more, hold the mean they come from."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(400):
        seeds, problems = rng.normal(0, 0.1, (4, 1)), rng.normal(0, 0.3, (1, 60))
        found = crossed(0.5 + seeds + problems + rng.normal(0, 0.2, (4, 60)))
        inside.append(found.low <= 0.5 <= found.high)
    assert 0.93 <= np.mean(inside) <= 0.99


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(1)
    noise = rng.random((3, 200)) < 0.5
    apart = np.stack([rng.random(200) < share for share in (0.2, 0.5, 0.8)])
    assert accuracy(apart).high - accuracy(apart).low > 3 * (accuracy(noise).high - accuracy(noise).low)


def test_a_difference_is_paired():
    """Hard problems are hard for both arms: only where they differ counts."""
    rng = np.random.default_rng(2)
    easy = rng.random((1, 400)) < 0.5
    one = np.repeat(easy, 3, axis=0)
    other = one.copy()
    other[:, :20] = False
    found = difference(one, other)
    assert found.mean == pytest.approx(one[:, :20].mean() * 20 / 400)
    assert found.low > 0
    assert difference(one, one) == (0.0, 0.0, 0.0)
    assert crossed(one.astype(float)).low < crossed(other.astype(float)).high  # unpaired they overlap
