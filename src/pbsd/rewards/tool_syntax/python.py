"""Calls written in Python, `f(a=1)`: parsed, never evaluated."""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from pbsd.rewards.tool_syntax.calls import Call

BEGINS = re.compile(r"[^\W\d][\w.]{0,199}\(\s*\w+\s*=(?!=)")
"""A call that names its first argument."""

_JSON_NAMES = {"true": True, "false": False, "null": None}
_PROGRAM = (
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.AsyncFor, ast.While,
    ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match, ast.Return, ast.Raise, ast.Assert, ast.Delete,
)  # fmt: skip
# Each ends with the text where nothing closes it: a search that gave up and began again at the next quote is quadratic.
_STRING = re.compile(
    r"""'''.*?(?:'''|\Z)|\"\"\".*?(?:\"\"\"|\Z)|'(?:[^'\\]|\\.?)*(?:'|\Z)|"(?:[^"\\]|\\.?)*(?:"|\Z)""", re.DOTALL
)
_TOKEN = re.compile(rf"{_STRING.pattern}|[\[\](){{}}]", re.DOTALL)


def statements(text: str) -> list[ast.stmt]:
    """Raises ValueError when the text is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser comments on escapes in model-written strings
            return ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as failure:
        raise ValueError(f"not a Python call: {failure}") from None


def python_calls(text: str, *, json_names: bool = False) -> list[Call]:
    """The calls of a text that is wholly `f(a=1)`, `[f(a=1), m.g(b="x")]`, or one call a line.

    Values are literals, all named; with `json_names`, true, false and null are literals too, and a line may end inside
    a string, as templates write them. Raises ValueError for anything else.
    """
    body = statements(_with_escaped_lines(text) if json_names else text)
    return [python_call(node, json_names=json_names) for node in _call_nodes(body)]


def tool_code_calls(text: str) -> list[Call]:
    """The calls of Gemma's tool code: as Python, inside `print(...)` or kept in a variable too, from `default_api`."""
    calls = []
    for statement in statements(text):
        node = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            if len(node.args) != 1 or node.keywords:
                raise ValueError(f"line {statement.lineno} is not a call")
            node = node.args[0]
            if isinstance(node, ast.Name):  # shows what an earlier line has kept
                continue
        for item in node.elts if isinstance(node, ast.List | ast.Tuple) else [node]:
            if not isinstance(item, ast.expr):
                raise ValueError(f"line {statement.lineno} is not a call")
            call = python_call(item, json_names=False)
            calls.append(Call(call.name.removeprefix("default_api."), call.arguments))
    if not calls:
        raise ValueError("no call")
    return calls


def is_program(body: Sequence[ast.stmt]) -> bool:
    """Does the code begin by importing, defining, branching or looping? Then it is an example for people."""
    return bool(body) and isinstance(body[0], _PROGRAM)


def calls_something(body: Sequence[ast.stmt], *, builtin: bool = True) -> bool:
    """Is there a call anywhere in the code? `builtin`: do calls of Python's own functions count?"""
    nodes = (node for statement in body for node in ast.walk(statement))
    return any(isinstance(node, ast.Call) and (builtin or not _is_builtin(node.func)) for node in nodes)


def _is_builtin(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and hasattr(builtins, function.id)


def end_of_list(text: str, start: int) -> int | None:
    """Where the bracket that opens at `start` is closed; None where it never is, or by a bracket of another kind."""
    opened: list[str] = []
    for token in _TOKEN.finditer(text, start):
        mark = token[0]
        if mark in "[({":
            opened.append({"[": "]", "(": ")", "{": "}"}[mark])
        elif mark in "])}":
            if opened.pop() != mark:
                return None
            if not opened:
                return token.end()
    return None


def _call_nodes(body: Sequence[ast.stmt]) -> Iterator[ast.expr]:
    empty = True
    for statement in body:
        if not isinstance(statement, ast.Expr):
            raise ValueError(f"line {statement.lineno} is not a call")
        value = statement.value
        for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            empty = False
            yield node
    if empty:
        raise ValueError("no call")


def python_call(node: ast.expr, *, json_names: bool) -> Call:
    """Raises ValueError when the expression is not a call by name with named, literal arguments."""
    if not isinstance(node, ast.Call):
        raise ValueError(f"line {node.lineno} is not a call")
    name = _dotted_name(node.func)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"an argument of {name:.100} has no name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        assert keyword.arg is not None
        if keyword.arg in arguments:
            raise ValueError(f"argument {keyword.arg!r:.100} of {name:.100} is given twice")
        try:
            value = _JsonNames().visit(keyword.value) if json_names else keyword.value
            arguments[keyword.arg] = ast.literal_eval(value)
            repr(arguments[keyword.arg])  # raises for a hexadecimal integer of more digits than Python would read
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"argument {keyword.arg!r:.100} of {name:.100} is not a literal value") from None
    return Call(name, arguments)


class _JsonNames(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node


def _dotted_name(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError("the called function is not a plain or dotted name")
    return ".".join([node.id, *reversed(parts)])


def _with_escaped_lines(text: str) -> str:
    """The text with line ends in its strings escaped, which Python does not allow there as they are."""
    return _STRING.sub(lambda string: string[0].replace("\n", "\\n").replace("\r", "\\r"), text)
