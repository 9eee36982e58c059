"""Formats with a tag for every argument. Their values are text without a type, unless a tag says which.

A value ends at the closing tag that is followed by what may follow it, so that a closing tag in a value is text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pbsd.rewards.tool_syntax.calls import Call, Untyped, decode_object, load_json

_SPACE = re.compile(r"\s*")
_PREFIX = r"(?:\w{1,20}:|[｜|]DSML[｜|])?"

FUNCTION_BEGINS = r"(?:<(?:seed:)?tool_call>\s*)?<function="
_FUNCTION = re.compile(r"(?:<(?:seed:)?tool_call>\s*)?<function=\s*([^\s<>]{1,200})\s*>\s*")
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,200})>")
_PARAMETER_ENDS = re.compile(r"</parameter>\s*(?=<parameter=|</function>)")
_FUNCTION_ENDS = re.compile(r"\s*</function>")
_TAG_ENDS = re.compile(r"\s*</(?:seed:)?tool_call>")

KEYED_BEGINS = r"(?:<tool_calls>\s*)?<tool_call>\s*(?![\s{\[<])|<arg_key>"
_KEYED_NAME = re.compile(
    r"(?:<tool_calls>\s*)?<tool_call>\s*([^\s<>(){}\[\]\"']{1,200})\s*(?:<tool_sep>\s*)?(?=<arg_key>|</tool_call>)"
)
_KEY = re.compile(r"<arg_key>([^<>]{1,200})</arg_key>\s*<arg_value>")
_VALUE_ENDS = re.compile(r"</arg_value>\s*(?=<arg_key>|</tool_call>)")
_KEYED_ENDS = re.compile(r"\s*</tool_call>")

INVOKE_BEGINS = (
    rf"<minimax:tool_call>|<{_PREFIX}function_calls>(?=\s*<)|<[｜|]DSML[｜|]\w{{1,20}}>|<{_PREFIX}invoke(?=[\s>])"
)
_SECTION = re.compile(rf"<{_PREFIX}(?:function_calls|tool_calls?)>\s*")
_SECTION_ENDS = re.compile(rf"\s*</{_PREFIX}(?:function_calls|tool_calls?)>")
_INVOKE = re.compile(rf"<{_PREFIX}invoke\s+name\s*=\s*[\"']([^\"'<>]{{1,200}})[\"']\s*>\s*")
_INVOKE_ENDS = re.compile(rf"\s*</{_PREFIX}invoke>")
_NAMED = re.compile(
    rf"<{_PREFIX}parameter\s+name\s*=\s*[\"']([^\"'<>]{{1,200}})[\"'](?:\s+string\s*=\s*[\"'](true|false)[\"'])?\s*>"
)
_NAMED_ENDS = re.compile(rf"</{_PREFIX}parameter>\s*(?=<{_PREFIX}parameter[\s>]|</{_PREFIX}invoke>)")

XTML_BEGINS = r"<\|open\|>(?:tools|call)(?=[\s<])"
_XTML_OPENS = re.compile(r"<\|open\|>tools<\|sep\|>\s*")
_XTML_CALL = re.compile(r"<\|open\|>call((?:\s+\w{1,20}=\"[^\"<]{0,200}\")*)\s*<\|sep\|>\s*")
_XTML_CALL_ENDS = re.compile(r"\s*<\|close\|>call<\|sep\|>\s*")
_XTML_ARGUMENT = re.compile(r"\s*<\|open\|>argument((?:\s+\w{1,20}=\"[^\"<]{0,200}\")*)\s*<\|sep\|>")
_XTML_ARGUMENT_ENDS = re.compile(r"<\|close\|>argument<\|sep\|>")
_XTML_CLOSES = re.compile(r"\s*<\|close\|>tools<\|sep\|>")
_ATTRIBUTE = re.compile(r"(\w+)=\"([^\"]*)\"")


def function_call(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`<function=f><parameter=a>v</parameter></function>`, or JSON in `<function=f>`, in a tag for the call or not."""
    opening = _FUNCTION.match(text, start.start())
    if opening is None:
        raise ValueError("<function= has no name")
    end = opening.end()
    arguments: dict[str, Any] = {}
    if text.startswith("{", end):
        arguments, end = decode_object(text, end)
    while parameter := _PARAMETER.match(text, end):
        value, end = _value(text, parameter.end(), _PARAMETER_ENDS, "</parameter>")
        # Templates set a value on lines of its own; the line end on each side is not of it.
        _add(arguments, parameter[1].strip(), Untyped(value.removeprefix("\n").removesuffix("\n")))
    end = _closed(text, end, _FUNCTION_ENDS, "</function>")
    if "tool_call>" in opening[0]:
        end = _closed(text, end, _TAG_ENDS, "</tool_call>")
    return [Call(opening[1], arguments)], end


