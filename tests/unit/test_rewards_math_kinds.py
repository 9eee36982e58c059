"""What the mathematics grader must not accept, and must read, kind by kind; every expected outcome by hand.

`fixtures/math_kinds.jsonl` holds one case a line: its kind, a completion, a reference and the outcome that a careful
teacher would give; `not correct` is `wrong`, `unparsed` or `error`, where the answer or the reference cannot be read.
"""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pbsd import benchmarks
from pbsd.rewards.math import grade, reference
from pbsd.rewards.math_text import is_choice

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
FIXTURES = Path(__file__).parent / "fixtures"
KINDS = [json.loads(line) for line in (FIXTURES / "math_kinds.jsonl").read_text("utf-8").splitlines()]
CASES = json.loads((FIXTURES / "math_cases.json").read_text("utf-8"))


def boxed(answer):
    return f"\\boxed{{{answer}}}"


@pytest.mark.parametrize("case", KINDS, ids=[f"{case['kind']}: {case['answer']}"[:80] for case in KINDS])
def test_kind(case):
    result = grade(case["completion"], case["answer"])
    if case["outcome"] == "not correct":
        assert result.outcome in ("wrong", "unparsed", "error"), result.reason
    else:
        assert result.outcome == case["outcome"], result.reason


def shipped_references():
    """The references of the examples of every mathematics adapter."""
    for name in benchmarks.names():
        benchmark = benchmarks.find(name)
        if benchmark.reward == "math":
            for split in benchmark.splits:
                yield from (row["answer"] for row in benchmark.example(split).rows)


REFERENCES = sorted(
    {str(answer) for answer in shipped_references()}
    | {case["answer"] for case in CASES if isinstance(case["answer"], str)}
    | {case["answer"] for case in KINDS if case["answer"].count("=") < 2}  # of a computation the result alone counts
)


def mutations(answer):
    """The reference with one number in it changed."""
    for number in re.finditer(r"\d+", answer):
        for step in (1, 10):
            yield answer[: number.start()] + str(int(number[0]) + step) + answer[number.end() :]


EQUAL_BY_MATHEMATICS = {
    (r"\binom{5}{2} = 10", r"\binom{5}{3} = 10"),  # both are 10
}


def test_no_reference_with_one_number_changed_is_accepted():
    tried = accepted = 0
    wrongly = []
    for answer in REFERENCES:
        bare = reference(answer)
        for mutated in mutations(bare) if bare is not None else ():
            tried += 1
            if grade(boxed(mutated), answer).outcome == "correct":
                accepted += 1
                if (bare, mutated) not in EQUAL_BY_MATHEMATICS:
                    wrongly.append((bare, mutated))
    assert not wrongly
    assert tried > 1500
    assert accepted == len(EQUAL_BY_MATHEMATICS)


READABLE = [answer for answer in REFERENCES if reference(answer) is not None]


@pytest.mark.parametrize("answer", READABLE)
def test_a_reference_that_is_read_is_correct_against_itself(answer):
    assert grade(boxed(reference(answer)), answer).outcome == "correct"


TOKENS = [
    *"0123456789xyiABe+-*/=<>|%$,.;:()[] ", "²", "√", "π", "°", r"\frac{1}{2}", r"\sqrt{2}", r"\text{ cm}", r"\{",
    r"\}",
    r"\pm", r"\cup", r"\pi", r"\infty", r"\in", r"\sin", r"\log_2", " or ", " and ", "cm", " PM", "12:30", "x_{1}",
    r"\gamma", r"\mathbb{R}", r"\le", "no", "north", r"\quad", r"\%", r"\ldots", "@", r"\oplus", "?", r"\foo", "**",
    "sqrt(", "exp(", r"\overline{3}", r"\mid", r"\begin{cases}", "#", "&", r"\equiv", r"\Gamma(",
]  # fmt: skip
UNKNOWN = ["@", r"\oplus", "?", r"\foo{3}", r"\ldots", "…", r"\begin{cases}", r"\Rightarrow", "#", r"\equiv"]


@settings(UNHURRIED, max_examples=300)
@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=8).map("".join))
def test_any_reference_is_correct_against_itself_or_an_error(answer):
    result = grade(boxed(reference(answer) or answer), answer)
    assert result.outcome in ("correct", "error"), result.reason
    assert (result.outcome == "error") == (reference(answer) is None)


@settings(UNHURRIED, max_examples=200)
@given(st.sampled_from(READABLE), st.sampled_from(UNKNOWN), st.data())
def test_what_is_only_read_in_part_is_no_reference_and_no_answer(answer, sign, data):
    """Against the whole: a reference with a sign in it that nobody knows is not reduced to what stands beside it."""
    bare = reference(answer)
    assume(r"\text" not in bare and not re.search("[A-Za-z]{3}", bare))
    assume(not is_choice(bare))  # behind its letter a choice's own text may stand, as in `(B) 5`
    place = data.draw(st.integers(0, len(bare)))
    assume(not bare[:place].endswith("\\"))
    spoilt = f"{bare[:place]} {sign} {bare[place:]}"
    assert grade(boxed(bare), spoilt).outcome != "correct"
    assert grade(boxed(spoilt), answer).outcome != "correct"
    assert grade(boxed(spoilt), spoilt).outcome != "correct"


