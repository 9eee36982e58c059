"""Berkeley function calls (BFCL), single-turn Python categories, from the files of the package `bfcl-eval`, a folder
laid out like its `data`, or the hub.

A chat template that takes tools writes the functions, as the leaderboard's function-calling mode has it. For one that
does not, `TOOLS_TEMPLATE` is the leaderboard's prompting mode in our words: the functions stand as JSON in the system
message, and calls are asked for as Python text. Numbers are comparable among themselves, not with the leaderboard's.
Left out: `live_relevance`, which has no accepted calls, other languages and multi-turn categories.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pbsd.benchmarks import answers, examples
from pbsd.benchmarks.adapter import Benchmark, Query, RawRow, Row, Rows
from pbsd.benchmarks.tables import check_columns

HUB_ID = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
_HUB_VERSION = "v3"  # of the hub's files; the package's are newer

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "simple": ("simple_python", "simple"),
    **{
        name: (name,)
        for name in (
            "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple", "live_multiple",
            "live_parallel", "live_parallel_multiple", "live_irrelevance",
        )
    },
}  # fmt: skip
"""Category -> how its files call it (the newer name first)."""

TOOLS_TEMPLATE = (
    "You are given a question and functions that may help to answer it. Reply with the function calls that are "
    "needed, in the form [f(a=1, b='x'), g(c=[2])], with every argument named, and with nothing else. If no function "
    "fits, or a required argument is not known, say so in words and call none.\nThe functions, as JSON:"
    "{% for tool in tools %}\n{{ tool.function | tojson }}{% endfor %}"
)

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""BFCL's Python types by their names in JSON Schema; `any` is no type there, and so left out."""


def accepted_calls(truth: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]]) -> str:
    """The first accepted value of every argument that may not be left out, as Python text: `[f(a=1), g(b='x')]`."""
    required = {function["name"]: function["parameters"].get("required") or [] for function in functions}
    calls = []
    for item in truth:
        ((name, arguments),) = item.items()
        words = []
        for key, values in arguments.items():
            if values and (key in required.get(name, []) or "" not in values):
                # "" is the mark that an argument may be left out, and a value only where there is no other.
                value = next((value for value in values if value != ""), "")
                words.append(f"{key}={_first_accepted(value)!r}")
        calls.append(f"{name}({', '.join(words)})")
    return f"[{', '.join(calls)}]"


def _first_accepted(value: Any) -> Any:
    """A value of the possible-answer form: nested objects hold a list of accepted values per key."""
    if isinstance(value, dict):
        return {
            key: _first_accepted(values[0] if isinstance(values, list) else values)
            for key, values in value.items()
            if not (isinstance(values, list) and "" in values)
        }
    if isinstance(value, list):
        return [_first_accepted(item) for item in value]
    return value


def _row(question: RawRow, truth: Sequence[Mapping[str, Any]]) -> Row:
    (messages,) = question["question"]
    functions = [_json_typed(function) for function in question["function"]]
    return {
        "id": question["id"],
        "prompt": [{"role": message["role"], "content": message["content"]} for message in messages],
        "privileged_context": accepted_calls(truth, functions) if truth else None,
        # As text: in a table of objects every row would get every other row's arguments.
        "answer": json.dumps(list(truth)),
        "tools": json.dumps(functions),
    }


def _json_typed(schema: Any) -> Any:
    """A schema with the types of JSON Schema in place of Python's."""
    if isinstance(schema, list):
        return [_json_typed(member) for member in schema]
    if not isinstance(schema, dict):
        return schema
    typed = {key: _json_typed(value) for key, value in schema.items() if not (key == "type" and value == "any")}
    if isinstance(typed.get("type"), str):  # and no argument that is called `type`
        typed["type"] = _JSON_TYPES.get(typed["type"], typed["type"])
    return typed


def _gold(row: Row) -> str:
    return row["privileged_context"] or "None of the functions fits."


