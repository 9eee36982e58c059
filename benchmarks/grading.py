"""CPU of the mathematics grader against math-verify's own parse and verify, on the same answers in one process.

    python benchmarks/grading.py    # half a minute

The answers are those of `tests/unit/fixtures`: a completion and a reference each. math-verify is called as its README
does, without its time limit, whose signals cost nearly nothing; both read the reference again for every completion, as
for a data set in which no problem comes twice (`first`), and then for 8 completions of each problem (`group of 8`).
Rounds alternate; figures are CPU milliseconds a completion of the median round; every third case is taken.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import math_verify
from machine import facts, table

from pbsd.rewards import math as grader
from pbsd.rewards import math_read

FIXTURES = Path(__file__).parents[1] / "tests/unit/fixtures"
ROUNDS, GROUP, EVERY = 3, 8, 3


def cases() -> list[tuple[str, str]]:
    rows = json.loads((FIXTURES / "math_cases.json").read_text("utf-8"))
    rows += [json.loads(line) for line in (FIXTURES / "math_kinds.jsonl").read_text("utf-8").splitlines()]
    return [(row["completion"], row["answer"]) for row in rows if row["outcome"] != "timeout"]


def by_math_verify(completion: str, answer: str) -> None:
    gold = math_verify.parse(f"${answer}$", parsing_timeout=None)
    found = math_verify.parse(completion, parsing_timeout=None)
    math_verify.verify(gold, found, timeout_seconds=None)


def by_grader(completion: str, answer: str) -> None:
    grader.grade(completion, answer)


def forget() -> None:
    grader._read_gold_text.cache_clear()
    math_read._expression.cache_clear()


def milliseconds(judge: Callable[[str, str], None], pairs: list[tuple[str, str]]) -> float:
    start = time.process_time()
    for completion, answer in pairs:
        judge(completion, answer)
    return 1e3 * (time.process_time() - start) / len(pairs)


def measure(pairs: list[tuple[str, str]]) -> dict[str, float]:
    times: dict[str, list[float]] = {"math-verify": [], "pbsd": []}
    for _ in range(ROUNDS):
        for name, judge in (("math-verify", by_math_verify), ("pbsd", by_grader)):
            forget()
            times[name].append(milliseconds(judge, pairs))
    found = {name: round(median(values), 3) for name, values in times.items()}
    return found | {"ratio": round(found["pbsd"] / found["math-verify"], 2)}


if __name__ == "__main__":
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    pairs = cases()[::EVERY]
    for judge in (by_math_verify, by_grader):
        milliseconds(judge, pairs)  # parsers fill their tables
    grouped = [pair for pair in pairs[::GROUP] for _ in range(GROUP)]
    rows = [{"answers": "first", **measure(pairs)}, {"answers": f"group of {GROUP}", **measure(grouped)}]
    results = {"machine": facts(), "cases": len(pairs), "milliseconds": rows}
    (Path(__file__).parent / "results" / "grading.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(rows))
