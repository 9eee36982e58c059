"""Figures of an evaluation against slow definitions and values derived by hand."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbsd.evaluate.compare import Comparison
from pbsd.evaluate.records import ProblemRecord, SampleRecord, differences, problem_keys
from pbsd.evaluate.show import print_comparison, print_summary
from pbsd.evaluate.statistics import (
    majority,
    paired_differences,
    pass_at_k,
    ratio_difference,
    ratio_interval,
    summarize,
)
from pbsd.intervals import clustered_interval
from pbsd.records import quantile


def sample(outcome="wrong", answer="0", tokens=10, finished=True, text="x"):
    score = {"correct": 1.0, "wrong": 0.0, "unparsed": 0.0}.get(outcome)
    return SampleRecord(text, answer, outcome, score, "", tokens, finished)


def problem(row, *samples):
    return ProblemRecord(row, f"key{row}", str(row), "p", "a", samples)


RIGHT, WRONG, TIMEOUT = sample("correct", "1"), sample("wrong", "2"), sample("timeout", None)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    n, correct, k = case
    subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_by_hand():
    """n = 4, c = 1, k = 2: C(3, 2) / C(4, 2) = 3/6 of the pairs miss it. pass@1 is c / n."""
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(1000, 1, 1000) == 1.0
    assert math.isnan(pass_at_k(3, 1, 4))


@pytest.mark.parametrize(
    ("samples", "value"),
    [
        ([RIGHT, RIGHT, WRONG], 1.0),
        ([RIGHT, WRONG, WRONG], 0.0),
        ([RIGHT, WRONG], 0.5),  # a tie of two answers, one of them right
        ([RIGHT, WRONG, sample("wrong", "3")], 1 / 3),
        ([sample("correct", "1/2"), sample("correct", "0.5"), WRONG], 1.0),  # one right answer, written in two ways
        ([sample("wrong", "1/2"), sample("wrong", "0.5"), RIGHT], 1 / 3),
        ([RIGHT, sample("unparsed", None), sample("unparsed", None)], 1.0),  # no vote without an answer
        ([sample("unparsed", None)], 0.0),
        ([RIGHT, WRONG, TIMEOUT], 0.5),
    ],
)
def test_majority_and_its_ties(samples, value):
    assert majority(samples) == pytest.approx(value)


def test_majority_of_nothing_judged_is_undefined():
    assert math.isnan(majority([TIMEOUT]))


def test_ratio_interval_by_hand():
    """a = (2, 4, 6), b = (1, 1, 2): R = 12/4 = 3, residuals a - 3b = (-1, 1, 0), their mean square over n - 1 is 1,
    so the error is sqrt(1/3) over the mean 4/3 of b: 0.4330; t at 2 degrees of freedom is 4.3027. That of log R is a
    third of it."""
    interval = ratio_interval([2, 4, 6], [1, 1, 2])
    factor = math.exp(4.30265 * math.sqrt(1 / 3) / (4 / 3) / 3)
    assert interval.estimate == 3
    assert (interval.low, interval.high) == pytest.approx((3 / factor, 3 * factor), rel=1e-5)


def test_ratio_interval_with_one_right_answer_is_positive():
    """a - 30 b = (-20, 10, 10), over the mean 1/3 of b: -60, 30, 30, whose standard error is 30 = R. So log R has t(2)
    = 4.30265 on either side, where R itself would go down to -99."""
    interval = ratio_interval([10, 10, 10], [1, 0, 0])
    assert (interval.low, interval.high) == pytest.approx((30 * math.exp(-4.30265), 30 * math.exp(4.30265)), rel=1e-4)


def test_ratio_interval_with_a_constant_denominator_is_that_of_the_mean():
    values = [1.0, 4.0, 2.5, 7.0]
    mean = clustered_interval([v / 2 for v in values])
    found = ratio_interval(values, [2.0] * 4)
    assert found.high == pytest.approx(mean.estimate * math.exp(mean.high / mean.estimate - 1))


def test_ratio_interval_covers_the_ratio():
    """Of 1,000 worlds with 60 problems the interval should hold the truth in about 95%; 93 to 97 is within 3 standard
    errors (0.7 points each) of it."""
    generator, hits = random.Random(0), 0
    for _ in range(1000):
        b = [sum(generator.random() < 0.5 for _ in range(8)) for _ in range(60)]
        a = [generator.gauss(100, 20) + 5 * x for x in b]
        interval = ratio_interval(a, b)
        hits += interval.low <= (100 + 5 * 4) / 4 <= interval.high
    assert 930 <= hits <= 970


def test_ratio_difference_by_hand():
    """First as above: R = 3 with parts (-.75, .75, 0). Second: a = (6, 6, 6), b = (2, 1, 1), R = 4.5, a - 4.5 b = (-3,
    1.5, 1.5) over 4/3. The parts differ by (-1.5, .375, 1.125): variance 1.828125, half width t(2) sqrt(that / 3)."""
    found = ratio_difference(([2, 4, 6], [1, 1, 2]), ([6, 6, 6], [2, 1, 1]))
    assert found.estimate == 1.5
    assert found.high - 1.5 == pytest.approx(4.30265 * math.sqrt(1.828125 / 3), rel=1e-5)
    assert 1.5 - found.low == pytest.approx(found.high - 1.5)
    assert math.isnan(ratio_difference(([1, 1], [0, 0]), ([1, 1], [1, 1])).estimate)


def test_ratio_difference_covers_the_difference():
    """1000 pairs of results on 60 problems of shared difficulty, each as above with 100 / E[b] + 5: that of rates .3
    and .7 of 8 samples is 100 / 5.6 - 100 / 2.4."""
    generator, hits = random.Random(0), 0
    for _ in range(1000):
        hard = [generator.random() * 0.2 - 0.1 for _ in range(60)]
        b, d = ([sum(generator.random() < rate + h for _ in range(8)) for h in hard] for rate in (0.3, 0.7))
        first, second = ([generator.gauss(100, 20) + 5 * x for x in own] for own in (b, d))
        interval = ratio_difference((first, b), (second, d))
        hits += interval.low <= 100 / 5.6 - 100 / 2.4 <= interval.high
    assert 930 <= hits <= 970


def test_ratio_interval_without_a_right_answer_is_undefined():
    assert math.isnan(ratio_interval([5, 6], [0, 0]).estimate)


def test_quantile_is_the_nearest_of_the_values():
    """Of the places 0 to 3 these shares are .3, .75, 1.5 (even: 2), 1.2, 2.97 and 3; one value is every quantile."""
    shares = (0.1, 0.25, 0.5, 0.4, 0.99, 1.0)
    assert [quantile([1, 2, 3, 4], share) for share in shares] == [1, 2, 3, 2, 4, 4]
    assert quantile([7], 0.9) == 7


def test_summary_by_hand():
    """Two problems of two samples. Accuracies 1/2 and 1 (its time-out is in no count), so avg@2 is 3/4; pass@2 needs
    two judged samples, which the second has not: 1 over the first alone. Tokens 10, 30, 20, 20: mean 20; two right
    answers, 40 tokens each. One of four was cut; hedging: `maybe` among 2 words of one sample is 50 per 100, and the
    mean over its problem is 25, over both 12.5."""
    first = problem(0, sample("correct", tokens=10), sample("wrong", tokens=30, finished=False, text="maybe so"))
    second = problem(1, sample("correct", tokens=20), sample("timeout", None, tokens=20))
    summary = summarize([first, second])
    figures = summary["figures"]
    assert figures["avg@2"]["estimate"] == 0.75
    assert (figures["pass@2"]["estimate"], figures["pass@2"]["problems"]) == (1.0, 1)
    assert figures["pass@1"]["estimate"] == 0.75
    assert figures["tokens"]["estimate"] == 20
    assert summary["tokens_per_correct"]["estimate"] == 40
    assert figures["truncated"]["estimate"] == 0.25
    assert figures["hedging"]["estimate"] == 12.5
    assert figures["leakage"]["estimate"] == 0
    assert summary["outcomes"] == {"correct": 2, "wrong": 1, "unparsed": 0, "timeout": 1, "error": 0}
    assert summary["token_quantiles"] == {"p10": 10, "p50": 20, "p90": 30, "p99": 30, "max": 30}
    low, high = figures["avg@2"]["low"], figures["avg@2"]["high"]
    # t(1) s / sqrt(2) = 12.7062 * .25, over .75 * .25 on the logit scale, about ln 3.
    half = 12.7062 * 0.25 / 0.1875
    assert (low, 1 - high) == pytest.approx((1 / (1 + math.exp(half) / 3), 1 / (1 + 3 * math.exp(half))), rel=1e-3)


def test_a_figure_that_is_zero_everywhere_is_not_certain():
    """Of three problems: 1 - .025^(1/3) = .7076. Tokens and phrases are no shares: equal numbers
    have no width."""
    figures = summarize([problem(row, WRONG, WRONG) for row in range(3)])["figures"]
    for name in ("avg@2", "pass@1", "pass@2", "maj@2", "score", "truncated", "leakage"):
        assert (figures[name]["low"], figures[name]["high"]) == (0, pytest.approx(0.70760, abs=1e-5)), name
    assert (figures["tokens"]["low"], figures["tokens"]["high"]) == (10, 10)
    assert (figures["hedging"]["low"], figures["hedging"]["high"]) == (0, 0)


def test_leakage_is_the_share_of_samples_that_cite():
    cited = sample(text="the reference solution says 4")
    assert summarize([problem(0, cited, sample()), problem(1, sample(), sample())])["figures"]["leakage"][
        "estimate"
    ] == pytest.approx(0.25)


def test_paired_differences_pair_by_problem_not_by_place():
    """Problems 0, 1, 2 go from 1, 0, 0 to 1, 0, 1: differences 0, 0, 1 with mean 1/3 and sd sqrt(1/3), so the half
    width is t(2) sd / sqrt(3) = 4.30265 / 3, and on the scale of atanh that over 1 - 1/9. By their places the
    differences would be -1, 1, 1, with the same mean. Problem 3 was not judged in the first, problem 4 is not in it."""
    ours = [problem(0, RIGHT), problem(1, WRONG), problem(2, WRONG), problem(3, TIMEOUT)]
    theirs = [problem(1, WRONG), problem(2, RIGHT), problem(0, RIGHT), problem(3, RIGHT), problem(4, RIGHT)]
    found = paired_differences(ours, theirs)["avg@1"]
    assert (found["first"], found["second"], found["problems"]) == pytest.approx((1 / 3, 2 / 3, 3))
    assert found["difference_estimate"] == pytest.approx(1 / 3)
    assert found["difference_high"] == pytest.approx(math.tanh(math.atanh(1 / 3) + 4.30265 / 3 * 9 / 8), rel=1e-5)


def test_tokens_per_correct_are_paired_over_the_shared_problems():
    """20 and 30 tokens for 1 right each in the first: 25 a right answer; 10 and 10 for 2 in the second: 10. Problem 2
    is in one only."""
    ours = [problem(0, sample("correct", tokens=20)), problem(1, sample("correct", tokens=30)), problem(2, RIGHT)]
    theirs = [problem(1, sample("correct", tokens=10)), problem(0, sample("correct", tokens=10))]
    found = paired_differences(ours, theirs)["tokens_per_correct"]
    assert (found["first"], found["second"], found["difference_estimate"], found["problems"]) == (25, 10, -15, 2)


def test_accuracy_is_compared_whatever_the_number_of_samples():
    """1/2 of two samples and 1/4 of four are two estimates of one mean; pass@2 is in both, pass@4 in one."""
    found = paired_differences([problem(0, RIGHT, WRONG)], [problem(0, RIGHT, WRONG, WRONG, WRONG)])
    assert found["avg@2 and avg@4"]["difference_estimate"] == -0.25
    assert found.keys() & {"avg@2", "avg@4", "maj@2", "maj@4", "pass@4"} == set() and "pass@2" in found


def test_results_that_never_differ_are_not_certain_to_be_equal():
    """Five problems: at most 1 - .025^(1/5) = .5218 of all may differ. Tokens have no such bound."""
    same = [problem(row, RIGHT) for row in range(5)]
    found = paired_differences(same, same)
    assert (found["avg@1"]["difference_low"], found["avg@1"]["difference_high"]) == pytest.approx(
        (-0.5218, 0.5218), abs=1e-4
    )
    assert found["tokens"]["difference_high"] == 0


def test_keys_tell_equal_problems_apart_by_their_order():
    rows = [{"prompt": "p", "answer": "1"}, {"prompt": "p", "answer": "2"}, {"prompt": "p", "answer": "1"}]
    first, other, again = problem_keys(rows)
    assert first != other and again == f"{first}-2"


def test_differences_name_what_changed():
    old, new = (
        {"n": 1, "versions": {"torch": "1", "x": "2"}, "same": [1]},
        {"n": 2, "versions": {"torch": "1"}, "same": [1]},
    )
    assert differences(old, new) == ["n: 1 -> 2", 'versions.x: "2" -> null']
    assert differences(new, new) == []


def test_it_is_said_where_a_figure_leaves_problems_out(capsys):
    """Problem 1 has one judged sample of two, problem 2 none: pass@2 is of one problem, avg@2 of two."""
    problems = [problem(0, RIGHT, WRONG), problem(1, RIGHT, TIMEOUT), problem(2, TIMEOUT, TIMEOUT)]
    settings = dict.fromkeys(
        ("benchmark", "split", "n", "temperature", "top_p", "top_k", "min_p", "seed", "max_completion_length",
         "thinking", "prompt_format", "dtype"), "-",
    )  # fmt: skip
    print_summary(summarize(problems), settings, {"model": "m", "source": "s", "left_out": {}})
    shown = " ".join(capsys.readouterr().out.split())
    assert "pass@2 is of 1 of 3 problems: the others have fewer than 2 samples that could be judged" in shown
    assert "avg@2 is of 2 of 3 problems: the others have no sample that could be judged" in shown
    assert "pass@1 is of 2 of 3 problems: the others have no sample" in shown
    found = paired_differences(problems, [problem(row, RIGHT, RIGHT) for row in range(3)])
    print_comparison(Comparison("b", ("m", "o"), found, 3, ()))
    assert "pass@2 is of 1 of 3 problems" in " ".join(capsys.readouterr().out.split())
    print_summary(summarize([problem(0, RIGHT, WRONG)]), settings, {"model": "m", "source": "s", "left_out": {}})
    assert "could be judged" not in capsys.readouterr().out
