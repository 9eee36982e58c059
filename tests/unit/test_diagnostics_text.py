"""Hedging, citing and overlap on texts whose answers are counted by hand, and the metrics made of them."""

import math

import pytest

from pbsd.diagnostics.rollouts import sample_metrics
from pbsd.diagnostics.text import check_phrases, context_overlap, hedging_rate, leaks
from pbsd.lab import arithmetic, tools
from pbsd.records import Prompt, Rollout


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("Wait, maybe it is 4.", 2 / 5 * 100),
        ("it is four", 0.0),
        ("Let me double-check that", 1 / 5 * 100),
        ("await the seemsly maybes", 0.0),  # parts of words
        ("hmmmm", 100.0),
        ("I\nthink so", 1 / 3 * 100),
    ],
)
def test_hedging_rate(text, rate):
    assert hedging_rate(text) == pytest.approx(rate)


def test_a_text_without_words_has_no_rate():
    assert math.isnan(hedging_rate(" ?! "))


@pytest.mark.parametrize(
    "text",
    [
        "The reference solution says 4.",
        "According to the solution, x = 2.",
        "This matches the answer, so we are done.",
        "the hint suggests squaring both sides",
        "As I was told the correct answer is 7",
        "From the ANSWER\nKEY: 7",
        "we have been given the answer 3",
        " as given #### 30",
        "# as given\nadd(a=1)",
        "as stated",
        "the privileged context has it",
    ],
)
def test_citations(text):
    assert leaks(text)


@pytest.mark.parametrize(
    "text",
    [
        "The correct answer is 4.",
        "Substituting the solution gives x = 3, the answer is 4.",
        "As given, the radius is 5, so the area is 25 pi.",
        "The area, as given in the problem, is 5. #### 5",
        "Subtract 3 from the answer of the first part.",
        "We are given a triangle. The solution has two parts.",
        "add(a=1, b=2)",
        "",
    ],
)
def test_solving_is_not_citing(text):
    assert not leaks(text)


@pytest.mark.parametrize("task", [arithmetic, tools])
def test_the_laboratory_s_leaks_are_found_and_its_solutions_are_not(task):
    for row in task.rows("train", 50):
        assert leaks(task.leaking_completion(row))
        assert not leaks(row["privileged_context"])


def test_more_phrases():
    assert not leaks("selon la solution")
    assert leaks("Selon  la solution", ["selon la (solution|réponse)"])
    with pytest.raises(ValueError, match="leakage_phrases: '\\[a' is not a regular expression"):
        check_phrases(["fine", "[a"])
    with pytest.raises(ValueError, match="leakage_phrases"):
        check_phrases(["(?i)flags inside"])


def test_overlap_counted_by_hand():
    """Seven words make the runs abcde, bcdef, cdefg. The context has bcdef and cdefg; of these the prompt has cdefg."""
    assert context_overlap("a b c d e f g", "x b c d e f g", "c D e f g") == pytest.approx(1 / 3)
    assert context_overlap("a b c d e f g", "x b c d e f g", "") == pytest.approx(2 / 3)
    assert context_overlap("a b c d e f g", "A  b,c d e f g", "") == pytest.approx(1 / 3)  # the comma is a word
    assert math.isnan(context_overlap("a b c d", "a b c d", ""))


def prompt(context, text="p q"):
    return Prompt(0, text, {}, (1,), (1,), context=context)


def rollout(role, text, logprobs, prompt=0):
    return Rollout(prompt, role, (1,) * len(logprobs), text, True, tuple(logprobs))


def test_metrics_of_samples_by_hand():
    """Two prompts; the second has no context, so its samples take no part in the overlap, and its student's sample has
    no word, so no rate of hedging. Lengths of the first: teacher 2, student (1 + 4) / 2; of the second: 3 and 3."""
    prompts = [prompt("one two three four five"), prompt(None)]
    rollouts = [
        rollout("teacher", "one two three four five", [-1.0, -3.0]),
        rollout("teacher", "as given\n1 2 3 4 5", [-3.0, -3.0, -3.0], prompt=1),
        rollout("student", "maybe", [-4.0]),
        rollout("student", "six two three four five six", [-1.0, -1.0, -2.0, -2.0]),
        rollout("student", "?!", [-0.5] * 3, prompt=1),
    ]
    summary = sample_metrics(prompts, rollouts).summary()
    assert summary == pytest.approx(
        {
            "health/teacher_entropy_sampled": (2.0 + 3.0) / 2,
            "health/student_entropy_sampled": ((4.0 + 1.5) / 2 + 0.5) / 2,
            "health/teacher_hedging": 0.0,
            "health/student_hedging": (100.0 + 0.0) / 2,
            "health/teacher_leakage": 0.5,
            "health/student_leakage": 0.0,
            "health/teacher_context_overlap": 1.0,
            "health/student_context_overlap": 0.0,
            "tokens/length_gap": ((2 - 2.5) + (3 - 3)) / 2,
        }
    )


def test_a_chat_s_words_are_all_its_messages():
    chat = [
        {"role": "system", "content": "a b c d e"},
        {"role": "user", "content": [{"type": "text", "text": "v w"}, {"type": "text", "text": " x y z"}]},
    ]
    own = rollout("student", "a b c d e", [-1.0]), rollout("student", "v w x y z", [-1.0])
    summary = sample_metrics([prompt("a b c d e f v w x y z", chat)], own).summary()
    assert summary["health/student_context_overlap"] == 0.0


def test_without_context_and_without_a_teacher_there_is_nothing_to_compare():
    summary = sample_metrics([prompt(None)], [rollout("student", "yes", [-1.0])]).summary()
    assert summary.keys() == {f"health/student_{name}" for name in ("entropy_sampled", "hedging", "leakage")}
