"""Intervals for problems crossed with seeds against slow definitions, hand-made values and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from pbsd.compare.statistics import CellValues, average_ranks, crossed_interval, mean_curve


def slow_variance(cells):
    """V of the module's docstring, term by term, with loops; cells: (name of the problems, lists by seed)."""
    weight = 1 / len(cells)
    total = 0.0
    for _, rows in cells:
        S, P = len(rows), len(rows[0])
        mean = sum(map(sum, rows)) / (S * P)
        seed = [sum(row) / P for row in rows]
        problem = [sum(row[p] for row in rows) / S for p in range(P)]
        total += weight**2 * sum((value - mean) ** 2 for value in seed) / (S * (S - 1))
        residuals = [rows[s][p] - seed[s] - problem[p] + mean for s, p in itertools.product(range(S), range(P))]
        total -= weight**2 * sum(e * e for e in residuals) / (S * P * (S - 1) * (P - 1))
    for name in {name for name, _ in cells}:
        own = [rows for other, rows in cells if other == name]
        P = len(own[0][0])
        sums = [sum(weight * sum(row[p] for row in rows) / len(rows) for rows in own) for p in range(P)]
        mean = sum(sums) / P
        total += sum((value - mean) ** 2 for value in sums) / (P * (P - 1))
    return total


def half_width(interval):
    return (interval.high - interval.low) / 2


def draw(rng, seeds, problems, variances, cells=1, share=1.0):
    """Cells of the crossed model with mean 0; a part `share` of a problem's effect is the same in all cells."""
    seed, problem, error = np.sqrt(variances)
    common = rng.normal(0, problem, problems)
    found = []
    for _ in range(cells):
        own = math.sqrt(share) * common + math.sqrt(1 - share) * rng.normal(0, problem, problems)
        values = rng.normal(0, seed, (seeds, 1)) + own + rng.normal(0, error, (seeds, problems))
        found.append(CellValues("task", values))
    return found


def test_a_cell_by_hand():
    """Values [[0, 1], [1, 4]]: seed means 1/2 and 5/2, problem means 1/2 and 5/2, mean 3/2; V_seed = V_problem =
    (1 + 1)/(2 * 1) = 1; residuals +-1/2, so V_both = 4 * (1/4) / (4 * 1 * 1) = 1/4 and V = 7/4. Degrees of freedom
    (7/4)^2 / (1 + 1 + 1/16) = 49/33."""
    interval = crossed_interval([CellValues("x", np.array([[0.0, 1.0], [1.0, 4.0]]))])
    assert interval.estimate == 1.5
    expected = stats.t.ppf(0.975, 49 / 33) * math.sqrt(7 / 4)
    assert half_width(interval) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("names", [("a", "a", "b"), ("a", "b", "c"), ("a", "a", "a")])
def test_agrees_with_the_slow_definition(names):
    """The half width over its t quantile is the root of V; widths at two confidences give the degrees of freedom."""
    rng = np.random.default_rng(3)
    common = rng.normal(size=6)
    cells = [CellValues(name, common + rng.normal(size=(3, 1)) + rng.normal(size=(3, 6))) for name in names]
    wide, narrow = (half_width(crossed_interval(cells, confidence)) for confidence in (0.95, 0.5))
    expected = math.sqrt(slow_variance([(cell.problems, cell.values_SP.tolist()) for cell in cells]))
    dof = optimize.brentq(lambda d: stats.t.ppf(0.75, d) * expected - narrow, 0.8, 1000)
    assert stats.t.ppf(0.975, dof) * expected == pytest.approx(wide, rel=1e-6)


def test_the_variance_is_unbiased_and_that_of_uncorrected_clustering_is_not():
    """A = B = .01, E = .04, S = 3, P = 20: the mean has variance .01/3 + .01/20 + .04/60 = .0045. With V_both from
    residuals about the overall mean, the problems' share is too low by about B/P/S = .00017 and more."""
    rng = np.random.default_rng(0)
    ours, plain = [], []
    for _ in range(4000):
        (cell,) = draw(rng, 3, 20, (0.01, 0.01, 0.04))
        values = cell.values_SP
        S, P = values.shape
        e = values - values.mean()
        plain.append(
            (S / (S - 1) * (e.sum(1) ** 2).sum() + P / (P - 1) * (e.sum(0) ** 2).sum() - (e**2).sum()) / e.size**2
        )
        ours.append(slow_variance([("x", values.tolist())]))
    error = np.std(ours) / math.sqrt(len(ours))
    assert np.mean(ours) == pytest.approx(0.0045, abs=3 * error)
    assert np.mean(plain) < 0.0045 - 0.00017


def test_many_clusters_give_the_variance_of_cameron_gelbach_and_miller():
    """With 60 seeds and 200 problems the corrections vanish: V_seed + V_problem - V_both with plain residual sums."""
    (cell,) = draw(np.random.default_rng(1), 60, 200, (0.01, 0.02, 0.1))
    e = cell.values_SP - cell.values_SP.mean()
    plain = ((e.sum(1) ** 2).sum() + (e.sum(0) ** 2).sum() - (e**2).sum()) / e.size**2
    assert slow_variance([("x", cell.values_SP.tolist())]) == pytest.approx(plain, rel=0.03)


