"""Adapters: rows of every schema as files here, columns checked, duplicates and conflicts counted, golds correct."""

import functools
import json
import logging
import re

import bfcl_eval
import datasets
import pytest

from pbsd import benchmarks
from pbsd.benchmarks import Query, answers, bfcl, examples, mathematics
from pbsd.data import load_rows
from pbsd.render import Renderer, RowError
from pbsd.rewards import resolve

TABLES = {**examples.MATHEMATICS, "toolalpaca": examples.TOOLALPACA["test"]}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_bfcl(folder, category, name=None):
    questions, truths = examples.BFCL[category]
    name = f"BFCL_v4_{name or bfcl.CATEGORIES[category][0]}.json"
    write_lines(folder / name, questions)
    lines = [{"id": q["id"], "ground_truth": truth} for q, truth in zip(questions, truths, strict=True)]
    write_lines(folder / "possible_answer" / name, lines)
    return folder


@functools.cache
def reward(spec):
    """One pool of workers for all tests: to start one takes seconds."""
    return resolve(json.loads(spec))


def grades(benchmark, rows, completions):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return [grade.outcome for grade in reward(json.dumps(benchmark.reward)).grades(completions, **columns)]


def golds_are_correct(benchmark, rows):
    return grades(benchmark, rows, [benchmark.gold(row) for row in rows]) == ["correct"] * len(rows)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", TABLES)
def test_files_in_the_hubs_schema_are_read_and_their_golds_grade_correct(name, kind, tmp_path):
    benchmark = benchmarks.find(name)
    path = tmp_path / f"{benchmark.splits[0]}.{kind}"
    if kind == "jsonl":
        write_lines(path, TABLES[name])
    else:
        datasets.Dataset.from_list(TABLES[name]).to_parquet(path)
    found = benchmarks.load(name, Query(local=str(tmp_path)))
    assert len(found.rows) == len(TABLES[name]) and found.source == str(tmp_path)
    assert all(row.keys() == {"id", "prompt", "privileged_context", "answer"} for row in found.rows)
    assert golds_are_correct(benchmark, found.rows)
    wrong = "\\boxed{-987}" if name != "toolalpaca" else "Action: other\nAction Input: {}"
    assert grades(benchmark, found.rows[:1], [wrong]) == ["wrong"]
    assert list(benchmark.example(benchmark.splits[0]).rows) == list(found.rows)


def test_a_folder_laid_out_as_on_the_hub_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(examples.MATHEMATICS["math500"]).to_parquet(
        tmp_path / "data/test-00000-of-00001.parquet"
    )
    assert benchmarks.load("math500", Query(local=str(tmp_path))).rows[1]["answer"] == "\\frac{1}{4}"


HUB = {
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("MathArena/aime_2025", None, "train"),
    "hmmt25": ("MathArena/hmmt_feb_2025", None, "train"),
    "amc23": ("math-ai/amc23", None, "test"),
    "minerva": ("math-ai/minervamath", None, "test"),
    "openthoughts-math-30k": ("siyanzhao/Openthoughts_math_30k_opsd", None, "train"),
    "dapo-math-17k": ("BytedTsinghua-SIA/DAPO-Math-17k", None, "train"),
    "dapo-math-17k-processed": ("open-r1/DAPO-Math-17k-Processed", "en", "train"),
    "toolalpaca": ("Ahren09/ToolAlpaca", None, "test"),
}


