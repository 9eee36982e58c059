"""Generated tasks of reasoning-gym: the problem that is graded is the one that was shown, in whichever process."""

import datetime
import json
import os
import random
import subprocess
import sys

import pytest

from pbsd import benchmarks
from pbsd.benchmarks import Query, procedural
from pbsd.data import load_rows
from pbsd.rewards import resolve

WITHOUT_A_WRITTEN_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks with many right answers, of which the library writes none down."""

TAKES_ANY_TEXT = {"game_of_life_halting"}
"""The library's scorer compares the truth of two texts, which both are not empty."""


def test_every_generated_tasks_gold_is_correct_in_a_process_that_makes_other_problems():
    """Set orders follow Python's string hashes, which differ from process to process; another PYTHONHASHSEED makes sure
    of that. The answers that are no one's must be wrong, also where the library's scorer raises on them."""
    tasks = sorted(procedural._gym().factory.DATASETS.keys() - {"composite"})  # which is nothing without options
    assert len(tasks) > 100
    cases = []
    for task in tasks:
        rows = benchmarks.load(f"reasoning-gym:{task}", Query(size=2)).rows
        golds = [benchmarks.find(f"reasoning-gym:{task}").gold(row) for row in rows]
        assert (None in golds) == (task in WITHOUT_A_WRITTEN_ANSWER), task
        for row, gold in zip(rows, golds, strict=True):
            cases.append((task, json.loads(json.dumps(row["entry"])), gold))
    found = subprocess.run(
        [sys.executable, "-c", GRADE_CASES],
        env={**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"},
        input=json.dumps(cases), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(found.stdout) == {
        task: [
            None if task in WITHOUT_A_WRITTEN_ANSWER else "correct",
            "unparsed",
            "correct" if task in TAKES_ANY_TEXT else "wrong",
        ]
        for task in tasks
    }


GRADE_CASES = """
import json, sys
from pbsd.benchmarks.procedural import grade
outcomes = {}
for task, entry, gold in json.load(sys.stdin):
    made = [gold, "no tag", "<answer>I do not know</answer>"]
    outcomes.setdefault(task, []).append([text and grade(text, entry).outcome for text in made])
print(json.dumps({task: rows[0] if rows[0] == rows[1] else rows for task, rows in outcomes.items()}))
"""


@pytest.mark.parametrize("task", ["list_functions", "chain_sum"])
def test_a_generated_problem_follows_from_its_seed_alone(task):
    """`list_functions` draws from the global generator, which is as it was afterwards."""
    first = list(benchmarks.load(f"reasoning-gym:{task}", Query(size=3)).rows)
    random.seed(7)
    state = random.getstate()
    assert list(benchmarks.load(f"reasoning-gym:{task}", Query(size=3)).rows) == first
    assert random.getstate() == state


def test_an_answer_that_the_scorer_raises_on_is_wrong_and_says_why():
    (row,) = benchmarks.load("reasoning-gym:prime_factorization", Query(size=1)).rows
    result = procedural.grade("<answer>I do not know</answer>", row["entry"])
    assert (result.outcome, result.score) == ("wrong", 0.0)
    assert result.reason.startswith("the scorer raised ValueError: invalid literal for int()")


def test_an_entry_that_text_cannot_carry_is_refused_when_it_is_loaded(monkeypatch):
    class Dates:
        def __getitem__(self, index):
            return {"question": "q", "answer": "a", "metadata": {"day": datetime.date(2026, 1, 2)}}

    monkeypatch.setattr(procedural, "_dataset", lambda *args: Dates())
    with pytest.raises(ValueError, match="chain_sum cannot be used: its scorer needs more than text can carry"):
        benchmarks.load("reasoning-gym:chain_sum", Query(size=1))


def test_a_generated_task_in_the_workers_and_with_options():
    found = benchmarks.load("reasoning-gym:chain_sum", Query(size=2, config='{"min_terms": 2, "max_terms": 2}'))
    benchmark = benchmarks.find("reasoning-gym:chain_sum")
    assert all(
        row["prompt"][0]["content"].count("+") + row["prompt"][0]["content"].count(" - ") == 1 for row in found.rows
    )
    golds = [benchmark.gold(row) for row in found.rows]
    judged = resolve(benchmark.reward).grades(golds, entry=[row["entry"] for row in found.rows])
    assert [grade.outcome for grade in judged] == ["correct", "correct"]
    with pytest.raises(ValueError, match="cannot be made with the options"):
        benchmarks.load("reasoning-gym:chain_sum", Query(config='{"terms": 2}'))
    with pytest.raises(ValueError, match="did you mean 'chain_sum'"):
        benchmarks.find("reasoning-gym:chain_sums")


def test_splits_of_a_generated_task_share_no_seed():
    """Problem i is made from seed + i, so neighbouring seeds would share all but one problem."""
    wanted = [(split, 0) for split in procedural.SPLITS] + [("train", 1)]
    loaded = [load_rows("reasoning-gym:chain_sum", split=split, size=50, seed=seed) for split, seed in wanted]
    ids = [{row["id"] for row in rows} for rows in loaded]
    assert len(set().union(*ids)) == 200
    longer = load_rows("reasoning-gym:chain_sum", split="train", size=60)
    assert [row["prompt"] for row in longer[:50]] == [row["prompt"] for row in loaded[1]]
    prompts = [[row["prompt"] for row in load_rows("reasoning-gym:chain_sum", split="train", size=n)] for n in (50, 60)]
    assert prompts[0] == prompts[1][:50]
