"""Exact tool calls: the completion makes the expected calls, no others, with accepted values.

The possible-answer form and its comparison follow the Berkeley Function-Calling Leaderboard's AST checker (BFCL).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pbsd.rewards import paper_parity
from pbsd.rewards.grade import Grade, correct, error, unparsed, wrong
from pbsd.rewards.text import final_text
from pbsd.rewards.tool_syntax import SYNTAXES, Call, json_calls, load_json, looks_like_call, read_calls, readings

SCORERS = ("strict", "paper_parity")

_LEFT_OUT = ""  # BFCL's mark, among an argument's accepted values, that it may be left out
_PUNCTUATION = re.compile(r"[ ,./\-_*^]")

_JSON_NAMES = {dict: "object", list: "array"}
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


def grade(
    completion: str,
    expected: Any,
    tools: Any = None,
    *,
    syntax: str = "auto",
    scorer: str = "strict",
    parsed: Sequence[Any] | None = None,
) -> Grade:
    """Does the completion make exactly the expected tool calls, in any order?

    `expected`: a list (or its JSON) of calls. An empty list expects no call at all, not even one that
    cannot be read (`tool_syntax.looks_like_call`). A call is either in BFCL's possible-answer form
    `{name: {argument: [accepted values, "" when it may be left out]}}`, where strings are compared without case, spaces
    and the characters `,./-_*^`; or plain, `{"name": ..., "arguments": {...}}` or ToolAlpaca's
    `{"Action": ..., "Action_Input": "<json>"}`, where they are compared exactly. In both, 1 equals 1.0, true never
    equals 1, lists are ordered, objects are not, and a tuple equals the list of its items (but is no declared array).

    `tools`: the JSON schemas of the functions (a list or its JSON). When given, required arguments must be present,
    undeclared ones absent, and a value (with its items) must have the declared type; an integer counts as a number or
    float. Inside objects the accepted value alone decides. Where the accepted value itself is not of the declared type,
    as BFCL's names of variables, a value must be of its type and equal it exactly. In the plain form an optional
    argument with a declared `default` may be left out or given as that default, which is the same call.

    Tables fill nested columns with null and make whole numbers floats, so where `expected` or `tools` are objects and
    not JSON text, a null in them is taken for what the table put there: in a schema, a null is no entry (a null
    `default` is one where null is of the type, or no type is declared); in the possible-answer form it is no argument;
    in the plain form, an argument or a key of an inner object may be left out, or be null where the schema does not say
    otherwise; one that the schema requires must be null. A whole float is an integer where one is declared. In JSON
    text all is as it is written.

    `syntax`: see `tool_syntax.parse_calls`. A value of a format that writes no types, as `<parameter=zip>75001`, is
    right when it is so as the text or as the JSON (or Python literal) that it reads as, and of the declared type: the
    model could not write the difference. Only the text after a `</think>` counts.

    `parsed`: the calls that the model's own parser found (`tokenizer.parse_response`). With the syntax `auto` they are
    taken where no format that is known here can be read.

    `scorer`: `strict` is all of the above; `paper_parity` what SDFT's and SDPO's public code does, see `paper_parity`
    (plain expected calls, the `action` syntax, and no use of `tools`).

    Returns `correct`, `wrong`, `unparsed` (no readable call) or `error` (`expected` or `tools` cannot be read).
    Raises ValueError when `syntax` or `scorer` is unknown, or they do not go together.
    """
    check_options(syntax=syntax, scorer=scorer)
    try:
        items = _listed(expected, "expected")
        from_table = not isinstance(expected, str)
        if from_table:
            items = [_without_nulls(item, deep=scorer == "paper_parity") for item in items]
        if scorer == "paper_parity":
            return paper_parity.grade(completion, items)
        wanted = [_Expected(item, from_table=from_table) for item in items]
        schemas = _schemas(tools) if tools is not None else {}
        if tools is not None:
            for call in wanted:
                call.attach(schemas)
    except ValueError as failure:
        return error(str(failure))
    except RecursionError:
        return error("`expected` or `tools` is nested too deeply to be read")
    text = final_text(completion)
    if text is None:
        return unparsed("the completion ends inside <think>")
    names = {*schemas, *(call.name for call in wanted)}
    try:
        calls = _made_calls(text, syntax, names, parsed)
    except ValueError as failure:
        if wanted or looks_like_call(text, names):
            return unparsed(str(failure))
        return correct("no call was expected")
    try:
        return _compare(calls, wanted)
    except RecursionError:
        return error("an expected value is nested too deeply to be compared")


def _made_calls(text: str, syntax: str, names: Collection[str], parsed: Sequence[Any] | None) -> list[Call]:
    """The calls of a completion. Raises ValueError where there are none that can be read."""
    try:
        return read_calls(text, syntax, names)
    except ValueError:
        if syntax == "auto" and parsed:
            return json_calls(list(parsed))
        raise


def check_options(*, syntax: str = "auto", scorer: str = "strict") -> None:
    """Raises ValueError when `syntax` or `scorer` is unknown, naming the valid ones, or they do not go together."""
    if syntax not in SYNTAXES:
        raise ValueError(f"tool_call syntax {syntax!r} is unknown; use one of {', '.join(SYNTAXES)}")
    if scorer not in SCORERS:
        raise ValueError(f"tool_call scorer {scorer!r} is unknown; use one of {', '.join(SCORERS)}")
    if scorer == "paper_parity" and syntax not in ("auto", "action"):
        raise ValueError(f"tool_call scorer 'paper_parity' reads the syntax 'action' only, not {syntax!r}; use 'auto'")


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
    """One expected call: the accepted values of every argument, and the function's schema when there is one.

    `loose`: in BFCL's possible-answer form. `optional`: the arguments that may be left out. `from_table`: may a table
    have put nulls into it? `nulls`: so that its arguments may be left out where they are null?
    """

    def __init__(self, item: Any, *, from_table: bool = False) -> None:
        self.schema: Mapping[str, Any] = {}
        self.loose = _is_possible_answer(item)
        self.nulls = False
        if self.loose:
            self.name, self.accepted = _possible_answer(item, from_table=from_table)
            self.optional = {argument for argument, options in self.accepted.items() if _LEFT_OUT in options}
        else:
            self.name, arguments, from_text = _plain_call(item)
            self.nulls = from_table and not from_text
            self.accepted = {argument: [value] for argument, value in arguments.items()}
            self.optional = {argument for argument, value in arguments.items() if self.nulls and value is None}

    def attach(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the function's schema. Raises ValueError when the function is not among the tools."""
        if self.name not in schemas:
            raise ValueError(f"expected call {self.name} is not among the tools {sorted(schemas)}")
        self.schema = schemas[self.name].get("parameters") or {}
        if self.nulls:
            self._take_back_what_tables_do()
        if not self.loose:
            self._allow_defaults()

    def mismatch(self, call: Call) -> str | None:
        """Why `call` is not this call; None when it is."""
        if call.name != self.name:
            return f"called {call.name:.100}, expected {self.name}"
        for argument, value in call.arguments.items():
            if argument not in self.accepted:
                return f"argument {argument!r:.100} is not expected"
            if "properties" in self.schema and argument not in self.schema["properties"]:
                return f"argument {argument!r:.100} is not declared by the tool"
            if not any(
                self._accepts(argument, option, reading)
                for option in self._options(argument)
                for reading in readings(value)
            ):
                return f"argument {argument!r} is {value!r:.100}, accepted: {self.accepted[argument]!r:.200}"
        for argument in {*self._required(), *self.accepted.keys() - self.optional}:
            if argument not in call.arguments:
                return f"argument {argument!r} is missing"
        return None

    def _required(self) -> Sequence[str]:
        return self.schema.get("required") or ()

    def _declared(self, argument: str) -> Mapping[str, Any]:
        """The argument's schema; an empty one, which allows everything, where it is none (`true`, say)."""
        declared = (self.schema.get("properties") or {}).get(argument)
        return declared if isinstance(declared, dict) else {}

    def _take_back_what_tables_do(self) -> None:
        """Nulls that are of no declared type are no arguments; whole floats are integers where those are declared."""
        for argument, (value,) in list(self.accepted.items()):
            declared = self._declared(argument)
            if value is None and argument not in self._required() and not _may_be_null(declared):
                del self.accepted[argument]
            elif isinstance(value, float) and value.is_integer() and _has_type(int(value), declared):
                self.accepted[argument] = [value if _has_type(value, declared) else int(value)]

    def _allow_defaults(self) -> None:
        for argument in (self.schema.get("properties") or {}).keys() - set(self._required()):
            declared = self._declared(argument)
            if "default" not in declared:
                continue
            options = self.accepted.setdefault(argument, [declared["default"]])
            if options == [None] and argument in self.optional:
                options.append(declared["default"])
            elif _equal(options[0], declared["default"]):
                self.optional.add(argument)

    def _options(self, argument: str) -> list[Any]:
        # As in BFCL, an explicit "" also counts where strings are accepted; elsewhere the mark is not a value.
        options = self.accepted[argument]
        values = [option for option in options if option != _LEFT_OUT]
        return options if not self.loose or all(isinstance(value, str) for value in values) else values

    def _accepts(self, argument: str, option: Any, value: Any) -> bool:
        declared = self._declared(argument)
        if not _has_type(option, declared):  # then only the outermost type can be asked of the value
            declared = {"type": declared.get("type")}
        if not _has_type(option, declared):
            return type(option) is type(value) and _equal(option, value, nulls=self.nulls)
        return _has_type(value, declared) and _equal(option, value, loose=self.loose, nulls=self.nulls)