@pytest.mark.parametrize("name", HUB)
def test_what_the_hub_is_asked_for(name, monkeypatch):
    """The hub is out of a test's reach: this stands for its answer only, and records the question."""
    asked = []

    def load_dataset(path, config, *, split, revision):
        asked.append((path, config, split, revision))
        return datasets.Dataset.from_list(TABLES[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert benchmarks.load(name, Query(revision="abc")).source == f"{HUB[name][0]}@abc"
    assert asked == [(*HUB[name], "abc")]
    assert HUB.keys() == TABLES.keys()


def test_what_the_converters_make_of_a_row():
    gsm8k = benchmarks.find("gsm8k").example("test").rows[0]
    assert gsm8k["answer"] == "72"
    assert gsm8k["privileged_context"].endswith("$<<8*9=72>>72.")
    assert gsm8k["prompt"][0]["content"].endswith(mathematics.INSTRUCTION)
    assert benchmarks.find("amc23").example("test").rows[0]["answer"] == "55"  # 55.0 in the table
    assert benchmarks.find("aime24").example("train").rows[0]["privileged_context"].startswith("$2^{10}")
    assert benchmarks.find("aime25").example("train").rows[0]["id"] == "1"
    dapo = benchmarks.find("dapo-math-17k").example("train").rows[0]
    assert dapo["prompt"][0]["content"].startswith("What is the remainder")  # without the wrapping
    assert "Remember" not in dapo["prompt"][0]["content"]
    trained = benchmarks.find("toolalpaca").example("train").rows[0]
    assert json.loads(trained["answer"]) == [{"name": "getForecast", "arguments": {"city": "Lund", "days": 3}}]
    assert "Thought:" in trained["privileged_context"]


def test_duplicates_go_and_conflicting_answers_take_their_problem_along(tmp_path, caplog):
    """p: the same answer but for a blank, so one row stays. q: two answers, so none stays; its third row counts as a
    repetition too. Of 7 rows: 1 without an answer, 3 repetitions, 1 conflicting problem; p and r stay."""
    rows = [("p", "1"), ("q", "2"), ("p", " 1"), ("r", "3"), ("q", "4"), (" q\n", "2"), ("s", None)]
    raw = [{"problem": problem, "solution": "w", "Answer": answer} for problem, answer in rows]
    write_lines(tmp_path / "train.jsonl", raw)
    with caplog.at_level(logging.WARNING):
        found = benchmarks.load("openthoughts-math-30k", Query(local=str(tmp_path)))
    assert [row["answer"] for row in found.rows] == ["1", "3"]
    assert found.left_out == {
        "rows with a problem that was there before": 3,
        "problems with conflicting answers": 1,
        "rows without an answer": 1,
    }
    assert "2 rows are used; left out: " in caplog.text and "1 problems with conflicting answers" in caplog.text


def test_the_same_answer_in_other_words_is_no_conflict(tmp_path):
    """By the grader 1/2 is 0.5 and the two fractions are one; 1/2 and 1/3 are two answers, also behind an equal one.
    Of 9 rows 3 problems come first, 6 are repetitions."""
    rows = [
        ("p", "1/2"), ("p", "0.5"), ("q", "\\frac{2}{3}"), ("q", "\\dfrac{2}{3}"), ("q", "\\dfrac{2}{3}"),
        ("r", "1/2"), ("r", "0.5"), ("r", "1/3"), ("r", "1/2"),
    ]  # fmt: skip
    raw = [{"problem": problem, "solution": "w", "Answer": answer} for problem, answer in rows]
    write_lines(tmp_path / "train.jsonl", raw)
    found = benchmarks.load("openthoughts-math-30k", Query(local=str(tmp_path)))
    assert [row["answer"] for row in found.rows] == ["1/2", "\\frac{2}{3}"]
    assert found.left_out == {
        "rows with a problem that was there before": 6,
        "problems with conflicting answers": 1,
    }


OTHER_LAYOUTS = [
    (
        "aime24",
        "math-ai/aime24",
        "test",
        {"problem": "p", "solution": "\\boxed{204}", "id": 60, "url": ""},
        "204",
        "60",
    ),
    ("aime25", "math-ai/aime25", "test", {"problem": "p", "answer": "70", "id": "0"}, "70", "0"),
    ("aime25", "MathArena/aime_2025", "train", {"problem": "p", "answer": "70", "year": 2025}, "70", "0"),
]
"""Rows of other publishers; the third, yentinglin's, has the split of another table on the hub."""


@pytest.mark.parametrize(("name", "hub_id", "split", "row", "answer", "identity"), OTHER_LAYOUTS)
def test_other_layouts_of_the_same_problems(name, hub_id, split, row, answer, identity, tmp_path, monkeypatch):
    write_lines(tmp_path / f"{split}.jsonl", [row])
    for local in (tmp_path, tmp_path / f"{split}.jsonl"):
        found = benchmarks.load(name, Query(local=str(local), split=split))
        assert [(own["answer"], own["id"]) for own in found.rows] == [(answer, identity)]
    assert golds_are_correct(benchmarks.find(name), found.rows)
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, *_, **__: asked.append(path) or datasets.Dataset.from_list([row])
    )
    benchmarks.load(name, Query(split=split))
    assert asked == [hub_id]


@pytest.mark.parametrize("split", ["train", "test"])
def test_toolalpaca_as_sdpo_has_it(split, tmp_path):
    """JSON lines; the answer is a JSON string, most columns are for other tasks. A row without one is counted."""
    calls = [{"Action": "getForecast", "Action_Input": '{"city": "Lund", "days": 3}'}]
    row = {
        "prompt": examples.TOOLALPACA["test"][0]["prompt"], "description": "", "idx": 4046, "dataset": "tooluse",
        "system": None, "answer": json.dumps(calls), "tests": None, "kind": "tooluse", "elo": 1500,
    }  # fmt: skip
    rows = [row, {**row, "system": "Be brief."}, {**row, "answer": None}, {**row, "answer": "[{"}]
    write_lines(tmp_path / f"{split}.json", rows)
    found = benchmarks.load("toolalpaca", Query(local=str(tmp_path), split=split))
    assert [message["role"] for own in found.rows for message in own["prompt"]] == ["user", "system", "user"]
    assert found.rows[1]["prompt"][0]["content"] == "Be brief."
    assert found.rows[0]["privileged_context"] is None
    assert found.left_out == {"rows without a golden_answer": 1, "rows whose golden_answer is not JSON": 1}
    benchmark = benchmarks.find("toolalpaca")
    assert golds_are_correct(benchmark, found.rows)
    assert grades(benchmark, found.rows[:1], ["Action: other\nAction Input: {}"]) == ["wrong"]


def test_a_benchmark_keeps_equal_problems(tmp_path):
    write_lines(tmp_path / "test.jsonl", [examples.MATHEMATICS["gsm8k"][0]] * 2)
    assert len(benchmarks.load("gsm8k", Query(local=str(tmp_path))).rows) == 2


@pytest.mark.parametrize(
    ("name", "query", "words"),
    [
        ("gsm8k", {"split": "dev"}, "has no split 'dev'; it has test, train"),
        ("gsm8k", {"size": 9}, "has 2 rows, fewer than the 9 asked for"),
        ("gsm8k", {"size": 0}, "0 rows were asked for; give at least 1"),
        ("gsm8k", {"size": -1}, "-1 rows were asked for; give at least 1"),
        ("gsm8k", {"split": "train"}, "split 'train' cannot be read"),
        ("gsm9k", {}, "did you mean 'gsm8k'?"),
        ("math500", {}, "'problem', 'solution' is missing; the table has answer, question"),
        ("bfcl:simple", {}, "no file BFCL_v*_simple_python.json"),
    ],
)
def test_errors_say_what_is_there(name, query, words, tmp_path):
    write_lines(tmp_path / "test.jsonl", examples.MATHEMATICS["gsm8k"])
    with pytest.raises(ValueError) as error:
        benchmarks.load(name, Query(local=str(tmp_path), **query))
    assert words in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_named(content, tmp_path):
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"split 'test' cannot be read: "):
        benchmarks.load("gsm8k", Query(local=str(tmp_path)))


