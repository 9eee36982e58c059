"""Reward functions with TRL's signature, by name, by import path or as they are."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pbsd.rewards import tools
from pbsd.rewards.grade import Grade
from pbsd.rewards.limited import LimitedReward
from pbsd.rewards.pool import GraderPool
from pbsd.rewards.text import completion_text

RESERVED = frozenset(
    ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
)
"""What TRL hands to reward functions beside the data set's columns."""


def check_columns(names: Iterable[str]) -> None:
    """Raises ValueError for a column that has the name of what reward functions get beside the columns."""
    for name in names:
        if name in RESERVED:
            raise ValueError(f"column {name!r} has the name of an argument that reward functions get; rename it")


class RewardFunction(Protocol):
    """TRL's signature: one number for every completion, None where nothing can be judged. Columns come as lists."""

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]: ...


class GradedReward:
    """A reward function that runs a grader in killable workers and keeps the whole grades, not only the numbers.

    `grader`: "module:function", a function of `completion` (its text) and of keyword arguments, returning a `Grade`.
    `columns`: the grader's argument -> the data set's column it is taken from; `optional` likewise, for columns that
    may be absent. `options`: arguments that are the same for every row. `pool`: where to run; by default a pool of its
    own. `reads_calls`: the grader also takes `parsed`, the tool calls that the tokenizer parsed, where it parsed any.
    Called, it is a reward function as TRL's trainers take them (grades without a score become None).
    """

    def __init__(
        self,
        name: str,
        grader: str,
        columns: Mapping[str, str],
        pool: GraderPool | None = None,
        *,
        optional: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        reads_calls: bool = False,
    ) -> None:
        self.name = name
        self.__name__ = name  # TRL logs a reward function under this
        self.grader = grader
        self.columns = dict(columns)
        self.optional = dict(optional or {})
        self.options = dict(options or {})
        self.reads_calls = reads_calls
        self.pool = pool or GraderPool()

    def grades(self, completions: Sequence[Any], parsed: Sequence[Any] | None = None, /, **columns: Any) -> list[Grade]:
        """The grade of every completion (a string, or chat messages). Columns that the grader does not use are ignored.
        `parsed`: for each the tool calls that the tokenizer's parser found, or None.

        Raises ValueError when a column is missing or of another length, or a completion is not text.
        """
        used = {**self.columns, **{key: column for key, column in self.optional.items() if column in columns}}
        for column in used.values():
            if column not in columns:
                raise ValueError(
                    f"reward {self.name!r} needs the column {column!r}; the data has "
                    f"{sorted(columns.keys() - RESERVED)}"
                )
            if len(columns[column]) != len(completions):
                raise ValueError(
                    f"reward {self.name!r}: column {column!r} has {len(columns[column])} values for "
                    f"{len(completions)} completions; give one for each"
                )
        calls = [
            {
                **self.options,
                **{argument: columns[column][i] for argument, column in used.items()},
                "completion": completion_text(completion, i),
                **({"parsed": parsed[i]} if self.reads_calls and parsed is not None and parsed[i] else {}),
            }
            for i, completion in enumerate(completions)
        ]
        return self.pool.map(self.grader, calls)

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        return [grade.score for grade in self.grades(completions, **columns)]

    def close(self) -> None:
        """End the pool's workers."""
        self.pool.close()


@dataclass(frozen=True)
class _Builtin:
    grader: str
    columns: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    required_options: tuple[str, ...] = ()
    reads_calls: bool = False


BUILTINS: Mapping[str, _Builtin] = {
    "math": _Builtin("pbsd.rewards.math:grade", columns={"answer": "answer"}),
    "tool_call": _Builtin(
        "pbsd.rewards.tools:grade",
        columns={"expected": "answer"},
        optional={"tools": "tools"},
        options=("syntax", "scorer"),
        reads_calls=True,
    ),
    "format": _Builtin("pbsd.rewards.format:grade", options=("pattern",), required_options=("pattern",)),
}

_POOL_OPTIONS = ("workers", "timeout")


