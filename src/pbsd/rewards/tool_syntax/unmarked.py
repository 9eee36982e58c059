"""Calls without special tokens: JSON, Python, code fences, and `Action:` lines. What is no call is left alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pbsd.rewards.tool_syntax import python
from pbsd.rewards.tool_syntax.calls import (
    Call,
    NoCall,
    calls_by_name,
    decode,
    is_call_like,
    is_cut_off,
    json_calls,
    load_json,
)
from pbsd.rewards.tool_syntax.marked import Reader

FENCE_BEGINS = r"```(?:[^\n`({\[]{0,200}\n|json(?=\s?[\[{]))?"
_FENCE_ENDS = re.compile(r"\s*```")
_JSON_FENCE = re.compile(r"\s*(?=[\[{]\s*[\"'{])")
_NEXT_VALUE = re.compile(r"[\s,;]*(?=[\[{])")

_KEYS = "name|tool_name|tool|action|function|type|id|index|tool_call_id|tool_calls|arguments|parameters|role|thought"
JSON_BEGINS = rf"(?:\[\s*)?\{{\s*[\"'](?:{_KEYS})[\"']\s*:"
_CALL_KEYS = re.compile(r"[\"'](?:arguments|parameters|tool_calls|args|tool_input|action_input)[\"']")
_CALL_BEGINS = re.compile(r"(?:\[\s*)?\{\s*[\"'](?:(?:name|tool_name|function)[\"']\s*:|type[\"']\s*:\s*[\"']function)")
_WINDOW = 1_000
"""As far as the keys of a call are looked for in JSON that cannot be read: to the end would be quadratic."""

LIST_BEGINS = rf"(?<![\w\])])\[\s*(?={python.BEGINS.pattern}|[^\W\d][\w.]{{0,199}}\((?:\)|\w{{0,99}}\Z))"

_ACTION = re.compile(r"^[ \t]*Action:(.*)$", re.MULTILINE)
_ACTION_INPUT = re.compile(r"^[ \t]*Action Input:\s*", re.MULTILINE)
ACTION_BEGINS = r"Action:"
ACTION_FENCE_BEGINS = rf"{ACTION_BEGINS}\s{{0,20}}```"
_ACTION_FENCE = re.compile(r"Action:\s*```[^\n`{\[]*\s*")
_ACTION_FENCE_ENDS = re.compile(r"\s*```")
_NO_TOOL = ("directly_answer", "directly-answer")
"""Command R's tool for an answer without a call."""


def json_body(text: str, names: Collection[str]) -> list[Call]:
    """The calls of a text that is wholly JSON. Raises NoCall where it is other JSON, ValueError where it is none."""
    value = load_json(text)
    if calls := calls_by_name(value, names):
        return calls
    # A name alone is a call without arguments only where nothing else is said.
    if value != [] and not is_call_like(value, names) and not (isinstance(value, dict) and value.keys() == {"name"}):
        raise NoCall(f"{text!r:.200} is not a call object, nor a list of them")
    return json_calls(value, names)


