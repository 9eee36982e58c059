"""Final-answer mathematics: read the completion's last answer and compare it with the reference by math-verify.

Importing this module imports math-verify and sympy (the extra `pbsd[math]`); nothing else in the package does.
"""

from __future__ import annotations

import logging
import re
from typing import Any

try:
    import math_verify
except ImportError as missing:
    raise ImportError("the math reward needs math-verify: pip install pbsd[math]") from missing

from pbsd.rewards.grade import Grade, correct, error, unparsed, wrong
from pbsd.rewards.text import final_text

# math-verify warns once per process that its own alarm is off; here that is meant, the pool holds the clock.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# A number that may carry a currency sign and a unit in words ("$1,234.50", "42 eggs."), which LaTeX would multiply out.
_NUMBER_WITH_UNIT = re.compile(r"[$€£¥]?\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\.?(?:\s+[A-Za-z][A-Za-z ]*\.?)?")

_BOX_SEPARATOR = re.compile(r"(?:[\s$,;]|\\[,;()\[\]]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b|[A-Za-z](?:_\d)?\s*=)*")


def grade(completion: str, answer: str) -> Grade:
    """Is the completion's final answer mathematically equal to `answer`?

    The completion's answer is, in this order: its last `\\boxed{}` (boxes joined by a comma or `and` make a set), a
    last line `#### 42`, else what math-verify finds ("the final answer is", the last formula or number). Only the text
    after a `</think>` counts. `answer` is a bare answer (LaTeX or plain), or a worked solution with one of those two
    marks. No time limit here: run it in a `GraderPool`.

    Returns `correct`, `wrong`, `unparsed` (no readable answer in the completion) or `error` (no readable reference, or
    the comparison itself failed).
    """
    gold = _parse_gold(answer)
    if not _is_readable(gold):
        return error(f"the reference answer {answer!r:.200} cannot be read as mathematics; correct that row's answer")
    text = final_text(completion)
    if text is None:
        return unparsed("the completion ends inside <think>")
    found = _parse_completion(text)
    try:
        # The string that math-verify puts beside each expression also counts: the same LaTeX is the same answer.
        equal = math_verify.verify(gold, found, timeout_seconds=None, raise_on_error=True)
    except Exception as failure:
        return error(f"comparing failed: {type(failure).__name__}: {failure}")
    if equal:
        return correct()
    if not _is_readable(found):
        return unparsed("no answer found" if not found else f"cannot read {found[-1]!r:.200}")
    return wrong(f"read {found[-1]!r:.200}, expected {answer!r:.200}")


def _parse_gold(answer: Any) -> list[Any]:
    # Data sets also hold the answer as a number.
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        return []
    marked = _marked_answer(answer)
    return _parse_expression(answer if marked is None else marked)


def _parse_completion(text: str) -> list[Any]:
    marked = _marked_answer(text)
    return _parse(text) if marked is None else _parse_expression(marked)


def _marked_answer(text: str) -> str | None:
    """The text in the last `\\boxed{}` or after a final `####`; None without either, empty when the box is cut off."""
    if "\\boxed" in text:
        return _boxed_answer(text)
    last_line = text.rstrip().rpartition("\n")[2]
    return last_line[4:] if re.match(r"####[^#]", last_line) else None


def _boxed_answer(text: str) -> str:
    """The last box's content, before it those of the boxes that only a comma, `and`, `or` or `x =` parts from it."""
    answers: list[str] = []
    previous_end = 0
    for opening in re.finditer(r"\\boxed\s*\{", text):
        if opening.start() < previous_end:
            continue  # a box in a box
        end = _closing_brace(text, opening.end())
        if end is None:
            return ""
        if not _BOX_SEPARATOR.fullmatch(text[previous_end : opening.start()]):
            answers = []
        answers.append(text[opening.end() : end].strip())
        previous_end = end + 1
    return ", ".join(dict.fromkeys(answers))


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace opened just before `start` closes."""
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return position
    return None


def _parse_expression(text: str) -> list[Any]:
    """Read a text that is an answer and nothing else."""
    text = text.strip()
    if not text:
        return []
    number = _NUMBER_WITH_UNIT.fullmatch(text)
    return _parse(number[1].lstrip("+")) if number else _parse(f"\\boxed{{{text}}}")


def _parse(text: str) -> list[Any]:
    found: list[Any] = math_verify.parse(text, parsing_timeout=None, raise_on_error=False)
    return found


def _is_readable(parsed: list[Any]) -> bool:
    """math-verify gives [expression, its text]; only [text] when it found an answer that it cannot read."""
    return any(not isinstance(item, str) for item in parsed)
