"""Format grader: does the whole completion have the asked-for shape?"""

from __future__ import annotations

import re

from pbsd.rewards.grade import Grade, correct, wrong


def grade(completion: str, pattern: str) -> Grade:
    """`correct` when `pattern` matches the whole completion (a dot also matches newlines), else `wrong`.

    A pattern can take exponential time; run it in a `GraderPool`, which kills it at the limit.

    Raises re.error when the pattern is not a regular expression.
    """
    if re.fullmatch(pattern, completion, re.DOTALL):
        return correct()
    return wrong(f"the completion does not match {pattern!r:.200}")
