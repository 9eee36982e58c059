"""Reward functions of many tests, in a module that imports nothing heavy: worker processes import it."""


def contains_answer(completions, answer, **columns):
    return [float(letter in completion) for completion, letter in zip(completions, answer, strict=True)]


def lower_case_share(completions, **columns):
    """Varied enough that groups have winners: the share of lower-case letters, 1 where it is at least a quarter."""
    return [min(1.0, 4 * sum(c.islower() for c in text) / max(1, len(text))) for text in completions]


def first_letter_is_lower(completions, **columns):
    return [float(completion[:1].islower()) for completion in completions]


def always_zero(completions, **_):
    return [0.0] * len(completions)


def always_one(completions, **_):
    return [1.0] * len(completions)
