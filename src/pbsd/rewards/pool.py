"""Graders in worker processes that can be killed: a hung, crashing or greedy grader costs its own call and nothing
else."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

from pbsd.rewards.grade import Grade, error
from pbsd.rewards.process import Died, TimedOut, WorkerFailure, WorkerProcess, request

MEMORY_LIMIT = 2**30
"""Bytes of memory that a grader's worker may take: sympy and math-verify loaded are a tenth of it."""
_AHEAD = 64
"""Calls that a worker is sent before it has answered them."""


class GraderPool:
    """Runs graders, functions that return a `Grade`, in killable worker processes.

    `workers`: how many calls run at once. `timeout`: seconds of wall time for one call. Workers start at the first use,
    and end at `close`, at the end of a `with` block, when the pool is collected, or with this process, however it ends.
    A worker over `MEMORY_LIMIT` is ended. POSIX only.

    Raises ValueError when `workers` is not a positive integer or `timeout` not a positive number.
    """

    def __init__(self, workers: int = 1, timeout: float = 10.0) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ValueError(f"GraderPool workers is {workers!r}; give an integer of at least 1")
        self.timeout = checked_timeout("GraderPool timeout", timeout)
        self._workers = [WorkerProcess(MEMORY_LIMIT) for _ in range(workers)]
        self._lock = threading.Lock()
        self._threads = LastingThreads(workers)
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    def map(self, grader: str, calls: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """The grade of every call, in the order of `calls`.

        `grader` is "module:function", importable in this process; a call is the function's keyword arguments, which
        must be picklable. A call over the time limit gives `timeout`; one that raises, takes too much memory, kills its
        worker or does not return a `Grade` gives `error` with the reason.

        Raises ImportError when a worker cannot load the grader, ValueError when the pool is closed, `grader` has
        another form, or a call cannot be pickled.
        """
        if not all(grader.partition(":")):
            raise ValueError(f'grader {grader!r} has no module and function; write it as "module:function"')
        payloads = [request("grade", grader, dict(call), self.timeout, index) for index, call in enumerate(calls)]
        if not payloads:
            return []
        work = _Work(grader, payloads, self.timeout, len(self._workers))
        with self._lock:
            if not self._finalizer.alive:
                raise ValueError("this GraderPool is closed; make a new one")
            futures = [self._threads.executor.submit(work.drive, worker) for worker in self._workers[: len(payloads)]]
            try:
                for future in futures:
                    future.result()
            finally:
                work.is_abandoned = True  # after an interrupt or a failure the threads stop at their next call
                wait(futures)
        return [_present(grade) for grade in work.grades]

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


class _Work:
    """The calls of one `map`, which several workers share."""

    def __init__(self, grader: str, payloads: Sequence[bytes], timeout: float, workers: int) -> None:
        self.grader = grader
        self.payloads = payloads
        self.timeout = timeout
        self.workers = workers
        self.pending = deque(range(len(payloads)))
        self.grades: list[Grade | None] = [None] * len(payloads)
        self.is_abandoned = False

    def drive(self, worker: WorkerProcess) -> None:
        """Have the worker do calls until none is left. What a killed one had not begun goes back to the others."""
        sent: deque[int] = deque()
        worker.look()
        while not self.is_abandoned:
            try:
                if not sent and worker.is_large:
                    worker.stop()
                worker.load(self.grader)
                self._send(worker, sent)
                if not sent:
                    return
                self._receive(worker.receive(self.timeout), sent)
            except WorkerFailure as failure:
                worker.stop()
                with contextlib.suppress(WorkerFailure):
                    self._receive(failure.replies, sent)
                if sent:
                    self.grades[sent.popleft()] = self._as_grade(failure)
                self.pending.extendleft(reversed(sent))
                sent.clear()
        worker.stop()

    def _send(self, worker: WorkerProcess, sent: deque[int]) -> None:
        """Calls ahead, fewer towards the end, where a worker must not have all that is left."""
        ahead = 1 if worker.is_large else max(1, min(_AHEAD, len(self.pending) // (2 * self.workers)))
        while len(sent) < ahead:
            try:
                sent.append(self.pending.popleft())
            except IndexError:
                return
            worker.send(self.payloads[sent[-1]])

    def _receive(self, replies: Sequence[list[Any]], sent: deque[int]) -> None:
        for reply in replies:
            self.grades[sent[0]] = _as_grade(reply)
            sent.popleft()

    def _as_grade(self, failure: WorkerFailure) -> Grade:
        if isinstance(failure, TimedOut):
            return Grade("timeout", None, f"no answer within {self.timeout:g} s")
        return error(str(failure))


class LastingThreads:
    """Threads that live as long as this object, and a fork's own: a worker process ends with the thread that starts
    it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._owner: int | None = None

    @property
    def executor(self) -> ThreadPoolExecutor:
        if self._owner != os.getpid():
            self._executor = ThreadPoolExecutor(self._number, thread_name_prefix="rewards")
            self._owner = os.getpid()
        return self._executor


def checked_timeout(name: str, value: Any) -> float:
    """Raises ValueError, naming it, unless it is a positive number of seconds."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; give a positive number of seconds")
    return float(value)


def _as_grade(reply: list[Any]) -> Grade:
    """The grade in a worker's reply, which its grader may have written by itself. Raises Died where it is none."""
    try:
        if reply[0] == "unread":
            return error(f"the arguments cannot be read in the worker: {reply[1]}")
        kind, outcome, score, reason = reply
        if kind != "grade" or isinstance(score, bool):
            raise ValueError(f"{reply!r:.100} is no grade")
        return Grade(outcome, score, reason)
    except (ValueError, TypeError, AttributeError, IndexError) as failure:
        raise Died(f"the worker's reply cannot be read: {failure}") from failure


def _stop_all(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        worker.stop()


def _present(grade: Grade | None) -> Grade:
    assert grade is not None
    return grade
