"""What every format's reader shares: a call, JSON read strictly, call objects in JSON, and values without a type."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Collection
from typing import Any, NamedTuple

_NAME_KEYS = ("name", "tool_name", "tool", "action", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "tool_input", "action_input")
_BESIDE = {"id", "type", "index", "tool_call_id", "call_id", "tool_use_id", "toolUseId"}
"""Keys that may stand beside a call's name and arguments: they say nothing of the call."""
_WRAPPER = re.compile(r"(?:tool|function)_?(?:call|use)s?", re.IGNORECASE)
"""Keys under which a call stands, as Gemini's `functionCall` and Bedrock's `toolUse`."""


class Call(NamedTuple):
    """One tool call: the function's name and its arguments by name.

    A value is a `Untyped` where its format writes text without a type.
    """

    name: str
    arguments: dict[str, Any]


class NoCall(ValueError):
    """The text makes no call, and tries none."""


class Untyped(str):
    """A value as its format writes it, without quotes or type: 75001 may be the number or the text.

    Which it is, the tool's schema or the expected value says; a model cannot write the difference.
    """

    def readings(self) -> list[Any]:
        """All that it may be: the text, without the blanks around it too, and what it is as JSON or Python."""
        stripped = self.strip()
        values: list[Any] = [str(self), stripped]
        value = literal(stripped)
        return values if isinstance(value, str) else [*values, value]

    def plain(self) -> Any:
        """What it most likely is: JSON or a Python literal where it is one and no string, else the text."""
        return self.readings()[-1] if not isinstance(self.readings()[-1], str) else str(self)


def readings(value: Any) -> list[Any]:
    """All the values that an argument's value may be: itself, but for an `Untyped`."""
    return value.readings() if isinstance(value, Untyped) else [value]


def plain(call: Call) -> Call:
    """The call with every `Untyped` as what it most likely is."""
    arguments = {k: v.plain() if isinstance(v, Untyped) else v for k, v in call.arguments.items()}
    return Call(call.name, arguments)


def literal(text: str) -> Any:
    """The value of JSON or of a Python literal (templates write True and None too); the text where it is neither."""
    try:
        return load_json(text)
    except ValueError:
        pass
    if text not in ("True", "False", "None") and text[:1] not in ("[", "{", "("):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser comments on escapes in model-written strings
            value = ast.literal_eval(text)
        repr(value)  # raises for a hexadecimal integer of more digits than Python would read
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return value


def load_json(text: str) -> Any:
    """`json.loads` that refuses a key given twice. Raises ValueError when the text is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, as `load_json` reads it, and where it ends."""
    try:
        return json.JSONDecoder(object_pairs_hook=_unique_keys).raw_decode(text, start)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def decode_object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """Like `decode`, for a call's arguments. Raises ValueError where they are no object."""
    value, end = decode(text, start)
    if not isinstance(value, dict):
        raise ValueError(f"the arguments are {value!r:.100}, not an object")
    return value, end


def is_cut_off(failure: ValueError) -> bool:
    """Did the JSON end too early? It then is right as far as it goes."""
    if not isinstance(failure, json.JSONDecodeError):
        return False
    return failure.msg.startswith("Unterminated string") or not failure.doc[failure.pos :].strip()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError(f"a JSON key is given twice among {[key for key, _ in pairs]!r:.200}")
    return unique


def is_call_like(value: Any, names: Collection[str] = ()) -> bool:
    """Is a JSON value meant as a call, or a list of calls, whether or not it can be read as one?

    It has a name and arguments, or is in OpenAI's form, or one of its strings is among `names`, the functions that are
    known. {"name": "Ann", "age": 5} is data, and so is a tool's schema.
    """
    if isinstance(value, list):
        return any(is_call_like(item, names) for item in value if isinstance(item, dict))
    if not isinstance(value, dict) or describes_tool(value):
        return False
    if "tool_calls" in value or isinstance(value.get("function"), dict):
        return True
    named = any(isinstance(value.get(key), str) for key in _NAME_KEYS)
    return (named and any(key in value for key in _ARGUMENT_KEYS)) or bool(names and _names_known(value, names))


