"""Exact tool calls. Every expected outcome is derived by hand from the rules in `tools.grade`'s docstring."""

import json

import pytest

from pbsd.benchmarks import answers
from pbsd.rewards.grade import Grade
from pbsd.rewards.text import completion_text
from pbsd.rewards.tool_syntax import SYNTAXES
from pbsd.rewards.tools import grade

AREA = [{"triangle_area": {"base": [10], "height": [5], "unit": ["units", ""]}}]  # BFCL simple_python_0
FACTORIAL = [{"math.factorial": {"number": [5]}}]
PLAIN = [{"name": "f", "arguments": {"a": 1, "b": "x y", "flag": True}}]


def tagged(*calls):
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


def actions(*pairs):
    return "\n".join(f"Action: {name}\nAction Input: {arguments}" for name, arguments in pairs)


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize(
    "completion",
    [
        "triangle_area(base=10, height=5)",
        "[triangle_area(height=5, base=10.0, unit='Units')]",
        "```python\ntriangle_area(base=10, height=5)\n```",
        "```Python\ntriangle_area(base=10, height=5)\n```",
        "```tool-call \r\ntriangle_area(base=10, height=5)\r\n```\r\n",
        "```python title='call.py'\ntriangle_area(base=10, height=5)\n```",
        "Here it is:\n```json\n" + json.dumps(call("triangle_area", base=10, height=5)) + "\n```",
        json.dumps(call("triangle_area", base=10, height=5, unit="u,n.i/t-s")),  # BFCL drops these characters
        json.dumps([call("triangle_area", base=10, height=5)]),
        json.dumps({"name": "triangle_area", "parameters": {"base": 10, "height": 5}}),
        json.dumps(
            [{"type": "function", "function": {"name": "triangle_area", "arguments": '{"base":10,"height":5}'}}]
        ),
        json.dumps(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": call("triangle_area", base=10, height=5)}
                ],
            }
        ),
        "I call it.\n" + tagged(call("triangle_area", base=10, height=5)),
        'Thought: an area.\nAction: triangle_area\nAction Input: {"base": 10, "height": 5}\nObservation: 25',
        'Action: triangle_area\r\nAction Input: {"base": 10, "height": 5}\r\n',
        'Action: triangle_area\nAction Input: {\n  "base": 10,\n  "height": 5\n}',
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
        f"triangle_area(base=0x{'f' * 5000}, height=5)",  # more digits than Python writes in decimal, or reads
        f"triangle_area(base=[-0x{'f' * 5000}], height=5)",
        "triangle_area(base=10, height=5)\nimport os",
        "f()(base=10)",
        '{"name": "triangle_area", "arguments": {"base": 10, "base": 10, "height": 5}}',
        '{"name": "triangle_area", "arguments": {"base": 10, "height": 5}, "unit": "cm"}',
        '{"name": "triangle_area", "arguments": [10, 5]}',
        '{"name": "triangle_area", "arguments": {"base": 10, "height": 5}, "parameters": {}}',  # which of them?
        '{"name": "f", "function": {"name": "triangle_area", "arguments": {"base": 10, "height": 5}}}',
        '<tool_call>{"name": "triangle_area", "arguments": {"base": 10, "height": 5}}',  # not closed
        "<tool_call>" + tagged(call("triangle_area", base=10, height=5)) + "</tool_call>",
        tagged(call("triangle_area", base=10, height=5)).replace("}}", "}} {}"),
        tagged(call("triangle_area", base=10, height=5)) + "<tool_call>{",
        "<think>triangle_area(base=10, height=5)",
        "Action: triangle_area",
        'Action: triangle_area\nAction Input: {"base": 10, "height": 5',
        'Action: triangle_area\nAction Input: {"base": 10, "base": 10, "height": 5}',
        'Action: triangle_area\nAction Input: {"base": 10, "height": 5} or so',
        "Action: triangle_area\nAction Input: [10, 5]",
        'Action: \nAction Input: {"base": 10, "height": 5}',
        'Action: triangle_area\nAction Input: {"base": 10, "height": 5}\nAction Input: {"base": 10, "height": 5}',
        'Action Input: {"base": 10, "height": 5}\nAction: triangle_area',
        'Action: triangle_area\nAction: triangle_area\nAction Input: {}\nAction Input: {"base": 10, "height": 5}',
        'Action: triangle_area\nAction Input: {"base": ' + "[" * 100_000,
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


def test_a_reason_that_quotes_the_model_can_be_written_to_a_file():
    """JSON may hold half of a surrogate pair, which UTF-8 has no bytes for."""
    assert grade('{"name": "\\ud83d", "arguments": {}}', PLAIN).reason == "called \\ud83d, expected f"
    assert Grade("error", None, "\ud83d \U0001f600").reason == "\\ud83d \U0001f600"


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


