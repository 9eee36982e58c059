"""Generated tool calls: split discipline, requests that hold what the call needs, and exact grading by hand cases."""

import ast
import json
import math
import random
import subprocess
import sys
from collections import Counter

import pytest

from pbsd.lab import tools
from pbsd.lab.tool_functions import FUNCTIONS, PARAMETERS
from pbsd.lab.tools import MAX_PROMPT_CHARACTERS, SPLITS, grade, reward, rows, split_of

FROZEN = [
    ("mail(to:str,fast:bool)\nQ: send a note to gorus no hurry, thanks\nA:", 'mail(to="gorus",fast=False)'),
]
EXPECTED = json.dumps([{"name": "f", "arguments": {"n": 3, "x": 2.5, "s": "red", "on": True, "ids": [1, 2]}}])
TOOLS = json.dumps([
    {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "n": {"type": "integer"},
                "x": {"type": "number"},
                "s": {"type": "string", "enum": ["red", "blue"]},
                "on": {"type": "boolean"},
                "ids": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["n", "x", "s", "on", "ids"],
        },
    },
    {"name": "g", "parameters": {"type": "object", "properties": {}, "required": []}},
])  # fmt: skip


def literal_call(text):
    """Name and arguments by Python's own parser, which shares nothing with the maker of the rows."""
    node = ast.parse(text.strip(), mode="eval").body
    return node.func.id, {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}


@pytest.fixture(scope="module")
def train():
    return rows("train", 3000)


def test_splits_are_disjoint_in_their_calls_for_any_seeds_and_hold_no_duplicate_prompts():
    listed = {split: [row for seed in (0, 1) for row in rows(split, 1000, seed)] for split in SPLITS}
    calls = {split: {row["answer"] for row in found} for split, found in listed.items()}
    assert not calls["train"] & calls["validation"]
    assert not calls["train"] & calls["test"]
    assert not calls["validation"] & calls["test"]
    assert all(len({row["prompt"] for row in found[:1000]}) == 1000 for found in listed.values())


def test_rows_depend_on_the_seed_alone_and_grow_by_prefix():
    assert rows("test", 30) == rows("test", 90)[:30]
    assert rows("test", 30, seed=1) != rows("test", 30, seed=2)


def test_rows_do_not_change_between_versions_or_hash_seeds():
    """Frozen: base models are built on them."""
    code = "from pbsd.lab.tools import rows; print([(r['prompt'], r['answer']) for r in rows('train', 1)])"
    env = {"PYTHONHASHSEED": "7"}
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(printed) == FROZEN


@pytest.mark.parametrize(
    ("split", "size", "message"),
    [("dev", 1, "unknown split 'dev'"), ("test", tools.MAX_ROWS + 1, "outside"), ("test", -1, "outside")],
)
def test_impossible_requests_are_refused(split, size, message):
    with pytest.raises(ValueError, match=message):
        rows(split, size)


def test_the_space_is_large_and_each_split_has_its_share():
    """Of n calls in a tenth, the standard deviation of the count is sqrt(.09 n): 5 of them are allowed."""
    assert tools.count_calls() > 10_000_000
    shares = Counter(split_of(f"call {number}") for number in range(20_000))
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(shares[split] - 20_000 * share) < 5 * math.sqrt(20_000 * share * (1 - share))


def test_as_many_values_are_drawn_as_are_counted():
    """Of the kinds with few values, 5000 draws find each value that is counted, and no other."""
    rng = random.Random(0)
    for kind in ("minutes", "grams", "bool", "enum", "int", "float"):
        parameter = next(parameter for parameter in PARAMETERS.values() if parameter.kind == kind)
        assert len({tools._VALUES[kind](parameter, rng)[0] for _ in range(5000)}) == tools._KIND_SIZES[kind]


def test_every_reference_is_the_expected_call_and_grades_correct(train):
    for row in train:
        name, arguments = literal_call(row["privileged_context"])
        assert json.loads(row["expected"]) == [{"name": name, "arguments": arguments}]
        assert row["privileged_context"] == row["answer"]
        assert grade(row["privileged_context"], row["expected"], row["tools"]).outcome == "correct"


def test_prompts_show_one_to_three_signatures_with_the_called_function_among_them(train):
    """The order of signatures says nothing: of two, the called one is first about as often as second."""
    counts, first = Counter(), 0
    for row in train:
        *shown, request, last = row["prompt"].split("\n")
        assert (request[:3], last) == ("Q: ", "A:")
        counts[len(shown)] += 1
        name = row["answer"].split("(")[0]
        places = [place for place, text in enumerate(shown) if text.split("(")[0] == name]
        assert len(places) == 1
        assert [schema["name"] for schema in json.loads(row["tools"])] == [text.split("(")[0] for text in shown]
        first += len(shown) == 2 and places == [0]
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 500
    assert 0.4 < first / counts[2] < 0.6


