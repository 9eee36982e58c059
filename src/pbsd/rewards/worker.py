"""The child process of a `WorkerProcess`: reads one request (see `wire.py`) at a time and answers it.

It ends with its parent, whatever ends that: when idle since its input ends, when busy by the kernel (on Linux; else by
its own alarm, soon after the call's limit). What its functions started ends with it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pickle
import random
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from pbsd.rewards.call import BadAnswer, call, describe, module_settings
from pbsd.rewards.grade import Grade, error
from pbsd.rewards.wire import HEADER

_GRACE = 2.0
"""Seconds past the limit after which a busy worker ends by itself, for when the parent that should kill it is gone."""
_PR_SET_PDEATHSIG = 1


Reply = tuple[Any, ...]


def main() -> None:
    """Serve requests until the input ends."""
    if sys.platform == "linux":
        _end_with(int(sys.argv[1]), signal.SIGKILL)
        _guard_group()
    # The protocol moves to private descriptors, so that a grader that prints or reads cannot disturb it.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    functions: dict[str, Callable[..., Any]] = {}
    while (header := requests.read(HEADER.size)) and len(header) == HEADER.size:
        size, number = HEADER.unpack(header)
        reply = json.dumps(_answer(requests.read(size), functions)).encode()
        rest = memoryview(HEADER.pack(len(reply), number) + reply)
        while rest:
            rest = rest[os.write(replies, rest) :]


def _end_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process the signal when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        signal.raise_signal(number)


def _guard_group() -> None:
    """Leave a small process behind that kills this one's process group, itself too, when this one ends: the kernel's
    signal reaches this process alone, not what its functions started."""
    worker = os.getpid()
    if os.fork():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.closerange(0, 1024)  # else the parent would not see the worker's output end
    _end_with(worker, signal.SIGTERM)
    signal.sigwait({signal.SIGTERM})
    os.killpg(0, signal.SIGKILL)


def _answer(payload: bytes, functions: dict[str, Callable[..., Any]]) -> Reply:
    try:
        kind, name, content, seconds = pickle.loads(payload)
    except Exception as failure:  # an argument's class cannot be imported here
        return ("unread", describe(failure))
    # Without a handler SIGALRM ends the process in the kernel, whatever the function is stuck in.
    signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE)
    try:
        answer: Callable[..., Reply] = {"load": _load, "grade": _grade, "reward": _reward}[kind]  # type: ignore[assignment]
        return answer(functions, name, content)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _load(functions: dict[str, Callable[..., Any]], name: str, content: tuple[list[str], bytes | None]) -> Reply:
    path, pickled = content
    sys.path[:] = path
    try:
        loaded = _imported(name) if pickled is None else pickle.loads(pickled)
        if not callable(loaded):
            raise TypeError(f"{name} is {loaded!r:.100}, not a function")
        functions[name] = loaded
        return ("ready", module_settings(loaded))
    except BaseException as failure:
        return ("failed", describe(failure))


def _imported(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _grade(functions: dict[str, Callable[..., Any]], name: str, kwargs: dict[str, Any]) -> Reply:
    try:
        grade = functions[name](**kwargs)
        if not isinstance(grade, Grade):
            grade = error(f"the grader returned {grade!r:.200}; it must return a pbsd.rewards.Grade")
        # Plain types only, whatever class of a number the grader used.
        score = None if grade.score is None else float(grade.score)
        return ("grade", str(grade.outcome), score, str(grade.reason))
    except BaseException as failure:  # SystemExit and KeyboardInterrupt of a grader too are only its error
        return ("grade", "error", None, describe(failure))


def _reward(
    functions: dict[str, Callable[..., Any]], name: str, content: tuple[str, dict[str, Any], int, int]
) -> Reply:
    title, arguments, size, first = content
    if isinstance(state := arguments.get("trainer_state"), Mapping):
        arguments["trainer_state"] = SimpleNamespace(**state)
    _seed(arguments)
    try:
        answer = call(title, functions[name], arguments, size, first=first)
        return ("values", answer.values, answer.metrics, answer.extra)
    except BadAnswer as failure:
        return ("refused", str(failure))
    except BaseException as failure:
        return ("raised", describe(failure), "".join(traceback.format_exception(failure)))


def _seed(arguments: Mapping[str, Any]) -> None:
    """Seed the common generators by the step and the completions, so that a resumed run gives a random function the
    numbers that an uninterrupted one gives it."""
    step = getattr(arguments.get("trainer_state"), "global_step", None)
    seed = zlib.crc32(repr((step, arguments.get("completions"))).encode("utf-8", "surrogatepass"))
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


if __name__ == "__main__":
    main()