@pytest.mark.parametrize("text", ["</tool_call>", "<tool_call>", '<tool_call>{"name": "f"}</tool_call>'])
def test_a_tag_in_a_string_is_text(text):
    """The JSON decides where a call ends, also where an argument quotes another call."""
    expected = [{"name": "say", "arguments": {"text": text}}, {"name": "end", "arguments": {}}]
    completion = tagged(call("say", text=text)) + "\n" + tagged(call("end"))
    assert grade(completion, expected).outcome == "correct"
    assert grade(completion, expected[:1]).outcome == "wrong"


@pytest.mark.parametrize("text", ["use <tool_call> here", "so\nAction: go\nnow"])
def test_a_mark_of_another_syntax_in_a_string_is_text(text):
    expected = [{"name": "say", "arguments": {"text": text}}]
    assert grade(json.dumps(expected[0]), expected).outcome == "correct"


def test_a_message_whose_tool_calls_are_null_calls_nothing():
    message = json.dumps({"role": "assistant", "content": "No tool fits.", "tool_calls": None})
    assert grade(message, []).outcome == "correct"
    assert grade(message, [{"name": "f", "arguments": {}}]).outcome == "wrong"


def test_a_schema_of_an_argument_that_says_nothing_allows_everything():
    tools = [{"name": "f", "parameters": {"properties": {"a": True, "b": "text"}}}]
    assert grade("f(a=1, b=[2])", [{"name": "f", "arguments": {"a": 1, "b": [2]}}], tools).outcome == "correct"


def test_several_calls_match_in_any_order_and_one_to_one():
    expected = [{"play": {"artist": ["A", "B"]}}, {"play": {"artist": ["A"]}}]
    # A first-come matching gives "A" to the first expected call, and leaves "B" without one.
    assert grade("[play(artist='A'), play(artist='B')]", expected).outcome == "correct"
    assert grade("play(artist='B')\nplay(artist='A')", expected).outcome == "correct"
    assert grade(tagged(call("play", artist="A"), call("play", artist="A")), expected).outcome == "correct"
    assert grade("[play(artist='B'), play(artist='B')]", expected).outcome == "wrong"
    assert grade("[play(artist='A'), play(artist='C')]", expected).outcome == "wrong"  # both want the first call
    assert grade("play(artist='A')", expected).outcome == "wrong"


def test_no_call_is_expected():
    assert grade("Hello, no tool is needed.", []).outcome == "correct"
    assert grade("f(a=1)", []).outcome == "wrong"
    assert grade("Action: f\nAction Input: {}", []).outcome == "wrong"
    assert grade("<think>no tool is needed", []).outcome == "unparsed"


@pytest.mark.parametrize(
    "completion",
    [
        '<tool_call>{"name": "f", "arguments": {',
        "Action: f\nAction Input: {",
        "f(1)",
        "print(f(a=1))",
        "f(a=x)",
        "f(a=1",
        "[f(a=1), g(",
        "`f(a=1)`",
        '```json\n{"name": "f", "arguments"',
        '{"name":"f","arguments":{"a":1,"a":2}}',
        '{"role": "assistant", "tool_calls": [{"function"',
    ],
)
def test_a_call_that_cannot_be_read_is_not_the_silence_that_was_asked_for(completion):
    assert (grade(completion, []).outcome, answers.tool_answer(completion)) == ("unparsed", None)


@pytest.mark.parametrize(
    "completion",
    ["Function(s) are not available.", "I would call f(a=1).", "{}", '{"answer": 5}', "f(x) = 5", "```\nx = 3\n```"],
)
def test_prose_and_data_are_no_calls(completion):
    assert (grade(completion, []).outcome, answers.tool_answer(completion)) == ("correct", answers.NO_CALL)


def test_syntax_can_be_demanded():
    written = {
        "python": "math.factorial(number=5)",
        "hermes": tagged(call("math.factorial", number=5)),
        "json": json.dumps(call("math.factorial", number=5)),
        "action": 'Action: math.factorial\nAction Input: {"number": 5}',
    }
    for syntax in SYNTAXES:
        for own, text in written.items():
            outcome = "correct" if syntax in ("auto", own) else "unparsed"
            assert grade(text, FACTORIAL, syntax=syntax).outcome == outcome, (syntax, own)


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
        ({"type": "integer"}, [1], True, "wrong"),
        ({"type": "boolean"}, [True], 1, "wrong"),
        # The reference itself breaks the declaration: then the value must be just that.
        ({"type": "string"}, [5], 5, "correct"),
        ({"type": "string"}, [5], 5.0, "wrong"),
        ({"type": "array"}, ["data['x']"], "data['x']", "correct"),
        ({"type": "array"}, ["data['x']"], "DATA['x']", "wrong"),
        ({"type": "array", "items": {"type": "integer"}}, [["a b"]], ["A b"], "correct"),
        ({"type": "array", "items": {"type": "integer"}}, [["a b"]], ("a b",), "wrong"),
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


