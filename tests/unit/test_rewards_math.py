"""Final-answer mathematics. Expected outcomes are derived by hand from the rule in `math.grade`'s docstring.

`fixtures/math_cases.json` holds awkward cases with the outcome that a careful teacher would give and why; where the
grader cannot follow (`known_limit`), the outcome that it has, and `why` says what the teacher would say.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pbsd.rewards import GraderPool
from pbsd.rewards.grade import JUDGED
from pbsd.rewards.math import grade, reference

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

CASES = json.loads((Path(__file__).parent / "fixtures/math_cases.json").read_text("utf-8"))
HANGING = [r"\boxed{9^{9^{9^9}}}", r"\boxed{\sum_{k=1}^{10^9} k^k}"]

# What models write, but for powers and factorials, which may take for ever: those are the pool's matter.
TOKENS = [
    *"0123456789xyiABeE+-*/=<>|%$,.;:()[]{}_\\ \n#'\"&~`½²√∞π°\u2212\u2013\uff17",
    r"\boxed{", r"\frac", r"\sqrt{", r"\text{", r"\{", r"\}", r"\pm", r"\cup", r"\pi", r"\infty", r"\circ",
    r"\overline{", r"\begin{pmatrix}", r"\end{pmatrix}", r"\left(", r"\right)", r"\in", r"\sin", r"\log_", "####",
    "<think>", "</think>", "<answer>", "</answer>", "the answer is ", " or ", " and ", "cm", "PM", "12:30",
    "km/h", " 1/2", "e3", "sqrt(", "pi", r"\mathbb R",
]  # fmt: skip

CORRECT = [
    # completion, answer
    ("42", "42"),
    ("She sold 48 + 24 = 72 clips.\n#### 72", "48/2 = 24\n48 + 24 = 72\n#### 72"),  # gsm8k on both sides
    ("so it is\n#### 1,234\n", "1234"),
    ("#### 42 eggs", "42"),
    (r"\boxed{42 eggs}", "42"),
    (r"#### \frac{1}{2}", "0.5"),
    (r"The answer is $\boxed{\frac{3}{4}}$.", "0.75"),
    (r"\boxed{x^2+2x+1}", "(x+1)^2"),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
    (r"\boxed{10^{2}}", "100"),
    (r"\boxed{\$5}", "5"),
    (r"\boxed{2, 1}", r"\{1, 2\}"),  # a set has no order
    (r"$x=\boxed{1}$ or $x=\boxed{2}$", r"\{1, 2\}"),  # joined boxes are one answer
    (r"\boxed{4}, no, that is not so: \boxed{5}", "5"),  # words part the boxes: the last counts
    (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{\text{Monday}}", "Monday"),
    (r"\boxed{7}", r"Thus \boxed{7}."),
    ("There are 5 pears and 7 apples, 12 in all.", "12"),  # the last number
    ("Step by step.\n#### Step 1\n3 + 4 = 7", "7"),  # a heading is not a final line
    (r"<think>\boxed{1}</think>It is \boxed{2}.", "2"),
    ("so we have\n#### x^2+1\n", "x^2+1"),
    (r"\boxed{5}", 5),  # data sets also hold numbers
    ("The answer is (1, 2).", "(1,2)"),  # in the open
    ("The answer is **(-1, 2]**.", "(-1,2]"),
    ("Answer: {1, 2, 3}", r"\{3,2,1\}"),
    ("The answer is (-∞, 2) \u222a (3, ∞).", r"(-\infty,2)\cup(3,\infty)"),
    ("The answer is 2√3.", r"2\sqrt{3}"),
    ("The answer is:\n\\[\n5\n\\]", "5"),
    ("The answer is \\[\n5\n\\]", "5"),
    ("The answer is (as 2 + 3 = 5) 5", "5"),  # words are no mathematics
    ("The answer is 7, as \\frac{14}{2} shows.", "7"),
    (r"\boxed{(A)(B)}", "AB"),  # a product, where no letter is asked for
    (r"\boxed{x<2\text{ or }x>3}", r"(-\infty,2)\cup(3,\infty)"),
    (r"\boxed{(-\infty,-1]\cup(0,1)}", r"0<x<1 \text{ or } x \le -1"),
    ("B", "B"),
    ("It must be this one.\n**(B)**", "B"),
    (r"\boxed{\textbf{(B)}\ 5}", "B"),
    (r"\boxed{B: 5}", "B"),
    ("\\boxed{4\u200b2}", "42"),  # characters that nobody sees
    ("\ufeff\\boxed{\u200e42\u00ad}", "42"),
    ("\\boxed{\U0001d7d2\U0001d7d0}", "42"),  # bold digits
    ("\\boxed{2\U0001d70b}", r"2\pi"),  # an italic pi
    ("\\boxed{\u0664\u0662}", "42"),  # Arabic digits
    ("\\boxed{1\u20442}", "0.5"),  # a fraction slash
    ("\\boxed{1\u22152}", "0.5"),  # a division slash
    ("\\boxed{3\u00b75}", "15"),
    (r"\boxed{\,5\ }", "5"),
    (r"\boxed{~5~}", "5"),
    (r"\boxed{3/4 miles}", "0.75"),
    (r"\boxed{½ cup}", "0.5"),
]

WRONG = [
    ("41", "42"),
    ("-3", "3"),
    (r"\boxed{4}", "5"),
    (r"\boxed{4}\boxed{5}", "5"),  # both answers at once are the set {4, 5}
    (r"\boxed{4} \boxed{5}, so 5", "5"),
    (r"\boxed{[1,2]}", "(1,2)"),
    (r"\boxed{2\pi}", "6.28"),
    (r"\boxed{x+1}", "x+2"),
    (r"\boxed{D}", "C"),
    (r"<think>\boxed{2}</think>It is \boxed{3}.", "2"),
    ("#### 42\nor rather\n#### 43", "42"),
    ("The answer is (2, 1).", "(1,2)"),
    ("The answer is 3√2.", r"2\sqrt{3}"),
    (r"\boxed{x<2\text{ or }x\ge 3}", r"(-\infty,2)\cup(3,\infty)"),
    (r"\boxed{x<2\text{ or }y>3}", r"(-\infty,2)\cup(3,\infty)"),
    ("(C)", "B"),
    (r"\boxed{C: B}", "B"),
    ("The answer is B.\nC", "B"),
]

UNPARSED = [
    ("", "1"),
    ("I cannot say.", "1"),
    (r"\boxed{}", "1"),
    (r"It is 12: \boxed{12", "12"),  # cut off: it may have gone on to 123
    (r"\boxed{12} or \boxed{1", "12"),
    (r"\boxed{\frac{1}{}}", "1"),
    ("\\boxed{\u0445}", "x"),  # a Cyrillic letter that looks like the Latin one
    (r"<think>so \boxed{1}", "1"),  # cut off while thinking
    (r"<think>\boxed{1}</think>", "1"),
]

UNREADABLE_ANSWERS = ["", "   ", r"\frac{1}{}", r"\boxed{", None, True, ["1"]]


@pytest.mark.parametrize(("completion", "answer"), CORRECT)
def test_an_equal_answer_is_correct(completion, answer):
    assert (grade(completion, answer).outcome, grade(completion, answer).score) == ("correct", 1.0)


@pytest.mark.parametrize(("completion", "answer"), WRONG)
def test_another_answer_is_wrong(completion, answer):
    result = grade(completion, answer)
    assert (result.outcome, result.score) == ("wrong", 0.0)
    assert repr(answer) in result.reason or answer in result.reason


@pytest.mark.parametrize(("completion", "answer"), UNPARSED)
def test_no_readable_answer_is_unparsed_and_not_wrong(completion, answer):
    assert (grade(completion, answer).outcome, grade(completion, answer).score) == ("unparsed", 0.0)


@pytest.mark.parametrize("answer", UNREADABLE_ANSWERS)
def test_an_unreadable_reference_is_an_error_even_for_an_unreadable_completion(answer):
    for completion in (r"\boxed{1}", "I cannot say."):
        result = grade(completion, answer)
        assert (result.outcome, result.score) == ("error", None)
        assert repr(answer) in result.reason


def test_a_comparison_that_fails_is_an_error_and_not_a_wrong_answer(monkeypatch):
    def fail(*args, **kwargs):
        raise RecursionError("too deep")

    monkeypatch.setattr("pbsd.rewards.math_numbers.equal", fail)
    result = grade(r"\boxed{x+2}", "x+1")
    assert (result.outcome, result.score) == ("error", None)
    assert "RecursionError: too deep" in result.reason


def test_no_alarm_is_set_because_the_pool_holds_the_clock(monkeypatch):
    """math-verify's limit is a signal alarm, which fails off the main thread."""

    def refuse(*args):
        raise AssertionError("an alarm was set")

    monkeypatch.setattr("signal.alarm", refuse)
    assert grade(r"\boxed{2/2}", "1").outcome == "correct"