def test_answers_of_another_kind_are_left_out_and_counted(tmp_path):
    write_lines(tmp_path / "test.jsonl", [{"question": "q", "answer": None}, {"question": "q", "answer": "#### 3"}])
    found = benchmarks.load("gsm8k", Query(local=str(tmp_path)))
    assert [row["answer"] for row in found.rows] == ["3"]
    assert found.left_out == {"rows without a final line `#### answer`": 1}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("dapo-math-17k", {"prompt": "text", "reward_model": {"ground_truth": "1"}}),
        ("dapo-math-17k", {"prompt": [], "reward_model": {"ground_truth": "1"}}),
        ("dapo-math-17k", {"prompt": [{"role": "user", "content": "q"}], "reward_model": "1"}),
    ],
)
def test_columns_that_hold_other_things_name_source_and_row(name, row, tmp_path):
    write_lines(tmp_path / "train.jsonl", [row])
    with pytest.raises(ValueError, match=r"row 0: its columns hold other things"):
        benchmarks.load(name, Query(local=str(tmp_path)))


def test_names_are_datasets_of_recipes(tmp_path):
    write_lines(tmp_path / "train.jsonl", examples.MATHEMATICS["gsm8k"])
    assert load_rows(f"gsm8k@{tmp_path}", split="train", size=1)[0]["answer"] == "72"
    assert load_rows("reasoning-gym:chain_sum", split="train", size=3)[2]["id"].startswith("chain_sum/")
    (tmp_path / "gsm8k").mkdir()
    assert not benchmarks.is_named(str(tmp_path / "gsm8k"))


