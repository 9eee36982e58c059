"""What `GraderPool` itself costs for a call, and what a graded answer costs beside math-verify's own call.

    python benchmarks/grader_pool.py [--calls 2000]

Prints CPU microseconds a call, of this process and its worker together: the pool with a grader that does nothing, the
same grader called here, and both for the math grader on short answers.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import psutil

from pbsd.rewards import Grade, GraderPool

COMPLETION = "The sum of the two sides is " + "so and so, " * 80 + r"and the answer is \boxed{\frac{14}{3}}."


def nothing(completion: str, answer: str) -> Grade:
    """A grader that does nothing."""
    return Grade("correct", 1.0, "the same")


def cpu(pool: GraderPool | None) -> float:
    """CPU seconds of this process and of the pool's workers."""
    own = time.process_time()
    if pool is None:
        return own
    children = psutil.Process(os.getpid()).children()
    return own + sum(sum(child.cpu_times()[:2]) for child in children)


def cost(work: Callable[[], Any], calls: int, pool: GraderPool | None = None) -> str:
    """CPU and wall microseconds a call of `work`, which makes `calls` of them; the first time does not count."""
    work()
    used, clock = cpu(pool), time.perf_counter()
    work()
    used, clock = cpu(pool) - used, time.perf_counter() - clock
    return f"{1e6 * used / calls:8.1f} CPU us, {1e6 * clock / calls:8.1f} us a call"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    calls = parser.parse_args().calls
    batch = [{"completion": COMPLETION, "answer": r"\frac{14}{3}"}] * calls
    for name in ("grader_pool:nothing", "pbsd.rewards.math:grade"):
        module, _, function = name.partition(":")
        grader = getattr(__import__(module, fromlist=[function]), function)
        print(f"{name:24s} here     {cost(lambda: [grader(**call) for call in batch], calls)}")  # noqa: B023
        with GraderPool() as pool:
            print(f"{name:24s} in pool  {cost(lambda: pool.map(name, batch), calls, pool)}")  # noqa: B023


if __name__ == "__main__":
    main()
