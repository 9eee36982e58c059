"""Calls of functions whose names are known, in forms that no format here has: what tries one is never silence."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Collection

from pbsd.rewards.tool_syntax import python
from pbsd.rewards.tool_syntax.calls import (
    Call,
    calls_by_name,
    decode,
    decode_object,
    describes_tool,
    is_call_like,
    json_calls,
)

_WINDOW = 200
"""As far as is looked before and after a name: to the text's ends would be quadratic."""
_MAX_BROKEN = 50
"""So many places where JSON begins and cannot be read are tried: all of them would be quadratic."""

_PREFIX = r"(?:functions\.|default_api\.)?"
_JSON = re.compile(r"(?:\[\s*)?\{\s*[\"']")
_MARKUP = r"[*_`\"')\]|]{0,4}"
_TEXT_TAGS = r"(?:a|b|br|code|dd|dt|em|h\d|hr|i|kbd|li|mark|p|pre|s|small|span|strong|sub|sup|td|th|tt|u|ul|var)\b"
_CALL_WORD = r"(?:function|func|tool|action|call|invoke|invocation|recipient|execute|use)"

_BEHIND = re.compile(
    r"(?:"
    r"<|\bto\s?=\s?|>>>|"  # <f>, <f a="1"/>, to=f
    rf"<<?(?!/?{_TEXT_TAGS})[^\s<>/]{{1,40}}>>?\s*|"  # <tool>f, <|call|>f
    r"<[A-Za-z_|][^<>\n]{0,80}=\s?[\"']?|"  # <tool name="f"
    rf"\[[\w :\-]{{0,20}}{_CALL_WORD}[\w :\-]{{0,20}}\]:?\s*"  # [FUNC_CALL] f
    r")[`\"'*]{0,3}\Z",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"(?:^|\n)[\s*_#>\-]*(?:[A-Za-z]{{1,20}}[ _\-])?{_CALL_WORD}s?(?:[ _\-][A-Za-z]{{1,20}})?"
    rf"[*_]{{0,3}}\s?[:=][\s*_`\"']*\Z",
    re.IGNORECASE,
)
"""`Function: f`, `**Tool name**: f`, at the beginning of a line."""
_LABELLED = re.compile(rf"{_MARKUP}[ \t]*(?:\n(?!\W*descri)|\Z|\((?=[^()\n]*[=:\"'])|<)", re.IGNORECASE)
_BEFORE_PARENTHESIS = re.compile(r"(?:[>\]@$|!/]|\b(?:CALL|TOOL|FUNCTION|ACTION|INVOKE|EXECUTE|USE)[ \t])[ \t]?`?\Z")
_ARGUMENTS_LINE = re.compile(
    rf"{_MARKUP}\s*\n\W*(?:[A-Za-z]{{1,20}}[ _\-])?(?:arguments|args|input)[*_]{{0,3}}[ \t]?[:=]", re.IGNORECASE
)
"""`Arguments:` on the next line, whatever stands there."""

_OBJECT = re.compile(
    rf"{_MARKUP}>?(?:</?[^\s<>]{{1,40}}>)?\s{{0,3}}(?:<\|[^|<>\s]{{1,20}}\|>|commentary\b|json\b|\s)*"
    r"(?:[:=]|-?->|=>)?[*_`]{0,3}\s*"
    r"(?:(?<=[\n>])[*_#\-\s]*[A-Za-z][\w ]{0,30}[*_`]{0,3}[ \t]?[:=][*_]{0,2}\s*|<[^\s<>/]{1,40}>\s*)?"  # `Arguments:`
    r"(?:```\w{0,20}\s*)?(?=\{\s*(?:[\"'}]|[\w\-]+\s*[:=]|\Z))"  # {1, 2} is a set
)
"""From a name to the object of its arguments."""
_TAG = re.compile(rf"<(?!/|{_TEXT_TAGS})[A-Za-z_|]", re.IGNORECASE)


