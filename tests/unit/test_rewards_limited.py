"""Users' reward functions that hang, exit and crash, in a worker and in this process; what they are given and log."""

import asyncio
import functools
import importlib
import logging
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

import pbsd.rewards.limited as limited_module
from pbsd.rewards import Grade, resolve, score
from pbsd.rewards.limited import LimitedReward

FUNCTIONS = """
import asyncio, os, random, signal, sys, time

SCALE = 1.0
CALLS = []

def length(completions, **columns):
    return [float(len(completion)) for completion in completions]
def scaled(completions, **columns):
    return [SCALE * factor() for _ in completions]
def factor():
    return 2.0
def where(completions, **columns):
    return [os.getpid()] * len(completions)
def counted(completions, **columns):
    CALLS.append(len(completions))
    return [len(CALLS)] * len(completions)
def hangs(completions, **columns):
    while "bad" in completions:
        pass
    return [1.0] * len(completions)
def exits(completions, **columns):
    if "bad" in completions:
        os._exit(7)
    return [1.0] * len(completions)
def crashes(completions, **columns):
    if "bad" in completions:
        os.kill(os.getpid(), signal.SIGSEGV)
    return [1.0] * len(completions)
def leaves(completions, **columns):
    if "bad" in completions:
        sys.exit("enough")
    return [1.0] * len(completions)
def raises(completions, **columns):
    return [1 / (completion != "bad") for completion in completions]
def bad_value(completions, **columns):
    return [1.0, float("nan"), 1.0]
def draws(completions, **columns):
    return [random.random() for _ in completions]
def logs(completions, log_metric, log_extra, trainer_state, **columns):
    log_metric("words", len(completions))
    log_metric("words", 5)
    log_extra("shouted", [completion.upper() for completion in completions])
    log_extra("odd", [{"at": (1, 2)}, object, chr(0xD800)][: len(completions)])
    return [float(trainer_state.global_step + len(trainer_state.log_history))] * len(completions)
def short_log(completions, log_extra, **columns):
    log_extra("short", completions[1:])
    return [0.0] * len(completions)
async def waits(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(completion)) for completion in completions]
async def hangs_async(completions, **columns):
    if "bad" in completions:
        await asyncio.sleep(60)
    return [1.0] * len(completions)
class Object:
    def __init__(self, value):
        self.value = value
    def __call__(self, completions, **columns):
        return [self.value] * len(completions)
held = lambda completions, **columns: [float(len(completion)) for completion in completions]
"""


