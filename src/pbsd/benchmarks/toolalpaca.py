"""ToolAlpaca as SDFT and SDPO use it: a prompt holds the tools and the question, an answer is `Action:` lines.

`toolalpaca` has the prompts as published, for numbers beside theirs. `toolalpaca:native` has the question alone in the
prompt and the tools as JSON schemas, read out of the published text, for models whose chat template writes tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pbsd.benchmarks import answers, bfcl, examples
from pbsd.benchmarks.adapter import Benchmark, RawRow, Row, Table, UnusableRow, reader, splits
from pbsd.rewards.tool_syntax import parse_calls


def _row(raw: RawRow, index: int) -> Row:
    if not raw["prompt"]:
        raise UnusableRow("rows without a prompt")
    response = raw.get("golden_response")
    response = "\n".join(response) if isinstance(response, list) else response
    golden = raw.get("golden_answer")
    return {
        "id": str(index),
        "prompt": [{"role": "user", "content": raw["prompt"]}] if isinstance(raw["prompt"], str) else raw["prompt"],
        "privileged_context": response or None,
        "answer": json.dumps(_calls_of(response) if golden is None else _listed(golden)),
    }


_FUNCTION = re.compile(r"^(?!Output:)([\w.-]+): ([^\n]*?)\s*Parameters: (\{[^\n]*\})\s*$", re.MULTILINE)
"""A function of the published text: its name, what it does, and the JSON of its parameters."""
_QUESTION = re.compile(r"^Question: (.+)", re.MULTILINE | re.DOTALL)
_ACTION = re.compile(r"^Action: *(\S+)[ \t]*\nAction Input: *(\{.*\})[ \t]*$", re.MULTILINE)
_TYPES = ("string", "integer", "number", "boolean", "array", "object")


def _native(convert: Callable[[RawRow, int], Row]) -> Callable[[RawRow, int], Row]:
    """The row with its question as the prompt and its tools as schemas."""

    def convert_natively(raw: RawRow, index: int) -> Row:
        row = convert(raw, index)
        text = row["prompt"][-1]["content"]
        documentation = text.partition("Documentation:")[2].partition("Use the following format:")[0]
        questions = list(_QUESTION.finditer(text))
        tools = [_schema(*match.groups()) for match in _FUNCTION.finditer(documentation)]
        if not tools or not questions:
            raise UnusableRow("rows whose prompt is not laid out as ToolAlpaca's")
        if documentation.count("Parameters: ") != len(tools):
            raise UnusableRow("rows with a tool that cannot be read")
        calls = json.loads(row["answer"])
        if not {_name(call) for call in calls} <= {tool["function"]["name"] for tool in tools}:
            raise UnusableRow("rows whose answer calls another function than the tools")
        question = questions[-1][1].strip()
        return {
            **row,
            "prompt": [*row["prompt"][:-1], {"role": "user", "content": question}],
            "privileged_context": row["privileged_context"] and _ACTION.sub(_call, row["privileged_context"]),
            "tools": json.dumps(tools),
        }

    return convert_natively


def _schema(name: str, description: str, parameters: str) -> dict[str, Any]:
    try:
        documented = json.loads(parameters)
        properties = {key: _property(str(text)) for key, text in documented.items()}
    except (AttributeError, ValueError):
        raise UnusableRow("rows with a tool that cannot be read") from None
    required = [key for key, text in documented.items() if str(text).lower().startswith("required")]
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description.strip(), "parameters": schema}}


def _property(text: str) -> dict[str, Any]:
    """`Required. integer. How many.` as a schema; the whole text stays as its description."""
    words = text.lower().removeprefix("required.").split()
    kind = next((kind for kind in _TYPES if words and words[0].startswith(kind)), None)
    return {**({"type": kind} if kind else {}), "description": text}


def _call(action: re.Match[str]) -> str:
    """An action of a response as the JSON of a call, which is of no model's format."""
    return f'{{"name": {json.dumps(action[1])}, "arguments": {action[2]}}}'


def _name(call: dict[str, Any]) -> str:
    return str(call.get("Action", call.get("name")))


def _sdpo_row(raw: RawRow, index: int) -> Row:
    """Of the files in SDPO's repository, which hold no responses: rows have no privileged context."""
    row = _row({"prompt": raw["prompt"], "golden_answer": raw["answer"] or []}, index)
    if raw.get("system"):
        row["prompt"] = [{"role": "system", "content": raw["system"]}, *row["prompt"]]
    return row


def _listed(golden: Any) -> list[Any]:
    try:
        calls = json.loads(golden) if isinstance(golden, str) else golden
    except ValueError:
        raise UnusableRow("rows whose golden_answer is not JSON") from None
    if not isinstance(calls, list) or not calls:
        raise UnusableRow("rows without a golden_answer")
    return calls


def _calls_of(response: Any) -> list[dict[str, Any]]:
    """The calls that a written response makes, which the training rows' reward compares with."""
    if not isinstance(response, str) or not response.strip():
        raise UnusableRow("rows without a response")
    try:
        calls = parse_calls(response, "action")
    except ValueError:
        raise UnusableRow("rows whose response has no readable calls") from None
    if not calls:
        raise UnusableRow("rows whose response has no calls")
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _gold(row: Row) -> str:
    """The expected calls as `Action:` lines."""
    lines = []
    for call in json.loads(row["answer"]):
        name, arguments = call.get("Action", call.get("name")), call.get("Action_Input", call.get("arguments"))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        lines.append(f"Action: {name}\nAction Input: {text}")
    return "\n".join(lines)


_SDFT = Table(
    "Ahren09/ToolAlpaca",
    {"test": ("prompt", "golden_answer"), "train": ("prompt", "golden_response")},
    _row,
    optional=("golden_response",),
)
_SDPO = Table(_SDFT.hub_id, dict.fromkeys(("test", "train"), ("prompt", "answer")), _sdpo_row, optional=("system",))

TOOLALPACA = {
    "toolalpaca": Benchmark(
        name="toolalpaca",
        splits=splits([_SDFT, _SDPO]),
        reward={"name": "tool_call", "syntax": "action"},
        read=reader(_SDFT, _SDPO),
        example=lambda split: _SDFT.convert_all(examples.TOOLALPACA[split], "example rows"),
        answer_key=answers.tool_answer,
        gold=_gold,
    ),
    "toolalpaca:native": Benchmark(
        name="toolalpaca:native",
        splits=splits([_SDFT, _SDPO]),
        reward="tool_call",
        read=reader(*(replace(table, convert=_native(table.convert)) for table in (_SDFT, _SDPO))),
        example=lambda split: replace(_SDFT, convert=_native(_row)).convert_all(
            examples.TOOLALPACA[split], "example rows"
        ),
        answer_key=answers.tool_answer,
        gold=_gold,
        tools_template=bfcl.TOOLS_TEMPLATE,
    ),
}