def _is_possible_answer(item: Any) -> bool:
    if not isinstance(item, dict) or len(item) != 1:
        return False
    ((name, arguments),) = item.items()
    return name != "function" and isinstance(arguments, dict)


def _possible_answer(item: dict[str, Any], *, from_table: bool) -> tuple[str, dict[str, list[Any]]]:
    ((name, accepted),) = item.items()
    if from_table:
        accepted = {
            argument: _without_nulls(values, deep=True) for argument, values in accepted.items() if values is not None
        }
    for argument, values in accepted.items():
        if not isinstance(values, list):
            raise ValueError(
                f"expected call {name}: argument {argument!r} holds {values!r:.100}; give the list of its accepted "
                "values (store `expected` as a JSON string, so that tables do not fill it up)"
            )
    return name, accepted


def _plain_call(item: Any) -> tuple[str, dict[str, Any], bool]:
    """The name, the arguments, and whether these were given as JSON text."""
    if isinstance(item, dict) and "Action" in item:
        item = {"name": item["Action"], "arguments": item.get("Action_Input", {})}
    (call,) = json_calls(item)
    inner = item.get("function") if isinstance(item.get("function"), dict) else item
    return call.name, call.arguments, any(isinstance(inner.get(key), str) for key in ("arguments", "parameters"))


