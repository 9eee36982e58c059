"""From graded samples of problems to figures with intervals. The problem is the unit of every interval.

A sample that could not be judged (the grader's time-out or error) is in no count of right or wrong: avg@k, pass@k and
maj@k are of the judged samples, and the outcomes say how many were not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pbsd.diagnostics.text import hedging_rate, leaks
from pbsd.evaluate.records import ProblemRecord, SampleRecord
from pbsd.intervals import Interval, clustered_interval, difference_interval, share_interval
from pbsd.records import quantile
from pbsd.rewards.grade import OUTCOMES

QUANTILES = (0.1, 0.5, 0.9, 0.99)
"""Of the completions' tokens."""

SHARES = ("avg@", "pass@", "maj@", "score", "truncated", "leakage")
"""How figures from 0 to 1 begin."""

Sums = tuple[Sequence[float], Sequence[float]]
"""Numerators and denominators of a ratio of sums, by cluster."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021 (arXiv 2107.03374), equation 1, as the product 1 - prod_{i<k} (n-c-i)/(n-i), which neither
    overflows nor cancels. NaN with fewer than k samples.
    """
    if samples < k:
        return math.nan
    return 1.0 - math.prod(max(0, samples - correct - i) / (samples - i) for i in range(k))


def majority(samples: Sequence[SampleRecord]) -> float:
    """Whether the most frequent answer is right: 1, 0, or between them at a tie.

    Correct samples are one answer however they are written; the others are counted by `SampleRecord.answer`, the same
    text being the same answer. At a tie it is the chance that a uniform draw among the most frequent answers is right.
    A sample without an answer, or that could not be judged, does not vote; 0 where there is no vote, NaN where no
    sample was judged.
    """
    judged = [sample for sample in samples if sample.judged]
    if not judged:
        return math.nan
    votes = Counter(
        (True, "") if sample.correct else (False, sample.answer)
        for sample in judged
        if sample.correct or sample.answer is not None
    )
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [right for (right, _), count in votes.items() if count == most]
    return sum(leaders) / len(leaders)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95) -> Interval:
    """Interval of sum(a) / sum(b) over clusters, of positive a: Student-t on the log scale, by the delta method.

    With h the half width of the ratio R itself (`_linearized`), that of log R is h / R: the bounds are R exp(-+ h / R),
    so never negative, and far above where few b are not 0. NaN where the denominators add up to 0.
    """
    ratio, parts = _linearized(numerators, denominators)
    factor = math.exp(_half_width(parts, confidence) / ratio)
    return Interval(ratio, ratio / factor, ratio * factor)


def ratio_difference(first: Sums, second: Sums, confidence: float = 0.95) -> Interval:
    """Student-t interval of the difference second - first of two ratios over the same clusters, by the delta method.
    NaN where the denominators of one add up to 0."""
    (before, ours), (after, theirs) = (_linearized(*sums) for sums in (first, second))
    half = _half_width([b - a for a, b in zip(ours, theirs, strict=True)], confidence)
    return Interval(after - before, after - before - half, after - before + half)


def _linearized(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, list[float]]:
    """R = sum(a) / sum(b), and (a - R b) / mean(b) of each cluster, whose mean is 0 with the standard error of R
    (Cochran, Sampling Techniques, 3rd edition, 1977, chapter 6)."""
    n, total = len(numerators), math.fsum(denominators)
    if total == 0:
        return math.nan, [math.nan] * n
    ratio = math.fsum(numerators) / total
    return ratio, [(a - ratio * b) * n / total for a, b in zip(numerators, denominators, strict=True)]


def _half_width(values: Sequence[float], confidence: float) -> float:
    interval = clustered_interval(values, confidence)
    return interval.high - interval.estimate


def accuracy(problem: ProblemRecord) -> float:
    """Share of the judged samples that are right; NaN where none was judged."""
    judged = [sample.correct for sample in problem.completions if sample.judged]
    return sum(judged) / len(judged) if judged else math.nan


def mean_score(problem: ProblemRecord) -> float:
    """Mean score of the judged samples: below `accuracy` nowhere, above it where a grader gives part of the points."""
    scores = [sample.score for sample in problem.completions if sample.score is not None]
    return math.fsum(scores) / len(scores) if scores else math.nan


def pass_rate(k: int) -> Callable[[ProblemRecord], float]:
    def of_problem(problem: ProblemRecord) -> float:
        judged = [sample.correct for sample in problem.completions if sample.judged]
        return pass_at_k(len(judged), sum(judged), k)

    return of_problem


def mean_tokens(problem: ProblemRecord) -> float:
    return _share(problem, lambda sample: sample.tokens)


