"""The pool with graders that hang, crash, print and fork. Limits are short; none of the tests measures speed."""

import contextlib
import gc
import importlib
import os
import re
import subprocess
import sys
import textwrap
import time

import pytest

import pbsd.rewards.pool as pool_module
from pbsd.rewards import Grade, GraderPool

GRADERS = """
import os, re, signal, subprocess, sys, threading, time
from pbsd.rewards import Grade

class OwnGrade(Grade):
    pass

def echo(n):
    return Grade("scored", n)
def slow_echo(n):
    time.sleep(0.3 if n == 0 else 0)
    return Grade("scored", n)
def hang(n):
    if n < 0:
        while True:
            pass
    return Grade("scored", n)
def regex(n):
    return Grade("scored", n if n >= 0 else bool(re.fullmatch("(a+)+b", "a" * 60)))
def exits(n):
    if n < 0:
        os._exit(3)
    return Grade("scored", n)
def segfault(n):
    if n < 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    return Grade("scored", n)
def dies_later(n):
    threading.Timer(0.05, os._exit, (4,)).start()
    return Grade("scored", n)
def raises(n):
    if n < 0:
        raise KeyError("no such thing")
    return Grade("scored", n)
def leaves(n):
    sys.exit(0)
def prints(n):
    print("to standard output")
    os.write(1, b"raw bytes")
    subprocess.run(["echo", "from a child"], check=True)
    return Grade("scored", n + len(sys.stdin.read()))
def number(n):
    return 1.0
def own_class(n):
    return OwnGrade("correct", 1.0, "mine")
def worker(n):
    time.sleep(n)
    return Grade("scored", os.getpid())
def child(n):
    process = subprocess.Popen(["sleep", "60"])
    with open(n, "w") as file:
        file.write(str(process.pid))
    process.wait()
def grandchild(n):
    subprocess.Popen(["sh", "-c", "echo $$ > " + n + "; sleep 60 & echo $! >> " + n + "; wait"])
    while True:
        pass
def allocates(n):
    block = b"x" * (n * 2**20)
    time.sleep(0.3)
    return Grade("scored", len(block) // 2**20)
def keeps(n, kept=[]):
    kept.append(b"x" * (n * 2**20))
    time.sleep(0.1)
    return Grade("scored", os.getpid())
def catches(n):
    try:
        return allocates(n)
    except BaseException:
        return Grade("wrong", 0.0)
def forges(n):
    # Writes its own reply, as code that a model wrote may do.
    import pickle
    frame = sys._getframe()
    while frame.f_code.co_name != "main":
        frame = frame.f_back
    class Run:
        def __reduce__(self):
            return (open, (n, "w"))
    replies = {
        "pickle": pickle.dumps(Run()),
        "number": b"5",
        "text": b'{"a": 1}',
        "deep": b"[" * 100_000,
        "grade": b'["grade", "correct", "much", 5]',
        "kind": b'["values", [1.0], {}, {}]',
        "short": b'["grade"]',
        "stale": b'["grade", "correct", 1.0, ""]',
        "outcome": b'["grade", "splendid", 1.0, ""]',
    }
    kind = n.rpartition("/")[2]
    number = frame.f_locals["number"] + (kind == "stale")
    message = b"no message at all" * 4 if kind == "noise" else replies[kind]
    if kind != "noise":
        message = len(message).to_bytes(8, "big") + number.to_bytes(8, "big") + message
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, message)
        except OSError:
            pass
    time.sleep(5)
    return Grade("correct", 1.0)
"""