@dataclass
class State:
    """Of transformers' `TrainerState` what the functions here read."""

    global_step: int
    log_history: list


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module of reward functions, imported in this process."""
    name = f"own_rewards_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    for worker in limited_module._workers.values():
        worker.process.stop()
    limited_module._workers.clear()
    sys.modules.pop(name, None)


def run(*rewards, completions=("a", "bb", "ccc"), **options):
    return score(
        list(rewards),
        None,
        prompts=["p"] * len(completions),
        completions=list(completions),
        completion_ids=[[1]] * len(completions),
        columns={},
        **options,
    )


def limited(function, timeout=10.0):
    return resolve(function, timeout=timeout)


def by_name(functions, name, timeout=10.0):
    return resolve(f"{functions.__name__}:{name}", timeout=timeout)


def test_a_function_by_name_as_it_is_and_as_a_partial_runs_in_a_worker(functions):
    assert run(limited(functions.length), by_name(functions, "held")).total == [2.0, 4.0, 6.0]
    partial = functools.partial(functions.where, unused=1)
    for reward in (limited(functions.where), by_name(functions, "where"), limited(partial)):
        (pid,) = {*run(reward).total}
        assert pid != os.getpid()
    assert run(limited(functions.Object(4.0))).total == [4.0] * 3


def test_equal_functions_share_a_worker_and_what_their_module_keeps(functions):
    assert run(limited(functions.counted)).total == [1.0] * 3
    assert run(limited(functions.counted)).total == [2.0] * 3
    assert functions.CALLS == []


def test_a_module_that_was_imported_again_has_a_new_worker(functions):
    assert [run(limited(functions.scaled)).total, run(by_name(functions, "scaled")).total] == [[2.0] * 3] * 2
    with open(functions.__file__, "a") as file:
        file.write("SCALE = 10.0\n")
    importlib.reload(functions)
    assert [run(limited(functions.scaled)).total, run(by_name(functions, "scaled")).total] == [[20.0] * 3] * 2


@pytest.mark.parametrize(
    ("name", "grade"),
    [
        ("hangs", Grade("timeout", None, "no answer within 0.5 s")),
        ("hangs_async", Grade("timeout", None, "no answer within 0.5 s")),
        ("exits", Grade("error", None, "the worker process ended with exit code 7")),
        ("crashes", Grade("error", None, "the worker process was killed by SIGSEGV")),
        ("leaves", Grade("error", None, "SystemExit: enough")),
        ("raises", Grade("error", None, "ZeroDivisionError: division by zero")),
    ],
)
def test_what_ends_a_function_costs_its_own_row(functions, name, grade):
    scores = run(by_name(functions, name, timeout=0.5), completions=["a", "bad", "c"])
    assert scores.total == [1.0, None, 1.0]
    assert scores.by_function[name][1] == grade
    assert "judged alone; the whole batch" in scores.by_function[name][0].reason


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hangs", r"gave no answer within 3 s on the batch and on every one of its 4 rows tried"),
        ("exits", r"gave the worker process ended with exit code 7 on the batch"),
        ("leaves", r"raised SystemExit: enough on the batch and on every one of its 6 rows"),
    ],
)
def test_a_function_that_ends_on_every_row_is_a_named_error(functions, name, words):
    """Six rows of at most half a second: the batch has 3 s. Four rows are tried where each costs its whole limit."""
    with pytest.raises(ValueError, match=f"reward '{name}' {words}"):
        run(by_name(functions, name, timeout=0.5), completions=["bad"] * 6)


def test_a_batch_of_fewer_rows_than_are_tried_first_is_a_named_error_too(functions):
    with pytest.raises(ValueError, match=r"'exits' gave the worker process .* every one of its 2 rows"):
        run(by_name(functions, "exits"), completions=["bad"] * 2)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 3.0])
def test_an_interrupt_does_not_wait_for_the_limit(functions, seconds):
    """The batch has 3 x 100 s; Ctrl-C reaches this process alone, while the worker starts or later, and it ends at
    once."""
    code = (
        "import os, signal, sys, threading\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pbsd.rewards import resolve, score\n"
        "reward = resolve(sys.argv[2], timeout=100)\n"
        "threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "score([reward], None, ['p'] * 3, ['bad'] * 3, [[1]] * 3, {})\n"
    )
    words = [sys.executable, "-c", code, os.path.dirname(functions.__file__), f"{functions.__name__}:hangs"]
    words.append(str(seconds))
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert "KeyboardInterrupt" in done.stderr and done.returncode != 0


def test_rows_of_one_prompt_do_not_end_the_run_for_the_others(functions):
    """The first five of eight hang: the four rows that are tried first are 0, 2, 4 and 6."""
    scores = run(by_name(functions, "hangs", timeout=0.2), completions=["bad"] * 5 + ["good"] * 3)
    assert scores.total == [None] * 5 + [1.0] * 3
    assert scores.outcomes == {"hangs/timeout": 5, "hangs/scored": 3}


@pytest.mark.parametrize("failure", [SystemExit("enough"), type("Panic", (BaseException,), {})("native code")])
def test_in_this_process_too_an_exit_is_an_error_of_the_function(failure):
    """A closure cannot be moved. Extensions in Rust panic by a BaseException."""

    def own(completions, **columns):
        if "bad" in completions:
            raise failure
        return [1.0] * len(completions)

    scores = run(limited(own), completions=["bad", "good"])
    assert scores.by_function["own"][0] == Grade("error", None, f"{type(failure).__name__}: {failure}")
    assert scores.total == [None, 1.0]
    with pytest.raises(ValueError, match=f"'own' raised {type(failure).__name__}"):
        run(limited(own), completions=["bad", "bad"])


def test_the_traceback_of_a_worker_is_kept(functions):
    with pytest.raises(ValueError, match="'raises' raised ZeroDivisionError: division by zero") as caught:
        run(by_name(functions, "raises"), completions=["bad", "bad"])
    assert "return [1 / (completion" in caught.value.__cause__.__notes__[0]


def test_a_bad_return_is_refused_from_a_worker_too(functions):
    with pytest.raises(ValueError, match=r"'bad_value' returned nan \(float\) at position 1; return a list"):
        run(by_name(functions, "bad_value"))


def test_what_a_function_logs_arrives_from_a_worker_and_from_here(functions):
    """Step 7 and a history of two entries: 9. What JSON lacks becomes text, and a lone surrogate `?`."""
    state = State(global_step=7, log_history=[{"loss": 1.0}, {"loss": 0.5}])
    here = resolve(functions.logs)
    for reward in (by_name(functions, "logs"), here):
        scores = run(reward, extras={"trainer_state": state})
        assert scores.total == [9.0] * 3
        assert scores.metrics == {"words": [3.0, 5.0]}
        assert [extra["shouted"] for extra in scores.extra] == ["A", "BB", "CCC"]
        assert [extra["odd"] for extra in scores.extra] == [{"at": [1, 2]}, "<class 'object'>", "?"]


def test_logs_of_rows_judged_alone_are_joined():
    def picky(completions, log_metric, log_extra):
        if "bad" in completions:
            raise KeyError("bad")
        log_metric("seen", 1)
        log_extra("text", completions)
        return [0.0] * len(completions)

    scores = run(picky, completions=["a", "bad", "c"])
    assert scores.metrics == {"seen": [1.0, 1.0]}
    assert scores.extra == [{"text": "a"}, {"text": None}, {"text": "c"}]


def test_a_log_of_another_length_and_a_column_of_two_functions_are_refused(functions):
    with pytest.raises(ValueError, match=r"log_extra\('short', ...\) got 2 values for 3 completions"):
        run(by_name(functions, "short_log"))

    def one(completions, log_extra):
        log_extra("note", completions)
        return [0.0] * len(completions)

    def two(completions, log_extra):
        return one(completions, log_extra)

    with pytest.raises(ValueError, match=r"'one' and 'two' both log_extra 'note'"):
        run(one, two)


def test_random_numbers_in_a_worker_depend_on_step_and_completions_only(functions):
    def drawn(step, completions=("a", "b")):
        state = State(global_step=step, log_history=[])
        return run(by_name(functions, "draws"), completions=completions, extras={"trainer_state": state}).total

    first = drawn(1)
    assert drawn(1) == first != drawn(2)
    assert drawn(1, ("a", "c")) != first
    limited_module._workers.popitem()[1].process.stop()  # as in a resumed run
    assert drawn(1) == first


def test_an_async_function_is_awaited_in_a_worker_and_here(functions):
    assert run(by_name(functions, "waits"), resolve(functions.waits)).total == [2.0, 4.0, 6.0]


def test_async_functions_run_together_on_one_loop():
    """Each waits for what the other does: one after the other they would wait for ever. The loop is the same later."""
    loops = []
    events = {}

    async def meet(name, other, completions):
        loops.append(asyncio.get_running_loop())
        events.setdefault(name, asyncio.Event()).set()
        await events.setdefault(other, asyncio.Event()).wait()
        return [1.0] * len(completions)

    async def first(completions):
        return await meet("first", "second", completions)

    class Second:
        async def __call__(self, completions):
            return await meet("second", "first", completions)

    for _ in range(2):
        assert run(limited(first), limited(Second())).total == [2.0] * 3
    assert len(loops) == 4 and len({*loops}) == 1


def test_an_async_function_in_this_process_has_the_limit_too():
    async def own(completions):
        await asyncio.sleep(60 if "bad" in completions else 0)
        return [1.0] * len(completions)

    scores = run(limited(own, timeout=0.2), completions=["bad", "good"])
    assert scores.by_function["own"][0] == Grade("timeout", None, "no answer within 0.2 s")
    assert scores.total == [None, 1.0]


def test_what_cannot_be_moved_stays_and_is_said_once(functions, caplog, monkeypatch):
    monkeypatch.setattr(limited_module, "_said", set())

    def closure(completions, **columns):
        return [os.getpid()] * len(completions)

    functions.SCALE = 3.0
    rewards = {
        "closure": (limited(closure), "cannot be pickled"),
        "Object": (limited(functions.Object(bytes(2**20 + 1))), "holds 1,048,6"),
        "scaled": (limited(functions.scaled), "where SCALE is another"),
    }
    for _ in range(2):
        assert run(limited(closure)).total == [os.getpid()] * 3
        assert run(rewards["scaled"][0]).total == [6.0] * 3
    for name, (_, reason) in rewards.items():
        (said,) = [record.getMessage() for record in caplog.records if f"{name!r} runs in" in record.getMessage()]
        assert reason in said and "trainer's process" in said


def test_a_function_of_its_module_that_was_replaced_is_seen(functions, caplog):
    """Also between two calls of one worker."""
    assert run(limited(functions.scaled)).total == [2.0] * 3
    functions.factor = lambda: 5.0
    assert run(limited(functions.scaled)).total == [5.0] * 3
    assert "factor is another" in caplog.text


def test_a_script_keeps_its_functions(tmp_path):
    """A function of `__main__` would be another in a worker, which does not run the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom pbsd.rewards import resolve, score\n"
        "def own(completions): return [os.getpid()] * len(completions)\n"
        "reward = resolve(own, timeout=5)\n"
        "print(score([reward], None, ['p'], ['c'], [[1]], {}).total == [os.getpid()])\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "True\n"
    assert "defined in the script" in done.stderr


