"""Users' reward functions under a time limit: each in a worker process of its own, where it can be moved there.

A function in a worker that hangs, calls `os._exit` or crashes costs its own call. One that cannot be moved runs in the
trainer's process, which is said once, by name.
"""

from __future__ import annotations

import atexit
import functools
import logging
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from types import FunctionType, MethodType
from typing import Any

from pbsd.rewards.call import Answer, BadAnswer, Lost, OverTime, Raised, call, module_settings, plain
from pbsd.rewards.pool import LastingThreads, checked_timeout
from pbsd.rewards.process import Died, TimedOut, WorkerProcess, request

_LARGEST = 2**20
"""Bytes of a pickled function; one that is larger carries a model or data, of which a worker would hold a copy."""

logger = logging.getLogger(__name__)


class LimitedReward:
    """A reward function with a limit of `timeout` seconds for each completion of a call.

    `path`: the "module:function" that it is imported by; without one the function is pickled. Called, it is the
    function itself. Equal functions share one worker, which lives as long as this process: what the function's module
    keeps is kept from one trainer to the next, as it is in the trainer's process.
    """

    def __init__(self, name: str, function: Callable[..., Any], timeout: float, path: str | None = None) -> None:
        self.__name__ = name  # TRL logs a reward function under this
        self.__wrapped__ = function  # whose signature this has
        self.timeout = checked_timeout("reward_timeout", timeout)
        self._worker: _FunctionWorker | None = None
        try:
            self._worker = _worker(path, function)
        except _CannotMove as reason:
            self._stay(str(reason))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def answer(self, arguments: Mapping[str, Any], size: int, first: int = 0) -> Answer:
        """One call, see `call.call`. In a worker `trainer_state` is a copy of the attributes, and common generators of
        random numbers are seeded by the step and the completions.

        Raises OverTime; Raised for what the function raised in its worker, Lost where that died; BadAnswer; and, from a
        function in this process, whatever it raises.
        """
        limit = self.timeout * size
        if self._worker is not None:
            try:
                return self._worker.answer(self.__name__, arguments, size, first, limit)
            except _CannotMove as reason:
                self._worker = None
                self._stay(str(reason))
        return call(self.__name__, self.__wrapped__, arguments, size, first=first, limit=limit)

    def _stay(self, reason: str) -> None:
        if (self.__name__, reason) not in _said:
            _said.add((self.__name__, reason))
            logger.warning(
                "reward %r runs in the trainer's process, where reward_timeout cannot end it (only what it awaits) and "
                "a crash of it ends the run: %s. A function of a module, with plain arguments, gets a worker process",
                self.__name__,
                reason,
            )


class _CannotMove(Exception):
    """Why a function runs in the trainer's process."""


_said: set[tuple[str, str]] = set()
_workers: dict[str | bytes, _FunctionWorker] = {}


def _worker(path: str | None, function: Callable[..., Any]) -> _FunctionWorker:
    """The worker of the function, the same for equal ones. Raises _CannotMove."""
    pickled = None
    if path is None:
        try:
            pickled = pickle.dumps(function)
        except Exception as failure:
            raise _CannotMove(f"it cannot be pickled ({failure})") from None
        if b"__main__" in pickled:
            raise _CannotMove("it is defined in the script that was started, which a worker would run again")
        if len(pickled) > _LARGEST:
            raise _CannotMove(f"it holds {len(pickled):,} bytes of data")
    key = path or pickled or b""
    if key in _workers and _workers[key].code is not _code(function):  # its module was imported again since
        _workers.pop(key).process.stop()
    if key not in _workers:
        _workers[key] = _FunctionWorker(path, pickled, function)
    return _workers[key]


def _code(function: Any) -> Any:
    """What a function is of: the function of a partial or a method, the class of another object."""
    while isinstance(function, functools.partial | MethodType):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function if isinstance(function, FunctionType) else type(function)


class _FunctionWorker:
    """The worker process of one reward function. No limit of memory: it may hold a model."""

    def __init__(self, path: str | None, pickled: bytes | None, function: Callable[..., Any]) -> None:
        self.path = path
        self.pickled = pickled
        self.function = function
        self.code = _code(function)
        self.settings: dict[str, str] = {}
        self.process = WorkerProcess()
        self.threads = LastingThreads(1)
        atexit.register(self.process.stop)

    def answer(self, name: str, arguments: Mapping[str, Any], size: int, first: int, limit: float) -> Answer:
        """Raises _CannotMove where the function or the arguments cannot get there; else see `LimitedReward.answer`."""
        sent = dict(arguments)
        if is_dataclass(state := sent.get("trainer_state")) and not isinstance(state, type):
            sent["trainer_state"] = plain(asdict(state))
        key = self.path or name
        try:
            payload = request("reward", key, (name, sent, size, first), limit)
        except ValueError as failure:
            raise _CannotMove(f"an argument cannot be pickled ({failure.__cause__})") from failure
        self.process.is_ended = False
        try:
            return _as_answer(self.threads.executor.submit(self._exchange, key, payload, limit).result())
        except KeyboardInterrupt:  # the thread then need not wait for an answer
            self.process.kill()
            raise

    def _exchange(self, key: str, payload: bytes, limit: float) -> list[Any]:
        self.process.look()
        try:
            self.settings = self.process.load(key, self.pickled) or self.settings
        except ImportError as failure:
            raise _CannotMove(str(failure)) from failure
        here, there = module_settings(self.function), self.settings
        if changed := sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name)):
            raise _CannotMove(f"its module is imported afresh in a worker, where {', '.join(changed)} is another")
        try:
            self.process.send(payload)
            return self.process.receive(limit)[0]
        except TimedOut:
            raise OverTime(f"no answer within {limit:g} s") from None
        except Died as death:
            raise Lost(str(death)) from None
        except BaseException:
            self.process.stop()
            raise


def _as_answer(reply: list[Any]) -> Answer:
    """The answer in a worker's reply, which the function may have written by itself."""
    kind, *content = reply
    if kind == "unread":
        raise _CannotMove(f"the worker cannot read its arguments ({content[:1]})")
    if kind == "refused":
        raise BadAnswer(*content)
    if kind == "raised":
        failure = Raised(str(content[0]))
        failure.add_note(str(content[-1]))
        raise failure
    try:
        values, metrics, extra = content
        return Answer(
            [None if value is None else float(value) for value in values],
            {str(name): [float(value) for value in logged] for name, logged in metrics.items()},
            {str(name): list(logged) for name, logged in extra.items()},
        )
    except (ValueError, TypeError, AttributeError) as failure:
        raise Raised(f"the worker's reply cannot be read: {failure}") from failure
