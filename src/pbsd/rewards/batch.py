"""Score a batch of completions with several reward functions: weights, unknown rewards, and functions that fail."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pbsd.rewards.call import Answer, BadAnswer, Lost, OverTime, accepted, call, describe, is_async
from pbsd.rewards.functions import (
    RESERVED,
    GradedReward,
    RewardFunction,
    check_columns,
    required_columns,
    reward_name,
)
from pbsd.rewards.grade import Grade, error
from pbsd.rewards.limited import LimitedReward

_PROBES = 4
"""Rows that are tried first where each may cost a worker or its whole limit; if all of them do, the others are not."""


@dataclass(frozen=True)
class Scores:
    """A scored batch, in the order of its completions.

    `total`: the weighted sum, None where the reward is unknown; `by_function`: every function's grades, by its name
    (a second `math` is `math_2`); `outcomes`: how often each happened, such as {"math/timeout": 3}; `metrics`, `extra`:
    what functions told `log_metric` and, by completion, `log_extra`.
    """

    total: list[float | None]
    by_function: dict[str, list[Grade]]
    outcomes: dict[str, int]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: list[dict[str, Any]] = field(default_factory=list)


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
    parsed: list[Any] | None = None,
) -> Scores:
    """Run every reward function once on the batch and add up: total = sum of weight * score, over scores that exist.

    A `None` of a function says nothing about that row: it adds nothing, as in TRL; the total is None when no function
    says anything. A `timeout` or `error` of a function with a weight other than 0 makes the total None, because an
    unknown reward must not become a low one. `weights`: one for each function, 1 by default. `extras`: what goes to
    plain functions uncut, such as TRL's `trainer_state`. `texts`: what the built-in graders read in place of the
    completions, such as these with a thought that the prompt opened. `parsed`: for each the tool calls that the
    tokenizer's parser found, or None.

    A plain function that raises, or takes too long, is called again row by row; rows that do so are its errors or
    time-outs. Async functions run together, after the others, as in TRL.

    Raises ValueError when lengths or weights do not fit, a column is missing, two functions log one column, a function
    returns anything but a list of finite numbers or None, or fails on every row.
    """
    _check_lengths(prompts, completions, completion_ids, columns)
    factors = _checked_weights(weights, len(rewards))
    batch = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    judged: dict[str, _Judged | None] = {}
    waiting: list[_Plain] = []
    for reward in rewards:
        name = _unused_name(reward_name(reward), judged)
        if isinstance(reward, GradedReward):
            calls = [parsed] if reward.reads_calls else []
            judged[name] = _Judged(reward.grades(texts or completions, *calls, **columns))
            continue
        plain = _Plain(name, reward, batch, extras or {})
        judged[name] = None if is_async(reward) else plain.judge()
        waiting += [plain] if judged[name] is None else []
    judged |= _together(waiting)
    done = {name: found for name, found in judged.items() if found is not None}
    by_function = {name: found.grades for name, found in done.items()}
    rows = zip(*by_function.values(), strict=True) if rewards else ((),) * len(completions)
    outcomes = Counter(f"{name}/{grade.outcome}" for name, grades in by_function.items() for grade in grades)
    return Scores(
        [_total(row, factors) for row in rows],
        by_function,
        dict(outcomes),
        _joined_metrics(done.values()),
        _joined_extra(done, len(completions)),
    )


@dataclass(frozen=True)
class _Judged:
    """What one function gave."""

    grades: list[Grade]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plain:
    """A user's function and the batch it is to judge."""

    name: str
    reward: RewardFunction
    batch: Mapping[str, Any]
    extras: Mapping[str, Any]

    def judge(self) -> _Judged:
        """On the whole batch; row by row when that fails."""
        if missing := required_columns(self.reward) - self.batch.keys() - self.extras.keys():
            have = sorted(self.batch.keys() - RESERVED)
            raise ValueError(f"reward {self.name!r} needs the columns {sorted(missing)}; the data has {have}")
        size = len(self.batch["completions"])
        try:
            answer = self._answer(self.batch, size)
        except (BadAnswer, KeyboardInterrupt):
            raise
        except BaseException as failure:  # SystemExit too is this function's error, not the end of the run
            return self._judge_rows(size, failure)
        return _Judged([_grade(value) for value in answer.values], answer.metrics, answer.extra)

    def _answer(self, batch: Mapping[str, Any], size: int, first: int = 0) -> Answer:
        arguments = accepted(self.reward, {**batch, **self.extras})
        if isinstance(self.reward, LimitedReward):
            return self.reward.answer(arguments, size, first)
        return call(self.name, self.reward, arguments, size, first=first)

    def _judge_rows(self, size: int, failure: BaseException) -> _Judged:
        is_costly = isinstance(failure, OverTime | Lost)
        what = f"{'gave' if is_costly else 'raised'} {describe(failure)}"
        found: dict[int, _Judged] = {}
        for row in sorted(range(size), key=lambda row: is_costly and not _is_probe(row, size)):
            found[row] = self._judge_row(row, f"judged alone; the whole batch {what}")
            tried_enough = len(found) == (min(size, _PROBES) if is_costly else size)
            if tried_enough and all(one.grades[0].outcome in ("error", "timeout") for one in found.values()):
                raise ValueError(
                    f"reward {self.name!r} {what} on the batch and on every one of its {len(found)} rows"
                    f"{' tried' if is_costly else ''}; mend the function, or return None where it cannot judge"
                ) from failure
        rows = [found[row] for row in range(size)]
        columns = {column for one in rows for column in one.extra}
        return _Judged(
            [one.grades[0] for one in rows],
            _joined_metrics(rows),
            {column: [one.extra.get(column, [None])[0] for one in rows] for column in sorted(columns)},
        )

    def _judge_row(self, row: int, note: str) -> _Judged:
        try:
            answer = self._answer({key: [values[row]] for key, values in self.batch.items()}, 1, row)
        except (BadAnswer, KeyboardInterrupt):
            raise
        except OverTime as late:
            return _Judged([Grade("timeout", None, str(late))])
        except BaseException as failure:
            return _Judged([error(describe(failure))])
        return _Judged([replace(_grade(answer.values[0]), reason=note)], answer.metrics, answer.extra)