def json_in_text(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """A call object, or a list of them, that stands in a text. Other JSON is data."""
    try:
        value, end = decode(text, start.start())
    except ValueError as failure:
        position = getattr(failure, "pos", None)
        if position is None or _tries_json_call(text, start.start(), failure):
            raise
        return [], position
    return (json_calls(value) if is_call_like(value) else []), end


def _tries_json_call(text: str, start: int, failure: ValueError) -> bool:
    """Is what begins at `start`, which is no JSON, meant as a call?"""
    if _CALL_KEYS.search(text, start, start + _WINDOW):
        return True
    return _CALL_BEGINS.match(text, start) is not None and is_cut_off(failure)


def list_in_text(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`[f(a=1), g()]` in a text, as Llama writes it."""
    end = python.end_of_list(text, start.start())
    if end is None:
        raise ValueError("the bracket of the list is not closed")
    if text[end : end + 1] == "(":  # a link in Markdown
        return [], end
    return python.python_calls(text[start.start() : end]), end


def fence(*, json: bool = True, code: bool = True) -> Reader:
    """The reader of a code fence's calls: JSON, one value or several, or Python. What is no list of calls is left
    alone."""

    def read(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
        closing = text.find("```", start.end())
        body_ends, end = (closing, closing + 3) if closing >= 0 else (len(text), len(text))
        if begins := _JSON_FENCE.match(text, start.end()):
            return _json_fence(text, begins.end(), end) if json else ([], end)
        return (_code(text[start.end() : body_ends].strip()) if code else []), end

    return read


def _json_fence(text: str, start: int, fence_ends: int) -> tuple[list[Call], int]:
    """The JSON decides where the fence ends: a fence in one of its strings is text."""
    calls: list[Call] = []
    end = start
    while begins := _NEXT_VALUE.match(text, end):
        try:
            value, end = decode(text, begins.end())
        except ValueError as failure:
            if calls or _tries_json_call(text[:fence_ends], begins.end(), failure):
                raise
            return [], fence_ends
        if is_call_like(value):
            calls += json_calls(value)
    closing = _FENCE_ENDS.match(text, end)
    return calls, closing.end() if closing else max(end, fence_ends)


def code_tag(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """SmolLM3's `<code>f(a=1)</code>`. Other code is left alone."""
    body, closing, _ = text[start.end() :].partition("</code>")
    return _code(body.strip()), start.end() + len(body) + len(closing)


def tool_code(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """Gemma's fence `tool_code`; where the fence is left out, all that follows."""
    fenced = start[0].startswith("```")
    body, closing, _ = text[start.end() :].partition("```") if fenced else (text[start.end() :], "", "")
    return python.tool_code_calls(body.strip()), start.end() + len(body) + len(closing)


def _code(body: str) -> list[Call]:
    """The calls that code makes; none where it is an example for people. Raises ValueError where it tries some."""
    try:
        body_statements = python.statements(body.strip("[] "))
    except ValueError:
        if python.BEGINS.match(body.lstrip("[ ")):
            raise
        return []
    if python.is_program(body_statements) or not python.calls_something(body_statements, builtin=False):
        return []
    return python.python_calls(body)


def python_body(text: str) -> list[Call]:
    """The calls of a text that is wholly Python. Raises NoCall where it is no code with a call, or an example for
    people, and ValueError where a call cannot be read."""
    try:
        return python.python_calls(text)
    except ValueError:
        inside = text.strip("`[] \r\n")  # BFCL's decoder too adds the brackets of a list that are missing
        if python.BEGINS.match(inside):
            raise
        try:
            body = python.statements(inside)
        except ValueError as failure:
            raise NoCall(str(failure)) from None
        if python.calls_something(body) and not python.is_program(body):
            raise
        raise NoCall("no call") from None


def unfenced(text: str) -> str:
    """What stands in the fence that a text wholly is; the text itself where it is none."""
    text = text.strip()
    opening = re.match(FENCE_BEGINS, text)
    if opening and text.endswith("```") and text.find("```", opening.end()) == len(text) - 3:
        return text[opening.end() : -3].strip()
    return text


def action_fence(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """Command R's `Action:` with a fence of JSON call objects."""
    opening = _ACTION_FENCE.match(text, start.start())
    assert opening is not None
    if not _begins_line(text, start.start()):
        return [], start.end()
    value, end = decode(text, opening.end())
    closing = _ACTION_FENCE_ENDS.match(text, end)
    if closing is None:
        raise ValueError("the fence is not closed")
    return [call for call in json_calls(value) if call.name not in _NO_TOOL], closing.end()


def action_lines(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """ReAct's and ToolAlpaca's lines `Action: name`, each with `Action Input: {...}`, to the end of the text."""
    if not _begins_line(text, start.start()):
        return [], start.end()
    rest = text[start.start() :]
    names = list(_ACTION.finditer(rest))
    if len(names) != len(_ACTION_INPUT.findall(rest)):
        raise ValueError("the lines `Action:` and `Action Input:` do not pair off")
    ends = [*(name.start() for name in names[1:]), len(rest)]
    calls = [_action(name[1].strip(), rest[name.end() : end]) for name, end in zip(names, ends, strict=True)]
    return calls, len(text)


def _begins_line(text: str, start: int) -> bool:
    """Do only blanks, and not many, stand before `start` on its line?"""
    before = text[max(0, start - 40) : start]
    return not before.rpartition("\n")[2].strip() and ("\n" in before or start <= 40)


def _action(name: str, rest: str) -> Call:
    start = _ACTION_INPUT.search(rest)
    if not name or start is None:
        raise ValueError(f"Action {name!r:.100} has no name or no Action Input")
    arguments: Any
    arguments, end = decode(rest, start.end())
    if not isinstance(arguments, dict) or rest[end:].partition("\n")[0].strip():
        raise ValueError(f"the Action Input of {name!r:.100} is not one JSON object")
    return Call(name, arguments)
