"""Graders in worker processes that can be killed: a hung or crashing grader costs its own call and nothing else.

Workers are plain subprocesses: multiprocessing's `spawn` imports the user's script again (which then needs a main
guard), and `fork` copies a process in which torch runs threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from pbsd.rewards.grade import Grade, error
from pbsd.rewards.wire import HEADER

_LOAD_TIMEOUT = 120.0
"""Seconds a worker may take to start and to import a grader's module; does not count toward a call's limit."""


class _TimedOut(Exception):
    """The worker did not answer in time."""


class _Died(Exception):
    """The worker ended without an answer."""


class GraderPool:
    """Runs graders, functions that return a `Grade`, in killable worker processes.

    `workers`: how many calls run at once. `timeout`: seconds of wall time for one call. Workers start at the first use,
    and end at `close`, at the end of a `with` block, when the pool is collected, or with this process, however it ends.
    POSIX only.

    Raises ValueError when `workers` is not a positive integer or `timeout` not a positive number.
    """

    def __init__(self, workers: int = 1, timeout: float = 10.0) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ValueError(f"GraderPool workers is {workers!r}; give an integer of at least 1")
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise ValueError(f"GraderPool timeout is {timeout!r}; give a positive number of seconds")
        self.timeout = float(timeout)
        self._workers = [_Worker() for _ in range(workers)]
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    def map(self, grader: str, calls: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """The grade of every call, in the order of `calls`.

        `grader` is "module:function", importable in this process; a call is the function's keyword arguments, which
        must be picklable. A call over the time limit gives `timeout`; one that raises, kills its worker or does not
        return a `Grade` gives `error` with the reason.

        Raises ImportError when a worker cannot load the grader, ValueError when the pool is closed, `grader` has
        another form, or a call cannot be pickled.
        """
        if not all(grader.partition(":")):
            raise ValueError(f'grader {grader!r} has no module and function; write it as "module:function"')
        payloads = [_request("call", grader, dict(call), self.timeout, index) for index, call in enumerate(calls)]
        if not payloads:
            return []
        grades: list[Grade | None] = [None] * len(payloads)
        pending = deque(range(len(payloads)))

        def drive(worker: _Worker) -> None:
            while True:
                try:
                    index = pending.popleft()
                except IndexError:
                    return
                grades[index] = worker.grade(grader, payloads[index], self.timeout)

        active = self._workers[: len(payloads)]
        with self._lock:
            if not self._finalizer.alive:
                raise ValueError("this GraderPool is closed; make a new one")
            with ThreadPoolExecutor(len(active), thread_name_prefix="grader") as threads:
                try:
                    list(threads.map(drive, active))
                finally:
                    pending.clear()  # after an interrupt the other threads stop at their next call
        return [_present(grade) for grade in grades]

    def close(self) -> None:
        """Kill the workers, after a `map` that is under way. The pool cannot be used afterwards; twice is fine."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker:
    """One child process, started when needed and replaced after it was killed or died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._loaded: set[str] = set()

    def grade(self, grader: str, payload: bytes, timeout: float) -> Grade:
        """Run one call. Raises ImportError when the grader cannot be loaded."""
        if os.getpid() != self._owner:
            self.stop()
            self._owner = os.getpid()
        elif self._process is not None and self._process.poll() is not None:
            self.stop()  # it died while idle: not this call's error
        self._load(grader)
        try:
            _, outcome, score, reason = self._exchange(payload, timeout)
        except _TimedOut:
            return Grade("timeout", None, f"no answer within {timeout:g} s")
        except _Died as death:
            return error(str(death))
        return Grade(outcome, score, reason)

    def stop(self) -> None:
        """Kill the process, and those that its grader started, and wait for its end."""
        process, self._process = self._process, None
        self._loaded.clear()
        if process is None or os.getpid() != self._owner:
            return  # a fork of the owner holds a copy of this object, but the process is not its to kill
        if process.returncode is None:  # else its number may belong to another process by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait()

    def _load(self, grader: str) -> None:
        if grader in self._loaded:
            return
        request = _request("load", grader, _import_path(), _LOAD_TIMEOUT)
        try:
            kind, reason = self._exchange(request, _LOAD_TIMEOUT)
        except _TimedOut:
            kind, reason = "failed", f"not ready after {_LOAD_TIMEOUT:g} s"
        except _Died as death:
            kind, reason = "failed", str(death)
        if kind == "failed":
            raise ImportError(f"grader {grader!r} cannot be loaded in a worker process: {reason}")
        self._loaded.add(grader)

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the working directory must not shadow modules unless the parent's path holds it too.
        # A session of its own: Ctrl-C at the terminal reaches only the parent, a kill also the grader's children.
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pbsd.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
            start_new_session=True,
        )

    def _exchange(self, payload: bytes, timeout: float) -> tuple[Any, ...]:
        """Send a request and return its reply; without one the process is killed, and replaced at the next request."""
        deadline = time.monotonic() + timeout
        try:
            if self._process is None:
                self._process = self._start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            _send(self._process.stdin.fileno(), HEADER.pack(len(payload)) + payload, deadline)
            header = _receive(self._process.stdout.fileno(), HEADER.size, deadline)
            reply = _receive(self._process.stdout.fileno(), HEADER.unpack(header)[0], deadline)
        except (EOFError, BrokenPipeError):
            process = self._process
            self.stop()
            assert process is not None
            if process.returncode == -signal.SIGALRM:  # its own alarm was quicker than this thread
                raise _TimedOut from None
            raise _Died(_describe_death(process.returncode)) from None
        except BaseException:  # also an interrupt: a reply that nobody read would be taken for the next call's
            self.stop()
            raise
        answer: tuple[Any, ...] = pickle.loads(reply)
        return answer


def _stop_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()


def _import_path() -> list[str]:
    return [entry or os.getcwd() for entry in sys.path]


def _request(kind: str, grader: str, content: Any, timeout: float, index: int = 0) -> bytes:
    try:
        return pickle.dumps((kind, grader, content, timeout))
    except Exception as failure:
        raise ValueError(
            f"call {index} of grader {grader!r} cannot be sent to a worker: {type(failure).__name__}: {failure}; give "
            "plain values (strings, numbers, lists, dicts)"
        ) from failure


def _send(descriptor: int, data: bytes, deadline: float) -> None:
    os.set_blocking(descriptor, False)
    rest = memoryview(data)
    while rest:
        _wait(descriptor, select.POLLOUT, deadline)
        rest = rest[os.write(descriptor, rest) :]


def _receive(descriptor: int, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        _wait(descriptor, select.POLLIN, deadline)
        part = os.read(descriptor, size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise _TimedOut


def _describe_death(code: int) -> str:
    if code < 0:
        return f"the worker process was killed by {signal.Signals(-code).name}"
    return f"the worker process ended with exit code {code}"


def _present(grade: Grade | None) -> Grade:
    assert grade is not None
    return grade
