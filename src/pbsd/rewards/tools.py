"""Exact tool calls: the completion makes the expected calls, no others, with accepted values.

The possible-answer form and its comparison follow the Berkeley Function-Calling Leaderboard's AST checker (BFCL).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pbsd.rewards.grade import Grade, correct, error, unparsed, wrong
from pbsd.rewards.text import final_text
from pbsd.rewards.tool_syntax import SYNTAXES, Call, json_calls, load_json, parse_calls

SCORERS = ("strict",)

_LEFT_OUT = ""  # BFCL's mark, among an argument's accepted values, that it may be left out
_PUNCTUATION = re.compile(r"[ ,./\-_*^]")

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "float": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list, tuple),
    "object": (dict,),
    "dict": (dict,),
    "null": (type(None),),
}


def grade(completion: str, expected: Any, tools: Any = None, *, syntax: str = "auto", scorer: str = "strict") -> Grade:
    """Does the completion make exactly the expected tool calls, in any order?

    `expected`: a list (or its JSON) of calls, each either in BFCL's possible-answer form
    `{name: {argument: [accepted values, "" when it may be left out]}}`, where strings are compared without case, spaces
    and the characters `,./-_*^`, or `{"name": ..., "arguments": {...}}`, where they are compared exactly. In both, 1
    equals 1.0, true never equals 1, and a tuple equals the list of its items (but is no declared array). An empty list
    expects no call at all.

    `tools`: the JSON schemas of the functions (a list or its JSON). When given, the required arguments must be present
    and a value's type must be the declared one, unless the accepted value itself breaks the declaration.

    `syntax`: see `tool_syntax.parse_calls`. Only the text after a `</think>` counts.

    Returns `correct`, `wrong`, `unparsed` (no readable call) or `error` (`expected` or `tools` cannot be read).
    Raises ValueError when `syntax` or `scorer` is unknown.
    """
    check_options(syntax=syntax, scorer=scorer)
    try:
        wanted = [_Expected(item) for item in _listed(expected, "expected")]
        schemas = None if tools is None else _schemas(tools)
        if schemas is not None:
            for call in wanted:
                call.attach(schemas)
    except ValueError as failure:
        return error(str(failure))
    text = final_text(completion)
    try:
        calls = parse_calls(text, syntax) if text is not None else []
    except ValueError as failure:
        return unparsed(str(failure)) if wanted else correct("no call was expected")
    if text is None:
        return unparsed("the completion ends inside <think>")
    return _compare(calls, wanted)


def check_options(*, syntax: str = "auto", scorer: str = "strict") -> None:
    """Raises ValueError when `syntax` or `scorer` is unknown, naming the valid ones."""
    if syntax not in SYNTAXES:
        raise ValueError(f"tool_call syntax {syntax!r} is unknown; use one of {', '.join(SYNTAXES)}")
    if scorer not in SCORERS:
        raise ValueError(f"tool_call scorer {scorer!r} is unknown; use one of {', '.join(SCORERS)}")


def _compare(calls: list[Call], wanted: list[_Expected]) -> Grade:
    if len(calls) != len(wanted):
        return wrong(f"{len(calls)} calls where {len(wanted)} are expected")
    mismatches = [[call.mismatch(made) for made in calls] for call in wanted]
    if _has_perfect_matching([[reason is None for reason in row] for row in mismatches]):
        return correct()
    if len(calls) == 1:
        return wrong(mismatches[0][0] or "")
    return wrong("the calls do not pair off with the expected ones")


def _has_perfect_matching(fits: list[list[bool]]) -> bool:
    """Can every row get a column of its own? Accepted values may overlap, so first come first served is not enough."""
    row_of_column: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in row_of_column or place(row_of_column[column], tried):
                    row_of_column[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))


class _Expected:
    """One expected call in either form: the accepted values of every argument, and the schema when there is one."""

    def __init__(self, item: Any) -> None:
        self.schema: Mapping[str, Any] = {}
        self.loose = isinstance(item, dict) and len(item) == 1 and isinstance(next(iter(item.values())), dict)
        self.loose = self.loose and "function" not in item
        if self.loose:
            self.name, accepted = next(iter(item.items()))
            for argument, values in accepted.items():
                if not isinstance(values, list):
                    raise ValueError(
                        f"expected call {self.name}: argument {argument!r} holds {values!r:.100}; give the list of its "
                        "accepted values (store `expected` as a JSON string, so that tables do not fill it up)"
                    )
            self.accepted: dict[str, list[Any]] = accepted
        else:
            self.name, arguments = json_calls(item)[0]
            self.accepted = {argument: [value] for argument, value in arguments.items()}

    def attach(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        if self.name not in schemas:
            raise ValueError(f"expected call {self.name} is not among the tools {sorted(schemas)}")
        self.schema = schemas[self.name].get("parameters") or {}

    def mismatch(self, call: Call) -> str | None:
        """Why `call` is not this call; None when it is."""
        if call.name != self.name:
            return f"called {call.name:.100}, expected {self.name}"
        for argument, value in call.arguments.items():
            if argument not in self.accepted:
                return f"argument {argument!r:.100} is not expected"
            if not any(self._accepts(argument, option, value) for option in self._options(argument)):
                return f"argument {argument!r} is {value!r:.100}, accepted: {self.accepted[argument]!r:.200}"
        for argument, options in self.accepted.items():
            may_be_left_out = self.loose and _LEFT_OUT in options
            if argument not in call.arguments and (not may_be_left_out or argument in self._required()):
                return f"argument {argument!r} is missing"
        return None

    def _required(self) -> Sequence[str]:
        return self.schema.get("required") or ()

    def _options(self, argument: str) -> list[Any]:
        # As in BFCL, an explicit "" also counts where strings are accepted; elsewhere the mark is not a value.
        options = self.accepted[argument]
        values = [option for option in options if option != _LEFT_OUT]
        return options if not self.loose or all(isinstance(value, str) for value in values) else values

    def _accepts(self, argument: str, option: Any, value: Any) -> bool:
        if not _equal(option, value, loose=self.loose):
            return False
        declared = (self.schema.get("properties") or {}).get(argument) or {}
        # BFCL names variables by strings where another type is declared: then the reference is the rule.
        return _has_type(value, declared) or not _has_type(option, declared)


def _equal(option: Any, value: Any, *, loose: bool) -> bool:
    """Is `value` what `option` asks for? `loose`: as in BFCL, where a dict holds the accepted values of each key."""
    if isinstance(option, bool) or isinstance(value, bool):
        return option is value
    if isinstance(option, str) and isinstance(value, str):
        return _standard(option) == _standard(value) if loose else option == value
    if isinstance(option, list | tuple) and isinstance(value, list | tuple):
        return len(option) == len(value) and all(_equal(o, v, loose=loose) for o, v in zip(option, value, strict=True))
    if isinstance(option, dict) and isinstance(value, dict):
        return _equal_dicts(option, value, loose=loose)
    return bool(option == value)


def _equal_dicts(option: dict[str, Any], value: dict[str, Any], *, loose: bool) -> bool:
    if not loose:
        return option.keys() == value.keys() and all(_equal(option[key], value[key], loose=False) for key in option)
    # A few BFCL rows hold a bare value instead of a list of them in an inner dict.
    accepted = {key: values if isinstance(values, list) else [values] for key, values in option.items()}
    if any(_LEFT_OUT not in values for key, values in accepted.items() if key not in value):
        return False
    return all(key in accepted and any(_equal(o, v, loose=True) for o in accepted[key]) for key, v in value.items())


def _standard(text: str) -> str:
    return _PUNCTUATION.sub("", text).lower().replace("'", '"')


def _has_type(value: Any, schema: Any) -> bool:
    """Does `value` have the schema's `type`, and its items theirs? A schema without a known type allows everything."""
    if not isinstance(schema, dict):
        return True
    declared = schema.get("type")
    names = [str(name) for name in (declared if isinstance(declared, list) else [declared])]
    if all(name in _PYTHON_TYPES for name in names):
        python_types = tuple(t for name in names for t in _PYTHON_TYPES[name])
        if not isinstance(value, python_types) or (isinstance(value, bool) and bool not in python_types):
            return False
    if isinstance(value, list | tuple):
        return all(_has_type(item, schema.get("items")) for item in value)
    return True


def _listed(value: Any, what: str) -> list[Any]:
    """A list given as itself, as its JSON, or as its only element."""
    if isinstance(value, str):
        try:
            value = load_json(value)
        except ValueError as failure:
            raise ValueError(f"`{what}` is a string that is not JSON ({failure}): {value!r:.200}") from None
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise ValueError(f"`{what}` is {value!r:.200}; give a list of objects, or its JSON")
    return value


def _schemas(tools: Any) -> dict[str, Mapping[str, Any]]:
    schemas: dict[str, Mapping[str, Any]] = {}
    for item in _listed(tools, "tools"):
        schema = item.get("function", item) if isinstance(item, dict) else item
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            raise ValueError(f"`tools` holds {item!r:.200}; each tool is an object with a name and parameters")
        schemas[schema["name"]] = schema
    return schemas