def test_an_argument_that_the_tool_does_not_declare_or_requires_beyond_the_reference_is_wrong():
    expected = [{"f": {"a": [1], "b": [2, ""]}}]
    declares_a = [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}]
    assert [grade(text, expected, declares_a).outcome for text in ("f(a=1)", "f(a=1, b=2)")] == ["correct", "wrong"]
    requires_c = [{"name": "f", "parameters": {"properties": {"a": {}, "c": {}}, "required": ["a", "c"]}}]
    assert "'c' is missing" in grade("f(a=1)", expected, requires_c).reason
    assert grade("f(a=1, b=2)", expected, [{"name": "f", "parameters": {}}]).outcome == "correct"  # declares nothing


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("f(a=1)", "correct"),
        ("f(a=1, unit='m')", "correct"),  # the declared default, said aloud
        ("f(a=1, size=3, unit='m')", "correct"),
        ("f(a=1, unit='M')", "wrong"),
        ("f(a=1, size=4)", "wrong"),
        ("f(a=1, size=3.0)", "wrong"),  # declared an integer
        ("f(size=3)", "wrong"),  # `a` is required, its default does not matter
    ],
)
def test_in_the_plain_form_an_optional_argument_may_be_left_out_or_given_as_its_default(completion, outcome):
    """The reference says size=3, the declared default, and leaves out `unit`, whose declared default is 'm'."""
    properties = {
        "a": {"type": "integer", "default": 1},
        "size": {"type": "integer", "default": 3},
        "unit": {"type": "string", "default": "m"},
    }
    tools = [{"name": "f", "parameters": {"properties": properties, "required": ["a"]}}]
    assert grade(completion, [call("f", a=1, size=3)], tools).outcome == outcome
    assert grade("f(a=1)", [call("f")], tools).outcome == "wrong"  # the default of a required argument is not used
    assert grade("f(a=1, unit='m')", [call("f", a=1)]).outcome == "wrong"  # without a schema there is no default


def test_toolalpacas_golden_answers_are_a_plain_form():
    golden = [{"Action": "search", "Action_Input": '{"color": "wild", "page": 1}'}, {"Action": "random"}]
    right = 'Action: random\nAction Input: {}\nAction: search\nAction Input: {"page": 1, "color": "wild"}'
    assert grade(right, golden).outcome == "correct"
    assert grade(right.replace("wild", "Wild"), golden).outcome == "wrong"
    assert grade(right, [{"Action": "search", "Action_Input": "{"}]).outcome == "error"


def test_the_tool_calls_of_chat_messages_are_graded():
    function = {"name": "triangle_area", "arguments": '{"base": 10, "height": 5}'}
    message = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"type": "function", "function": function}],
    }
    assert grade(completion_text([message], 0), AREA).outcome == "correct"
    assert grade(completion_text([{**message, "content": None}], 0), AREA, syntax="hermes").outcome == "correct"
    assert grade(completion_text([message, message], 0), AREA).outcome == "wrong"


@pytest.mark.parametrize(
    ("expected", "tools", "why"),
    [
        (None, None, "`expected` is None"),
        ("not json", None, "not JSON"),
        ([1], None, "not a call object"),
        ([{"f": {"a": 1}}], None, "list of its accepted values"),
        ('[{"f": {"a": null}}]', None, "JSON string"),
        (FACTORIAL, [{"name": "g"}], "not among the tools ['g']"),
        (FACTORIAL, [{"title": "g"}], "`tools` holds"),
        (FACTORIAL, "{", "`tools` is a string that is not JSON"),
        (FACTORIAL, [{"name": "math.factorial", "parameters": "none"}], "parameters of math.factorial are 'none'"),
        (FACTORIAL, [{"name": "math.factorial", "parameters": {"properties": ["number"]}}], "give a JSON object"),
        (FACTORIAL, [{"name": "math.factorial", "parameters": {"required": True}}], "give a JSON array"),
    ],
)
def test_an_unreadable_reference_is_an_error(expected, tools, why):
    result = grade("math.factorial(number=5)", expected, tools)
    assert (result.outcome, result.score) == ("error", None)
    assert why in result.reason


def test_unknown_options_name_the_valid_ones():
    with pytest.raises(ValueError, match="scorer 'loose' is unknown; use one of strict, paper_parity"):
        grade("", FACTORIAL, scorer="loose")
    with pytest.raises(ValueError, match="syntax 'xml' is unknown; use one of auto, json, python, hermes, action"):
        grade("", FACTORIAL, syntax="xml")
    with pytest.raises(ValueError, match="'paper_parity' reads the syntax 'action' only, not 'json'"):
        grade("", PLAIN, scorer="paper_parity", syntax="json")
