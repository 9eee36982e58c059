"""ToolAlpaca as SDFT and SDPO use it: a prompt holds the tools and the question, an answer is `Action:` lines."""

from __future__ import annotations

import json
from typing import Any

from pbsd.benchmarks import answers, examples
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
    )
}
