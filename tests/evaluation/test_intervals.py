"""Every score comes with its sample count and an interval that holds."""

from __future__ import annotations

import numpy as np
import pytest

from refine.evaluation.intervals import Estimate, mean_difference, mean_of_scores, mean_over_strata, ratio


def test_an_estimate_is_printed_with_its_interval_and_says_whether_that_leaves_out_zero():
    assert Estimate(0.25, 9, 0.125, 0.5).text(100.0, 1, sign="+") == "+25.0 [12.5, 50.0]"
    assert Estimate(-0.25, 1, None, None).text() == "-0.250"
    bounds = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.0), (None, None)]
    assert [Estimate(0.0, 10, *two).clear_of_zero for two in bounds] == [True, True, False, False, False]
    assert not any(Estimate(0.0, 9, *two).clear_of_zero for two in bounds), "nine samples are too few"


def test_right_or_wrong_scores_have_wilson_s_interval():
    estimate = mean_of_scores([1.0] * 10 + [0.0] * 30)
    assert (estimate.value, estimate.samples) == (0.25, 40)
    assert (estimate.low, estimate.high) == pytest.approx((0.1419, 0.4019), abs=1e-4)  # R: prop.test(10, 40, correct=F)


def test_no_right_answer_in_fifty_still_leaves_room_above_zero():
    estimate = mean_of_scores([0.0] * 50)
    assert estimate.low == 0.0 and 0.05 < estimate.high < 0.08


def test_shares_of_several_tasks_have_wilson_s_interval_too():
    none = mean_over_strata([np.zeros((1, 20)), np.zeros((1, 20))])
    assert none.low == 0.0 and none.high == pytest.approx(mean_of_scores([0.0] * 40).high)
    uneven = mean_over_strata([np.zeros((1, 20)), np.ones((1, 5))])
    assert uneven.value == 0.5 and uneven.high - uneven.low > 0.4, "no more certain than the smaller task allows"
    seeds = mean_over_strata([np.ones((3, 20))])
    assert seeds.high == 1.0 and 0.8 < seeds.low < 0.9, "equal in all seeds is not certain"
    assert mean_over_strata([np.zeros((1, 20)), np.zeros((1, 20))], differences=True).high == 0.0


def test_wilson_s_interval_of_several_tasks_covers_as_often_as_it_says():
    chance = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        drawn = (chance.binomial(1, share, size=(1, count)) for share, count in ((0.1, 20), (0.5, 12)))
        estimate = mean_over_strata([one.astype(float) for one in drawn])
        covered += estimate.low <= 0.3 <= estimate.high
    assert covered / 400 >= 0.94


def test_the_interval_of_graded_scores_covers_the_mean_as_often_as_it_says():
    chance = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        estimate = mean_of_scores(chance.beta(2, 5, size=60).tolist())
        covered += estimate.low <= 2 / 7 <= estimate.high
    assert 88 <= covered <= 100


def test_one_graded_score_has_no_interval_and_none_has_no_mean():
    assert mean_of_scores([0.4]).low is None
    with pytest.raises(ValueError, match="no scores"):
        mean_of_scores([])


def test_the_same_scores_give_the_same_interval():
    scores = [0.1, 0.4, 0.35, 0.8, 0.05]
    assert mean_of_scores(scores) == mean_of_scores(scores)


def test_a_loss_is_weighted_by_tokens_and_its_interval_is_over_sequences():
    estimate = ratio([30.0, 10.0, 24.0], [10, 5, 8])
    assert estimate.value == pytest.approx(64 / 23) and estimate.samples == 3
    assert 2.0 <= estimate.low < estimate.value < estimate.high <= 3.0


def test_paired_differences_are_sharper_than_the_scores_they_come_from():
    base = np.random.default_rng(1).uniform(size=80)
    better = mean_difference((base + 0.05).tolist(), base.tolist())
    assert better.low == pytest.approx(0.05) and better.high == pytest.approx(0.05)
    with pytest.raises(ValueError, match="cannot be paired"):
        mean_difference([1.0], [1.0, 0.0])


def test_tasks_weigh_the_same_whatever_their_samples_and_the_interval_covers_as_often_as_it_says():
    chance = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        strata = [chance.beta(2, 5, size=(1, 40)), chance.beta(5, 2, size=(1, 15))]
        estimate = mean_over_strata(strata)
        assert estimate.value == pytest.approx((strata[0].mean() + strata[1].mean()) / 2) and estimate.samples == 55
        covered += estimate.low <= 0.5 <= estimate.high
    assert 88 <= covered <= 100


def test_seeds_that_differ_widen_the_interval():
    scores = np.random.default_rng(4).uniform(size=60)
    alike = mean_over_strata([np.stack([scores, scores, scores])])
    apart = mean_over_strata([np.stack([scores - 0.2, scores, scores + 0.2])])
    assert alike.value == pytest.approx(apart.value)
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)


def test_one_stratum_and_seed_is_the_plain_mean_and_single_samples_have_no_interval():
    scores = np.array([[1.0, 0.0, 0.0, 1.0]])
    assert mean_over_strata([scores]) == mean_of_scores(scores[0])
    assert mean_over_strata([scores[:, :1], scores[:, 1:2]]).low is None
    with pytest.raises(ValueError, match="no scores"):
        mean_over_strata([])