@pytest.mark.parametrize(
    ("seeds", "cells", "variances"),
    [(5, 1, (0.001, 0.05, 0.1)), (3, 1, (0.01, 0.0, 0.1)), (2, 1, (0.001, 0.05, 0.1)), (3, 8, (0.01, 0.05, 0.1)),
     (5, 4, (0.0, 0.05, 0.1))],
)  # fmt: skip
def test_coverage(seeds, cells, variances):
    """95% intervals hold the true mean in 93.5% to 98% of 1,500 simulated studies (the simulation's own error is
    .6%), for few seeds, no seed effect, no problem effect, and cells that share half of their problem effects."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(1500):
        interval = crossed_interval(draw(rng, seeds, 60, variances, cells, share=0.5))
        held += interval.low <= 0 <= interval.high
    assert 0.935 <= held / 1500 <= 0.98


def test_two_seeds_that_differ_much_cover_what_the_table_says():
    """About 90% in 1,500 simulated studies of one cell: two seeds say little of how much seeds differ."""
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(1500):
        interval = crossed_interval(draw(rng, 2, 60, (0.01, 0.05, 0.1)))
        held += interval.low <= 0 <= interval.high
    assert 0.88 <= held / 1500 <= 0.935


def test_leaving_out_the_seeds_covers_too_little():
    """Negative control: by problem alone, .01/4 of the variance .01/4 + .05/60 + ... is not seen."""
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(500):
        mean_P = draw(rng, 4, 60, (0.01, 0.05, 0.05))[0].values_SP.mean(0)
        held += abs(mean_P.mean()) <= stats.t.ppf(0.975, 59) * mean_P.std(ddof=1) / math.sqrt(60)
    assert held / 500 < 0.8


def test_taking_shared_problems_for_independent_ones_covers_too_little():
    """Negative control: the problems' variance .05/60 would count a sixth in the mean of six cells."""
    rng = np.random.default_rng(9)
    held = 0
    for _ in range(500):
        cells = draw(rng, 4, 60, (0.005, 0.05, 0.05), cells=6)
        interval = crossed_interval([CellValues(str(place), cell.values_SP) for place, cell in enumerate(cells)])
        held += interval.low <= 0 <= interval.high
    assert held / 500 < 0.85


def test_order_of_seeds_and_cells_does_not_matter_and_scale_does():
    rng = np.random.default_rng(2)
    cells = draw(rng, 3, 10, (0.1, 0.1, 0.1), cells=3)
    turned = [CellValues("task", cell.values_SP[::-1]) for cell in cells[::-1]]
    assert half_width(crossed_interval(turned)) == pytest.approx(half_width(crossed_interval(cells)))
    tripled = [CellValues("task", 3 * cell.values_SP + 1) for cell in cells]
    assert half_width(crossed_interval(tripled)) == pytest.approx(3 * half_width(crossed_interval(cells)))


def test_one_seed_has_no_interval_and_equal_values_have_an_empty_one():
    one = crossed_interval([CellValues("x", np.array([[0.0, 1.0]]))])
    assert one.estimate == 0.5
    assert math.isnan(one.low)
    none = crossed_interval([CellValues("x", np.full((2, 3), 0.25))])
    assert (none.low, none.high) == (0.25, 0.25)


def test_cells_that_cannot_share_problems_are_refused():
    with pytest.raises(ValueError, match="different numbers of problems"):
        crossed_interval([CellValues("x", np.zeros((2, 3))), CellValues("x", np.zeros((2, 4)))])
    with pytest.raises(ValueError, match="no cells"):
        crossed_interval([])


def test_average_ranks():
    """Ranks 1, 2.5, 2.5 and 3, 2, 1 (1 is the most accurate): means 2, 2.25, 1.75."""
    cells = [{"a": 0.9, "b": 0.5, "c": 0.5}, {"a": 0.1, "b": 0.2, "c": 0.3}]
    assert average_ranks(cells) == {"a": 2.0, "b": 2.25, "c": 1.75}


def test_mean_curves_drop_and_reach():
    """Curves over [0, 100, 200] and [0, 50, 220]: the grid is 0, 100, 200. The second is .2, .6, then .6 - .34 * 50/170
    = .5 at 100 and .26 + ... at 200 by the same slope -.002: .3. Means: .1, .5, .35; drop .15; .3 is passed half way
    from .1 to .5, at 50; .6 never; what holds from the start is reached at 0."""
    curve = mean_curve([([0, 100, 200], [0.0, 0.5, 0.4]), ([0, 50, 220], [0.2, 0.6, 0.26])])
    assert curve.spent.tolist() == [0, 100, 200]
    assert curve.accuracy.tolist() == pytest.approx([0.1, 0.5, 0.35])
    assert curve.final == pytest.approx(0.35)
    assert curve.drop == pytest.approx(0.15)
    assert curve.reaches(0.3) == pytest.approx(50)
    assert curve.reaches(0.6) is None
    assert curve.reaches(0.05) == 0
