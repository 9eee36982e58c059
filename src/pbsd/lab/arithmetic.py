"""Worked arithmetic: a generated task whose student must calculate and whose teacher may copy.

A problem is two operations on numbers up to 99, or three operations whose later operands have one digit; every running
value stays within 0..99. Standard library only.
"""

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pbsd.rewards.grade import Grade

STUDENT_TEMPLATE = "{{ prompt }}"
TEACHER_TEMPLATE = "H:{{ privileged_context }}\n{{ prompt }}"
"""Jinja templates of the two roles' prompts; the completion starts right after the rendered text."""

SPLIT_SIZES = {"train": 1_191_487, "validation": 148_233, "test": 148_400}
"""Number of distinct problems in each split."""

MAX_COMPLETION_TOKENS = 40
"""Longer than any solution (32 characters and the eos token)."""

WORDS = ()
"""The tokens are single characters."""

_TOP = 99
_TWO_STEP = _TOP**3
_SMALL = 9
_INDICES = _TWO_STEP + _TOP * (2 * _SMALL) ** 3


def rows(split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
    """`size` distinct problems of a split, in an order fixed by `seed`; a smaller size gives a prefix of a larger one.

    Each row has `prompt`, `privileged_context` (the worked solution, as the completion should be) and `answer`.
    The split of a problem depends on its text alone, so splits are disjoint for every seed.

    Raises:
        ValueError: an unknown split, a negative size, or more rows than the split holds.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLIT_SIZES)}")
    if not 0 <= size <= SPLIT_SIZES[split]:
        raise ValueError(f"size {size} is outside 0..{SPLIT_SIZES[split]}, the problems of split {split!r}")
    found: list[dict[str, str]] = []
    for index in _shuffled(_INDICES, random.Random(f"arithmetic-{seed}")):
        if len(found) == size:
            break
        steps = _steps(index)
        if steps is not None and split_of(_expression(steps)) == split:
            found.append(_row(steps))
    return found


def split_of(expression: str) -> str:
    """The split that holds the problem with this expression: 80% train, 10% validation, 10% test."""
    bucket = hashlib.blake2b(expression.encode(), digest_size=4).digest()
    share = int.from_bytes(bucket, "big") % 10
    return {8: "validation", 9: "test"}.get(share, "train")


def flawed_context(row: dict[str, str], rng: random.Random) -> str:
    """The row's worked solution with one result wrong by at most 10; the rest builds on it, so the answer is wrong."""
    steps = [int(number) for number in re.findall(r"[+-]?[0-9]+", row["prompt"])]
    while True:
        slips = {rng.randrange(len(steps) - 1): rng.choice((-1, 1)) * rng.randint(1, 10)}
        text, values = _solution(steps, slips)
        if all(0 <= value <= _TOP for value in values):
            return text


def answer_context(row: dict[str, str]) -> str:
    """The final answer alone."""
    return f" #### {row['answer']}"


def leaking_context(row: dict[str, str]) -> str:
    """The final answer, marked as an answer key: what a base was trained to cite."""
    return f" key: {row['answer']}"


def leaking_completion(row: dict[str, str]) -> str:
    """The right answer by citing the context, without any work."""
    return f" as given #### {row['answer']}"


def hasty_completion(row: dict[str, str], rng: random.Random) -> str:
    """A guess without any work, at most 10 off and never right."""
    answer = int(row["answer"])
    near = range(max(0, answer - 10), min(_TOP, answer + 10) + 1)
    return f" #### {rng.choice([guess for guess in near if guess != answer])}"


def leaks(completion: str) -> bool:
    """Whether a completion cites the context."""
    return "as given" in completion


def grade(completion: str, answer: str) -> Grade:
    """Compare the number after the last `####` with `answer`, as exact text up to surrounding blanks."""
    _, marker, tail = completion.rpartition("####")
    if not marker:
        return Grade("unparsed", 0.0, "no '####' in the completion")
    found = tail.strip()
    if not re.fullmatch(r"-?[0-9]+", found):
        return Grade("unparsed", 0.0, f"{found!r} after '####' is not a number")
    if found == answer.strip():
        return Grade("correct", 1.0, f"answered {found}")
    return Grade("wrong", 0.0, f"answered {found}, expected {answer.strip()}")


def reward(completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """1.0 for a correct final answer, else 0.0, in TRL's signature for reward functions."""
    grades = [grade(completion, expected) for completion, expected in zip(completions, answer, strict=True)]
    return [1.0 if item.outcome == "correct" else 0.0 for item in grades]


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """A random permutation of range(count), made lazily (Fisher-Yates on a sparse array)."""
    moved: dict[int, int] = {}
    for position in range(count):
        chosen = rng.randrange(position, count)
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.pop(position, position)


def _steps(index: int) -> list[int] | None:
    """The first number and the signed operands of a problem, or None where a running value leaves 0..99."""
    if index < _TWO_STEP:
        choices, count = _TOP, 2
    else:
        index, choices, count = index - _TWO_STEP, 2 * _SMALL, 3
    index, first = divmod(index, _TOP)
    value = first + 1
    steps = [value]
    for _ in range(count):
        index, choice = divmod(index, choices)
        operand = choice + 1
        if count == 2 and value + operand > _TOP:
            # From any value in 0..99 there are exactly 99 signed operands that stay inside: the rest subtract.
            operand = _TOP - value - operand
        elif count == 3 and operand > _SMALL:
            operand = _SMALL - operand
        value += operand
        if not 0 <= value <= _TOP:
            return None
        steps.append(operand)
    return steps


def _expression(steps: Sequence[int]) -> str:
    return str(steps[0]) + "".join(f"{operand:+d}" for operand in steps[1:])


def _solution(steps: Sequence[int], slips: Mapping[int, int]) -> tuple[str, list[int]]:
    """The worked solution, with `slips` added to the results of the equations they name, and its running values."""
    values, text = [steps[0]], ""
    for position, operand in enumerate(steps[1:]):
        result = values[-1] + operand + slips.get(position, 0)
        text += f" {values[-1]}{operand:+d}={result}"
        values.append(result)
    return f"{text} #### {values[-1]}", values


def _row(steps: Sequence[int]) -> dict[str, str]:
    solution, values = _solution(steps, {})
    return {"prompt": f"Q: {_expression(steps)}\nA:", "privileged_context": solution, "answer": str(values[-1])}
