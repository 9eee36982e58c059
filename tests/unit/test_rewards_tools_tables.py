"""What a table did to expected calls and schemas changes no verdict: real rows through a real Arrow table."""

import json

import pytest
from datasets import Dataset

from pbsd.rewards.tools import grade


def plain(name, **arguments):
    return {"name": name, "arguments": arguments}


def through_a_table(*rows):
    """The rows as a data set gives them back: with the keys of all others, null where they had none."""
    return list(Dataset.from_list(list(rows)))


def schema(name, required=(), **properties):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": properties, "required": list(required)},
        },
    }


WEATHER = schema("weather", ["city"], city={"type": "string"}, days={"type": "integer", "default": 1})
SEARCH = schema("search", ["query"], query={"type": "string"}, filter={"type": "object", "properties": {"a": {}}})
ROWS = [
    {"answer": [plain("weather", city="Quito")], "tools": [WEATHER]},
    {"answer": [plain("search", query="x", filter={"a": 1})], "tools": [SEARCH, WEATHER]},
    {
        "answer": [plain("search", query="y", filter={"b": [2]}), plain("weather", city="Rome")],
        "tools": [SEARCH, WEATHER],
    },
]


def test_the_table_fills_with_null():
    """Else the tests below would show nothing."""
    row = through_a_table(*ROWS)[0]
    assert row["answer"][0]["arguments"] == {"city": "Quito", "query": None, "filter": None}
    assert row["tools"][0]["function"]["parameters"]["properties"]["query"] is None


@pytest.mark.parametrize("with_tools", [True, False])
def test_right_calls_are_right_although_a_table_filled_the_expected_ones(with_tools):
    for row, filled in zip(ROWS, through_a_table(*ROWS), strict=True):
        tools = filled["tools"] if with_tools else None
        assert grade(json.dumps(row["answer"]), filled["answer"], tools).outcome == "correct"
        fewer = [{**row["answer"][0], "arguments": {}}, *row["answer"][1:]]
        assert grade(json.dumps(fewer), filled["answer"], tools).outcome == "wrong"
        more = [{**row["answer"][0], "arguments": {**row["answer"][0]["arguments"], "z": 1}}, *row["answer"][1:]]
        assert grade(json.dumps(more), filled["answer"], tools).outcome == "wrong"
        # An argument of another row's tool is none of this call's, null or not, as the schema says.
        spurious = [{**call, "arguments": {"query": None, "city": None, **call["arguments"]}} for call in row["answer"]]
        if with_tools:
            assert grade(json.dumps(spurious), filled["answer"], tools).outcome == "wrong"


def test_no_call_is_still_expected_where_none_is():
    rows = through_a_table({"answer": []}, {"answer": [plain("f", a=1)]})
    assert grade("No tool fits.", rows[0]["answer"]).outcome == "correct"
    assert grade("f(a=1)", rows[0]["answer"]).outcome == "wrong"


def test_calls_in_different_forms_in_one_table():
    openai = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": null}'}}
    toolalpaca = {"Action": "g", "Action_Input": '{"b": 1}'}
    bare = {"name": "h"}
    rows = through_a_table(
        {"answer": [openai]}, {"answer": [toolalpaca]}, {"answer": [bare]}, {"answer": [plain("i", c=1)]}
    )
    for row, call in zip(rows, (plain("f", a=None), plain("g", b=1), plain("h"), plain("i", c=1)), strict=True):
        assert len(row["answer"][0]) > 4  # the keys of all forms
        assert grade(json.dumps(call), row["answer"]).outcome == "correct"
    # JSON text went through no table: its null is a value.
    assert grade(json.dumps(plain("f")), rows[0]["answer"]).outcome == "wrong"


def test_possible_answers_of_different_functions_in_one_table():
    first, second = {"f": {"a": [1], "b": ["x", ""]}}, {"g": {"o": [{"k": [1]}, {"l": [2], "k": [3]}]}}
    rows = through_a_table({"answer": [first]}, {"answer": [second]})
    assert rows[0]["answer"] == [{"f": {"a": [1], "b": ["x", ""]}, "g": None}]
    assert grade("f(a=1)", rows[0]["answer"]).outcome == "correct"
    assert grade("f(a=2)", rows[0]["answer"]).outcome == "wrong"
    assert grade("g(o={'k': 1})", rows[1]["answer"]).outcome == "correct"
    assert grade("g(o={'k': 1, 'l': None})", rows[1]["answer"]).outcome == "wrong"
    rows = through_a_table({"answer": [{"f": {"a": [1]}}]}, {"answer": [{"f": {"b": [2]}}]})
    assert [grade("f(a=1)", row["answer"]).outcome for row in rows] == ["correct", "wrong"]
    assert [grade("f(b=2)", row["answer"]).outcome for row in rows] == ["wrong", "correct"]


