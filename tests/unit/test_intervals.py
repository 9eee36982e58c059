"""Clustered intervals by hand, and their coverage."""

import math

import numpy as np
import pytest

from pbsd.evaluate.accuracy import Accuracy, ProblemResult, paired_difference
from pbsd.evaluate.intervals import clustered_interval, share_interval


def problem(row, correct, samples=4, unjudged=0):
    return ProblemResult(row, samples, correct, unjudged, None, 10)


def test_by_hand():
    """Means 0, 1/2, 1: mean 1/2, sd 1/2, standard error 1/(2 sqrt 3), t(0.975, 2) = 4.302653: half-width 1.242069."""
    interval = clustered_interval([0.0, 0.5, 1.0])
    assert interval.estimate == 0.5
    assert interval.high - interval.estimate == pytest.approx(4.3026527 / (2 * math.sqrt(3)), abs=1e-6)
    assert interval.low == pytest.approx(1.0 - interval.high)


def test_too_few_clusters_have_no_bounds():
    assert math.isnan(clustered_interval([]).estimate)
    one = clustered_interval([0.25])
    assert one.estimate == 0.25
    assert math.isnan(one.low)


def test_coverage_when_samples_of_a_problem_are_alike():
    """400 experiments of 30 problems x 8 samples with Beta(1,1) problem rates: 95% intervals cover the mean 1/2 in
    380 on average, binomial sd 4.4; the interval that takes samples as independent covers far fewer."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(400):
        means = rng.binomial(8, rng.random(30)) / 8
        interval = clustered_interval(means.tolist())
        covered += interval.low <= 0.5 <= interval.high
        half = 1.96 * math.sqrt(means.mean() * (1 - means.mean()) / 240)
        naive += abs(means.mean() - 0.5) <= half
    assert 380 - 4 * 4.4 <= covered <= 400
    assert naive < 320


def test_paired_difference_uses_the_same_problems():
    """Differences per problem 1/4, 1/2 (row 9 is only in one): mean 3/8."""
    before = Accuracy((problem(1, 0), problem(2, 1), problem(9, 0)))
    after = Accuracy((problem(1, 1), problem(2, 3)))
    assert paired_difference(before, after).estimate == pytest.approx(0.375)


def test_unjudged_samples_count_neither_way():
    accuracy = Accuracy((problem(0, 1, samples=2, unjudged=2), problem(1, 0, samples=0, unjudged=4)))
    assert accuracy.sampled.estimate == 0.5
    assert accuracy.metrics("eval")["eval_unjudged"] == 6


def test_json_round_trip_and_join_order():
    accuracy = Accuracy((problem(0, 1), problem(3, 2)))
    assert Accuracy.from_json(accuracy.to_json()) == accuracy
    assert Accuracy.join([Accuracy((problem(3, 2),)), Accuracy((problem(0, 1),))]) == accuracy


def test_shares_that_are_all_zero_or_one_keep_an_exact_bound():
    """Four zeros have a chance of at most (1 - m)^4, which is .025 at m = 1 - .025^(1/4) = .6024."""
    zeros, ones = share_interval([0.0] * 4), share_interval([1.0] * 4)
    assert (zeros.estimate, zeros.low, zeros.high) == (0.0, 0.0, pytest.approx(0.60236, abs=1e-5))
    assert (ones.estimate, ones.low, ones.high) == (1.0, pytest.approx(0.39764, abs=1e-5), 1.0)


@pytest.mark.parametrize("shares", [[0.0, 0.5, 1.0], [0.5, 0.5], [0.0, 1.0], [], [0.0], [1.0]])
def test_other_shares_have_the_clustered_interval(shares):
    assert np.array_equal(
        [*share_interval(shares).as_dict().values()], [*clustered_interval(shares).as_dict().values()], equal_nan=True
    )


def test_an_accuracy_of_zero_is_not_certain():
    problems = Accuracy(tuple(problem(row, 0) for row in range(30)))
    assert problems.sampled.high == pytest.approx(1 - 0.025 ** (1 / 30)) == pytest.approx(0.1157, abs=1e-4)
    assert math.isnan(problems.greedy.high)


def test_the_bound_of_zeros_holds_however_samples_of_a_problem_are_alike():
    """A share of 12 problems in 100 that is always solved is the worst case: 30 problems are all unsolved in .88^30 =
    2.2% of experiments, and .12 is outside the bound .1157 then; at .11, in 3.0%, it is inside."""
    bound = share_interval([0.0] * 30).high
    assert 0.11 < bound < 0.12 and (1 - bound) ** 30 == pytest.approx(0.025)