def _share(problem: ProblemRecord, value: Callable[[SampleRecord], float]) -> float:
    return math.fsum(value(sample) for sample in problem.completions) / len(problem.completions)


def _hedging(problem: ProblemRecord) -> float:
    rates = [rate for sample in problem.completions if not math.isnan(rate := hedging_rate(sample.text))]
    return math.fsum(rates) / len(rates) if rates else math.nan


def figures(n: int) -> dict[str, Callable[[ProblemRecord], float]]:
    """The figures that are means over problems, by name, for n samples of each; NaN: the problem has none.

    avg@n; pass@k for k = 1, 2, 4 ... up to n, of problems with k judged samples; maj@n; score; tokens; truncated, and
    leakage (a phrase that cites a context the student never saw), as shares of the samples; hedging, in phrases per 100
    words (`diagnostics.text`).
    """
    ks = [2**power for power in range(n.bit_length()) if 2**power < n]
    return {
        f"avg@{n}": accuracy,
        **{f"pass@{k}": pass_rate(k) for k in [*ks, n]},
        f"maj@{n}": lambda problem: majority(problem.completions),
        "score": mean_score,
        "tokens": mean_tokens,
        "truncated": lambda problem: _share(problem, lambda sample: not sample.finished),
        "hedging": _hedging,
        "leakage": lambda problem: _share(problem, lambda sample: leaks(sample.text)),
    }


def summarize(problems: Sequence[ProblemRecord]) -> dict[str, Any]:
    """All figures of a finished evaluation, with 95% intervals clustered by problem."""
    n = len(problems[0].completions)
    samples = [sample for problem in problems for sample in problem.completions]
    ordered = sorted(sample.tokens for sample in samples)
    outcomes = Counter(sample.outcome for sample in samples)
    means = {}
    for name, value in figures(n).items():
        values = [found for problem in problems if not math.isnan(found := value(problem))]
        interval = share_interval(values) if name.startswith(SHARES) else clustered_interval(values)
        means[name] = {**interval.as_dict(), "problems": len(values)}
    return {
        "problems": len(problems),
        "samples_per_problem": n,
        "figures": means,
        "tokens_per_correct": ratio_interval(*_tokens_and_correct(problems)).as_dict(),
        "token_quantiles": {**{f"p{100 * q:g}": quantile(ordered, q) for q in QUANTILES}, "max": ordered[-1]},
        "generated_tokens": sum(ordered),
        "outcomes": {name: outcomes[name] for name in OUTCOMES if name not in ("scored", "unjudged")},
    }


def _tokens_and_correct(problems: Sequence[ProblemRecord]) -> Sums:
    return (
        [sum(sample.tokens for sample in problem.completions) for problem in problems],
        [sum(sample.correct for sample in problem.completions) for problem in problems],
    )


def paired_differences(first: Sequence[ProblemRecord], second: Sequence[ProblemRecord]) -> dict[str, dict[str, float]]:
    """Per figure: its mean in both, over the problems that have it in both, and the interval of the mean difference
    second - first, paired by problem; `tokens_per_correct` is a ratio of sums over the problems that both have.

    Another number of samples leaves avg@n what it was, so that is compared, as `avg@2 and avg@4`; pass@k and maj@n that
    only one of them has are left out.
    """
    n, m = (len(problems[0].completions) for problems in (first, second))
    ours, theirs = figures(n), figures(m)
    common = {name: value for name, value in ours.items() if name in theirs}
    if n != m:
        common = {f"avg@{n} and avg@{m}": accuracy, **common}
    partner = {problem.key: problem for problem in second}
    shared = [(problem, partner[problem.key]) for problem in first if problem.key in partner]
    result = {}
    for name, value in common.items():
        pairs = [(a, b) for p, q in shared if not (math.isnan(a := value(p)) or math.isnan(b := value(q)))]
        differences = [b - a for a, b in pairs]
        difference = difference_interval(differences) if name.startswith(SHARES) else clustered_interval(differences)
        means = (_mean([a for a, _ in pairs]), _mean([b for _, b in pairs]))
        result[name] = _paired(*means, difference, len(pairs))
    spent, reached = (_tokens_and_correct(problems) for problems in zip(*shared, strict=True))
    before, after = (ratio_interval(*sums).estimate for sums in (spent, reached))
    result["tokens_per_correct"] = _paired(before, after, ratio_difference(spent, reached), len(shared))
    return result


def _paired(first: float, second: float, difference: Interval, problems: int) -> dict[str, float]:
    bounds = {f"difference_{key}": bound for key, bound in difference.as_dict().items()}
    return {"first": first, "second": second, **bounds, "problems": problems}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
