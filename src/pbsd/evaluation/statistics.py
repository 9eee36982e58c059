"""From graded samples of problems to figures with intervals. The problem is the unit of every interval.

A sample that could not be judged (the grader's time-out or error) is in no count of right or wrong: avg@k, pass@k and
maj@k are of the judged samples, and the outcomes say how many were not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from scipy import stats

from pbsd.diagnostics.text import hedging_rate, leaks
from pbsd.evaluate.intervals import Interval, clustered_interval, difference_interval, share_interval
from pbsd.evaluation.records import ProblemRecord, SampleRecord
from pbsd.rewards.grade import OUTCOMES

QUANTILES = (0.1, 0.5, 0.9, 0.99)
"""Of the completions' tokens."""

SHARES = ("avg@", "pass@", "maj@", "score", "truncated", "leakage")
"""How figures from 0 to 1 begin."""


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
    """Student-t interval of sum(a) / sum(b) over clusters, by the delta method: with R the ratio, its standard error is
    that of the mean of (a - R b) over the mean of b. NaN where the denominators add up to 0."""
    n, total = len(numerators), math.fsum(denominators)
    if n == 0 or total == 0:
        return Interval(math.nan, math.nan, math.nan)
    ratio = math.fsum(numerators) / total
    if n == 1:
        return Interval(ratio, math.nan, math.nan)
    residuals = (a - ratio * b for a, b in zip(numerators, denominators, strict=True))
    error = math.sqrt(math.fsum(value * value for value in residuals) / (n - 1) / n) / (total / n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    return Interval(ratio, ratio - half, ratio + half)


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

    avg@n; pass@k for k = 1, 2, 4 ... up to n; maj@n; score; tokens; truncated, and leakage (a phrase that cites a
    context the student never saw), as shares of the samples; hedging, in phrases per 100 words (`diagnostics.text`).
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


def quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of the sorted values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


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
    per_correct = ratio_interval(
        [sum(sample.tokens for sample in problem.completions) for problem in problems],
        [sum(sample.correct for sample in problem.completions) for problem in problems],
    )
    return {
        "problems": len(problems),
        "samples_per_problem": n,
        "figures": means,
        "tokens_per_correct": per_correct.as_dict(),
        "token_quantiles": {**{f"p{100 * q:g}": quantile(ordered, q) for q in QUANTILES}, "max": ordered[-1]},
        "generated_tokens": sum(ordered),
        "outcomes": {name: outcomes[name] for name in OUTCOMES if name not in ("scored", "unjudged")},
    }


def paired_differences(first: Sequence[ProblemRecord], second: Sequence[ProblemRecord]) -> dict[str, dict[str, float]]:
    """Per figure: its mean in both, over the problems that have it in both, and the interval of the mean difference
    second - first, paired by problem. Figures that only one of them has (another number of samples) are left out."""
    ours, theirs = (figures(len(problems[0].completions)) for problems in (first, second))
    partner = {problem.key: problem for problem in second}
    shared = [(problem, partner[problem.key]) for problem in first if problem.key in partner]
    result = {}
    for name in (name for name in ours if name in theirs):
        value = ours[name]
        pairs = [(a, b) for p, q in shared if not (math.isnan(a := value(p)) or math.isnan(b := value(q)))]
        differences = [b - a for a, b in pairs]
        difference = difference_interval(differences) if name.startswith(SHARES) else clustered_interval(differences)
        result[name] = {
            "first": _mean([a for a, _ in pairs]),
            "second": _mean([b for _, b in pairs]),
            **{f"difference_{key}": bound for key, bound in difference.as_dict().items()},
            "problems": len(pairs),
        }
    return result


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
