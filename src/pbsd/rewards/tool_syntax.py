"""Tool calls as models write them: JSON, Hermes/Qwen tags, Action lines or Python calls. Nothing is evaluated."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any, NamedTuple

SYNTAXES = ("auto", "json", "python", "hermes", "action")

_TAG, _END_TAG = re.compile(r"<tool_call>\s*"), re.compile(r"\s*</tool_call>")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_FENCE_MARK = re.compile(r"```(?:[^\n`(]*\n)?")
_ACTION = re.compile(r"^[ \t]*Action:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_JSON_CALL = re.compile(r'[\[{].*"(?:name|arguments|parameters|function|tool_calls)"\s*:', re.DOTALL)
_PYTHON_CALL = re.compile(r"[^\W\d][\w.]*\(\s*\w+\s*=(?!=)")
_ACTION_INPUT = re.compile(r"^[ \t]*Action Input:\s*", re.MULTILINE)
_CALL_KEYS = {"name", "arguments", "parameters", "id", "type"}
_BESIDE_FUNCTION = {"function", "id", "type", "index"}


class Call(NamedTuple):
    """One tool call: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def parse_calls(text: str, syntax: str) -> list[Call]:
    """The calls written in `text`, in order.

    - `hermes`: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, with any prose around the tags;
    - `action`: lines `Action: name`, each followed by `Action Input: {...}`, as in ToolAlpaca, with any prose around;
    - `json`: the whole text, or its only code fence, is a call object or a list of them; also OpenAI's
      `{"function": {"name": ..., "arguments": "<json>"}}` and a message `{"tool_calls": [...]}` of those;
    - `python`: likewise `f(a=1)`, `[f(a=1), m.g(b="x")]`, or one call a line; values are literals, all named;
    - `auto`: JSON where the text is wholly that, else hermes when there is a tag, else action when there is such a
      line, else Python.

    Raises ValueError, saying what could not be read, when the text is not wholly such calls.
    """
    fences = _FENCE.findall(text)
    body = (fences[0] if len(fences) == 1 else text).strip()
    # First, since a tag or an Action line in one of its strings is text.
    if syntax == "json" or (syntax == "auto" and _is_json(body)):
        return json_calls(load_json(body))
    if syntax == "hermes" or (syntax == "auto" and "<tool_call>" in text):
        return _hermes_calls(text)
    if syntax == "action" or (syntax == "auto" and _ACTION.search(text)):
        return _action_calls(text)
    return _python_calls(body)


def looks_like_call(text: str) -> bool:
    """Is a call tried, whether or not it can be read?

    That is a tag or an Action line anywhere; or the whole text, or what a code fence parts from the rest, is Python
    with a call in it, or begins as a JSON or Python call. Prose that mentions a call is none.
    """
    if "<tool_call>" in text or _ACTION.search(text):
        return True
    return any(_tries_call(body.strip("` \r\n")) for body in _FENCE_MARK.split(text))


def _tries_call(body: str) -> bool:
    calls = body.strip("[] ")  # BFCL's decoder too adds the brackets of a list that are missing
    if _JSON_CALL.match(body) or _PYTHON_CALL.match(calls):
        return True
    try:
        statements = _statements(calls)
    except ValueError:
        return False
    return any(isinstance(node, ast.Call) for statement in statements for node in ast.walk(statement))


def load_json(text: str) -> Any:
    """`json.loads` that refuses a key given twice. Raises ValueError when the text is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, as `load_json` reads it, and where it ends."""
    try:
        return json.JSONDecoder(object_pairs_hook=_unique_keys).raw_decode(text, start)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def json_calls(value: Any) -> list[Call]:
    """A call object, a list of call objects, or a message with `tool_calls`. Raises ValueError when it is neither."""
    if isinstance(value, dict) and "name" not in value and isinstance(value.get("tool_calls", ""), list | type(None)):
        value = value["tool_calls"] or []  # OpenAI writes null for none
    return [_json_call(item) for item in (value if isinstance(value, list) else [value])]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError(f"a JSON key is given twice among {[key for key, _ in pairs]!r:.200}")
    return unique


def _json_call(value: Any) -> Call:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.200} is not a call object")
    if isinstance(value.get("function"), dict):
        if unknown := value.keys() - _BESIDE_FUNCTION:
            raise ValueError(f"keys {sorted(unknown)} stand beside the call's function")
        return _json_call(value["function"])
    if {"arguments", "parameters"} <= value.keys():
        raise ValueError("the call has arguments twice, as `arguments` and as `parameters`")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = load_json(arguments)
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
        raise ValueError(f"{value!r:.200} is not a call: a name and an object of arguments are needed")
    if unknown := value.keys() - _CALL_KEYS:
        raise ValueError(f"keys {sorted(unknown)} stand beside the call's arguments")
    return Call(value["name"], arguments)


def _hermes_calls(text: str) -> list[Call]:
    """The JSON decides where a call ends: a tag in one of its strings is text."""
    calls: list[Call] = []
    end = 0
    while opening := _TAG.search(text, end):
        value, end = _decode(text, opening.end())
        closing = _END_TAG.match(text, end)
        if closing is None:
            raise ValueError("a <tool_call> is not closed, or holds more than one JSON value")
        calls += json_calls(value)
        end = closing.end()
    if not calls:
        raise ValueError("no <tool_call>")
    return calls


def _action_calls(text: str) -> list[Call]:
    names = list(_ACTION.finditer(text))
    if len(names) != len(_ACTION_INPUT.findall(text)):
        raise ValueError("the lines `Action:` and `Action Input:` do not pair off")
    ends = [*(name.start() for name in names[1:]), len(text)]
    return [_action_call(name[1], text[name.end() : end]) for name, end in zip(names, ends, strict=True)]


def _action_call(name: str, rest: str) -> Call:
    start = _ACTION_INPUT.search(rest)
    if not name or start is None:
        raise ValueError(f"Action {name!r:.100} has no name or no Action Input")
    arguments, end = _decode(rest, start.end())
    if not isinstance(arguments, dict) or rest[end:].partition("\n")[0].strip():
        raise ValueError(f"the Action Input of {name!r:.100} is not one JSON object")
    return Call(name, arguments)


def _statements(text: str) -> list[ast.stmt]:
    """Raises ValueError when the text is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser comments on escapes in model-written strings
            return ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as failure:
        raise ValueError(f"not a Python call: {failure}") from None


def _python_calls(text: str) -> list[Call]:
    nodes: list[ast.expr] = []
    for statement in _statements(text):
        if not isinstance(statement, ast.Expr):
            raise ValueError(f"line {statement.lineno} is not a call")
        value = statement.value
        nodes.extend(value.elts if isinstance(value, ast.List | ast.Tuple) else [value])
    if not nodes:
        raise ValueError("no call")
    return [_python_call(node) for node in nodes]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError(f"line {node.lineno} is not a call")
    name = _dotted_name(node.func)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"an argument of {name} has no name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        assert keyword.arg is not None
        if keyword.arg in arguments:
            raise ValueError(f"argument {keyword.arg!r} of {name} is given twice")
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
            repr(arguments[keyword.arg])  # raises for a hexadecimal integer of more digits than Python would read
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"argument {keyword.arg!r} of {name} is not a literal value") from None
    return Call(name, arguments)


def _dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted_name(node.value)}.{node.attr}"
    raise ValueError("the called function is not a plain or dotted name")
