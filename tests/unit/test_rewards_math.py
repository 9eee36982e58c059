"""Final-answer mathematics. Every expected outcome is derived by hand from the rule in `math.grade`'s docstring."""

import pytest

from pbsd.rewards.math import grade

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
]

UNPARSED = [
    ("", "1"),
    ("I cannot say.", "1"),
    (r"\boxed{}", "1"),
    (r"It is 12: \boxed{12", "12"),  # cut off: it may have gone on to 123
    (r"\boxed{12} or \boxed{1", "12"),
    (r"\boxed{\frac{1}{}}", "1"),
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
    assert answer in result.reason


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

    monkeypatch.setattr("math_verify.grader.sympy_expr_eq", fail)
    result = grade(r"\boxed{1}", "1")
    assert (result.outcome, result.score) == ("error", None)
    assert "RecursionError: too deep" in result.reason


def test_no_alarm_is_set_because_the_pool_holds_the_clock(monkeypatch):
    """math-verify's own limit is a signal alarm: it fails off the main thread."""

    def refuse(*args):
        raise AssertionError("an alarm was set")

    monkeypatch.setattr("signal.alarm", refuse)
    assert grade(r"\boxed{1}", "1").outcome == "correct"