def test_rows_are_short_enough_and_cover_the_catalogue(train):
    assert len(FUNCTIONS) == len({function.name for function in FUNCTIONS}) == 36
    assert {row["answer"].split("(")[0] for row in train} == {function.name for function in FUNCTIONS}
    assert {"int", "minutes", "grams", "float", "str", "bool", "enum", "list"} == {p.kind for p in PARAMETERS.values()}
    assert max(len(row["prompt"]) for row in train) <= MAX_PROMPT_CHARACTERS


def test_values_are_often_said_otherwise_than_they_are_written(train):
    """A student that copies cannot pass: numbers in words, units and synonyms hide many values from plain view."""
    hidden = total = 0
    for row in train:
        for value in literal_call(row["answer"])[1].values():
            if isinstance(value, int | float) and not isinstance(value, bool):
                total += 1
                hidden += str(value) not in row["prompt"].split("Q: ")[1]
    assert 0.3 < hidden / total < 0.7


@pytest.mark.parametrize(
    ("draw", "value", "words"),
    [
        ("_int", 36, {"36", "thirty six", "3 dozen"}),
        ("_int", 12, {"12", "twelve", "a dozen"}),
        ("_int", 19, {"19", "nineteen"}),
        ("_int", 20, {"20", "twenty"}),
        ("_minutes", 30, {"30 minutes", "half an hour"}),
        ("_minutes", 60, {"an hour"}),
        ("_minutes", 180, {"3 hours"}),
        ("_grams", 500, {"500 g", "half a kilo"}),
        ("_grams", 2000, {"2 kg"}),
        ("_float", 2.5, {"2.5", "two and a half"}),
        ("_float", 2.3, {"2.3"}),
    ],
)
def test_words_of_a_value(draw, value, words):
    rng = random.Random(1)
    plain = tools.Parameter("any", ("{}",))
    drawn = [getattr(tools, draw)(plain, rng) for _ in range(6000)]
    assert {said for found, said in drawn if found == value} == words


GOOD = 'f(n=3,x=2.5,s="red",on=True,ids=[1,2])'


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        (f" {GOOD}", "correct"),
        (f"# as given\n{GOOD}", "correct"),
        (" f(ids=[1, 2], on=True, s='red', x=2.5, n=3)\n", "correct"),  # order and blanks are free
        (GOOD.replace("n=3", "n=4"), "wrong"),
        (GOOD.replace("n=3", 'n="3"'), "wrong"),
        (GOOD.replace("n=3", "n=3.0"), "wrong"),
        (GOOD.replace("True", "1"), "wrong"),
        (GOOD.replace("True", '"True"'), "wrong"),
        (GOOD.replace("red", "Red"), "wrong"),
        (GOOD.replace("[1,2]", "[2,1]"), "wrong"),
        (GOOD.replace("[1,2]", "[1,2.0]"), "wrong"),
        (GOOD.replace("[1,2]", "(1,2)"), "wrong"),
        (GOOD.replace("n=3,", ""), "wrong"),
        (GOOD.replace("n=3,", "n=3,m=1,"), "wrong"),
        (GOOD.replace("f(", "g("), "wrong"),
        (f"{GOOD}\n{GOOD}", "wrong"),
        (GOOD.replace("n=3", "3"), "unparsed"),
        (GOOD.replace("true", "").replace("True", "true"), "unparsed"),
        (GOOD[:-1], "unparsed"),
        (f"the call is {GOOD}", "unparsed"),
        ('{"name": "f", "arguments": {"n": 3, "x": 2.5, "s": "red", "on": true, "ids": [1, 2]}}', "unparsed"),
        ("# as given", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_grading_is_exact(completion, outcome):
    assert grade(completion, EXPECTED, TOOLS).outcome == outcome
    expected = 1.0 if outcome == "correct" else 0.0
    assert reward(completions=[completion], expected=[EXPECTED], tools=[TOOLS], prompts=["unused"]) == [expected]


def test_reward_refuses_columns_of_another_length():
    with pytest.raises(ValueError, match="shorter"):
        reward([GOOD, GOOD], [EXPECTED], [TOOLS])


def test_a_flawed_context_differs_in_one_value_of_the_same_type_and_grades_wrong(train):
    rng = random.Random(0)
    for row in train[:1000]:
        flawed = tools.flawed_context(row, rng)
        (name, right), (other_name, found) = literal_call(row["answer"]), literal_call(flawed)
        assert name == other_name
        assert list(right) == list(found)
        changed = [key for key in right if right[key] != found[key]]
        assert len(changed) == 1
        assert type(right[changed[0]]) is type(found[changed[0]])
        assert grade(flawed, row["expected"], row["tools"]).outcome == "wrong"


def test_the_other_contexts_by_hand():
    row = {"answer": 'pay(to="miro",sum=2.5)', "expected": '[{"name": "pay", "arguments": {"to": "miro", "sum": 2.5}}]'}
    assert tools.answer_context(row) == '"miro",2.5'
    assert tools.leaking_context(row) == '# key\npay(to="miro",sum=2.5)'
    assert tools.leaking_completion(row) == '# as given\npay(to="miro",sum=2.5)'
    assert tools.leaks(tools.leaking_completion(row))
    assert not tools.leaks(row["answer"])
