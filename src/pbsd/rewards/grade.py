"""The record every grader returns: what happened to one completion, and the number it is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

JUDGED: Final = ("correct", "wrong", "unparsed", "scored")
"""Outcomes that carry a number. `unparsed`: the completion holds no readable answer (0.0, counted apart from wrong)."""

UNKNOWN: Final = ("timeout", "error", "unjudged")
"""Outcomes without a number. `timeout` and `error`: the grader failed; `unjudged`: a reward function said None."""

OUTCOMES: Final = JUDGED + UNKNOWN


@dataclass(frozen=True)
class Grade:
    """One completion's verdict by one reward function.

    `outcome` is one of `OUTCOMES`; `score` is a finite number for `JUDGED` outcomes and None for `UNKNOWN` ones,
    because an error is not a wrong answer; `reason` says in words why, for people who read samples. Characters of it
    that UTF-8 cannot encode, as a model may write them by an escape, are kept as escapes.

    Raises ValueError when outcome and score do not agree with the above.
    """

    outcome: str
    score: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"Grade outcome {self.outcome!r} is unknown; use one of {', '.join(OUTCOMES)}")
        if self.outcome in UNKNOWN and self.score is not None:
            raise ValueError(f"Grade {self.outcome!r} has score {self.score!r}; an unknown reward has score None")
        if self.outcome in JUDGED and (self.score is None or not math.isfinite(self.score)):
            raise ValueError(f"Grade {self.outcome!r} has score {self.score!r}; give a finite number")
        object.__setattr__(self, "reason", self.reason.encode("utf-8", "backslashreplace").decode("utf-8"))

    @property
    def summary(self) -> str:
        """Outcome and reason in one line."""
        return f"{self.outcome}: {self.reason}" if self.reason else self.outcome


def correct(reason: str = "") -> Grade:
    """The completion's answer is right: score 1."""
    return Grade("correct", 1.0, reason)


def wrong(reason: str = "") -> Grade:
    """The completion's answer was read and is not right: score 0."""
    return Grade("wrong", 0.0, reason)


def unparsed(reason: str = "") -> Grade:
    """The completion holds no readable answer: score 0."""
    return Grade("unparsed", 0.0, reason)


def error(reason: str) -> Grade:
    """The grader could not judge: no score."""
    return Grade("error", None, reason)
