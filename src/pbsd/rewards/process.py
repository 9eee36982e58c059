"""A worker process that runs graders or reward functions, and that can be killed.

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
import time
from typing import Any

from pbsd.rewards.wire import HEADER, MAX_REPLY, decode_reply

LOAD_TIMEOUT = 120.0
"""Seconds a worker may take to start and to import a function's module; does not count toward a call's limit."""
_LOADS = 3
"""How often a worker that dies or hangs while it loads is started."""
_LOOK = 0.02
"""Seconds between two looks at a worker's memory while it is silent."""
_PAUSE = 0.002
"""Seconds in which the replies of a worker that has more to do are collected: to be woken by each costs more than many
graders."""


class WorkerFailure(Exception):
    """A worker was killed or died. `replies`: to the requests before the one that it is to blame for."""

    def __init__(self, reason: str, replies: list[list[Any]] | None = None) -> None:
        super().__init__(reason)
        self.replies = replies or []


class TimedOut(WorkerFailure):
    """It did not answer in time."""


class Died(WorkerFailure):
    """It ended without an answer, was ended for its memory, or its reply cannot be read."""


class WorkerProcess:
    """One child process, started when needed and replaced after it was killed or died.

    It answers requests in order; several may be sent before the first is answered. `memory`: bytes of resident memory
    over which it is killed; one that holds more than half of that is to be replaced when it is idle (`is_large`), so
    that what a call may take does not depend on those before it.

    On Linux it ends with the thread that starts it, so start it from one that lives as long as its owner.
    """

    def __init__(self, memory: float = math.inf) -> None:
        self.memory = memory
        self.is_large = False
        self.is_ended = False
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._loaded: set[str] = set()
        self._output, self._input = bytearray(), bytearray()
        self._replies: list[list[Any]] = []
        self._waiting = 0
        self._paused = False

    def load(self, name: str, function: bytes | None = None) -> dict[str, str]:
        """Have the worker load a function, unless it has: `name` is "module:function", or `function` is it, pickled.
        Returns its `call.module_settings` where it was loaded now.

        Raises ImportError when it cannot, also not after it was started again.
        """
        if os.getpid() != self._owner:
            self.stop()
            self._owner = os.getpid()
        if name in self._loaded:
            return {}
        payload = request("load", name, (_import_path(), function), LOAD_TIMEOUT)
        reason = ""
        for _ in range(_LOADS):
            try:
                self.send(payload)
                kind, found, *_rest = *self.receive(LOAD_TIMEOUT)[0], None
            except TimedOut:
                reason = f"not ready after {LOAD_TIMEOUT:g} s"
            except Died as death:
                reason = str(death)
            else:
                if kind == "ready" and isinstance(found, dict):
                    self._loaded.add(name)
                    return found
                raise ImportError(f"{name!r} cannot be loaded in a worker process: {found}")
        raise ImportError(f"{name!r} cannot be loaded in a worker process, tried {_LOADS} times: {reason}")

    def send(self, payload: bytes) -> None:
        """Queue a request; the process is started if there is none. Raises Died when it cannot be."""
        if self.is_ended:
            raise Died("the call was given up")
        if self._process is None:
            try:
                self._start()
            except OSError as failure:
                raise Died(f"no worker process can be started: {failure}") from failure
        if not self._waiting:
            self._since = time.monotonic()
        self._output += HEADER.pack(len(payload), self._next + self._waiting) + payload
        self._waiting += 1
        self._write()

    def receive(self, timeout: float) -> list[list[Any]]:
        """At least one reply, within `timeout` seconds of the reply before it or of its request.

        Raises TimedOut or Died, both with the replies that came before; the process is then killed, and replaced at the
        next load.
        """
        assert self._process is not None
        if self._paused:
            time.sleep(_PAUSE)
        deadline = self._since + timeout
        try:
            while True:
                left = deadline - time.monotonic()
                self._poll.modify(self._stdin, select.POLLOUT if self._output else 0)
                events = self._poll.poll(1000 * max(0.0, min(left, _LOOK)))
                self._write()
                self._read()
                if self._replies:
                    self._since = time.monotonic()
                    self._paused = self._waiting > 0
                    return self._taken()
                if left <= 0:
                    raise TimedOut(f"no answer within {timeout:g} s")
                if not events:
                    self._check_memory()
        except EOFError:
            raise self._failure() from None
        except ValueError as failure:
            raise self._failure(Died(f"the worker's reply cannot be read: {failure}")) from failure
        except WorkerFailure as failure:
            raise self._failure(failure) from None
        except BaseException:  # also an interrupt: a reply that nobody read would be taken for the next call's
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the process, and those that its functions started, and wait for its end."""
        process, self._process = self._process, None
        if process is not None and os.getpid() == self._owner:
            # A fork of the owner holds a copy of this object, but the process is not its to kill.
            _kill(process)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
        self._loaded.clear()
        self._forget()

    def kill(self) -> None:
        """Kill the process, from any thread; the one that waits for its reply sees it end, and none is started until
        `is_ended` is taken back."""
        self.is_ended = True
        if self._process is not None and os.getpid() == self._owner:
            _signal_group(self._process)

    def look(self) -> None:
        """See whether the process has died or has become large."""
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        self.is_large = self._resident() > self.memory / 2

    def _forget(self) -> None:
        self._output, self._input = bytearray(), bytearray()
        self._replies = []
        self._waiting = 0
        self._paused = self.is_large = False

    def _start(self) -> None:
        # -P: the working directory must not shadow modules unless the parent's path holds it too.
        # A session of its own: Ctrl-C at the terminal reaches only the parent, a kill also the grader's children.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pbsd.rewards.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._next = int.from_bytes(os.urandom(4))
        self._stdin, self._stdout = process.stdin.fileno(), process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)
        self._poll.register(self._stdin, 0)
        for descriptor in (self._stdin, self._stdout):
            os.set_blocking(descriptor, False)

    def _write(self) -> None:
        """What the pipe takes. A broken pipe is seen as the end of the other one."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._output:
                del self._output[: os.write(self._stdin, self._output)]

    def _read(self) -> None:
        """Takes the whole replies that have come. Raises EOFError after the last, ValueError for what is no reply."""
        ended = False
        try:
            while part := os.read(self._stdout, 2**16):
                self._input += part
                if len(self._input) > 2 * MAX_REPLY:
                    break
            ended = part == b""
        except BlockingIOError:
            pass
        while len(self._input) >= HEADER.size:
            size, number = HEADER.unpack_from(self._input)
            if number != self._next or not self._waiting:
                raise ValueError("it is not to the request that was sent")
            if size > MAX_REPLY:
                raise ValueError(f"it is of {size:,} bytes, more than {MAX_REPLY:,}")
            if len(self._input) < HEADER.size + size:
                break
            self._replies.append(decode_reply(bytes(self._input[HEADER.size : HEADER.size + size])))
            del self._input[: HEADER.size + size]
            self._next, self._waiting = self._next + 1, self._waiting - 1
        if ended and not self._replies:
            raise EOFError

    def _taken(self) -> list[list[Any]]:
        taken, self._replies = self._replies, []
        return taken

    def _failure(self, failure: WorkerFailure | None = None) -> WorkerFailure:
        """Kill the process, and give the failure the replies that it had still written."""
        process = self._process
        assert process is not None
        _kill(process)
        if failure is None:
            # Its own alarm may have been quicker than this thread.
            timed_out = process.returncode == -signal.SIGALRM
            failure = TimedOut("no answer") if timed_out else Died(_describe_death(process.returncode))
        else:
            with contextlib.suppress(EOFError, ValueError):
                self._read()
        failure.replies = self._taken()
        self.stop()
        return failure

    def _check_memory(self) -> None:
        used = self._resident()
        if used > self.memory:
            raise Died(
                f"the worker process was ended: it took {used / 2**20:,.0f} MiB of memory, the limit is "
                f"{self.memory / 2**20:,.0f} MiB"
            )
        self.is_large = used > self.memory / 2

    def _resident(self) -> int:
        if self._process is None or math.isinf(self.memory):
            return 0
        import psutil  # late, for the worker imports this module and does not need it

        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:  # else its number may belong to another process by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def request(kind: str, name: str, content: Any, timeout: float, index: int = 0) -> bytes:
    """A request for a worker. Raises ValueError, naming the call, when its content cannot be pickled."""
    try:
        return pickle.dumps((kind, name, content, timeout))
    except Exception as failure:
        raise ValueError(
            f"call {index} of grader {name!r} cannot be sent to a worker: {type(failure).__name__}: {failure}; give "
            "plain values (strings, numbers, lists, dicts)"
        ) from failure


def _import_path() -> list[str]:
    return [entry or os.getcwd() for entry in sys.path]


def _describe_death(code: int) -> str:
    if code < 0:
        known = {number.value: number.name for number in signal.Signals}
        return f"the worker process was killed by {known.get(-code, f'signal {-code}')}"
    return f"the worker process ended with exit code {code}"