def _is_probe(row: int, size: int) -> bool:
    """Whether the row is one of `_PROBES` that are spread evenly: rows of one prompt stand together."""
    return row in {place * size // _PROBES for place in range(_PROBES)}


def _together(waiting: Sequence[_Plain]) -> dict[str, _Judged | None]:
    """Judge at the same time. Daemon threads, so that an interrupt need not wait for functions that never end."""
    found: dict[str, _Judged | None] = {}
    failures: list[BaseException] = []

    def judge(plain: _Plain) -> None:
        try:
            found[plain.name] = plain.judge()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=judge, args=(plain,), daemon=True) for plain in waiting]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


def _joined_metrics(judged: Iterable[_Judged]) -> dict[str, list[float]]:
    metrics: dict[str, list[float]] = {}
    for found in judged:
        for name, values in found.metrics.items():
            metrics.setdefault(name, []).extend(values)
    return metrics


def _joined_extra(judged: Mapping[str, _Judged], size: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{} for _ in range(size)]
    owners: dict[str, str] = {}
    for name, found in judged.items():
        for column, values in found.extra.items():
            if owners.setdefault(column, name) != name:
                raise ValueError(f"rewards {owners[column]!r} and {name!r} both log_extra {column!r}; rename one")
            for row, value in zip(rows, values, strict=True):
                row[column] = value
    return rows


def _grade(value: float | None) -> Grade:
    return Grade("unjudged", None) if value is None else Grade("scored", value)


def _total(row: Sequence[Grade], weights: Sequence[float]) -> float | None:
    weighted = list(zip(row, weights, strict=True))
    if any(grade.outcome in ("timeout", "error") and weight != 0 for grade, weight in weighted):
        return None
    known = [weight * grade.score for grade, weight in weighted if grade.score is not None]
    return sum(known) if known else None


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
    check_columns(columns)
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