@pytest.fixture
def graders(tmp_path, monkeypatch):
    """A module of graders that only this test's path holds; the fixture's value is its name."""
    (tmp_path / "pool_graders.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "pool_graders"
    sys.modules.pop("pool_graders", None)


def calls(*numbers):
    return [{"n": number} for number in numbers]


def scores(grades):
    return [grade.score for grade in grades]


def worker_pids(pool, graders):
    """Every worker's process: as many calls as workers, each long enough that nobody takes two."""
    return [int(score) for score in scores(pool.map(f"{graders}:worker", calls(*[0.3] * len(pool._workers))))]


def is_alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def dies_within(pid, seconds):
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_order_is_kept_with_two_workers(graders):
    """Call 0 ends last: the other worker has by then done all the rest."""
    with GraderPool(workers=2) as pool:
        assert scores(pool.map(f"{graders}:slow_echo", calls(*range(40)))) == list(range(40))
        assert len({*worker_pids(pool, graders)}) == 2


@pytest.mark.parametrize("grader", ["hang", "regex"])
def test_a_call_over_the_limit_is_a_timeout_and_no_other_is_lost(graders, grader):
    """`regex` hangs in C and never lets go of the interpreter's lock: only a kill from outside ends it."""
    with GraderPool(timeout=0.5) as pool:
        pool.map(f"{graders}:echo", calls(0))
        grades = pool.map(f"{graders}:{grader}", calls(1, -1, 2, 3))
        assert scores(grades) == [1, None, 2, 3]
        assert (grades[1].outcome, grades[1].reason) == ("timeout", "no answer within 0.5 s")
        assert scores(pool.map(f"{graders}:echo", calls(4))) == [4]


def test_a_timeout_kills_only_its_own_worker(graders):
    with GraderPool(workers=2, timeout=0.5) as pool:
        before = {*worker_pids(pool, graders)}
        pool.map(f"{graders}:hang", calls(-1))
        after = {*worker_pids(pool, graders)}
        assert len(before) == len(after) == 2
        assert len(before & after) == 1


@pytest.mark.parametrize(("grader", "why"), [("exits", "exit code 3"), ("segfault", "SIGSEGV")])
def test_a_worker_that_dies_is_an_error_of_its_call_only(graders, grader, why):
    with GraderPool() as pool:
        grades = pool.map(f"{graders}:{grader}", calls(1, -1, 2))
        assert scores(grades) == [1, None, 2]
        assert grades[1].outcome == "error"
        assert why in grades[1].reason


def test_a_worker_that_died_while_idle_is_replaced_without_an_error(graders):
    with GraderPool() as pool:
        pool.map(f"{graders}:dies_later", calls(1))
        time.sleep(0.3)
        assert scores(pool.map(f"{graders}:echo", calls(2))) == [2]


@pytest.mark.parametrize("grader", ["allocates", "catches"])
def test_a_worker_over_the_memory_limit_is_an_error_of_its_call_only(graders, monkeypatch, grader):
    """Also where the grader would catch a MemoryError and call the answer wrong."""
    monkeypatch.setattr(pool_module, "MEMORY_LIMIT", 150 * 2**20)
    with GraderPool() as pool:
        grades = pool.map(f"{graders}:{grader}", calls(1, 300, 2))
        assert scores(grades) == [1, None, 2]
        assert grades[1].outcome == "error"
        assert re.search(r"took \d{3} MiB of memory, the limit is 150 MiB", grades[1].reason)


def test_a_large_worker_is_replaced_between_calls(graders, monkeypatch):
    """Each call keeps 60 MiB: three of them in one worker would be over the limit of 150."""
    monkeypatch.setattr(pool_module, "MEMORY_LIMIT", 150 * 2**20)
    with GraderPool() as pool:
        pids = scores(pool.map(f"{graders}:keeps", calls(60, 60, 60, 60)))
        assert None not in pids and len(set(pids)) > 1


def test_the_memory_limit_leaves_room_for_the_math_grader():
    with GraderPool() as pool:
        call = {"completion": r"\boxed{\sqrt{8}}", "answer": r"2\sqrt{2}"}
        assert [grade.outcome for grade in pool.map("pbsd.rewards.math:grade", [call])] == ["correct"]
        (worker,) = pool._workers
        assert 0 < worker._resident() < pool_module.MEMORY_LIMIT / 4


@pytest.mark.parametrize(
    "reply", ["pickle", "number", "text", "deep", "grade", "kind", "short", "outcome", "noise", "stale"]
)
def test_a_malformed_reply_is_an_error_and_never_runs_code(graders, tmp_path, reply):
    """A pickle that opens a file, JSON of other forms, a grade that is none, and bytes without a header."""
    with GraderPool(timeout=20) as pool:
        grades = pool.map(f"{graders}:forges", calls(str(tmp_path / reply)))
        assert grades[0].outcome == "error", grades
        assert "the worker's reply cannot be read" in grades[0].reason
        assert not (tmp_path / reply).exists()
        assert scores(pool.map(f"{graders}:echo", calls(4))) == [4]


def test_an_exception_is_an_error_with_its_type_and_message_and_the_worker_lives_on(graders):
    with GraderPool() as pool:
        before = worker_pids(pool, graders)
        grades = pool.map(f"{graders}:raises", calls(1, -1, 2))
        assert grades[1] == Grade("error", None, "KeyError: 'no such thing'")
        assert scores(grades) == [1, None, 2]
        assert pool.map(f"{graders}:leaves", calls(0)) == [Grade("error", None, "SystemExit: 0")]
        assert worker_pids(pool, graders) == before


def test_a_grader_must_return_a_grade(graders):
    with GraderPool() as pool:
        (grade,) = pool.map(f"{graders}:number", calls(1))
        assert grade.outcome == "error"
        assert "returned 1.0; it must return a pbsd.rewards.Grade" in grade.reason
        assert pool.map(f"{graders}:own_class", calls(1)) == [Grade("correct", 1.0, "mine")]


def test_a_grader_that_prints_and_reads_does_not_disturb_the_protocol(graders):
    with GraderPool(timeout=5) as pool:
        assert scores(pool.map(f"{graders}:prints", calls(1, 2, 3))) == [1, 2, 3]


def test_large_arguments_travel(graders):
    with GraderPool() as pool:
        (grade,) = pool.map("pbsd.rewards.format:grade", [{"completion": "a" * 3_000_000, "pattern": "a*"}])
        assert grade.outcome == "correct"


def test_import_time_does_not_count_toward_the_limit(tmp_path, monkeypatch):
    (tmp_path / "slow_import.py").write_text(
        "import time\ntime.sleep(0.6)\nfrom pbsd.rewards import Grade\ndef f(): return Grade('correct', 1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with GraderPool(timeout=0.3) as pool:
        assert [grade.outcome for grade in pool.map("slow_import:f", [{}])] == ["correct"]


@pytest.mark.parametrize("grader", ["no_such_module:f", "pbsd.rewards.format:no_such", "pbsd.rewards.format:__name__"])
def test_a_grader_that_cannot_be_loaded_is_raised_and_not_graded(grader):
    with GraderPool() as pool, pytest.raises(ImportError, match=f"'{grader}' cannot be loaded"):
        pool.map(grader, [{}])


@pytest.mark.parametrize(("death", "word"), [("os._exit(9)", "exit code 9"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_a_worker_that_dies_while_it_loads_is_started_again(tmp_path, monkeypatch, death, word):
    (tmp_path / "dies_at_import.py").write_text(
        "import os, pathlib\nfrom pbsd.rewards import Grade\n"
        "tries = pathlib.Path(__file__).with_name('tries')\n"
        "tries.write_text((tries.read_text() if tries.exists() else '') + 'x')\n"
        f"if len(tries.read_text()) <= int(os.environ['DEATHS']): {death}\n"
        "def f(): return Grade('correct', 1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DEATHS", "1")
    with GraderPool() as pool:
        assert [grade.outcome for grade in pool.map("dies_at_import:f", [{}])] == ["correct"]
    (tmp_path / "tries").unlink()
    monkeypatch.setenv("DEATHS", "99")
    with GraderPool() as pool, pytest.raises(ImportError, match=f"tried 3 times: .*{word}"):
        pool.map("dies_at_import:f", [{}])


def test_what_a_killed_worker_had_not_begun_is_done_by_another(graders):
    """One worker is sent several calls ahead; those behind the one that kills it are not lost and not graded twice."""
    with GraderPool(timeout=0.5) as pool:
        numbers = [*range(10), -1, *range(10, 40), -1, *range(40, 60)]
        found = scores(pool.map(f"{graders}:exits", calls(*numbers)))
        assert found == [None if number < 0 else number for number in numbers]


def test_wrong_use_is_a_value_error():
    for workers in (0, 1.5, True):
        with pytest.raises(ValueError, match="workers"):
            GraderPool(workers=workers)
    for timeout in (0, -1, float("inf"), float("nan"), "5"):
        with pytest.raises(ValueError, match="timeout"):
            GraderPool(timeout=timeout)
    with GraderPool() as pool:
        with pytest.raises(ValueError, match='write it as "module:function"'):
            pool.map("pbsd.rewards.format", [{}])
        with pytest.raises(ValueError, match=r"call 1 of grader .* cannot be sent"):
            pool.map("pbsd.rewards.format:grade", [{}, {"completion": lambda: 0}])
        assert pool.map("pbsd.rewards.format:grade", []) == []
    with pytest.raises(ValueError, match="closed"):
        pool.map("pbsd.rewards.format:grade", [{}])
    pool.close()


def test_workers_end_at_close_and_when_the_pool_is_collected(graders):
    with GraderPool() as pool:
        (closed,) = worker_pids(pool, graders)
        assert is_alive(closed)
    assert not is_alive(closed)
    pool = GraderPool()
    (collected,) = worker_pids(pool, graders)
    assert is_alive(collected)
    del pool
    gc.collect()
    assert not is_alive(collected)


def test_a_kill_takes_the_graders_own_children_along(graders, tmp_path):
    with GraderPool(timeout=0.5) as pool:
        (grade,) = pool.map(f"{graders}:child", calls(str(tmp_path / "pid")))
    assert grade.outcome == "timeout"
    assert dies_within(int((tmp_path / "pid").read_text()), 2)


def test_a_fork_neither_uses_nor_kills_its_parents_workers(graders):
    with GraderPool() as pool:
        (before,) = worker_pids(pool, graders)
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                (own,) = worker_pids(pool, graders)
                pool.close()
                os._exit(0 if own != before and is_alive(before) and not is_alive(own) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert worker_pids(pool, graders) == [before]


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
from pbsd.rewards import GraderPool
pool = GraderPool(timeout=float(sys.argv[3]))
(grade,) = pool.map("pool_graders:worker", [{"n": 0}])
print(int(grade.score), flush=True)
pool.map("pool_graders:" + sys.argv[2], [{"n": -1}])
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("state", "limit"), [("echo", 10), ("regex", 1)])
def test_workers_do_not_outlive_a_parent_that_is_killed(graders, tmp_path, state, limit):
    """An idle worker sees its input end; one stuck in C is ended by its own alarm, two seconds past the limit."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), state, str(limit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        worker = int(parent.stdout.readline())
        if state == "echo":
            assert parent.stdout.readline() == "done\n"
        else:
            time.sleep(0.3)  # the call is under way
        assert is_alive(worker)
        parent.kill()
        parent.wait()
        assert dies_within(worker, limit + 3 if state == "regex" else 2)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_a_busy_worker_and_its_children_end_at_once_with_a_parent_that_is_killed(graders, tmp_path):
    """The limit is 60 s, so that no alarm ends the worker; `grandchild` starts a shell that starts a sleep."""
    pids = tmp_path / "pids"
    code = PARENT.replace('[{"n": -1}]', f"[{{'n': {str(pids)!r}}}]")
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "grandchild", "60"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        worker = int(parent.stdout.readline())
        deadline = time.monotonic() + 10
        while not (pids.exists() and pids.read_text().count("\n") == 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        family = [worker, *map(int, pids.read_text().split())]
        assert len(family) == 3 and all(map(is_alive, family))
        parent.kill()
        parent.wait()
        assert all(dies_within(pid, 2) for pid in family)


def test_a_script_without_a_main_guard_works(tmp_path):
    """It runs once (multiprocessing's spawn would run it again), and ends by itself with the pool left open."""
    script = tmp_path / "script.py"
    (tmp_path / "own_graders.py").write_text(
        "from pbsd.rewards import Grade\n"
        "def grade(completion, answer): return Grade('scored', len(completion + answer))\n"
    )
    script.write_text(
        textwrap.dedent("""
        print("script runs")
        from pbsd.rewards import GraderPool
        pool = GraderPool(workers=2)
        print([g.score for g in pool.map("own_graders:grade", [dict(completion="ab", answer="c")] * 3)])
        """)
    )
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=20, cwd="/", check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "script runs\n[3.0, 3.0, 3.0]\n", "")


def test_the_working_directory_does_not_shadow_modules(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise ImportError('shadowed')")
    monkeypatch.chdir(tmp_path)
    with GraderPool() as pool:
        (grade,) = pool.map("pbsd.rewards.format:grade", [{"completion": "a", "pattern": "a"}])
    assert grade.outcome == "correct"


def test_the_package_imports_without_heavy_modules():
    code = (
        "import sys, pbsd.rewards; print([m for m in ('torch', 'transformers', 'numpy', 'sympy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_math_grader_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.delitem(sys.modules, "pbsd.rewards.math", raising=False)
    with pytest.raises(ImportError, match=r"pip install pbsd\[math\]"):
        importlib.import_module("pbsd.rewards.math")