@pytest.mark.parametrize("case", CASES, ids=[f"{case['why']}: {case['answer']}"[:80] for case in CASES])
def test_awkward_case(case):
    result = grade(case["completion"], case["answer"])
    assert result.outcome == case["outcome"], f"{case['why']}: {result.reason}"


def test_the_fixture_is_large_varied_and_mostly_without_limits():
    assert len({(case["completion"], case["answer"]) for case in CASES}) == len(CASES) >= 400
    outcomes = [case["outcome"] for case in CASES]
    assert min(outcomes.count("correct"), outcomes.count("wrong")) > 150
    assert sum(case.get("known_limit", False) for case in CASES) <= 7
    assert all(case["why"] for case in CASES)


def test_a_case_that_hangs_is_a_timeout_in_the_pool_and_costs_no_other():
    calls = [{"completion": completion, "answer": "7"} for hanging in HANGING for completion in (hanging, "7")]
    with GraderPool(timeout=4) as pool:
        grades = pool.map("pbsd.rewards.math:grade", calls)
    assert [(grade.outcome, grade.score) for grade in grades] == [("timeout", None), ("correct", 1.0)] * len(HANGING)


@pytest.mark.parametrize("wrapping", ["{}", r"\boxed{{{}}}"])
def test_code_in_an_answer_is_not_run(tmp_path, wrapping):
    path = tmp_path / "made"
    for code in (f"open({str(path)!r}, 'w')", f"__import__('pathlib').Path({str(path)!r}).touch()"):
        assert grade(wrapping.format(code), "7").outcome != "correct"
        assert grade("7", wrapping.format(code)).outcome != "correct"
    assert not path.exists()


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        ("48/2 = 24\n48 + 24 = 72\n#### 72", "72"),  # GSM8K
        ("He pays $1,200.\n#### 1,200", "1,200"),
        (r"So $x^2 = 9$ and $x = \boxed{\pm 3}$.", r"\pm 3"),  # MATH
        (r"\frac{3}{4}", r"\frac{3}{4}"),
        (18, "18"),
        ("north", "north"),
        ("", None),
        (None, None),
    ],
)
def test_the_bare_reference_of_a_data_sets_answer(answer, bare):
    assert reference(answer) == bare