def keyed_call(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`<tool_call>f<arg_key>a</arg_key><arg_value>v</arg_value></tool_call>`."""
    opening = _KEYED_NAME.match(text, start.start())
    if opening is None:
        raise ValueError("no function's name with <arg_key> or </tool_call> after it")
    end = opening.end()
    arguments: dict[str, Any] = {}
    while key := _KEY.match(text, end):
        value, end = _value(text, key.end(), _VALUE_ENDS, "</arg_value>")
        _add(arguments, key[1].strip(), Untyped(value))
    return [Call(opening[1], arguments)], _closed(text, end, _KEYED_ENDS, "</tool_call>")


def invoke_calls(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`<invoke name="f"><parameter name="a">v</parameter></invoke>`, or JSON in it; in a section of calls or not.

    A tag may have a prefix (`minimax:`, `atem:`, `｜DSML｜`); string="true" says that the value is one, "false" that it
    is JSON.
    """
    section = _SECTION.match(text, start.start())
    end = section.end() if section else start.start()
    calls: list[Call] = []
    while opening := _INVOKE.match(text, end):
        call, end = _invoke(text, opening)
        calls.append(call)
        end = _skip(text, end) if section else end
    if not calls:
        raise ValueError('no <invoke name="...">')
    return calls, _section_closed(text, end, _SECTION_ENDS, "the section's closing tag") if section else end


def _invoke(text: str, opening: re.Match[str]) -> tuple[Call, int]:
    end = opening.end()
    arguments: dict[str, Any] = {}
    if text.startswith("{", end):
        arguments, end = decode_object(text, end)
    while parameter := _NAMED.match(text, end):
        value, end = _value(text, parameter.end(), _NAMED_ENDS, "</parameter>")
        kind = parameter[2]
        _add(arguments, parameter[1], {"true": value, "false": _json(value)}[kind] if kind else Untyped(value))
    return Call(opening[1], arguments), _closed(text, end, _INVOKE_ENDS, "</invoke>")


def xtml_calls(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """Kimi K3's `<|open|>call tool="f"<|sep|>`, with an `argument key="a" type="string"` for each argument."""
    section = _XTML_OPENS.match(text, start.start())
    end = section.end() if section else start.start()
    calls: list[Call] = []
    while opening := _XTML_CALL.match(text, end):
        end = opening.end()
        arguments: dict[str, Any] = {}
        while argument := _XTML_ARGUMENT.match(text, end):
            given = _attributes(argument[1])
            value, end = _value(text, argument.end(), _XTML_ARGUMENT_ENDS, "<|close|>argument<|sep|>")
            if "key" not in given:
                raise ValueError("an argument has no key")
            _add(arguments, given["key"], value if given.get("type", "string") == "string" else load_json(value))
        end = _closed(text, end, _XTML_CALL_ENDS, "<|close|>call<|sep|>")
        if not (name := _attributes(opening[1]).get("tool")):
            raise ValueError('a call has no tool="..."')
        calls.append(Call(name, arguments))
    if not calls:
        raise ValueError("no <|open|>call")
    return calls, _section_closed(text, end, _XTML_CLOSES, "<|close|>tools<|sep|>") if section else end


def _skip(text: str, start: int) -> int:
    blank = _SPACE.match(text, start)
    assert blank is not None
    return blank.end()


def _attributes(written: str) -> dict[str, str]:
    pairs = _ATTRIBUTE.findall(written)
    return {key: value.replace("&quot;", '"').replace("&amp;", "&") for key, value in pairs}


def _value(text: str, start: int, ends: re.Pattern[str], tag: str) -> tuple[str, int]:
    """The value that begins at `start`, and where what follows it begins."""
    closing = ends.search(text, start)
    if closing is None:
        raise ValueError(f"a value is not closed by {tag}")
    return text[start : closing.start()], closing.end()


def _add(arguments: dict[str, Any], name: str, value: Any) -> None:
    if name in arguments:
        raise ValueError(f"argument {name!r:.100} is given twice")
    arguments[name] = value


def _closed(text: str, end: int, closing: re.Pattern[str], tag: str) -> int:
    found = closing.match(text, end)
    if found is None:
        raise ValueError(
            f"{tag} is missing where {text[end : end + 40]!r} stands" if text[end:] else f"{tag} is missing"
        )
    return found.end()


def _section_closed(text: str, end: int, closing: re.Pattern[str], tag: str) -> int:
    """Like `_closed`; the end of the text closes a section too, since servers stop there."""
    return end if _skip(text, end) == len(text) else _closed(text, end, closing, tag)


def _json(value: str) -> Any:
    try:
        return load_json(value)
    except json.JSONDecodeError:
        return value
