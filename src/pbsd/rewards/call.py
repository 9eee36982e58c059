"""One call of a reward function with TRL's signature: what it is given, what it may return, and what it logs.

The same in the trainer's process and in a worker; only light imports.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class BadAnswer(ValueError):
    """A reward function broke its contract: the run stops."""


class Raised(Exception):
    """What a reward function raised in a worker, in a sentence."""


class Lost(Raised):
    """The worker died."""


class OverTime(Exception):
    """A reward function did not answer within its limit."""


@dataclass(frozen=True)
class Answer:
    """What a call gave.

    `values`: a number for each completion, None where nothing can be judged. `metrics`: what `log_metric` was told, by
    name. `extra`: what `log_extra` was told, a value for each completion by column, as JSON has it.
    """

    values: list[float | None]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


def call(
    name: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    size: int,
    *,
    first: int = 0,
    limit: float = math.inf,
) -> Answer:
    """Call the function on `size` completions, of which the first is number `first` of its batch.

    It gets those of `arguments`, `log_metric` and `log_extra` that its signature takes. What it returns is awaited
    where it can be, at most `limit` seconds.

    Raises BadAnswer when it returns or logs anything else than it should, OverTime, and whatever it raises itself.
    """
    log = _Log()
    given = {**arguments, "log_metric": log.metric, "log_extra": log.column}
    returned = function(**accepted(function, given))
    if inspect.isawaitable(returned):
        returned = _result(returned, limit)
    values = [_number(name, value, first + place) for place, value in enumerate(_checked_list(name, returned, size))]
    for column, logged in log.extra.items():
        if len(logged) != size:
            raise BadAnswer(
                f"reward {name!r}: log_extra({column!r}, ...) got {len(logged)} values for {size} completions; give "
                "one for each"
            )
    return Answer(values, log.metrics, log.extra)


class _Log:
    """What TRL hands to reward functions as `log_metric` and `log_extra`."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.extra: dict[str, list[Any]] = {}

    def metric(self, name: str, value: float) -> None:
        """A number of this batch; averaged over each logging step."""
        self.metrics.setdefault(str(name), []).append(float(value))

    def column(self, column: str, values: list[Any]) -> None:
        """A value for each completion of the batch; several calls add up, as in TRL."""
        self.extra.setdefault(str(column), []).extend(plain(value) for value in values)


def plain(value: Any) -> Any:
    """The value as JSON has it; what it has not, as text; characters that UTF-8 has not, as `?`."""
    text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return json.loads(text.encode("utf-8", "replace"))


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the function's signature takes: all of them when it has **kwargs."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {key: value for key, value in arguments.items() if key in parameters}


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, for functions, partials and objects with an async `__call__`."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def describe(failure: BaseException) -> str:
    """The failure's type and message."""
    return str(failure) if isinstance(failure, Raised | OverTime) else f"{type(failure).__name__}: {failure}"


def module_settings(function: Any) -> dict[str, str]:
    """The globals that the function uses, and those of the functions of its module that it uses, by name: values that
    JSON has as they are, functions by name, others by type. A worker imports a module afresh: where these differ, its
    globals were set from outside."""
    while isinstance(function, functools.partial | MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if not isinstance(function, FunctionType):
        function = type(function).__call__
    found: dict[str, str] = {}
    waiting = [function] if isinstance(function, FunctionType) else []
    while waiting:
        own = waiting.pop()
        for name in _names(own.__code__):
            if name not in found and name in own.__globals__:
                value = own.__globals__[name]
                found[name] = _summary(value)
                if isinstance(value, FunctionType) and value.__globals__ is own.__globals__:
                    waiting.append(value)
    return found


def _names(code: Any) -> set[str]:
    inner = (constant for constant in code.co_consts if hasattr(constant, "co_names"))
    return set(code.co_names).union(*map(_names, inner))


def _summary(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return f"{named.__module__}.{named.__qualname__}"


def _checked_list(name: str, returned: Any, size: int) -> list[Any]:
    fix = f"return a list of len(completions) = {size} numbers, None where nothing can be judged"
    if not isinstance(returned, list):
        raise BadAnswer(f"reward {name!r} returned {type(returned).__name__} {returned!r:.200}; {fix}")
    if len(returned) != size:
        raise BadAnswer(f"reward {name!r} returned {len(returned)} values for {size} completions; {fix}")
    return returned


def _number(name: str, value: Any, position: int) -> float | None:
    if value is None:
        return None
    try:
        # float("1.5") would accept a string; arrays and tensors of one number are numbers.
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise BadAnswer(
            f"reward {name!r} returned {value!r:.200} ({type(value).__name__}) at position {position}; "
            "return a list of len(completions) finite numbers, None where nothing can be judged"
        )
    return number


def _result(answer: Awaitable[Any], limit: float) -> Any:
    """Await on the process's one event loop, as in TRL: clients that a function keeps belong to a loop."""

    import asyncio  # late, for most workers have no use for it

    async def wait() -> Any:
        return await answer

    waiting = asyncio.run_coroutine_threadsafe(wait(), _event_loop())
    try:
        return waiting.result(None if math.isinf(limit) else limit)
    except TimeoutError:
        if waiting.done():  # the function's own
            raise
        raise OverTime(f"no answer within {limit:g} s") from None
    finally:
        waiting.cancel()


_loops: dict[int, AbstractEventLoop] = {}
_lock = threading.Lock()


def _event_loop() -> AbstractEventLoop:
    """The event loop of this process (a fork has its own), in a thread of its own."""
    import asyncio

    with _lock:
        if os.getpid() not in _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
            _loops[os.getpid()] = loop
        return _loops[os.getpid()]
