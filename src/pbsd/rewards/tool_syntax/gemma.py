"""Gemma's calls, `call:f{a:<escape>x<escape>,n:3}`: JSON with bare keys and strings between tokens of their own."""

from __future__ import annotations

import re
from typing import Any

from pbsd.rewards.tool_syntax.calls import Call, Untyped

BEGINS = r"<start_function_call>|<\|tool_call>|(?<![\w.])call:[\w.\-]{1,200}\{"
MAX_DEPTH = 50

_OPENING = re.compile(r"(?:<start_function_call>|<\|tool_call>)?\s*call:\s*([\w.\-]{1,200})\s*\{")
_CLOSING = re.compile(r"\s*(?:<end_function_call>|<tool_call\|>)")
_SPACE = re.compile(r"\s*")
_STRING = re.compile(r"<escape>(.*?)<escape>|<\|\"\|>(.*?)<\|\"\|>|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_KEY = re.compile(r"([^\s\"'<>{}\[\],:]{1,200})\s*:\s*")
_BARE = re.compile(r"[^<>{}\[\],\"]*")


def gemma(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """FunctionGemma's and Gemma 4's call. A value whose string tokens were left out has no type."""
    opening = _OPENING.match(text, start.start())
    if opening is None:
        raise ValueError("no call:name{ after the marker")
    arguments, end = _object(text, opening.end(), 1, typed=opening[0].startswith("<"))
    closing = _CLOSING.match(text, end)
    return [Call(opening[1], arguments)], closing.end() if closing else end


def _object(text: str, start: int, depth: int, *, typed: bool) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    end = _skip(text, start)
    while text[end : end + 1] != "}":
        if values:
            end = _comma(text, end)
        key, end = _key(text, end)
        value, end = _value(text, end, depth, typed=typed)
        if key in values:
            raise ValueError(f"{key!r:.100} is given twice")
        values[key] = value
        end = _skip(text, end)
    return values, end + 1


def _key(text: str, start: int) -> tuple[str, int]:
    if quoted := _STRING.match(text, start):
        end = _skip(text, quoted.end())
        if text[end : end + 1] != ":":
            raise ValueError("a key has no colon")
        return next(group for group in quoted.groups() if group is not None), _skip(text, end + 1)
    key = _KEY.match(text, start)
    if key is None:
        raise ValueError(f"{text[start : start + 20]!r} stands where a key should" if text[start:] else "it is cut off")
    return key[1], key.end()


def _value(text: str, start: int, depth: int, *, typed: bool) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"values are nested more than {MAX_DEPTH} deep")
    if string := _STRING.match(text, start):
        return next(group for group in string.groups() if group is not None), string.end()
    if text.startswith("{", start):
        return _object(text, start + 1, depth + 1, typed=typed)
    if text.startswith("[", start):
        return _array(text, start + 1, depth + 1, typed=typed)
    bare = _BARE.match(text, start)
    assert bare is not None
    value = Untyped(bare[0].strip())
    if typed and isinstance(value.plain(), str):
        raise ValueError(f"{str(value)!r:.40} is neither a literal nor a string between its tokens")
    return value if depth == 1 and not typed else value.plain(), bare.end()


def _array(text: str, start: int, depth: int, *, typed: bool) -> tuple[list[Any], int]:
    values: list[Any] = []
    end = _skip(text, start)
    while text[end : end + 1] != "]":
        if values:
            end = _comma(text, end)
        before = end
        value, end = _value(text, end, depth, typed=typed)
        if end == before:
            raise ValueError("a list is cut off, or has an empty place")
        values.append(value)
        end = _skip(text, end)
    return values, end + 1


def _comma(text: str, start: int) -> int:
    if text[start : start + 1] != ",":
        raise ValueError(
            f"{text[start : start + 20]!r} stands where a comma should" if text[start:] else "it is cut off"
        )
    return _skip(text, start + 1)


def _skip(text: str, start: int) -> int:
    blank = _SPACE.match(text, start)
    assert blank is not None
    return blank.end()