@pytest.mark.parametrize("answer", sorted({case["answer"] for case in CASES if case["outcome"] == "correct"}))
def test_every_reference_is_correct_against_itself(answer):
    assert grade(f"\\boxed{{{reference(answer)}}}", answer).outcome == "correct"


@settings(UNHURRIED, max_examples=150)
@given(
    st.lists(st.sampled_from(TOKENS), max_size=25).map("".join) | st.text(max_size=80).filter(lambda t: "!" not in t)
)
@example("x" + "%" * 3)
@example(r"\boxed{x\%}")
@example(r"0.\overline{" + "3" * 60 + "}")
def test_no_text_makes_the_grader_raise_and_only_judged_ones_have_a_score(text):
    for answer in ("7", "x^2+1", r"\{1,2\}", "(B)", "north", r"50\%"):
        result = grade(text, answer)
        assert (result.outcome in JUDGED) == (result.score in (0.0, 1.0))
    assert grade("7", text).outcome in (*JUDGED, "error")


BOXED = [case for case in CASES if re.match(r"The answer is \$\\boxed", case["completion"])]
PROSE = st.text("abcdefghijklm, .\n\t", max_size=60)


@settings(UNHURRIED, max_examples=150)
@given(st.sampled_from(BOXED), PROSE, PROSE)
def test_text_around_a_box_changes_nothing(case, before, after):
    assert grade(f"{before} {case['completion']} {after}", case["answer"]).outcome == case["outcome"]
