"""Score a batch of completions with several reward functions: weights, unknown rewards, and functions that fail."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pbsd.rewards.functions import RESERVED, GradedReward, RewardFunction, required_columns, reward_name
from pbsd.rewards.grade import Grade, error


@dataclass(frozen=True)
class Scores:
    """A scored batch, in the order of its completions.

    `total`: the weighted sum, None where the reward is unknown; `by_function`: every function's grades, by its name
    (a second `math` is `math_2`); `outcomes`: how often each happened, such as {"math/timeout": 3}.
    """

    total: list[float | None]
    by_function: dict[str, list[Grade]]
    outcomes: dict[str, int]


def score(
    rewards: Sequence[RewardFunction],
    weights: Sequence[float] | None,
    prompts: list[Any],
    completions: list[Any],
    completion_ids: list[Any],
    columns: Mapping[str, list[Any]],
    *,
    extras: Mapping[str, Any] | None = None,
    texts: list[str] | None = None,
) -> Scores:
    """Run every reward function once on the batch and add up: total = sum of weight * score, over scores that exist.

    A `None` of a function says nothing about that row: it adds nothing, as in TRL; the total is None when no function
    says anything. A `timeout` or `error` of a function with a weight other than 0 makes the total None, because an
    unknown reward must not become a low one. `weights`: one for each function, 1 by default. `extras`: what goes to
    plain functions uncut, such as TRL's `trainer_state`. `texts`: what the built-in graders read in place of the
    completions, such as these with a thought that the prompt opened.

    A plain function that raises on the batch is called again row by row; rows that raise are its errors.

    Raises ValueError when lengths or weights do not fit, a column is missing, a function returns anything but a list of
    finite numbers or None, or raises on every row.
    """
    _check_lengths(prompts, completions, completion_ids, columns)
    factors = _checked_weights(weights, len(rewards))
    batch = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    by_function: dict[str, list[Grade]] = {}
    for reward in rewards:
        name = _unused_name(reward_name(reward), by_function)
        if isinstance(reward, GradedReward):
            by_function[name] = reward.grades(texts or completions, **columns)
        else:
            by_function[name] = _call_plain(name, reward, batch, extras or {})
    rows = zip(*by_function.values(), strict=True) if rewards else ((),) * len(completions)
    outcomes = Counter(f"{name}/{grade.outcome}" for name, grades in by_function.items() for grade in grades)
    return Scores([_total(row, factors) for row in rows], by_function, dict(outcomes))


def _total(row: Sequence[Grade], weights: Sequence[float]) -> float | None:
    weighted = list(zip(row, weights, strict=True))
    if any(grade.outcome in ("timeout", "error") and weight != 0 for grade, weight in weighted):
        return None
    known = [weight * grade.score for grade, weight in weighted if grade.score is not None]
    return sum(known) if known else None


def _call_plain(name: str, reward: RewardFunction, batch: dict[str, Any], extras: Mapping[str, Any]) -> list[Grade]:
    """A user's function on the whole batch; row by row when that raises."""
    if missing := required_columns(reward) - batch.keys() - extras.keys():
        have = sorted(batch.keys() - RESERVED)
        raise ValueError(f"reward {name!r} needs the columns {sorted(missing)}; the data has {have}")
    size = len(batch["completions"])
    try:
        returned = reward(**_accepted(reward, {**batch, **extras}))
    except Exception as failure:
        return _call_rows(name, reward, batch, extras, failure)
    return [_as_grade(name, value, i) for i, value in enumerate(_checked_list(name, returned, size))]


def _call_rows(
    name: str, reward: RewardFunction, batch: dict[str, Any], extras: Mapping[str, Any], failure: Exception
) -> list[Grade]:
    grades: list[Grade] = []
    for i in range(len(batch["completions"])):
        row = {key: [values[i]] for key, values in batch.items()}
        try:
            returned = reward(**_accepted(reward, {**row, **extras}))
        except Exception as row_failure:
            grades.append(error(f"{type(row_failure).__name__}: {row_failure}"))
            continue
        note = f"judged alone; the whole batch raised {type(failure).__name__}: {failure}"
        grades.append(_as_grade(name, _checked_list(name, returned, 1)[0], i, note))
    if all(grade.outcome == "error" for grade in grades):
        raise ValueError(
            f"reward {name!r} raised {type(failure).__name__}: {failure} on the batch and on every one of its "
            f"{len(grades)} rows; mend the function, or return None where it cannot judge"
        ) from failure
    return grades


def _accepted(reward: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the function's signature takes: all of them when it has **kwargs."""
    parameters = inspect.signature(reward).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {key: value for key, value in arguments.items() if key in parameters}


def _checked_list(name: str, returned: Any, size: int) -> list[Any]:
    mend = f"return a list of len(completions) = {size} numbers, None where nothing can be judged"
    if not isinstance(returned, list):
        raise ValueError(f"reward {name!r} returned {type(returned).__name__} {returned!r:.200}; {mend}")
    if len(returned) != size:
        raise ValueError(f"reward {name!r} returned {len(returned)} values for {size} completions; {mend}")
    return returned


def _as_grade(name: str, value: Any, position: int, note: str = "") -> Grade:
    if value is None:
        return Grade("unjudged", None, note)
    try:
        # float("1.5") would accept a string; arrays and tensors of one number are numbers.
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"reward {name!r} returned {value!r:.200} ({type(value).__name__}) at position {position}; "
            "return a list of len(completions) finite numbers, None where nothing can be judged"
        )
    return Grade("scored", number, note)


def _unused_name(name: str, used: Mapping[str, Any]) -> str:
    suffix = 2
    unused = name
    while unused in used:
        unused = f"{name}_{suffix}"
        suffix += 1
    return unused


def _check_lengths(
    prompts: list[Any], completions: list[Any], completion_ids: list[Any], columns: Mapping[str, list[Any]]
) -> None:
    for key in columns:
        if key in RESERVED:
            raise ValueError(f"column {key!r} has the name of an argument that reward functions get; rename it")
    for key, values in {"prompts": prompts, "completion_ids": completion_ids, **columns}.items():
        if len(values) != len(completions):
            raise ValueError(f"{key!r} has {len(values)} values for {len(completions)} completions; give one for each")


def _checked_weights(weights: Sequence[float] | None, size: int) -> list[float]:
    if weights is None:
        return [1.0] * size
    if len(weights) != size:
        raise ValueError(f"{len(weights)} reward weights for {size} reward functions; give one for each")
    for position, weight in enumerate(weights):
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"reward weight {position} is {weight!r}; give a finite number")
    return [float(weight) for weight in weights]
