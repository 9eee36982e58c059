"""Clustered intervals by hand, and their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbsd.accuracy import Accuracy, ProblemResult, paired_difference
from pbsd.intervals import Interval, clustered_interval, difference_interval, logit_interval, share_interval


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


def test_one_share_of_thirty_by_hand():
    """Mean and standard error are both 1/30, t(.975, 29) = 2.045230: on the logit scale the half width is
    t (1/30) / (1/30 * 29/30) = 2.115755 about -ln 29 = -3.367296. The symmetric interval begins at -.035."""
    found = share_interval([1.0] + [0.0] * 29)
    assert found.estimate == pytest.approx(1 / 30)
    assert found.low == pytest.approx(1 / (1 + math.exp(3.367296 + 2.115755)), rel=1e-5)
    assert found.high == pytest.approx(1 / (1 + math.exp(3.367296 - 2.115755)), rel=1e-5)
    mirrored = share_interval([0.0] + [1.0] * 29)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.125, 0.5, 0.875, 1.0]), min_size=2, max_size=40))
def test_shares_never_leave_their_range_and_are_never_certain(shares):
    found = share_interval(shares)
    assert 0 <= found.low <= found.estimate <= found.high <= 1 and found.low < found.high


def test_in_the_middle_little_changes():
    """300 problems with accuracy 46.8% and half width 3.8 points: the bounds move by less than a tenth of a point."""
    found = logit_interval(Interval(0.468, 0.430, 0.506))
    assert (found.low, found.high) == pytest.approx((0.430, 0.506), abs=0.001)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (0.3, 0.3), (0.3, 2.7), (20, 20), (5, 95)])
@pytest.mark.parametrize(("problems", "samples"), [(10, 8), (30, 1), (30, 8), (100, 8)])
def test_coverage_of_shares(a, b, problems, samples):
    """Problem rates are Beta(a, b): any, all or nothing, mostly nothing, alike, alike and low. Of 1000 experiments 950
    should cover, binomial deviation 6.9. The symmetric interval covers 835 with ten problems of mostly nothing."""
    rng = np.random.default_rng(0)
    means_EP = rng.binomial(samples, rng.beta(a, b, (1000, problems))) / samples
    found = [share_interval(means_P.tolist()) for means_P in means_EP]
    assert sum(interval.low <= a / (a + b) <= interval.high for interval in found) >= 950 - 3 * 6.9


def test_too_few_shares_have_no_bounds():
    assert [share_interval(shares).estimate for shares in ([0.0], [1.0])] == [0, 1]
    assert all(math.isnan(share_interval(shares).low) for shares in ([], [0.0], [0.25], [1.0]))


def test_equal_values_bound_the_share_of_those_that_differ():
    """With n = 5 a share above q = 1 - .025^(1/5) = .521824 of others would have been seen in all but 2.5%. About
    shares of .5 the mean is then within .5 q, about differences of 0 within q; from .5 it can fall by 1.5 q."""
    q = 0.521824
    half = share_interval([0.5] * 5)
    assert (half.low, half.estimate, half.high) == pytest.approx((0.5 - 0.5 * q, 0.5, 0.5 + 0.5 * q), abs=1e-6)
    third = difference_interval([1 - 2 / 3, 2 / 3 - 1 / 3])  # equal but for rounding
    assert third.high == pytest.approx(1 / 3 + (1 - 0.025**0.5) * 2 / 3)
    zero, gain = difference_interval([0.0] * 5), difference_interval([0.5] * 5)
    assert (zero.low, zero.estimate, zero.high) == pytest.approx((-q, 0, q), abs=1e-6)
    assert (gain.low, gain.estimate, gain.high) == pytest.approx((0.5 - 1.5 * q, 0.5, 0.5 + 0.5 * q), abs=1e-6)
    assert paired_difference(*[Accuracy(tuple(problem(row, 2) for row in range(5)))] * 2).high == zero.high


def test_coverage_of_rare_differences():
    """One problem in twenty is won, so 20 agree in 36% of experiments; an interval [0, 0] misses each time."""
    rng = np.random.default_rng(0)
    won_EP = (rng.random((1000, 20)) < 0.05).astype(float)
    found = [difference_interval(won_P.tolist()) for won_P in won_EP]
    assert sum(interval.low <= 0.05 <= interval.high for interval in found) >= 950 - 3 * 6.9


def test_differences_of_three_problems_by_hand():
    """1, 1, 0: mean 2/3, standard error 1/3, t(.975, 2) = 4.302653, so the symmetric interval is 2/3 -+ 1.434218 and
    ends at 2.10. On the scale of atanh the middle is atanh(2/3) = .804719 and the half width 1.434218 / (1 - 4/9) =
    2.581592: from tanh(-1.776873) to tanh(3.386311)."""
    found = difference_interval([1.0, 1.0, 0.0])
    assert found.estimate == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx((math.tanh(-1.776873), math.tanh(3.386311)), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((-0.944365, 0.997714), abs=1e-5)
    mirrored = difference_interval([-1.0, -1.0, 0.0])
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    before, after = (
        Accuracy(tuple(problem(row, n) for row, n in enumerate(counts))) for counts in ([0, 0, 4], [4] * 3)
    )
    assert paired_difference(before, after).high == pytest.approx(found.high)
    assert math.isnan(difference_interval([0.0]).low)


@given(st.lists(st.sampled_from([-1.0, -0.875, -1e-9, 0.0, 0.125, 0.5, 1.0]), min_size=2, max_size=40))
def test_differences_never_leave_their_range_and_are_never_certain(differences):
    found = difference_interval(differences)
    assert -1 <= found.low <= found.estimate <= found.high <= 1 and found.low < found.high


def test_small_differences_of_many_problems_hardly_move():
    """+-1/8 in turn, 300 problems: mean 0, so only the curve of tanh tells the two apart, by h^3 / 3 = 1e-6."""
    differences = [0.125, -0.125] * 150
    symmetric, found = clustered_interval(differences), difference_interval(differences)
    assert found.high == pytest.approx(symmetric.high, abs=2e-6) and found.low == pytest.approx(-found.high)


@pytest.mark.parametrize(("won", "lost"), [(0.8, 0.0), (0.93, 0.0), (0.8, 0.1), (0.9, 0.1), (0.05, 0.05)])
@pytest.mark.parametrize("problems", [5, 10, 20, 30])
def test_coverage_of_differences(won, lost, problems):
    """Of 1000 experiments 950 should cover, binomial deviation 6.9. With 20 problems, of which 80% are won and 10%
    lost, the symmetric interval covers about 930."""
    rng = np.random.default_rng(0)
    values_EP = rng.choice([1.0, -1.0, 0.0], p=[won, lost, max(0.0, 1 - won - lost)], size=(1000, problems))
    found = [difference_interval(values_P.tolist()) for values_P in values_EP]
    assert sum(interval.low <= won - lost <= interval.high for interval in found) >= 950 - 3 * 6.9


def test_an_accuracy_of_zero_is_not_certain():
    problems = Accuracy(tuple(problem(row, 0) for row in range(30)))
    assert problems.sampled.high == pytest.approx(1 - 0.025 ** (1 / 30)) == pytest.approx(0.1157, abs=1e-4)
    assert math.isnan(problems.greedy.high)


def test_the_bound_of_zeros_holds_however_samples_of_a_problem_are_alike():
    """A share of 12 problems in 100 that is always solved is the worst case: 30 problems are all unsolved in .88^30 =
    2.2% of experiments, and .12 is outside the bound .1157 then; at .11, in 3.0%, it is inside."""
    bound = share_interval([0.0] * 30).high
    assert 0.11 < bound < 0.12 and (1 - bound) ** 30 == pytest.approx(0.025)
