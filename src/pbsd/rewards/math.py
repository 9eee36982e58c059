"""Final-answer mathematics: read the completion's last answer and compare it with the reference, both as exact values.

Importing this module imports math-verify's parser and sympy (the extra `pbsd[math]`); nothing else in the package does.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

try:
    import math_verify  # noqa: F401  the extra, which brings the parser, latex2sympy2_extended
except ImportError as missing:
    raise ImportError("the math reward needs math-verify: pip install pbsd[math]") from missing

from pbsd.rewards import math_compare, math_notation, math_read, math_text
from pbsd.rewards.grade import Grade, correct, error, unparsed, wrong
from pbsd.rewards.math_latex import normalized, unwrapped
from pbsd.rewards.text import final_text


def grade(completion: str, answer: str) -> Grade:
    """Is the completion's final answer mathematically equal to `answer`?

    The completion's answer is its last mark: a `\\boxed{}` (boxes that only blanks, commas, `and`, `or` or a name part
    are one answer), an `<answer>` tag, a last line `#### 42`, "the final answer is 42" or, at the end, "Answer: 42".
    Without a mark it is a letter where `answer` is one of a choice (stated, concluded or alone; not denied), else what
    follows "answer is", else the last formula or number; of a number in plain text the whole expression and unit that
    it stands in, as in `1 1/2`, `3:2`, `x^2 + 1` and `5 km`. Two numbers joined by `or` at the end are both; a list, a
    bracket or LaTeX after "answer is" is taken whole. Only the text after a `</think>` counts. `answer` is a bare
    answer (LaTeX or plain), or a worked solution with one of these marks. No time limit here: run it in a `GraderPool`.

    Both answers are read whole or not at all. Numbers are exact, whatever their size: 0.33 is not 1/3. A percentage
    equals its fraction and, above 1, its bare number (50%: 0.5 or 50). A unit may be left out; two different common
    units differ. `\\pm` is both values. Where `answer` is a set of several values, all of them are needed and no other.
    Of an equation the name (`x = 5`: `5`) and of a computation the left side (`4 \\cdot 6 = 24`: `24`) may be left out;
    two equations are the same where one is a multiple of the other. Letters of either size are different letters.

    Returns `correct`, `wrong`, `unparsed` (no readable answer in the completion) or `error` (a reference that cannot be
    read whole or has no value, or the comparison itself failed).
    """
    gold_text, gold, complaint = _read_gold(answer)
    if complaint:
        return error(f"the reference answer {answer!r:.200} cannot be read as mathematics ({complaint}); correct it")
    text = final_text(completion)
    if text is None:
        return unparsed("the completion ends inside <think>")
    choice = math_text.is_choice(gold_text)
    found_text = _answer_of(text, choice=choice, word=math_notation.is_word(gold_text))
    if not found_text:
        return unparsed("no answer found")
    if choice and math_text.is_choice(found_text.upper()):
        equal: bool | None = found_text.strip("() ").upper() == gold_text.strip("() ")
    elif conflict := math_notation.conflict(gold_text, found_text):
        return wrong(conflict)
    else:
        equal = math_notation.same_notation(gold_text, found_text)
    try:
        if equal is None:
            equal = _equal(gold_text, gold, found_text)
    except math_read.Unreadable as failure:
        return unparsed(f"cannot read {found_text!r:.200}: {failure}")
    except Exception as failure:
        complaint = f"comparing failed: {type(failure).__name__}: {failure}"
        return unparsed(complaint) if _equals_itself(gold) else error(complaint)
    return correct() if equal else wrong(f"read {found_text!r:.200}, expected {answer!r:.200}")


def _equals_itself(gold: math_read.Value | None) -> bool:
    """Can the reference be compared at all? If so, what failed is the completion's."""
    try:
        return gold is None or math_compare.equal(gold, gold)
    except Exception:
        return False


def reference(answer: str) -> str | None:
    """The bare answer in a data set's `answer`, such as `18` in GSM8K's worked solution; None when nothing is readable.

    A row's own reference must grade correct against itself: `grade(f"\\\\boxed{{{reference(answer)}}}", answer)`.
    """
    text, _, complaint = _read_gold(answer)
    return None if complaint else text


def _read_gold(answer: Any) -> tuple[str, math_read.Value | None, str]:
    """The bare reference, its value (None of a notation of its own, as `12:30`), and why it cannot be read."""
    # Data sets also hold the answer as a number.
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        return "", None, "it is no text"
    return _read_gold_text(answer)


@lru_cache(maxsize=1024)
def _read_gold_text(answer: str) -> tuple[str, math_read.Value | None, str]:
    marked = math_text.marked_answer(answer)
    bare = unwrapped(normalized(answer if marked is None else marked))
    bare = math_text.bare_choice(bare) or unwrapped(math_text.without_choice(bare))
    try:
        return bare, _value(bare), ""
    except math_read.Unreadable as failure:
        return bare, None, "" if math_notation.is_notation(bare) else str(failure)


def _answer_of(text: str, *, choice: bool, word: bool) -> str:
    """The text of the completion's answer; empty where there is none."""
    answer = math_text.marked_answer(text)
    if answer is None:
        text = normalized(text).replace("`", " ")
        if choice:
            return math_text.stated_choice(text) or ""
        answer = math_text.stated_answer(text, word=word) or math_text.last_answer(text)
    if not answer:
        return ""
    answer = unwrapped(normalized(answer))
    if choice:
        return math_text.named_choice(answer) or math_text.stated_choice(answer) or answer
    return unwrapped(math_text.without_choice(answer))


def _value(answer: str) -> math_read.Value:
    return math_read.read(math_text.plain_number(answer) or math_text.without_units(answer))


def _equal(gold_text: str, gold: math_read.Value | None, found_text: str) -> bool:
    found_text = math_text.as_list(found_text, gold_text) or found_text
    if listed := math_text.as_list(gold_text, found_text):
        gold = _value(listed)
    found = _value(math_notation.residue(found_text) or found_text)
    if isinstance(gold, math_read.Scalar) and gold.expression.free_symbols and math_text.is_square_metres(found_text):
        found = math_read.read(found_text)  # where the reference is algebra, so is `15m^2`
    return gold is not None and math_compare.equal(gold, found)
