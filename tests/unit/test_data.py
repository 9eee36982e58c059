"""Rows as their author wrote them, whatever table they went through; rows without the context that a teacher needs."""

import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbsd.benchmarks.tables import written_rows
from pbsd.data import PromptDataset, as_written, load_rows
from pbsd.render import Renderer, RowError

TEMPLATE = "{{ prompt }} | {{ privileged_context }}"
CALLS = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "2", "deep": [{"z": 1}, {"w": 2}]}}]
TOOLS = [
    {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    {"name": "g", "parameters": {"type": "object", "properties": {"y": {"type": "string", "enum": ["2"]}}}},
]
ROWS = [
    {"prompt": [{"role": "user", "content": name}], "tools": [tool], "answer": call}
    for name, tool, call in zip("ab", TOOLS, CALLS, strict=True)
]


def prompts(tokenizer, rows, **options):
    return PromptDataset.from_rows(
        rows, Renderer(tokenizer, TEMPLATE, tools_template=""), drop_overlong=False, **options
    )


def test_a_table_gives_every_row_its_own_keys_only():
    table = datasets.Dataset.from_list(ROWS)
    assert table[0] != ROWS[0]  # the table itself fills them up
    assert written_rows(table) == ROWS


def test_template_graders_and_rewards_see_no_null_of_a_table(tokenizer):
    tokenizer.chat_template = "{{ messages[0].content }}{{ tools | tojson }}"
    found = PromptDataset.from_rows(
        datasets.Dataset.from_list(ROWS), Renderer(tokenizer, TEMPLATE), drop_overlong=False
    )
    for prompt, row in zip(found.prompts, ROWS, strict=True):
        assert prompt.columns == {"tools": row["tools"], "answer": row["answer"]} and prompt.prompt == row["prompt"]
        schema = {"type": "function", "function": row["tools"][0]}
        assert tokenizer.decode(list(prompt.student_ids)) == row["prompt"][0]["content"] + json.dumps([schema])


def test_nulls_that_are_no_key_of_an_object_stay():
    rows = [{"prompt": "p", "hint": None, "list": [1, None]}, {"prompt": "q", "hint": "h", "list": []}]
    assert written_rows(datasets.Dataset.from_list(rows)) == rows


def test_columns_of_json_keep_their_nulls():
    rows = [{"answer": {"name": "f", "arguments": {"x": None}}}, {"answer": {"name": "g", "arguments": {"y": 1}}}]
    table = datasets.Dataset.from_list(rows, features=datasets.Features({"answer": datasets.Json()}))
    assert written_rows(table) == rows


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("place", ["file", "folder"])
def test_files_give_the_rows_that_were_written(kind, place, tmp_path):
    path = tmp_path / f"train.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    name = str(path if place == "file" else tmp_path)
    assert load_rows(name, split="train") == ROWS
    assert load_rows(name, split="train", size=1) == ROWS[:1]
    with pytest.raises(ValueError, match="has 2 rows, fewer than the 3 asked for"):
        load_rows(name, split="train", size=3)


def test_a_json_file_keeps_a_null_that_was_written(tmp_path):
    rows = [{"prompt": "p", "answer": {"x": None}}, {"prompt": "q", "answer": {"x": None, "y": 1}}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows(str(tmp_path / "train.jsonl"), split="train") == rows


OBJECTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=1, max_size=2)


@settings(max_examples=40, deadline=None)
@given(st.lists(OBJECTS, min_size=1, max_size=4))
def test_objects_of_any_keys_come_back(objects):
    rows = [{"column": value, "nested": [{"inner": value}]} for value in objects]
    assert written_rows(datasets.Dataset.from_list(rows)) == rows


# Contexts


def test_rows_without_any_context_are_refused_where_the_teacher_needs_one(tokenizer):
    rows = [{"prompt": "p", "solution": "s"}, {"prompt": "q", "solution": "t", "privileged_context": ""}]
    with pytest.raises(ValueError, match="no row has a `privileged_context`.* privileged_context, prompt, solution"):
        prompts(tokenizer, rows, needs_context=True)
    assert len(prompts(tokenizer, rows)) == 2
    blank = [{"prompt": "p", "privileged_context": text} for text in ("  ", "\n\t", [{"role": "user", "content": " "}])]
    with pytest.raises(ValueError, match="no row has a `privileged_context`"):
        prompts(tokenizer, blank, needs_context=True)


def test_the_share_of_rows_without_context_is_said(tokenizer, caplog):
    rows = [
        {"prompt": "p", "privileged_context": "c"},
        *({"prompt": "q", "privileged_context": text} for text in (None, "", " \n")),
    ]
    assert len(prompts(tokenizer, rows, needs_context=True)) == 4
    assert "3 of 4 rows (75%) have no privileged_context" in caplog.text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ prompt }}", "leaves out the privileged context"),
        ("{{ prompt }}!", "leaves out the privileged context"),
        ("Hint: {{ privileged_context }}", "leaves out the problem"),
        ("{{ prompt }}{{ hint }}", "the teacher's prompt is the student's all the same"),
    ],
)
def test_a_teacher_template_that_leaves_out_the_problem_or_the_context_is_refused(tokenizer, template, reason):
    rows = [{"prompt": "p", "privileged_context": "c", "hint": ""}]
    with pytest.raises(RowError, match=reason):
        PromptDataset.from_rows(rows, Renderer(tokenizer, template), drop_overlong=False, needs_context=True)


@pytest.mark.parametrize("response", ["r\ns", ["r", "s"]])
def test_the_column_of_trls_sdft_script_is_the_context(tokenizer, response):
    rows = [{"prompt": "p", "golden_response": response}]
    (prompt,) = prompts(tokenizer, rows, needs_context=True).prompts
    assert tokenizer.decode(list(prompt.teacher_ids)) == "p | r\ns" and prompt.context == "r\ns"
    own = {"prompt": "p", "privileged_context": "c", "golden_response": "r"}
    assert as_written([own]) == [own]
