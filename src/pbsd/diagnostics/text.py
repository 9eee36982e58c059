"""What the words of a completion give away: hedging, citing the privileged context, repeating it.

The phrases are English heuristics. They say that something deserves a look, not that it is wrong: they are counted, and
acted on only where `leakage_guard` says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache

OVERLAP_WORDS = 5
"""Words in a row that `context_overlap` compares."""

HEDGES = (
    "wait", "hmm+", "maybe", "perhaps", "probably", "possibly", "presumably", "seems", "might be", "could be",
    "actually", "alternatively", "i think", "i guess", "i believe", "i suppose", "not sure", "unsure",
    "on second thought", "let me check", "let me double[- ]check", "let me verify",
)  # fmt: skip
"""Words of doubt and self-checking. A reasoning model needs some: a rate that falls to nothing while reward stands
still says that the student copies a teacher who already knew, one that explodes that it no longer commits itself."""

LEAKS = (
    # Names that only somebody who saw more than the problem has a use for.
    r"\b(?:reference|provided|given|supplied|worked|model|official|privileged|suggested|expected) "
    r"(?:solution|answer|demonstration|hint|response)s?\b",
    r"\banswer key\b",
    r"\bprivileged (?:context|information)\b",
    # Citing.
    r"\b(?:according to|based on|following|as in|as per|matches|agrees with|consistent with|copying) the "
    r"(?:solution|answer|demonstration|hint|reference|feedback|context|example)\b",
    r"\bthe (?:solution|hint|reference|demonstration|context)s? "
    r"(?:says?|states?|shows?|tells?|suggests?|mentions?|confirms?)\b",
    r"\b(?:i|we) (?:was|am|were|are|have been) (?:given|told|shown|provided with) (?:that )?(?:the|an?) "
    r"(?:correct |final |right )?(?:answer|solution)\b",
    # The whole completion: "as given", then the answer.
    r"\A\W*as (?:given|provided|stated)\s*(?:\n|#|\\boxed|\Z)",
)
"""Regular expressions, case ignored, a blank standing for any white space. Where the problem itself gives a passage, a
draft or a hint, "the given answer" or "according to the context" is no leak: read the rate against the student's, or a
run with `context: none`."""

_WHOLE_HEDGES = tuple(rf"\b(?:{phrase})\b" for phrase in HEDGES)
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def hedging_rate(text: str) -> float:
    """Phrases of `HEDGES` per 100 words; NaN for a text without words."""
    words = len(_WORD.findall(text))
    return 100 * len(_pattern(_WHOLE_HEDGES).findall(text)) / words if words else math.nan


def leaks(text: str, more: Sequence[str] = ()) -> bool:
    """Whether the text has a phrase of `LEAKS`, or of `more` (regular expressions read the same way)."""
    return _pattern((*LEAKS, *more)).search(text) is not None


def context_overlap(completion: str, context: str, prompt: str) -> float:
    """Share of the completion's runs of `OVERLAP_WORDS` words that stand in the context but not in the prompt, 0 to 1.

    Words and punctuation marks, case ignored. NaN for a completion of fewer words. High is natural where the context is
    the very solution that the completion should find; it is copying where the context is a hint, feedback or
    documentation, or where the student, who never saw the context, should have its own words.
    """
    own = _runs(completion)
    if not own:
        return math.nan
    told = set(_runs(context)) - set(_runs(prompt))
    return sum(run in told for run in own) / len(own)


def check_phrases(phrases: Sequence[str]) -> None:
    """Raises ValueError for one that is not a regular expression."""
    for phrase in phrases:
        try:
            _pattern((*LEAKS, phrase))
        except re.error as error:
            raise ValueError(
                f"leakage_phrases: {phrase!r} is not a regular expression ({error}): escape its special characters"
            ) from error


@cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{phrase})" for phrase in phrases).replace(" ", r"\s+"), re.IGNORECASE)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _TOKEN.findall(text.casefold())
    return [tuple(words[place : place + OVERLAP_WORDS]) for place in range(len(words) - OVERLAP_WORDS + 1)]
