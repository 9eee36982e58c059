"""Exact tool calls. Every expected outcome is derived by hand from the rules in `tools.grade`'s docstring."""

import json

import pytest

from pbsd.rewards.tools import grade

AREA = [{"triangle_area": {"base": [10], "height": [5], "unit": ["units", ""]}}]  # BFCL simple_python_0
FACTORIAL = [{"math.factorial": {"number": [5]}}]
PLAIN = [{"name": "f", "arguments": {"a": 1, "b": "x y", "flag": True}}]


def tagged(*calls):
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    "completion",
    [
        "triangle_area(base=10, height=5)",
        "[triangle_area(height=5, base=10.0, unit='Units')]",
        "```python\ntriangle_area(base=10, height=5)\n```",
        "Here it is:\n```json\n" + json.dumps(call("triangle_area", base=10, height=5)) + "\n```",
        json.dumps(call("triangle_area", base=10, height=5, unit="u,n.i/t-s")),  # BFCL drops these characters
        json.dumps([call("triangle_area", base=10, height=5)]),
        json.dumps({"name": "triangle_area", "parameters": {"base": 10, "height": 5}}),
        json.dumps(
            [{"type": "function", "function": {"name": "triangle_area", "arguments": '{"base":10,"height":5}'}}]
        ),
        "I call it.\n" + tagged(call("triangle_area", base=10, height=5)),
        "<think>triangle_area(base=1)</think>\ntriangle_area(base=10, height=5)",
    ],
)
def test_every_syntax_of_the_right_call_is_correct(completion):
    assert (grade(completion, AREA).outcome, grade(completion, AREA).score) == ("correct", 1.0)


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("triangle_area(base=10, height=6)", "argument 'height' is 6"),
        ("triangle_area(base=10)", "argument 'height' is missing"),
        ("triangle_area(base=10, height=5, colour='red')", "argument 'colour' is not expected"),
        ("triangle_area(base='10', height=5)", "argument 'base' is '10'"),
        ("triangle_area(base=10, height=5, unit='cm')", "argument 'unit' is 'cm'"),
        ("triangle_area(base=10, height='')", "argument 'height' is ''"),
        ("triangle.area(base=10, height=5)", "expected triangle_area"),
        ("[triangle_area(base=10, height=5), triangle_area(base=10, height=5)]", "2 calls where 1"),
        ("[]", "0 calls where 1"),
    ],
)
def test_a_readable_but_different_call_is_wrong_and_says_where(completion, why):
    result = grade(completion, AREA)
    assert (result.outcome, result.score) == ("wrong", 0.0)
    assert why in result.reason


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I would call triangle_area.",
        "triangle_area(10, 5)",  # without names
        "triangle_area(**{'base': 10, 'height': 5})",
        "triangle_area(base=10, height=5, base=10)",
        "triangle_area(base=5 + 5, height=5)",  # nothing is evaluated
        "triangle_area(base=int('10'), height=5)",
        "triangle_area(base=10, height=5)\nimport os",
        "f()(base=10)",
        '{"name": "triangle_area", "arguments": {"base": 10, "base": 10, "height": 5}}',
        '{"name": "triangle_area", "arguments": {"base": 10, "height": 5}, "unit": "cm"}',
        '{"name": "triangle_area", "arguments": [10, 5]}',
        '<tool_call>{"name": "triangle_area", "arguments": {"base": 10, "height": 5}}',  # not closed
        tagged(call("triangle_area", base=10, height=5)) + "<tool_call>{",
        "<think>triangle_area(base=10, height=5)",
        "[" * 100_000,
        "(" * 100_000,
    ],
)
def test_what_is_not_wholly_calls_is_unparsed(completion):
    assert (grade(completion, AREA).outcome, grade(completion, AREA).score) == ("unparsed", 0.0)


def test_completions_are_never_evaluated(tmp_path):
    path = tmp_path / "made"
    grade(f"triangle_area(base=open({str(path)!r}, 'w'), height=5)", AREA)
    assert not path.exists()


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("f(a=1, b='x y', flag=True)", "correct"),
        ("f(a=1.0, b='x y', flag=True)", "correct"),  # equal by value
        ("f(a=True, b='x y', flag=True)", "wrong"),  # a truth value is no number
        ("f(a=1, b='x y', flag=1)", "wrong"),
        ("f(a=1, b='X y', flag=True)", "wrong"),  # exact in the plain form
        ("f(a=1, b='xy', flag=True)", "wrong"),
        ("f(a=1, b='x y')", "wrong"),
    ],
)
def test_the_plain_form_is_compared_exactly(completion, outcome):
    assert grade(completion, PLAIN).outcome == outcome


def test_an_empty_string_in_the_plain_form_is_a_value_and_not_a_mark():
    expected = [call("f", a="")]
    assert grade("f(a='')", expected).outcome == "correct"
    assert grade("f()", expected).outcome == "wrong"