@pytest.mark.parametrize(
    ("declared", "required", "left_out", "null"),
    [
        ({"type": "integer"}, False, "correct", "wrong"),  # null is no integer: the table's
        ({"type": "integer"}, True, "wrong", "correct"),  # it cannot be left out: the user's, as it stands
        ({"type": ["integer", "null"]}, False, "correct", "correct"),  # either
        ({"type": "integer", "nullable": True}, False, "correct", "correct"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, False, "correct", "correct"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, False, "correct", "wrong"),
        ({"type": ["integer", "null"]}, True, "wrong", "correct"),
        ({}, False, "correct", "correct"),
    ],
)
def test_a_null_among_expected_arguments(declared, required, left_out, null):
    tools = json.dumps([schema("f", ["a"] if required else [], a=declared, b={"type": "integer"})])
    expected = [plain("f", a=None, b=1)]
    assert grade(json.dumps(plain("f", b=1)), expected, tools).outcome == left_out
    assert grade(json.dumps(expected), expected, tools).outcome == null
    assert grade(json.dumps(plain("f", a=1, b=1)), expected, tools).outcome == "wrong"
    # In JSON text it is a value, which must be given.
    assert grade(json.dumps(plain("f", b=1)), json.dumps(expected), tools).outcome == "wrong"
    assert grade(json.dumps(expected), json.dumps(expected), tools).outcome == "correct"


def test_a_null_inside_an_expected_object_may_be_left_out():
    expected = [plain("f", o={"a": 1, "b": None, "c": [{"d": None}]})]
    for given in ({"a": 1, "c": [{}]}, {"a": 1, "b": None, "c": [{"d": None}]}):
        assert grade(json.dumps(plain("f", o=given)), expected).outcome == "correct"
    for given in ({"a": 1, "b": 2, "c": [{}]}, {"a": 1}, {"b": None, "c": [{}]}):
        assert grade(json.dumps(plain("f", o=given)), expected).outcome == "wrong"
    assert grade(json.dumps(plain("f", o={"a": 1, "c": [{}]})), json.dumps(expected)).outcome == "wrong"


def test_whole_numbers_that_a_table_made_floats_are_integers_again():
    tools = [schema("f", ["a"], a={"type": "integer"}), schema("g", ["a"], a={"type": "number"})]
    rows = through_a_table({"answer": [plain("f", a=5)]}, {"answer": [plain("g", a=1.5)]})
    assert repr(rows[0]["answer"][0]["arguments"]["a"]) == "5.0"
    assert grade("f(a=5)", rows[0]["answer"], tools).outcome == "correct"
    assert grade("f(a=5.0)", rows[0]["answer"], tools).outcome == "wrong"  # declared an integer
    assert grade("f(a=6)", rows[0]["answer"], tools).outcome == "wrong"
    assert grade("g(a=1.5)", rows[1]["answer"], tools).outcome == "correct"


def test_a_null_default_that_a_table_filled_in_is_no_default():
    with_default = schema("f", [], a={"type": "integer", "default": 3}, b={"type": "integer"})
    nullable = schema("g", [], c={"type": ["integer", "null"], "default": None})
    other = schema("g", [], b={"type": "integer", "default": 1})
    filled = through_a_table({"tools": [with_default]}, {"tools": [other]})
    tools = filled[0]["tools"]
    assert tools[0]["function"]["parameters"]["properties"]["b"]["default"] is None
    assert grade("f()", [plain("f")], tools).outcome == "correct"
    assert grade("f(a=3)", [plain("f")], tools).outcome == "correct"
    assert grade("f(b=None)", [plain("f")], tools).outcome == "wrong"
    assert grade("g(c=None)", [plain("g")], [nullable]).outcome == "correct"


def test_a_default_may_be_said_where_the_table_put_null():
    tools = json.dumps([schema("f", ["a"], a={"type": "integer"}, unit={"default": "m"})])
    expected = [plain("f", a=1, unit=None)]
    for given, outcome in (({}, "correct"), ({"unit": "m"}, "correct"), ({"unit": "cm"}, "wrong")):
        assert grade(json.dumps(plain("f", a=1, **given)), expected, tools).outcome == outcome


@pytest.mark.parametrize("where", ["expected", "tools"])
def test_objects_that_are_nested_too_deeply_are_an_error(where):
    deep = []
    for _ in range(5_000):
        deep = {"a": deep}
    expected = [{"f": {"a": [deep]}}] if where == "expected" else []
    assert grade("f(a=1)", expected, [deep] if where == "tools" else None).outcome == "error"


def test_a_property_that_only_other_tools_have_is_not_declared():
    filled = through_a_table(*ROWS)[0]
    assert (
        grade("weather(city='Quito', query='x')", [{"weather": {"city": ["Quito"], "query": ["x"]}}]).outcome
        == "correct"
    )
    result = grade(
        "weather(city='Quito', query='x')", [{"weather": {"city": ["Quito"], "query": ["x"]}}], filled["tools"]
    )
    assert (result.outcome, result.reason) == ("wrong", "argument 'query' is not declared by the tool")


def test_a_property_may_be_called_default():
    tools = [schema("f", ["default"], default={"type": "integer"}, type={"type": "string"})]
    assert grade("f(default=1, type='x')", [plain("f", default=1, type="x")], tools).outcome == "correct"
    assert grade("f(default='1', type='x')", [plain("f", default=1, type="x")], tools).outcome == "wrong"


def test_the_papers_scorer_drops_the_tables_nulls_too():
    rows = through_a_table({"answer": [plain("f", a=1)]}, {"answer": [{"Action": "g", "Action_Input": '{"b": 1}'}]},
                           {"answer": [plain("f", c=1)]})  # fmt: skip
    texts = [
        f"Action: {name}\nAction Input: {given}"
        for name, given in (("f", '{"a": 1}'), ("g", '{"b": 1}'), ("f", '{"c": 1}'))
    ]
    for row, text in zip(rows, texts, strict=True):
        assert grade(text, row["answer"], scorer="paper_parity").outcome == "correct"