def _names_known(value: dict[str, Any], names: Collection[str], *, nested: bool = False) -> bool:
    """Is a string of the object one of `names`? In an object inside another one it must have arguments beside it."""
    if _known_keys(value, names) and (not nested or any(_is_object(item) for item in value.values())):
        return True
    for key, inner in value.items():
        wrapper = _WRAPPER.fullmatch(key) is not None
        for item in inner if isinstance(inner, list) else [inner]:
            if not isinstance(item, dict) or describes_tool(item):
                continue
            if _names_known(item, names, nested=not wrapper) or (wrapper and calls_by_name(item, names)):
                return True
    return False


def _known_keys(value: dict[str, Any], names: Collection[str]) -> list[str]:
    """The keys whose value is the name of a known function."""
    return [key for key, item in value.items() if isinstance(item, str) and item.removeprefix("functions.") in names]


def _is_object(value: Any) -> bool:
    """Is it an object, or the JSON of one?"""
    try:
        return isinstance(load_json(value) if isinstance(value, str) else value, dict)
    except ValueError:
        return False


def describes_tool(value: dict[str, Any]) -> bool:
    """Does an object describe a tool or its parameters, as a schema does, rather than call it?"""
    schema = value["function"] if isinstance(value.get("function"), dict) else value
    parameters = schema.get("parameters", schema.get("input_schema", schema))
    described = isinstance(parameters, dict) and parameters.get("type") == "object" and "properties" in parameters
    return described or ("description" in schema and "arguments" not in schema)


def calls_by_name(value: Any, names: Collection[str]) -> list[Call]:
    """The calls of `[{"f": {"a": 1}}]`, where `names` holds every f: Apertus's form without its markers, and BFCL's."""
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) and item for item in items):
        return []
    pairs = [pair for item in items for pair in item.items()]
    if not all(name in names and isinstance(given, dict) for name, given in pairs):
        return []
    return [Call(name, arguments) for name, arguments in pairs]


def json_calls(value: Any, names: Collection[str] = ()) -> list[Call]:
    """The calls of a call object, a list of call objects, or a message with `tool_calls`.

    A call object has a name under `name`, `tool_name`, `tool`, `action` or `function`, and its arguments, an object or
    its JSON, under `arguments`, `parameters`, `args`, `tool_input` or `action_input`; or is OpenAI's
    `{"function": {"name": ..., "arguments": ...}}`. Where the name is one of `names`, the keys may be any, and the call
    may stand under `functionCall`, `tool_use` and the like. Raises ValueError for anything else.
    """
    if isinstance(value, dict) and "name" not in value and isinstance(value.get("tool_calls", ""), list | type(None)):
        value = value["tool_calls"] or []  # OpenAI writes null for none
    return [call for item in (value if isinstance(value, list) else [value]) for call in _item_calls(item, names)]


def _item_calls(value: Any, names: Collection[str]) -> list[Call]:
    try:
        return [_json_call(value)]
    except ValueError:
        if not names or not isinstance(value, dict):
            raise
        keys = value.keys() - _BESIDE
        if len(keys) == 1 and _WRAPPER.fullmatch(wrapper := next(iter(keys))):
            return calls_by_name(value[wrapper], names) or json_calls(value[wrapper], names)
        named = _known_keys(value, names)
        given = keys - set(named)
        if len(named) != 1 or len(given) != 1 or not _is_object(arguments := value[next(iter(given))]):
            raise
        arguments = load_json(arguments) if isinstance(arguments, str) else arguments
        return [Call(value[named[0]].removeprefix("functions."), arguments)]


def _json_call(value: Any) -> Call:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.200} is not a call object")
    if isinstance(value.get("function"), dict):
        if unknown := value.keys() - _BESIDE - {"function"}:
            raise ValueError(f"keys {sorted(unknown)} stand beside the call's function")
        return _json_call(value["function"])
    names = [key for key in _NAME_KEYS if key in value]
    given = [key for key in _ARGUMENT_KEYS if key in value]
    if len(given) > 1:
        raise ValueError(f"the call has arguments twice, as `{given[0]}` and as `{given[1]}`")
    arguments = value[given[0]] if given else {}
    if isinstance(arguments, str):
        arguments = load_json(arguments)
    name = value[names[0]] if names else None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"{value!r:.200} is not a call: a name and an object of arguments are needed")
    if unknown := value.keys() - _BESIDE - {names[0], *given}:
        raise ValueError(f"keys {sorted(unknown)} stand beside the call's arguments")
    return Call(name, arguments)