def _read(category: str, query: Query) -> Rows:
    for name in CATEGORIES[category]:
        for folder, source in _folders(query):
            # Digits alone, since `BFCL_v*_multiple` is also the file of parallel_multiple.
            versions = re.compile(rf"BFCL_v(\d+)_{name}\.json")
            files = {int(match[1]): path for path in folder.glob("BFCL_v*") if (match := versions.fullmatch(path.name))}
            if files:
                questions = files[max(files)]
                return _rows(category, questions, folder / "possible_answer" / questions.name, source)
    if query.local:
        raise ValueError(
            f"{query.local}: no file BFCL_v*_{CATEGORIES[category][0]}.json: give a folder laid out like bfcl_eval/data"
        )
    questions_path, truths_path = _from_hub(category, query.revision)
    return _rows(category, questions_path, truths_path, HUB_ID)


def _folders(query: Query) -> list[tuple[Path, str]]:
    if query.local:
        return [(Path(query.local), query.local)]
    package = importlib.util.find_spec("bfcl_eval")
    if query.revision or package is None or not package.submodule_search_locations:
        return []
    return [(Path(package.submodule_search_locations[0]) / "data", "the package bfcl-eval")]


def _from_hub(category: str, revision: str | None) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"BFCL_{_HUB_VERSION}_{CATEGORIES[category][-1]}.json"
    try:
        questions = hf_hub_download(HUB_ID, name, repo_type="dataset", revision=revision)
        if category.endswith("irrelevance"):
            return Path(questions), Path(questions).parent / "possible_answer" / name
        answer_path = f"possible_answer/{name}"
        return Path(questions), Path(hf_hub_download(HUB_ID, answer_path, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"bfcl:{category}: {name} could not be had from {HUB_ID} ({error}): install the package bfcl-eval, which "
            "holds the files, or give a folder laid out like its data by --local"
        ) from error


def _rows(category: str, questions_path: Path, truths_path: Path, source: str) -> Rows:
    questions = _lines(questions_path, ("id", "question", "function"))
    if category.endswith("irrelevance"):
        return _converted([(question, []) for question in questions], questions_path, source)
    if not truths_path.is_file():
        raise ValueError(f"{truths_path}: no such file: the accepted answers of {questions_path.name} belong there")
    truths = {row["id"]: row["ground_truth"] for row in _lines(truths_path, ("id", "ground_truth"))}
    if missing := [question["id"] for question in questions if question["id"] not in truths]:
        raise ValueError(f"{truths_path}: no answer for {missing[0]} and {len(missing) - 1} more of {questions_path}")
    return _converted([(question, truths[question["id"]]) for question in questions], questions_path, source)


def _converted(pairs: Sequence[tuple[RawRow, Any]], path: Path, source: str) -> Rows:
    rows = []
    for question, truth in pairs:
        try:
            rows.append(_row(question, truth))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, {question['id']}: not a single-turn row as this adapter reads them ({type(error).__name__}: "
                f"{error}): {question!r:.200}, accepted calls {truth!r:.200}"
            ) from error
    return Rows(rows, source)


def _lines(path: Path, columns: Sequence[str]) -> list[RawRow]:
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        check_columns(row, columns, f"{path}, line {number}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    return rows


def _example(category: str) -> Rows:
    questions, truths = examples.BFCL[category.removeprefix("live_")]
    return Rows([_row(question, truth) for question, truth in zip(questions, truths, strict=True)], "example rows")


def _benchmark(category: str) -> Benchmark:
    return Benchmark(
        name=f"bfcl:{category}",
        splits=("test",),
        reward="tool_call",
        read=lambda query: _read(category, query),
        example=lambda split: _example(category),
        answer_key=answers.tool_answer,
        gold=_gold,
        tools_template=TOOLS_TEMPLATE,
    )


BFCL = {f"bfcl:{category}": _benchmark(category) for category in CATEGORIES}
