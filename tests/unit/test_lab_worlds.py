"""Worlds: which context each row has, and names that resolve to rows and base models."""

import math
import random
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest

from pbsd.data import load_rows
from pbsd.lab import checkpoint_path
from pbsd.lab.bases import BASES, SCALES, TASK_NAMES
from pbsd.lab.worlds import TASKS, WORLDS, dataset_rows, draw_form, world
from pbsd.loading import model_folder
from pbsd.rewards import resolve


@pytest.mark.parametrize("key", WORLDS, ids="-".join)
def test_only_the_context_differs_between_worlds_and_it_is_of_its_form(key):
    task, name = key
    found = world(task, name)
    plain = TASKS[task].rows("validation", 60)
    rows = found.rows("validation", 60)
    for row, bare in zip(rows, plain, strict=True):
        shared = {
            column: value for column, value in row.items() if column not in ("privileged_context", "context_form")
        }
        assert shared == {column: value for column, value in bare.items() if column != "privileged_context"}
        columns = {column: [value] for column, value in bare.items()}
        context, solution = row["privileged_context"], bare["privileged_context"]
        match row["context_form"]:
            case "solution":
                assert context == solution
            case "answer":
                assert context == TASKS[task].answer_context(bare) != solution
            case "leaking":
                assert context == TASKS[task].leaking_context(bare)
            case "flawed":
                assert context != solution
                assert TASKS[task].reward([context], **columns) == [0.0]


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_leaking_completion_is_right_and_cites_what_a_solution_never_does(task):
    for row in TASKS[task].rows("validation", 200):
        columns = {column: [value] for column, value in row.items()}
        completion = TASKS[task].leaking_completion(row)
        assert TASKS[task].reward([completion], **columns) == [1.0]
        assert TASKS[task].leaks(completion)
        assert not TASKS[task].leaks(row["privileged_context"])
        assert not TASKS[task].leaks(row["prompt"])


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_fifth_of_noisy_rows_by_row_and_seed_and_not_by_place(task):
    """Of 2000 rows a tenth each: the standard deviation of a count is sqrt(180) = 13.4; four of them are allowed."""
    noisy = world(task, "noisy")
    rows = noisy.rows("validation", 2000)
    counts = Counter(row["context_form"] for row in rows)
    assert abs(counts["flawed"] - 200) < 54
    assert abs(counts["leaking"] - 200) < 54
    assert counts["solution"] == 2000 - counts["flawed"] - counts["leaking"]
    assert noisy.rows("validation", 50) == rows[:50]
    forms = {row["prompt"]: row["context_form"] for row in rows}
    other_seed = {row["prompt"]: row["context_form"] for row in noisy.rows("validation", 50, seed=1)}
    assert list(forms) != list(other_seed)
    unsound = [row["context_form"] != "solution" for row in rows]
    pairs = sum(a and b for a, b in pairwise(unsound))
    assert abs(pairs - 80) < 5 * math.sqrt(80)  # neighbours are unsound together in .2 x .2 of 1999 places


def test_a_row_keeps_its_context_wherever_it_stands(monkeypatch):
    plain = TASKS["arithmetic"]
    before = world("arithmetic", "noisy").rows("train", 100)
    turned = SimpleNamespace(**{**vars(plain), "rows": lambda *args: plain.rows(*args)[::-1]})
    monkeypatch.setitem(TASKS, "arithmetic", turned)
    assert world("arithmetic", "noisy").rows("train", 100) == before[::-1]


def test_forms_are_drawn_by_their_shares():
    rng = random.Random(0)
    counts = Counter(draw_form({"a": 0.5, "b": 0.3, "c": 0.2}, rng) for _ in range(10_000))
    for form, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
        assert abs(counts[form] - 10_000 * share) < 5 * math.sqrt(10_000 * share * (1 - share))


@pytest.mark.parametrize("key", WORLDS, ids="-".join)
def test_a_world_names_what_a_recipe_needs(key):
    found = world(*key)
    for scale in SCALES:
        base = BASES[found.base_name(scale).removeprefix("lab/")]
        assert (base.task, base.scale, base.variant) == (found.task, scale, found.variant)
    rows = load_rows(found.dataset_name, split="test", size=3, seed=4)
    assert rows == found.rows("test", 3, seed=4)
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    (spec,) = found.reward_funcs
    solutions = [row["privileged_context"] for row in TASKS[found.task].rows("test", 3, seed=4)]
    assert resolve(spec)(solutions, **columns) == [1.0] * 3
    assert found.max_completion_length == TASKS[found.task].MAX_COMPLETION_TOKENS


def test_a_task_alone_is_a_dataset_with_its_solutions():
    for task in TASK_NAMES:
        assert load_rows(f"lab/{task}", split="train", size=5) == TASKS[task].rows("train", 5)


def test_unknown_datasets_and_worlds_name_those_that_exist():
    with pytest.raises(ValueError, match="tools-answer-only"):
        load_rows("lab/tools-easy", split="train")
    with pytest.raises(ValueError, match="arithmetic-noisy"):
        dataset_rows("geometry", "train", 1)


def test_a_base_that_is_not_built_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PBSD_LAB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="pbsd lab build --task tools --scale 4m --variant sparse"):
        model_folder("lab/tools-4m-sparse")
    with pytest.raises(ValueError, match=r"no base model 'tools-9b'.*tools-4m-dense"):
        checkpoint_path("tools-9b")


def test_a_built_base_is_found_in_the_cache_and_an_unfinished_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PBSD_LAB_CACHE", str(tmp_path))
    folder = tmp_path / "tools-4m-sparse"
    folder.mkdir()
    (folder / "training_state.pt").touch()
    with pytest.raises(ValueError, match="not built"):
        checkpoint_path("tools-4m-sparse")
    (folder / "build.json").write_text("{}")
    assert model_folder("lab/tools-4m-sparse") == str(folder)


def test_every_task_scale_and_variant_has_its_base_small_ones_first():
    scales = [base.scale for base in BASES.values()]
    assert len(BASES) == 2 * 3 * 2 + 1
    assert scales == sorted(scales, key=list(SCALES).index)
    assert all(math.isclose(sum(base.forms.values()), 1.0) for base in BASES.values())