def known_calls(text: str, names: Collection[str]) -> list[Call]:
    """The calls of the functions `names` in a text where no format was found; none where they are only mentioned.

    A call is tried where JSON holds a name as a value (`{"tool": "f", "input": {...}}`), where an opening of arguments
    follows one (`f: {`, `f<tag>`), and where one stands behind what marks a call (`<f`, `<tool>f`, `to=f`,
    `Function: f`). It is read where its arguments are JSON, or it is Python behind a marker.

    Raises ValueError where a call is tried and cannot be read.
    """
    name = _name_pattern(frozenset(names)) if names else None
    if name is None or not name.search(text):
        return []
    calls, data = _json(text, names)
    return calls or _others(text, name, data)


@functools.lru_cache(maxsize=512)
def _name_pattern(names: frozenset[str]) -> re.Pattern[str]:
    options = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name.strip()) or r"(?!)"
    return re.compile(rf"(?<![\w.\-]){_PREFIX}({options})(?![\w\-])")


@functools.lru_cache(maxsize=512)
def _quoted_pattern(names: frozenset[str]) -> re.Pattern[str]:
    options = "|".join(re.escape(name) for name in names if name.strip()) or r"(?!)"
    name = rf"([\"']){_PREFIX}(?:{options})"
    return re.compile(rf"[\"']\s{{0,9}}:\s{{0,9}}{name}\1|[{{,]\s{{0,9}}{name}\2\s{{0,9}}:\s{{0,9}}\{{")


def _json(text: str, names: Collection[str]) -> tuple[list[Call], list[tuple[int, int]]]:
    """The calls in JSON, and where the other JSON stands, which is data."""
    calls: list[Call] = []
    data: list[tuple[int, int]] = []
    quoted = _quoted_pattern(frozenset(names))
    if not quoted.search(text):
        return calls, data
    position = broken = 0
    while broken < _MAX_BROKEN and (begun := _JSON.search(text, position)):
        try:
            value, position = decode(text, begun.start())
        except ValueError:
            broken += 1
            position = begun.start() + 1
            continue
        if by_name := calls_by_name(value, names):
            calls += by_name
        elif is_call_like(value, names):
            calls += json_calls(value, names)
        data.append((begun.start(), position))
    begins = 0
    for start, end in [*data, (len(text), len(text))]:
        if found := quoted.search(text, begins, start):
            raise ValueError(f"{found[0]!r:.100} stands in JSON that is broken or cut off")
        begins = end
    return calls, data


def _others(text: str, name: re.Pattern[str], data: list[tuple[int, int]]) -> list[Call]:
    """The calls outside of JSON data."""
    calls: list[Call] = []
    position = 0
    while found := name.search(text, position):
        position = found.end()
        covering = bisect.bisect(data, (found.start(), len(text))) - 1
        if covering >= 0 and found.start() < data[covering][1]:
            position = data[covering][1]
            continue
        call, position = _call(text, found)
        calls += call
    return calls


def _call(text: str, found: re.Match[str]) -> tuple[list[Call], int]:
    """The call that the name found in the text makes, if any, and where it ends."""
    before = text[max(0, found.start() - _WINDOW) : found.start()]
    after = text[found.end() : found.end() + _WINDOW]
    if opening := _OBJECT.match(text, found.end(), found.end() + _WINDOW):
        arguments, end = decode_object(text, opening.end())
        if describes_tool(arguments):
            return [], end
        return [Call(found[1], arguments)], end
    marked = _BEHIND.search(before) or (_LABEL.search(before) and _LABELLED.match(after))
    if after.startswith("(") and (marked or _BEFORE_PARENTHESIS.search(before)):
        end_ = python.end_of_list(text, found.end())
        if end_ is None:
            raise ValueError(f"the parenthesis of {found[1]:.100} is not closed")
        call, *_ = python.python_calls(text[found.start() : end_], json_names=True)
        return [Call(found[1], call.arguments)], end_
    if marked or _TAG.match(after) or _ARGUMENTS_LINE.match(after):
        raise ValueError(f"{(before[-20:] + found[0] + after[:20])!r} marks a call whose arguments are not clear")
    return [], found.end()
