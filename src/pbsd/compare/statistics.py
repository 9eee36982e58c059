"""Intervals of accuracies and differences when problems are crossed with seeds, and what curves say. numpy and scipy.

**Model.** In a cell, seed s and problem p give the value (an accuracy, or a paired difference of two methods)

    y_sp = mu + a_s + b_p + e_sp,    variances A, B and E,

for problems are shared by all seeds. The mean over S seeds and P problems has the variance A/S + B/P + E/(SP). With

    V_seed    = sum_s (y_s. - y..)^2 / (S (S - 1)),            whose expectation is A/S + E/(SP),
    V_problem = sum_p (y_.p - y..)^2 / (P (P - 1)),            whose expectation is B/P + E/(SP),
    V_both    = sum_sp (y_sp - y_s. - y_.p + y..)^2 / (SP (S - 1)(P - 1)),    whose expectation is E/(SP),

V = V_seed + V_problem - V_both is unbiased (expected mean squares of the crossed two-way layout: Searle, Casella and
McCulloch, Variance Components, 1992, chapter 4). This is the two-way clustered variance of Cameron, Gelbach and Miller
(Journal of Business & Economic Statistics 29, 2011) with a correction for few clusters: theirs takes
V_both from residuals about the overall mean, which hold a_s and b_p too, and so understates B/P by the factor 1 - 1/S.

**Several cells** are averaged with equal weights. Their training seeds are independent (`plan.training_seed`), so
V_seed and V_both add up; cells of one task share their test problems, so V_problem is that of the problems' averages
over the task's cells, and adds up over tasks. V is never taken below V_seed or V_problem alone, which sampling noise
could do. Degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946) for the sum of mean squares. One seed in
a cell says nothing of A: the interval is then unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pbsd.intervals import Interval

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CellValues:
    """Values of one cell; cells of equal `problems` share their problems, in the same order."""

    problems: str
    values_SP: Array


def crossed_interval(cells: Sequence[CellValues], confidence: float = 0.95) -> Interval:
    """Student-t interval of the mean over cells of their means over seeds and problems; see above.

    Raises:
        ValueError: no cells, or cells that share problems have different numbers of them.
    """
    if not cells:
        raise ValueError("no cells to average")
    estimate = float(np.mean([cell.values_SP.mean() for cell in cells]))
    if any(min(cell.values_SP.shape) < 2 for cell in cells):
        return Interval(estimate, math.nan, math.nan)
    weight = 1 / len(cells)
    by_seed = [weight**2 * _mean_variance(cell.values_SP.mean(1)) for cell in cells]
    both = [weight**2 * _interaction_variance(cell.values_SP) for cell in cells]
    by_problem, problem_dof = [], []
    for name in dict.fromkeys(cell.problems for cell in cells):
        means = [cell.values_SP.mean(0) for cell in cells if cell.problems == name]
        if len({len(mean_P) for mean_P in means}) > 1:
            raise ValueError(f"cells of {name!r} have different numbers of problems: they cannot be the same ones")
        by_problem.append(_mean_variance(weight * np.sum(means, axis=0)))
        problem_dof.append(len(means[0]) - 1)
    variance = sum(by_seed) + sum(by_problem) - sum(both)
    variance = max(variance, sum(by_seed), sum(by_problem))
    if variance == 0:
        return Interval(estimate, estimate, estimate)
    seeds = [cell.values_SP.shape[0] - 1 for cell in cells]
    terms = [*zip(by_seed, seeds, strict=True), *zip(by_problem, problem_dof, strict=True)]
    terms += [(v, dof * (cell.values_SP.shape[1] - 1)) for v, dof, cell in zip(both, seeds, cells, strict=True)]
    dof = variance**2 / sum(v**2 / own for v, own in terms)
    half = float(stats.t.ppf(0.5 + confidence / 2, dof)) * math.sqrt(variance)
    return Interval(estimate, estimate - half, estimate + half)


def _mean_variance(values: Array) -> float:
    """Of the mean of independent values."""
    return float(values.var(ddof=1)) / len(values)


def _interaction_variance(values_SP: Array) -> float:
    S, P = values_SP.shape
    residual_SP = values_SP - values_SP.mean(1, keepdims=True) - values_SP.mean(0) + values_SP.mean()
    return float((residual_SP**2).sum()) / (S * P * (S - 1) * (P - 1))


def average_ranks(accuracy: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over cells of each method's rank by accuracy; 1 is best, equals share the mean of their ranks."""
    names = list(accuracy[0])
    ranks = [stats.rankdata([-cell[name] for name in names]) for cell in accuracy]
    return dict(zip(names, np.mean(ranks, axis=0).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class MeanCurve:
    """Validation accuracy against spent budget, averaged over seeds.

    `spent`: generated tokens; for methods that generate nothing, steps.
    """

    spent: Array
    accuracy: Array

    @property
    def final(self) -> float:
        return float(self.accuracy[-1])

    @property
    def drop(self) -> float:
        """From the highest point to the last."""
        return float(self.accuracy.max()) - self.final

    def reaches(self, level: float) -> float | None:
        """The least spent budget at which the curve, linear between its points, has the level; None: never."""
        above = np.flatnonzero(self.accuracy >= level)
        if not len(above):
            return None
        place = int(above[0])
        if place == 0:
            return float(self.spent[0])
        low, high = self.accuracy[place - 1 : place + 1]
        start, end = self.spent[place - 1 : place + 1]
        return float(start + (level - low) / (high - low) * (end - start))


def mean_curve(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> MeanCurve:
    """The mean of (spent, accuracy) curves, linear between their points.

    Seeds are measured after slightly different amounts; the mean is taken at evenly spaced ones up to the least end, as
    many as the shortest curve has points.
    """
    end = min(spent[-1] for spent, _ in curves)
    grid = np.linspace(0.0, end, min(len(spent) for spent, _ in curves))
    return MeanCurve(grid, np.mean([np.interp(grid, spent, accuracy) for spent, accuracy in curves], axis=0))
