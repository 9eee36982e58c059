"""The pool on real processes: jobs that fail, processes that die, and being left early."""

import os
import signal
import subprocess
import sys
import time

import psutil

from pbsd.compare.pool import run_jobs


def job(kind, value):
    if kind == "raise":
        raise ValueError(f"no {value}")
    if kind == "die":
        os._exit(3)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(value)
    return value, os.getpid()


def test_each_job_has_its_outcome_whatever_becomes_of_the_others():
    jobs = [("give", 1), ("raise", 2), ("die", 3), ("give", 4), ("kill", 5), ("give", 6)]
    outcomes = dict(run_jobs(job, jobs, processes=2))
    assert sorted(outcomes) == list(range(6))
    assert {index: outcome.value[0] for index, outcome in outcomes.items() if outcome.error is None} == {
        0: 1,
        3: 4,
        5: 6,
    }
    assert outcomes[1].error == "ValueError: no 2"
    assert "in job" in outcomes[1].details
    assert outcomes[2].error == "its process died (exit code 3)"
    assert outcomes[4].error == "its process died (exit code -9)"


def test_a_process_does_many_jobs_and_there_are_no_more_than_asked_for():
    outcomes = [outcome.value for _, outcome in run_jobs(job, [("give", n) for n in range(8)], processes=2)]
    assert sorted(value for value, _ in outcomes) == list(range(8))
    assert len({pid for _, pid in outcomes}) <= 2


def test_no_jobs_is_no_work():
    assert list(run_jobs(job, [], processes=2)) == []


def workers_of(pid):
    """Its worker processes; multiprocessing's resource tracker is not one."""
    return [child for child in psutil.Process(pid).children() if "spawn_main" in str(child.cmdline())]


def test_leaving_early_ends_the_workers():
    started = time.monotonic()
    for index, _ in run_jobs(job, [("give", 0), ("sleep", 60), ("sleep", 60)], processes=2):
        assert index == 0
        workers = workers_of(os.getpid())
        break
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=20)[1]
    assert time.monotonic() - started < 30


PARENT = """
from test_compare_pool import job
from pbsd.compare.pool import run_jobs
if __name__ == "__main__":
    for index, outcome in run_jobs(job, [("give", 0), ("sleep", 60), ("sleep", 60)], processes=2):
        print(index, flush=True)
"""


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    path = [os.path.dirname(__file__), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout.readline() == b"0\n"
        workers = workers_of(parent.pid)
        assert workers
        parent.kill()
    assert not psutil.wait_procs(workers, timeout=20)[1]