def test_arguments_that_cannot_be_pickled_keep_the_function_here(functions, caplog):
    reward = limited(functions.where)
    columns = {"handle": [lambda: 0] * 2}
    assert score([reward], None, ["p"] * 2, ["a", "b"], [[1]] * 2, columns).total == [os.getpid()] * 2
    assert "an argument cannot be pickled" in caplog.text


def test_a_module_that_a_worker_cannot_import_keeps_the_function_here(functions, caplog):
    name = functions.__name__
    reward = by_name(functions, "where")
    importlib.import_module("pathlib").Path(functions.__file__).unlink()
    assert run(reward).total == [os.getpid()] * 3
    assert f"No module named '{name}'" in caplog.text


def test_wrong_limits_and_arguments_that_there_are_not(functions):
    with pytest.raises(ValueError, match="reward_timeout is 0; give a positive number"):
        LimitedReward("f", functions.length, 0)

    def own(completions, environments):
        return [0.0]

    with pytest.raises(ValueError, match="'own' takes environments, which pbsd does not have"):
        resolve(own)


def test_the_workers_of_functions_have_their_own_names_and_signatures(functions, caplog):
    caplog.set_level(logging.WARNING)
    reward = by_name(functions, "length")
    assert reward(completions=["abc"]) == [3.0] and reward.__name__ == "length"
    assert caplog.text == ""