@pytest.mark.parametrize("category", examples.BFCL)
def test_bfcl_files_are_read_and_their_golds_grade_correct(category, tmp_path):
    name = f"bfcl:{category}"
    found = benchmarks.load(name, Query(local=str(write_bfcl(tmp_path, category))))
    assert golds_are_correct(benchmarks.find(name), found.rows)
    (tool, *_) = json.loads(found.rows[0]["tools"])
    assert tool["parameters"]["type"] == "object" and "area.rectangle" not in found.rows[0]["prompt"][0]["content"]
    wrong = "no idea" if category != "irrelevance" else "area.rectangle(width=1, height=2)"
    assert grades(benchmarks.find(name), found.rows, [wrong])[0] in ("wrong", "unparsed")


def test_bfcl_tools_are_written_by_the_chat_template_or_in_its_own_words(tokenizer):
    (row,) = benchmarks.find("bfcl:simple").example("test").rows
    with pytest.raises(RowError, match="'area.rectangle' is not described"):
        Renderer(tokenizer, "")(row, 0)
    text = tokenizer.decode(list(Renderer(tokenizer, "", tools_template=bfcl.TOOLS_TEMPLATE)(row, 0).student_ids))
    assert text.startswith("<system>You are given") and '\n{"name": "area.rectangle"' in text
    tokenizer.chat_template = "{{ tools | tojson }}{{ messages[0].content }}"
    native = tokenizer.decode(list(Renderer(tokenizer, "")(row, 0).student_ids))
    assert native.startswith('[{"type": "function", "function": {"name": "area.rectangle"')
    assert "You are given" not in native


DOCUMENTATION = """\
Your task is to answer the user's question using available tools.
You have access to the following tools:
Name: Axolotl
Description: Pictures and facts
Documentation:
getImage: A random image.
Parameters: {}
Output: Successful response.
- Format: application/json
- Structure: Object{url, source}
search.Images: Images by colour: all of them.
Parameters: {"color": "Required. string. A colour.", "page": "Integer.", "tags": "Array[string].", "odd": "What."}
Output: Successful response.

Use the following format:
Thought: think
Action: one of the tools
Action Input: JSON

Begin!
Question: An image of a wild one?
It must be blue."""


