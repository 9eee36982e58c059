"""Tasks of `reasoning-gym`: problems made from a seed without end, judged by the library's own scorer.

This is the only module that imports the library (the extra `pbsd[reasoning-gym]`).
"""

from __future__ import annotations

import ast
import difflib
import functools
import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from pbsd.benchmarks import answers
from pbsd.benchmarks.adapter import Benchmark, Query, Row, Rows
from pbsd.rewards.functions import GradedReward
from pbsd.rewards.grade import Grade, correct, unparsed, wrong

PREFIX = "reasoning-gym:"
SPLITS = ("test", "train", "validation")
INSTRUCTION = "Think step by step, then give your final answer, and nothing else, inside <answer> and </answer> tags."

DEFAULT_SIZE = {"test": 200, "train": 2000, "validation": 200}
MAX_SIZE = 10**6
"""Problem i of a task is made from its seed plus i: so far are the seeds of splits apart."""


def _gym() -> Any:
    try:
        import reasoning_gym
    except ImportError as missing:
        raise ImportError("tasks of reasoning-gym need the package: pip install 'pbsd[reasoning-gym]'") from missing
    return reasoning_gym


def benchmark(task: str) -> Benchmark:
    """The benchmark of a task. Raises ValueError when the library has no such task."""
    tasks = _gym().factory.DATASETS
    if task not in tasks:
        close = difflib.get_close_matches(task, tasks, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(tasks))}"
        raise ValueError(f"reasoning-gym has no task {task!r}; {hint}")
    return Benchmark(
        name=PREFIX + task,
        splits=SPLITS,
        reward="pbsd.benchmarks.procedural:reward",
        read=lambda query: _read(task, query),
        example=lambda split: _read(task, Query(split=split, size=4)),
        answer_key=answers.tagged_answer,
        gold=_gold,
    )


def _read(task: str, query: Query) -> Rows:
    assert query.split is not None
    if query.local or query.revision:
        raise ValueError(f"{PREFIX}{task} is generated: it has neither local files nor revisions")
    size = DEFAULT_SIZE[query.split] if query.size is None else query.size
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"{PREFIX}{task}: {size} problems were asked for; between 1 and {MAX_SIZE} can be made")
    seed = (query.seed * len(SPLITS) + SPLITS.index(query.split)) * MAX_SIZE
    if not 0 <= seed < 2**32 - MAX_SIZE:
        raise ValueError(f"{PREFIX}{task}: dataset seed {query.seed} is out of range: give one from 0 to 1400")
    options = json.loads(query.config) if query.config else {}
    if not isinstance(options, dict):
        raise ValueError(f"{PREFIX}{task}: the config is {query.config!r}; give the task's options as a JSON object")
    dataset = _dataset(task, seed, size, json.dumps(options, sort_keys=True))
    return Rows([_row(dataset, task, seed, size, options, index) for index in range(size)], _version())


def _version() -> str:
    import importlib.metadata

    return f"reasoning-gym {importlib.metadata.version('reasoning-gym')}"


@functools.lru_cache(maxsize=4)
def _dataset(task: str, seed: int, size: int, options: str) -> Any:
    try:
        return _gym().create_dataset(task, seed=seed, size=size, **json.loads(options))
    except (TypeError, ValueError, AssertionError) as failure:
        raise ValueError(f"{PREFIX}{task} cannot be made with the options {options}: {failure}") from failure


def _row(dataset: Any, task: str, seed: int, size: int, options: Mapping[str, Any], index: int) -> Row:
    entry = _entry(dataset, seed, index)
    return {
        "id": f"{task}/{seed + index}",
        "prompt": [{"role": "user", "content": f"{entry['question']}\n\n{INSTRUCTION}"}],
        "privileged_context": None if entry["answer"] is None else f"The final answer is {entry['answer']}.",
        "answer": entry["answer"],
        "entry": json.dumps(
            {
                "task": task, "seed": seed, "size": size, "options": json.dumps(options, sort_keys=True),
                "entry": _literal(task, entry),
            }
        ),
    }  # fmt: skip


def _entry(dataset: Any, seed: int, index: int) -> dict[str, Any]:
    """An entry of the task. `list_functions` draws from Python's global generator, which is set for it and restored."""
    state = random.getstate()
    random.seed(seed + index)
    try:
        entry: dict[str, Any] = dataset[index]
    finally:
        random.setstate(state)
    return entry


def _literal(task: str, entry: dict[str, Any]) -> str:
    """The entry as a Python literal: JSON would make lists of its tuples and strings of its integer keys.

    It goes with the row, because some tasks make another problem from the same seed in another process.
    """
    entry = _without_numpy(entry)
    text = repr(entry)
    try:
        same = ast.literal_eval(text) == entry
    except (ValueError, SyntaxError):
        same = False
    if not same:
        raise ValueError(f"{PREFIX}{task} cannot be used: its scorer needs more than text can carry: {text:.200}")
    return text


def _without_numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_numpy(key): _without_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(map(_without_numpy, value))
    return value.item() if isinstance(value, np.generic) else value


def _gold(row: Row) -> str | None:
    return None if row["answer"] is None else f"<answer>{row['answer']}</answer>"


def grade(completion: str, entry: str) -> Grade:
    """The library's score of the text in the last `<answer>` tag: `correct` at 1, else `wrong` with its part score.

    `entry` holds the task's options and the problem itself. An answer that the library's scorer raises on is `wrong`.
    Raises ValueError or KeyError for any other `entry`.
    """
    made_by = json.loads(entry)
    dataset = _dataset(made_by["task"], made_by["seed"], made_by["size"], made_by["options"])
    problem = ast.literal_eval(made_by["entry"])
    answer = answers.tagged_answer(completion)
    if answer is None:
        return unparsed("no <answer> tag")
    try:
        score = float(dataset.score_answer(answer, problem))
    except Exception as failure:
        return wrong(f"the scorer raised {type(failure).__name__}: {failure}")
    return correct() if score >= 1 else Grade("wrong", score)


reward = GradedReward("reasoning_gym", "pbsd.benchmarks.procedural:grade", {"entry": "entry"})
"""For `reward_funcs: [pbsd.benchmarks.procedural:reward]`."""