LEAVES = st.integers(-12, 12).map(lambda n: (f"({n})" if n < 0 else str(n), Fraction(n)))


def _combined(pairs):
    def join(sign, a, b):
        (left, x), (right, y) = a, b
        if sign == "/":
            return rf"\frac{{{left}}}{{{right}}}", (x / y if x is not None and y else None)
        value = None if x is None or y is None else {"+": x + y, "-": x - y, "*": x * y}[sign]
        return f"({left} {sign.replace('*', chr(92) + 'cdot ')} {right})", value

    def power(base, exponent):
        text, x = base
        value = None if x is None or (x == 0 and exponent <= 0) else x**exponent
        return f"({text})^{{{exponent}}}", value

    return st.builds(join, st.sampled_from("+-*/"), pairs, pairs) | st.builds(power, pairs, st.integers(-2, 3))


NUMBERS = st.recursive(LEAVES, _combined, max_leaves=6)


@settings(UNHURRIED, max_examples=60)
@given(NUMBERS, NUMBERS)
def test_numbers_are_equal_as_python_has_them_as_fractions(first, second):
    for (one, x), (other, y) in ((first, second), (first, first)):
        assume(x is not None or y is not None)
        expected = x == y and x is not None
        assert (grade(boxed(one), other).outcome == "correct") == expected
    if first[1] is not None:
        assert grade(boxed(first[0]), str(first[1])).outcome == "correct"
        assert grade(boxed(first[0]), str(first[1] + Fraction(1, 10**30))).outcome == "wrong"


@settings(UNHURRIED, max_examples=25)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=4), st.lists(st.integers(-9, 9), min_size=1, max_size=4))
def test_a_product_of_factors_is_its_polynomial_and_no_other(first, second):
    """prod (x - r) written out by its coefficients, which are worked out here."""

    def expanded(roots):
        coefficients = [1]
        for root in roots:
            shifted, scaled = [0, *coefficients], [*(-root * c for c in coefficients), 0]
            coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
        return "+".join(f"({c})x^{{{power}}}" for power, c in enumerate(coefficients))

    product = "".join(f"(x-({root}))" for root in first)
    assert grade(boxed(product), expanded(first)).outcome == "correct"
    same = sorted(first) == sorted(second)
    assert (grade(boxed(product), expanded(second)).outcome == "correct") == same
    equation = grade(boxed(f"{product}=0"), f"{expanded(second)}=0").outcome
    assert (equation == "correct") == (set(first) == set(second))  # the same solutions


@settings(UNHURRIED, max_examples=60)
@given(st.sets(st.integers(-20, 20), min_size=2, max_size=6), st.sets(st.integers(-20, 20), min_size=2, max_size=6))
def test_sets_are_equal_as_python_has_them(first, second):
    texts = [", ".join(map(str, sorted(members))) for members in (first, second)]
    for form in ("{}", r"\{{{}\}}"):
        assert (grade(boxed(form.format(texts[0])), rf"\{{{texts[1]}\}}").outcome == "correct") == (first == second)


@pytest.mark.parametrize("form", ["{}", r"\frac{{{}}}{{7}}", "({}, 3)", "-{}.5"])
def test_a_set_of_2000_numbers_is_compared_in_a_moment(form):
    """In any order; with one of them changed it is another set."""
    numbers = [form.format(7 * place + 1) for place in range(2000)]
    whole = rf"\{{{', '.join(numbers)}\}}"
    assert grade(boxed(rf"\{{{', '.join(reversed(numbers))}\}}"), whole).outcome == "correct"
    changed = [*numbers[:1000], form.format(3), *numbers[1001:]]
    assert grade(boxed(rf"\{{{', '.join(changed)}\}}"), whole).outcome == "wrong"
    assert grade(boxed(", ".join(numbers)), whole).outcome == "correct"


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (r"5 \foo{3}", "no expression"),
        (r"30 @ \$ 14", "'@'"),
        (r"\frac{1}{0}", "division by zero"),
        (r"\infty - \infty", "no value"),
        (r"\{x \mid x = 7k, k \in \mathbb{Z}\}", "no inequality"),
        (r"1, 2, \ldots, 10", "ldots"),
        ("2 3", "side by side"),
        ("Let the side be called s and then note that the area is 25", "words"),
    ],
)
def test_a_reference_that_is_not_read_whole_is_an_error_that_says_why(answer, word):
    result = grade(boxed(answer), answer)
    assert (result.outcome, result.score) == ("error", None)
    assert word in result.reason and "correct it" in result.reason