def test_toolalpaca_natively_has_the_question_and_schemas(tmp_path):
    golden = [{"Action": "search.Images", "Action_Input": '{"color": "wild"}'}]
    other = [{"Action": "getDetails", "Action_Input": "{}"}]
    unread = DOCUMENTATION.replace("Parameters: {}", 'Parameters: {"a": "b"')
    rows = [
        {"prompt": DOCUMENTATION, "golden_answer": golden},
        {"prompt": DOCUMENTATION, "golden_answer": other},
        {"prompt": unread, "golden_answer": golden},
        {"prompt": "What?", "golden_answer": golden},
    ]
    write_lines(tmp_path / "test.jsonl", rows)
    found = benchmarks.load("toolalpaca:native", Query(local=str(tmp_path)))
    (row,) = found.rows
    assert row["prompt"] == [{"role": "user", "content": "An image of a wild one?\nIt must be blue."}]
    first, second = (tool["function"] for tool in json.loads(row["tools"]))
    assert (first["name"], first["description"]) == ("getImage", "A random image.")
    assert first["parameters"] == {"type": "object", "properties": {}, "required": []}
    assert (second["name"], second["parameters"]["required"]) == ("search.Images", ["color"])
    types = {name: argument.get("type") for name, argument in second["parameters"]["properties"].items()}
    assert types == {"color": "string", "page": "integer", "tags": "array", "odd": None}
    assert found.left_out == {
        "rows whose answer calls another function than the tools": 1,
        "rows with a tool that cannot be read": 1,
        "rows whose prompt is not laid out as ToolAlpaca's": 1,
    }
    assert golds_are_correct(benchmarks.find("toolalpaca:native"), found.rows)
    write_lines(tmp_path / "train.jsonl", [{"prompt": DOCUMENTATION, "golden_response": [
        'Thought: I look.\nAction: search.Images\nAction Input: {"color": "wild"}'
    ]}])  # fmt: skip
    (row,) = benchmarks.load("toolalpaca:native", Query(local=str(tmp_path), split="train")).rows
    assert row["privileged_context"] == 'Thought: I look.\n{"name": "search.Images", "arguments": {"color": "wild"}}'


def test_bfcl_types_are_those_of_json_schema():
    schema = {"type": "dict", "properties": {"type": {"type": "float"}, "x": {"type": "any"}, "y": {"type": "tuple"}}}
    assert bfcl._json_typed(schema) == {
        "type": "object",
        "properties": {"type": {"type": "number"}, "x": {}, "y": {"type": "array"}},
    }


def test_bfcl_files_of_the_older_name_and_a_missing_answer(tmp_path):
    write_bfcl(tmp_path, "simple", "simple")
    assert len(benchmarks.load("bfcl:simple", Query(local=str(tmp_path))).rows) == 1
    write_lines(tmp_path / "possible_answer/BFCL_v4_simple.json", [{"id": "other", "ground_truth": []}])
    with pytest.raises(ValueError, match="no answer for simple_python_0"):
        benchmarks.load("bfcl:simple", Query(local=str(tmp_path)))


def test_bfcl_of_a_revision_is_asked_of_the_hub_whose_absence_names_the_mend():
    with pytest.raises(ValueError, match="BFCL_v3_simple.json could not be had .* install the package bfcl-eval"):
        benchmarks.load("bfcl:simple", Query(revision="abc"))


UNPASSABLE = {
    "bfcl:live_simple": {"live_simple_106-63-0", "live_simple_112-68-0"},
    "bfcl:live_multiple": {"live_multiple_862-181-3", "live_multiple_964-207-0"},
}
"""Rows that no call can pass, by BFCL's checker as by ours (tests/parity/test_bfcl_checker.py)."""


NUMBERS = {
    "simple": 400, "multiple": 200, "parallel": 200, "parallel_multiple": 200, "irrelevance": 240, "live_simple": 258,
    "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24, "live_irrelevance": 884,
}  # fmt: skip
"""Rows of each category (the leaderboard's, live_irrelevance by the package's file)."""


