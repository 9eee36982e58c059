"""A pool of spawned worker processes, each doing one job after another. One that dies costs its job, not the others."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

_SECONDS_TO_STOP = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: its value, or the `error` in a sentence with its traceback."""

    value: Any = None
    error: str | None = None
    details: str = ""


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    job: int | None = None


def run_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], *, processes: int
) -> Iterator[tuple[int, Outcome]]:
    """Call `function(*job)` for every job in `processes` processes; yields (index of the job, outcome) as they finish.

    When the caller leaves the loop early, by an exception or by closing the generator, workers get SIGTERM and time to
    save. They also end when this process dies, however that happens.
    """
    waiting = iter(range(len(jobs)))
    workers: list[_Worker] = []
    try:
        for index in waiting:
            workers.append(_start(function, jobs, index))
            if len(workers) == processes:
                break
        while busy := [worker for worker in workers if worker.job is not None]:
            for connection in wait([worker.connection for worker in busy]):
                worker = next(worker for worker in busy if worker.connection is connection)
                assert worker.job is not None
                done, outcome = worker.job, _receive(worker)
                yield done, outcome
                worker.job = next(waiting, None)
                if worker.job is None:
                    continue
                if worker.process.is_alive():
                    worker.connection.send(jobs[worker.job])
                else:
                    workers[workers.index(worker)] = _start(function, jobs, worker.job)
    finally:
        _stop(workers)


def _start(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], index: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function))
    process.start()
    theirs.close()
    ours.send(jobs[index])
    return _Worker(process, ours, index)


def _receive(worker: _Worker) -> Outcome:
    try:
        outcome: Outcome = worker.connection.recv()
        return outcome
    except (EOFError, ConnectionError):
        worker.process.join()
        return Outcome(error=f"its process died (exit code {worker.process.exitcode})")


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.connection.close()  # an idle one ends by itself
        if worker.job is not None and worker.process.is_alive():
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_SECONDS_TO_STOP)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(connection: Connection, function: Callable[..., Any]) -> None:
    """The worker's main: jobs come in and outcomes go out until the other side closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            outcome = Outcome(function(*job))
        except Exception as error:
            outcome = Outcome(error=f"{type(error).__name__}: {error}", details=traceback.format_exc())
        gc.collect()  # a job's model and optimizer hang in reference cycles
        try:
            connection.send(outcome)
        except BrokenPipeError:
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
