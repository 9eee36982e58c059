"""Confidence intervals of means over problems. Samples of one problem are not independent: the problem is the unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy import special, stats


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its two-sided interval; NaN bounds where there are fewer than two clusters."""

    estimate: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def clustered_interval(cluster_means: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student-t interval of the mean over clusters, one value per cluster (a problem's accuracy, or its difference).

    With the same number of samples in every cluster this is the cluster-robust interval of the overall mean: its
    standard error is the standard deviation of the cluster means over the root of their number.
    """
    n = len(cluster_means)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = math.fsum(cluster_means) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in cluster_means) / (n - 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half)


def share_interval(shares: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of values from 0 to 1, such as problems' accuracies; never outside [0, 1].

    `logit_interval` of the clustered one. Where all values are the same their scatter says nothing, see `_unanimous`.
    """
    if _agree(shares):
        return _unanimous(shares, 0.0, confidence)
    return logit_interval(clustered_interval(shares, confidence))


def difference_interval(differences: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of the mean of paired differences of shares, from -1 to 1; never outside [-1, 1].

    The mean d lies in [-1, 1] as (1 + d) / 2 does in [0, 1], so its interval is the `logit_interval` of that:
    with h the half width of the clustered one, atanh(d) +- h / (1 - d^2), for logit((1 + d) / 2) = 2 atanh(d). Near 0
    it is almost the clustered one. Where all differences are the same, as in two results that never differ, their
    scatter says nothing, see `_unanimous`.
    """
    if _agree(differences):
        return _unanimous(differences, -1.0, confidence)
    found = clustered_interval(differences, confidence)
    share = logit_interval(Interval(*((1 + bound) / 2 for bound in (found.estimate, found.low, found.high))))
    return Interval(found.estimate, 2 * share.low - 1, 2 * share.high - 1)


def logit_interval(interval: Interval) -> Interval:
    """The interval of a share m, symmetric with half width h, taken on the logit scale: logit(m) +- h / (m (1 - m)).

    The delta method: h / (m (1 - m)) is t times the standard error of logit(m), so clusters and degrees of freedom stay
    what they were. This is `svyciprop(method="xlogit")` of R's package survey. Near 0 and 1 it covers where the
    symmetric interval is too short on the far side and leaves [0, 1] on the near one; around 1/2 they are
    almost the same.
    """
    if not interval.low < interval.high:  # unknown, or without width
        return interval
    share = interval.estimate
    half = (interval.high - share) / (share * (1 - share))
    low, high = special.expit([special.logit(share) - half, special.logit(share) + half])
    return Interval(share, float(low), float(high))


def _agree(values: Sequence[float]) -> bool:
    """But for rounding: 1 - 2/3 is not 2/3 - 1/3."""
    return len(values) > 1 and max(values) - min(values) < 1e-12


def _unanimous(values: Sequence[float], lowest: float, confidence: float) -> Interval:
    """The interval where n clusters agree on one value x, of values from `lowest` to 1.

    Let a share q of all clusters have other values. That n agree has a chance of (1 - q)^n, which falls below
    (1 - confidence) / 2 at q = 1 - ((1 - confidence) / 2)^(1 / n): Clopper and Pearson's bound (Biometrika 26, 1934).
    With at most that share elsewhere the mean lies within q (x - lowest) below x and q (1 - x) above it, whatever the
    samples of a problem have in common.
    """
    value, elsewhere = values[0], 1.0 - ((1.0 - confidence) / 2) ** (1.0 / len(values))
    return Interval(value, value - elsewhere * (value - lowest), value + elsewhere * (1.0 - value))