@pytest.mark.parametrize("category", bfcl.CATEGORIES)
def test_a_category_is_its_own_file(category):
    """`multiple` is the end of another file's name, as are `irrelevance` and the older `simple`."""
    ids = [row["id"] for row in benchmarks.load(f"bfcl:{category}", Query()).rows]
    assert len(ids) == len(set(ids)) == NUMBERS[category]
    prefix = "simple_python" if category == "simple" else category
    assert all(re.fullmatch(rf"{prefix}_\d+(-\d+)*", name) for name in ids)


def test_files_of_another_category_are_not_taken(tmp_path):
    write_bfcl(tmp_path, "simple", "live_simple")
    with pytest.raises(ValueError, match="no file BFCL_v"):
        benchmarks.load("bfcl:simple", Query(local=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"function": [{"name": "f"}]}, "KeyError: 'parameters'"),
        ({"question": [[{"role": "user", "content": "1"}], [{"role": "user", "content": "2"}]]}, "too many values"),
    ],
    ids=lambda value: None,
)
def test_bfcl_rows_of_another_form_name_file_and_row(changes, words, tmp_path):
    questions, _ = examples.BFCL["simple"]
    write_bfcl(tmp_path, "simple")
    write_lines(tmp_path / "BFCL_v4_simple_python.json", [{**questions[0], **changes}])
    with pytest.raises(ValueError, match=f"BFCL_v4_simple_python.json, simple_python_0: .*{words}"):
        benchmarks.load("bfcl:simple", Query(local=str(tmp_path)))


@pytest.mark.parametrize("name", [name for name in benchmarks.names() if name.startswith("bfcl:")])
def test_the_references_of_all_rows_of_the_package_grade_correct(name):
    assert bfcl_eval  # else the hub would be asked
    benchmark, found = benchmarks.find(name), benchmarks.load(name, Query())
    assert found.source == "the package bfcl-eval"
    outcomes = grades(benchmark, found.rows, [benchmark.gold(row) for row in found.rows])
    failed = {row["id"] for row, outcome in zip(found.rows, outcomes, strict=True) if outcome != "correct"}
    assert failed == UNPASSABLE.get(name, set())


def _nested(depth):
    return f'{{"name": "f", "arguments": {{"a": {"[" * depth}{"]" * depth}}}}}'


@pytest.mark.parametrize(
    ("reader", "first", "second", "same"),
    [
        (answers.math_answer, "so \\boxed{1,400}", "it is \\boxed{1400 seats}", True),
        (answers.math_answer, "the answer is 7", "\\boxed{7}", True),
        (answers.math_answer, "\\boxed{\\frac12}", "\\boxed{0.5}", False),
        (answers.math_answer, "<think>9</think> 7", "<think>7</think> 9", False),
        (answers.tool_answer, "[f(a=1), g()]", '[{"name": "g"}, {"name": "f", "arguments": {"a": 1}}]', True),
        (answers.tool_answer, "f(a=1)", "f(a=2)", False),
        (answers.tool_answer, "I cannot.", "Nothing fits.", True),
        (answers.tool_answer, "f(a={'b': 1, 2: (3, 4)})", "f(a={2: [3, 4], 'b': 1})", True),
        (answers.tool_answer, "f(a={(1, 2): 3, None: {1, 2}})", "f(a={None: {2, 1}, (1, 2): 3})", True),
        (answers.tool_answer, "f(a={1: 2})", '{"name": "f", "arguments": {"a": {"1": 2}}}', False),
        (answers.tool_answer, '{"name": "\\ud83d"}', '{"name": "\\ud83e"}', False),
        (answers.tool_answer, _nested(900), _nested(900).replace(", ", ","), True),
        (answers.tool_answer, _nested(900), _nested(901), False),
        (answers.tagged_answer, "<answer> x </answer>", "<answer>y</answer><answer>x</answer>", True),
    ],
)  # fmt: skip
def test_votes(reader, first, second, same):
    assert (reader(first) == reader(second)) is same
    reader(first).encode()
    assert reader("<think>endless 7") is None
