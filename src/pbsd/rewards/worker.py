"""The child process of `GraderPool`: reads one request (see `wire.py`) at a time and answers it.

It ends when its input ends, so it dies with its parent, also by kill -9; when busy then, at the call's limit.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from pbsd.rewards.grade import Grade, error
from pbsd.rewards.wire import HEADER

_GRACE = 2.0
"""Seconds past the limit after which a busy worker ends by itself, for when the parent that should kill it is gone."""


def main() -> None:
    """Serve requests until the input ends."""
    # The protocol moves to private descriptors, so that a grader that prints or reads cannot disturb it.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    graders: dict[str, Callable[..., Any]] = {}
    while (payload := _read(requests)) is not None:
        reply = pickle.dumps(_answer(payload, graders))
        replies.write(HEADER.pack(len(reply)) + reply)
        replies.flush()


def _read(requests: BinaryIO) -> bytes | None:
    header = requests.read(HEADER.size)
    return requests.read(HEADER.unpack(header)[0]) if len(header) == HEADER.size else None


def _answer(payload: bytes, graders: dict[str, Callable[..., Any]]) -> tuple[Any, ...]:
    try:
        kind, name, content, seconds = pickle.loads(payload)
    except Exception as failure:  # an argument's class cannot be imported here
        return ("grade", "error", None, f"the arguments cannot be read in the worker: {_describe(failure)}")
    # Without a handler SIGALRM ends the process in the kernel, whatever the grader is stuck in.
    signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE)
    try:
        if kind == "load":
            sys.path[:] = content
            graders[name] = _load(name)
            return ("ready", "")
        grade = _run(graders[name], content)
        # Plain types only: the parent may not have the class of a number that the grader used.
        return ("grade", grade.outcome, None if grade.score is None else float(grade.score), str(grade.reason))
    except BaseException as failure:  # SystemExit and KeyboardInterrupt of a grader too are only its error
        if kind == "load":
            return ("failed", _describe(failure))
        return ("grade", "error", None, _describe(failure))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _load(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    loaded = getattr(importlib.import_module(module), function)
    if not callable(loaded):
        raise TypeError(f"{name} is {loaded!r:.100}, not a function")
    return loaded


def _run(grader: Callable[..., Any], kwargs: dict[str, Any]) -> Grade:
    grade = grader(**kwargs)
    if isinstance(grade, Grade):
        return grade
    return error(f"the grader returned {grade!r:.200}; it must return a pbsd.rewards.Grade")


def _describe(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}"


if __name__ == "__main__":
    main()