def resolve(spec: Any, *, timeout: float | None = None) -> RewardFunction:
    """The reward function that `spec` names.

    `spec` is a callable (returned as it is), a built-in's name (`math`, `tool_call`, `format`), for a function with
    TRL's signature "package.module:function", or a mapping with a `name` and options: `workers`, `timeout` (seconds
    for one call), `columns` ({argument: column}) and the built-in's own (`pattern`; `syntax`, `scorer`). With `timeout`
    a function becomes a `LimitedReward` of so many seconds for each completion.

    Raises ValueError when the name, an option or its value is not valid; ImportError when an extra is not installed.
    """
    if isinstance(spec, str):
        return _limited(_imported(spec), timeout, spec) if ":" in spec else _built_in(spec, {})
    if isinstance(spec, Mapping):
        options = dict(spec)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"reward {dict(spec)!r:.200} has no name; add `name`, one of {', '.join(BUILTINS)}")
        if ":" not in name:
            return _built_in(name, options)
        if options:
            raise ValueError(f"reward {name!r} takes no options, got {sorted(options)}; set them in the function")
        return _limited(_imported(name), timeout, name)
    if callable(spec):
        return _limited(spec, timeout)
    raise ValueError(f"reward {spec!r:.200} is neither a callable, a name nor a mapping with a `name`")


def reward_name(reward: Any) -> str:
    """What a reward function is called in metrics and messages: its own name, or its class's."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return str(getattr(reward, "__name__", type(reward).__name__))


def required_columns(reward: Any) -> set[str]:
    """The columns without which `reward` cannot run, so that one can look for them before training.

    For a plain function: its named parameters without default, other than those that TRL always gives.
    """
    if isinstance(reward, GradedReward):
        return set(reward.columns.values())
    return _required(reward) - RESERVED - {"self"}


def _required(reward: Callable[..., Any]) -> set[str]:
    """The named parameters without default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name
        for parameter in inspect.signature(reward).parameters.values()
        if parameter.kind in named and parameter.default is inspect.Parameter.empty
    }


def _built_in(name: str, options: dict[str, Any]) -> GradedReward:
    if name not in BUILTINS:
        raise ValueError(
            f"reward {name!r} is unknown{_did_you_mean(name, BUILTINS)}; use one of {', '.join(BUILTINS)}, or "
            '"package.module:function" for your own'
        )
    builtin = BUILTINS[name]
    valid = (*builtin.options, "columns", *_POOL_OPTIONS)
    for option in options:
        if option not in valid:
            raise ValueError(
                f"reward {name!r} has no option {option!r}{_did_you_mean(option, valid)}; it has {', '.join(valid)}"
            )
    for option in builtin.required_options:
        if option not in options:
            raise ValueError(f"reward {name!r} needs the option {option!r}: {{name: {name}, {option}: ...}}")
    own = {key: value for key, value in options.items() if key in builtin.options}
    _check_values(name, own)
    renamed = options.get("columns", {})
    if not isinstance(renamed, Mapping):
        raise ValueError(f"reward {name!r}: `columns` is {renamed!r:.200}; give {{argument: column}}")
    if unknown := renamed.keys() - builtin.columns.keys() - builtin.optional.keys():
        arguments = [*builtin.columns, *builtin.optional]
        raise ValueError(f"reward {name!r}: `columns` names {sorted(unknown)}; its arguments are {arguments}")
    return GradedReward(
        name,
        builtin.grader,
        {argument: renamed.get(argument, column) for argument, column in builtin.columns.items()},
        GraderPool(**{key: options[key] for key in _POOL_OPTIONS if key in options}),
        optional={argument: renamed.get(argument, column) for argument, column in builtin.optional.items()},
        options=own,
        reads_calls=builtin.reads_calls,
    )


def _check_values(name: str, options: Mapping[str, Any]) -> None:
    """What would otherwise fail in every single call, found before the first."""
    if name == "math" and importlib.util.find_spec("math_verify") is None:
        raise ImportError("the math reward needs math-verify: pip install pbsd[math]")
    if name == "tool_call":
        tools.check_options(**options)
    if name == "format":
        try:
            re.compile(options["pattern"])
        except (re.error, TypeError) as failure:
            raise ValueError(
                f"reward 'format': pattern {options['pattern']!r:.200} is not a regular expression: {failure}"
            ) from None


def _limited(reward: RewardFunction, timeout: float | None, path: str | None = None) -> RewardFunction:
    if isinstance(reward, GradedReward | LimitedReward):
        return reward
    if "environments" in _required(reward):
        raise ValueError(f"reward {reward_name(reward)!r} takes environments, which pbsd does not have; leave it out")
    return reward if timeout is None else LimitedReward(reward_name(reward), reward, timeout, path)


def _imported(path: str) -> RewardFunction:
    module_name, _, function_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as failure:
        raise ValueError(
            f"reward {path!r}: module {module_name!r} cannot be imported ({failure}); write it as "
            '"package.module:function" and have its folder on PYTHONPATH'
        ) from failure
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"reward {path!r}: {module_name} has no function {function_name!r}"
            f"{_did_you_mean(function_name, [key for key, value in vars(module).items() if callable(value)])}"
        )
    return function


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