@pytest.mark.parametrize(
    ("accepted", "value", "outcome"),
    [
        ([[1, 2], [3]], [1.0, 2], "correct"),
        ([[1, 2]], [2, 1], "wrong"),
        ([["New York"]], ["new york"], "correct"),
        ([["a", "b"]], ["a"], "wrong"),
        ([{"k": [1, 2], "o": ["", "x"]}], {"k": 2}, "correct"),
        ([{"k": [1, 2], "o": ["", "x"]}], {"k": 1, "o": "X"}, "correct"),
        ([{"k": [1, 2]}], {"k": 3}, "wrong"),
        ([{"k": [1, 2]}], {"k": [1, 2]}, "wrong"),  # the list holds choices, it is not the value
        ([{"k": [1]}], {}, "wrong"),
        ([{"k": [1]}], {"k": 1, "z": 1}, "wrong"),
        ([[{"k": [1]}, {"k": [2]}]], [{"k": 1}, {"k": 2}], "correct"),
        ([[{"k": [1]}, {"k": [2]}]], [{"k": 2}, {"k": 1}], "wrong"),
        ([{"position": [{"x": 1.5}]}], {"position": {"x": 1.5}}, "correct"),  # BFCL live_multiple_121
        ([True], True, "correct"),
        ([True], 1, "wrong"),
        ([1], True, "wrong"),
        ([None, ""], None, "correct"),
        ([""], "", "correct"),
        (["x", ""], "", "correct"),
        ([5, ""], "", "wrong"),  # there the mark is not a value
        (["it's"], 'it"s', "correct"),  # BFCL makes one kind of quote
    ],
)
def test_nested_values_in_the_possible_answer_form(accepted, value, outcome):
    assert grade(json.dumps(call("f", a=value)), [{"f": {"a": accepted}}]).outcome == outcome


def test_several_calls_match_in_any_order_and_one_to_one():
    expected = [{"play": {"artist": ["A", "B"]}}, {"play": {"artist": ["A"]}}]
    # A first-come matching gives "A" to the first expected call, and leaves "B" without one.
    assert grade("[play(artist='A'), play(artist='B')]", expected).outcome == "correct"
    assert grade("play(artist='B')\nplay(artist='A')", expected).outcome == "correct"
    assert grade(tagged(call("play", artist="A"), call("play", artist="A")), expected).outcome == "correct"
    assert grade("[play(artist='B'), play(artist='B')]", expected).outcome == "wrong"
    assert grade("play(artist='A')", expected).outcome == "wrong"


def test_no_call_is_expected():
    assert grade("Hello, no tool is needed.", []).outcome == "correct"
    assert grade("f(a=1)", []).outcome == "wrong"


def test_syntax_can_be_demanded():
    python, tags, plain = (
        "math.factorial(number=5)",
        tagged(call("math.factorial", number=5)),
        call("math.factorial", number=5),
    )
    outcomes = {
        syntax: [grade(text, FACTORIAL, syntax=syntax).outcome for text in (python, tags, json.dumps(plain))]
        for syntax in ("auto", "python", "hermes", "json")
    }
    assert outcomes == {
        "auto": ["correct", "correct", "correct"],
        "python": ["correct", "unparsed", "unparsed"],
        "hermes": ["unparsed", "correct", "unparsed"],
        "json": ["unparsed", "unparsed", "correct"],
    }


def test_expected_and_tools_may_be_json_strings():
    tools = [{"name": "math.factorial", "parameters": {"type": "dict", "properties": {"number": {"type": "integer"}}}}]
    assert grade("math.factorial(number=5)", json.dumps(FACTORIAL), json.dumps(tools)).outcome == "correct"
    assert grade("math.factorial(number=6)", json.dumps(FACTORIAL[0])).outcome == "wrong"


@pytest.mark.parametrize(
    ("declared", "accepted", "value", "outcome"),
    [
        ({"type": "integer"}, [5], 5, "correct"),
        ({"type": "integer"}, [5], 5.0, "wrong"),
        ({"type": "float"}, [5.0], 5, "correct"),
        ({"type": "number"}, [5], 5.0, "correct"),
        ({"type": ["integer", "null"]}, [5], 5.0, "wrong"),
        ({"type": "array", "items": {"type": "integer"}}, [[1, 2]], [1, 2.0], "wrong"),
        ({"type": "array", "items": {"type": "float"}}, [[1, 2]], [1, 2.0], "correct"),
        ({"type": "array"}, [[1, 2]], (1, 2), "wrong"),
        ({"type": "tuple"}, [[1, 2]], (1, 2), "correct"),
        ({"type": "string"}, [5], 5.0, "correct"),  # the reference itself breaks the declaration
        ({"type": "any"}, [5], 5.0, "correct"),
        ({}, [5], 5.0, "correct"),
    ],
)
def test_types_are_checked_against_the_schema(declared, accepted, value, outcome):
    schema = {"name": "f", "parameters": {"type": "object", "properties": {"a": declared}}}
    for tools in ([schema], [{"type": "function", "function": schema}]):
        assert grade(f"f(a={value!r})", [{"f": {"a": accepted}}], tools).outcome == outcome


def test_a_required_argument_cannot_be_left_out_although_the_reference_allows_it():
    expected = [{"f": {"a": [1, ""]}}]
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}]
    assert grade("f()", expected).outcome == "correct"
    assert grade("f()", expected, tools).outcome == "wrong"


@pytest.mark.parametrize(
    ("expected", "tools", "why"),
    [
        (None, None, "`expected` is None"),
        ("not json", None, "not JSON"),
        ([1], None, "not a call object"),
        ([{"f": {"a": 1}}], None, "list of its accepted values"),
        ([{"f": {"a": None}}], None, "JSON string"),
        (FACTORIAL, [{"name": "g"}], "not among the tools ['g']"),
        (FACTORIAL, [{"title": "g"}], "`tools` holds"),
        (FACTORIAL, "{", "`tools` is a string that is not JSON"),
    ],
)
def test_an_unreadable_reference_is_an_error(expected, tools, why):
    result = grade("math.factorial(number=5)", expected, tools)
    assert (result.outcome, result.score) == ("error", None)
    assert why in result.reason


def test_unknown_options_name_the_valid_ones():
    with pytest.raises(ValueError, match="scorer 'loose' is unknown; use one of strict"):
        grade("", FACTORIAL, scorer="loose")
    with pytest.raises(ValueError, match="syntax 'xml' is unknown; use one of auto, json, python, hermes"):
        grade("", FACTORIAL, syntax="xml")
