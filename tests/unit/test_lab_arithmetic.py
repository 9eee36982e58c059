"""The generated task: split discipline, and solutions checked by an evaluator that shares nothing with the maker."""

import ast
import operator
import random
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from jinja2 import Template

from pbsd.lab import arithmetic
from pbsd.lab.arithmetic import SPLIT_SIZES, TEACHER_TEMPLATE, grade, reward, rows, split_of

FROZEN = ["Q: 73+9+1+4\nA:", "Q: 89-1-1+6\nA:", "Q: 73-1+7+2\nA:", "Q: 95-8-3-1\nA:"]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub}


def evaluate(expression: str) -> int:
    """Value of a sum by Python's own parser."""

    def walk(node: ast.AST) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant)
        return node.value

    return walk(ast.parse(expression, mode="eval").body)


def test_splits_are_disjoint_for_any_seeds_and_hold_no_duplicates():
    prompts = {split: [row["prompt"] for seed in (0, 1) for row in rows(split, 3000, seed)] for split in SPLIT_SIZES}
    assert not set(prompts["train"]) & set(prompts["validation"])
    assert not set(prompts["train"]) & set(prompts["test"])
    assert not set(prompts["validation"]) & set(prompts["test"])
    assert all(len(set(listed[:3000])) == len(set(listed[3000:])) == 3000 for listed in prompts.values())


def test_rows_depend_on_the_seed_alone_and_grow_by_prefix():
    assert rows("train", 50) == rows("train", 200)[:50]
    assert rows("train", 50, seed=1) != rows("train", 50, seed=2)


def test_rows_and_splits_do_not_change_between_versions_or_hash_seeds():
    """Frozen by hand: committed checkpoints and published numbers rest on them."""
    code = "from pbsd.lab.arithmetic import rows; print([r['prompt'] for s in ('train', 'test') for r in rows(s, 2)])"
    env = {"PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(printed) == FROZEN


def test_split_sizes_are_the_whole_space():
    counted = dict.fromkeys(SPLIT_SIZES, 0)
    for index in range(arithmetic._INDICES):
        steps = arithmetic._steps(index)
        if steps is not None:
            counted[split_of(arithmetic._expression(steps))] += 1
    assert counted == SPLIT_SIZES


def test_every_problem_of_a_small_space_comes_exactly_once():
    order = list(arithmetic._shuffled(500, random.Random(3)))
    assert sorted(order) == list(range(500))
    assert order != sorted(order)


@pytest.mark.parametrize(
    ("split", "size", "message"),
    [("dev", 1, "unknown split 'dev'"), ("test", SPLIT_SIZES["test"] + 1, "outside"), ("test", -1, "outside")],
)
def test_impossible_requests_are_refused(split, size, message):
    with pytest.raises(ValueError, match=message):
        rows(split, size)


def test_every_solution_is_right_step_by_step_and_grades_correct():
    for row in rows("train", 2000) + rows("validation", 500) + rows("test", 500):
        expression = re.fullmatch(r"Q: (\S+)\nA:", row["prompt"]).group(1)
        operands = re.findall(r"[+-]\d+", expression)
        *equations, marker, final = row["privileged_context"].split(" ")[1:]
        value = expression.split(operands[0])[0]
        for operand, equation in zip(operands, equations, strict=True):
            left, right = equation.split("=")
            assert left == value + operand
            assert str(evaluate(left)) == right
            assert 0 <= int(right) <= 99
            value = right
        assert (marker, final) == ("####", row["answer"])
        assert row["answer"] == str(evaluate(expression))
        assert grade(row["privileged_context"], row["answer"]).outcome == "correct"
        assert 15 <= len(row["privileged_context"]) <= 35


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        (" 47+38=85 #### 85", "correct"),
        ("####85", "correct"),
        (" #### 1 #### 85\n", "correct"),
        (" 47+38=85 #### 84", "wrong"),
        (" #### 85 #### 84", "wrong"),
        (" #### 085", "wrong"),
        (" #### -85", "wrong"),
        (" 47+38=85 85", "unparsed"),
        (" #### 85 or so", "unparsed"),
        (" ### 85", "unparsed"),
        (" #### ", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_grading_is_exact(completion, outcome):
    found = grade(completion, "85")
    assert found.outcome == outcome
    assert found.score == (1.0 if outcome == "correct" else 0.0)
    assert found.reason
    assert reward(completions=[completion], answer=["85"], prompts=["unused"]) == [found.score]


def test_a_flawed_context_has_one_wrong_equation_and_a_wrong_answer():
    rng = random.Random(0)
    for row in rows("train", 300):
        context = arithmetic.flawed_context(row, rng)
        equations = [equation.split("=") for equation in context.split(" #### ")[0].split()]
        assert sum(str(evaluate(left)) != right for left, right in equations) == 1
        assert all(re.match(r"\d+", left).group() == right for (_, right), (left, _) in pairwise(equations))
        assert grade(context, row["answer"]).outcome == "wrong"


def test_a_hasty_completion_is_a_near_guess_without_work_and_never_right():
    rng = random.Random(0)
    for row in [*rows("train", 300), {"answer": "0"}, {"answer": "99"}]:
        completion = arithmetic.hasty_completion(row, rng)
        guess, answer = int(completion.removeprefix(" #### ")), int(row["answer"])
        assert 0 < abs(guess - answer) <= 10 and 0 <= guess <= 99


def test_reward_refuses_columns_of_another_length():
    with pytest.raises(ValueError, match="shorter"):
        reward(["#### 1", "#### 2"], ["1"])


def test_teacher_prompt_holds_the_solution_and_ends_with_the_student_prompt():
    row = {"prompt": "Q: 47+38-16\nA:", "privileged_context": " 47+38=85 85-16=69 #### 69", "answer": "69"}
    assert Template(TEACHER_TEMPLATE).render(**row) == "H: 47+38=85 85-16=69 #### 69\nQ: 47+38-16\nA:"


def test_the_task_and_the_package_import_without_torch():
    code = "import sys, pbsd.lab, pbsd.lab.arithmetic; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
