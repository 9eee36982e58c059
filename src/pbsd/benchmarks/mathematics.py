"""Mathematics: problems with one final answer, for evaluation and for training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pbsd.benchmarks import answers, examples
from pbsd.benchmarks.adapter import Benchmark, Once, RawRow, Row, Table, UnusableRow, reader, splits
from pbsd.rewards import GraderPool, math_text

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""Follows every problem: the wording that Qwen's model cards advise."""

_DAPO = re.compile(
    r"\A\s*Solve the following math problem step by step\..*?\n\n(?P<problem>.*?)"
    r"(?:\n\nRemember to put your answer .*)?\Z",
    re.DOTALL,
)


def _row(problem: Any, answer: Any, solution: Any, identity: Any) -> Row:
    if not isinstance(problem, str) or not problem.strip():
        raise UnusableRow("rows without a problem")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if answer is None or not str(answer).strip():
        raise UnusableRow("rows without an answer")
    return {
        "id": str(identity),
        "prompt": [{"role": "user", "content": f"{problem.strip()}\n\n{INSTRUCTION}"}],
        "privileged_context": solution if isinstance(solution, str) and solution.strip() else None,
        "answer": str(answer).strip(),
    }


def _columns(problem: str, answer: str = "answer") -> Callable[[RawRow, int], Row]:
    """A converter of tables that have these columns, and perhaps `solution` and an id."""

    def convert(raw: RawRow, index: int) -> Row:
        return _row(raw[problem], raw[answer], raw.get("solution"), _identity(raw, index))

    return convert


def _identity(raw: RawRow, index: int) -> Any:
    return next((raw[name] for name in ("id", "unique_id", "problem_idx") if raw.get(name) is not None), index)


def _marked_in_solution(raw: RawRow, index: int) -> Row:
    """Of a table whose answers stand in the solutions' boxes alone."""
    answer = math_text.marked_answer(math_text.normalized(str(raw["solution"])))
    return _row(raw["problem"], answer, raw["solution"], _identity(raw, index))


def _gsm8k(raw: RawRow, index: int) -> Row:
    solution, mark, answer = str(raw["answer"]).rpartition("####")
    if not mark:
        raise UnusableRow("rows without a final line `#### answer`")
    return _row(raw["question"], answer, solution.strip(), index)


def _dapo_problem(raw: RawRow) -> str:
    content = str(raw["prompt"][-1]["content"])
    wrapped = _DAPO.match(content)
    return wrapped["problem"] if wrapped else content


def _dapo(raw: RawRow, index: int) -> Row:
    answer = (raw["reward_model"] or {}).get("ground_truth")
    return _row(_dapo_problem(raw), answer, _final_answer(answer), index)


def _dapo_processed(raw: RawRow, index: int) -> Row:
    return _row(raw["prompt"], raw["solution"], _final_answer(raw["solution"]), index)


def _final_answer(answer: Any) -> str:
    """The privileged context of data without worked solutions."""
    return f"The final answer is {answer}."


def _equal(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """By the grader, which takes 1/2 for 0.5; what it cannot read or compare in its time is not equal."""
    calls = [{"answer": first, "completion": f"\\boxed{{{second}}}"} for first, second in pairs]
    with GraderPool() as pool:
        return [grade.outcome == "correct" for grade in pool.map("pbsd.rewards.math:grade", calls)]


def _benchmark(name: str, tables: Sequence[Table]) -> Benchmark:
    return Benchmark(
        name=name,
        splits=splits(tables),
        reward="math",
        read=reader(*tables),
        example=lambda split: tables[0].convert_all(examples.MATHEMATICS[name], "example rows"),
        answer_key=answers.math_answer,
        gold=lambda row: f"\\boxed{{{row['answer']}}}",
    )


_TABLES: Mapping[str, Table] = {
    "gsm8k": Table(
        "openai/gsm8k", {"test": ("question", "answer"), "train": ("question", "answer")}, _gsm8k, config="main"
    ),
    "math500": Table(
        "HuggingFaceH4/MATH-500", {"test": ("problem", "solution", "answer")}, _columns("problem"), ("unique_id",)
    ),
    "aime24": Table(
        "HuggingFaceH4/aime_2024", {"train": ("id", "problem", "answer")}, _columns("problem"), ("solution",)
    ),
    "aime25": Table("MathArena/aime_2025", {"train": ("problem_idx", "problem", "answer")}, _columns("problem")),
    "hmmt25": Table("MathArena/hmmt_feb_2025", {"train": ("problem_idx", "problem", "answer")}, _columns("problem")),
    "amc23": Table("math-ai/amc23", {"test": ("question", "answer")}, _columns("question"), ("id",)),
    "minerva": Table("math-ai/minervamath", {"test": ("question", "answer")}, _columns("question")),
    "openthoughts-math-30k": Table(
        "siyanzhao/Openthoughts_math_30k_opsd",
        {"train": ("problem", "solution", "Answer")},
        _columns("problem", "Answer"),
        once=Once(lambda raw: str(raw["problem"]), _equal),
    ),
    "dapo-math-17k": Table(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        {"train": ("prompt", "reward_model")},
        _dapo,
        once=Once(_dapo_problem, _equal),
    ),
    "dapo-math-17k-processed": Table(
        "open-r1/DAPO-Math-17k-Processed",
        {"train": ("prompt", "solution")},
        _dapo_processed,
        config="en",
        once=Once(lambda raw: str(raw["prompt"]), _equal),
    ),
}
"""The hub's own names of splits: AIME's and HMMT's problems stand in `train`. No revision is pinned here, as none was
known when this was written: the result of an evaluation holds a hash of the rows, and `--revision` pins one."""

_OTHER_LAYOUTS: Mapping[str, Sequence[Table]] = {
    "aime24": [Table("math-ai/aime24", {"test": ("problem", "solution")}, _marked_in_solution, ("id",))],
    "aime25": [
        Table("yentinglin/aime_2025", {"train": ("problem", "answer")}, _columns("problem"), ("id",)),
        Table("math-ai/aime25", {"test": ("problem", "answer")}, _columns("problem"), ("id",)),
    ],
}
"""The same problems as others publish them, read where the split or the columns of local files are theirs."""

MATHEMATICS = {name: _benchmark(name, [table, *_OTHER_LAYOUTS.get(name, ())]) for name, table in _TABLES.items()}