def _without_nulls(value: Any, *, deep: bool = False) -> Any:
    """A call without the keys that are null, such as those of calls in another form; `deep`: objects in it too."""
    if isinstance(value, list) and deep:
        return [_without_nulls(item, deep=True) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: inner for key, inner in value.items() if inner is not None}
    if not deep and isinstance(kept.get("function"), dict):
        return {**kept, "function": _without_nulls(kept["function"])}
    return {key: _without_nulls(inner, deep=True) for key, inner in kept.items()} if deep else kept


def _equal(option: Any, value: Any, *, loose: bool = False, nulls: bool = False) -> bool:
    """Is `value` what `option` asks for?

    `loose`: as in BFCL, where a dict holds the accepted values of each key. `nulls`: may a key of `option` that is null
    be left out?
    """
    if isinstance(option, bool) or isinstance(value, bool):
        return option is value
    if isinstance(option, str) and isinstance(value, str):
        return _standard(option) == _standard(value) if loose else option == value
    if isinstance(option, list | tuple) and isinstance(value, list | tuple):
        pairs = zip(option, value, strict=False)
        return len(option) == len(value) and all(_equal(o, v, loose=loose, nulls=nulls) for o, v in pairs)
    if isinstance(option, dict) and isinstance(value, dict):
        return _equal_dicts(option, value, loose=loose, nulls=nulls)
    return bool(option == value)


def _equal_dicts(option: dict[str, Any], value: dict[str, Any], *, loose: bool, nulls: bool) -> bool:
    if not loose:
        if nulls:
            option = {key: inner for key, inner in option.items() if inner is not None or key in value}
        return option.keys() == value.keys() and all(_equal(option[key], value[key], nulls=nulls) for key in option)
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
        if not isinstance(value, python_types):  # True passes for an integer, but equals no number
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


def _may_be_null(schema: Mapping[str, Any]) -> bool:
    """Does a schema allow null, as far as it says? One without a type allows everything."""
    choices = [choice for key in ("anyOf", "oneOf") for choice in schema.get(key) or () if isinstance(choice, dict)]
    if schema.get("nullable") or any(map(_may_be_null, choices)):
        return True
    return not choices and _has_type(None, schema)


def _without_table_nulls(schema: Any) -> Any:
    """A schema without the entries that are null: no entry of a schema may be, but for a default (or a constant)."""
    if isinstance(schema, list):
        return [_without_table_nulls(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_table_nulls(value) for key, value in schema.items() if value is not None}
    for key in ("default", "const"):
        # A property may have such a name, and then holds a schema.
        if key in schema and (schema[key] is not None or ("type" in kept and _may_be_null(kept))):
            kept[key] = schema[key]
    return kept


def _schemas(tools: Any) -> dict[str, Mapping[str, Any]]:
    schemas: dict[str, Mapping[str, Any]] = {}
    listed = _listed(tools, "tools")
    for item in listed if isinstance(tools, str) else _without_table_nulls(listed):
        schema = item.get("function", item) if isinstance(item, dict) else item
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            raise ValueError(f"`tools` holds {item!r:.200}; each tool is an object with a name and parameters")
        _check_parameters(schema["name"], schema.get("parameters") or {})
        schemas[schema["name"]] = schema
    return schemas


def _check_parameters(name: str, parameters: Any) -> None:
    """Raises ValueError where `parameters` is not as a JSON schema has it."""
    if not isinstance(parameters, dict):
        raise ValueError(f"`tools`: the parameters of {name} are {parameters!r:.100}; give an object")
    for key, kind in (("properties", dict), ("required", list)):
        if not isinstance(parameters.get(key) or kind(), kind):
            raise ValueError(f"`tools`: {key} of {name} is {parameters[key]!r:.100}; give a JSON {_JSON_NAMES[kind]}")
