"""What a completion answers, as text: equal texts are one vote in maj@k."""

from __future__ import annotations

import re
from typing import Any

from pbsd.rewards import math_text
from pbsd.rewards.text import final_text
from pbsd.rewards.tool_syntax import looks_like_call, parse_calls

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

NO_CALL = "no call"


def math_answer(completion: str) -> str | None:
    """The marked answer (a box, a tag, `#### 42`), else the last number; a number without separators and unit.

    Coarser than the grader: 1/2 and 0.5 are two votes here (all correct answers are one vote, see `statistics`).
    """
    text = final_text(completion)
    if text is None:
        return None
    text = math_text.normalized(text)
    answer = math_text.marked_answer(text)
    if answer is None:
        numbers = _NUMBER.findall(text)
        answer = numbers[-1] if numbers else ""
    answer = math_text.unwrapped(answer)
    number = math_text.plain_number(answer)
    return number.replace(",", "") if number else "".join(answer.split()) or None


def tool_answer(completion: str) -> str | None:
    """The calls in a form that does not depend on their order or syntax; `NO_CALL` for an answer without calls."""
    text = final_text(completion)
    if text is None:
        return None
    try:
        return ", ".join(sorted(map(_ordered, parse_calls(text, "auto"))))
    except ValueError:
        return None if looks_like_call(text) else NO_CALL
    except RecursionError:  # too deep to be put in order: it votes as it stands
        return "".join(text.split())


def _ordered(value: Any) -> str:
    """A text that is the same for objects in any order and for tuples as for lists. Python allows any key, JSON not."""
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{_ordered(key)}: {_ordered(item)}' for key, item in value.items()))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_ordered, value))}]"
    if isinstance(value, set):
        return f"set({sorted(map(_ordered, value))})"
    return ascii(value)


def tagged_answer(completion: str) -> str | None:
    """The text in the last `<answer>` tag."""
    text = final_text(completion)
    before, closing, _ = (text or "").rpartition("</answer>")
    _, opening, answer = before.rpartition("<answer>")
    return answer.strip() if closing and opening else None
