"""What holds of every text and every call: nothing raises, and a call is correct in every syntax and order."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_rewards_tools import FACTORIAL, PLAIN, actions, call, tagged

from pbsd.benchmarks import answers
from pbsd.rewards.grade import JUDGED
from pbsd.rewards.tool_syntax import SYNTAXES
from pbsd.rewards.tools import SCORERS, grade

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy

TOKENS = [
    *"0123 abf_.,:=()[]{}'\"\\\n-+*<>/", "Action: ", "\nAction Input: ", "<tool_call>", "</tool_call>", "<think>",
    "</think>", '{"name": "f", "arguments": ', '{"a": 1}', "f(a=1", "True", "null", "```json\n", "```",
    '"tool_calls"', "lambda: 1", "\\ud83d", "{1: 2, 'b': ", "0x" + "f" * 5000,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=25).map("".join) | st.text(max_size=80)


@settings(UNHURRIED, max_examples=200)
@given(TEXTS, st.sampled_from(SYNTAXES))
def test_no_text_makes_the_grader_raise_and_only_judged_ones_have_a_score(text, syntax):
    answers.tool_answer(text)
    for expected in (FACTORIAL, PLAIN, [{"Action": "f", "Action_Input": '{"a": 1}'}], [], text):
        for scorer in SCORERS if syntax in ("auto", "action") else ("strict",):
            result = grade(text, expected, text, syntax=syntax, scorer=scorer)
            assert (result.outcome in JUDGED) == (result.score in (0.0, 1.0))
            result.reason.encode()
            assert grade(text, expected, syntax=syntax, scorer=scorer).outcome in (*JUDGED, "error")


@pytest.mark.parametrize("value", ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900])
def test_a_deeply_nested_value_is_wrong_and_a_deeply_nested_reference_an_error(value):
    completion = json.dumps(call("f", a=0)).replace("0", value)
    assert grade(completion, [call("f", a=1)]).outcome == "wrong"
    assert grade(completion, [{"f": {"a": ["x"]}}]).outcome == "wrong"
    assert grade(completion, json.dumps([call("f", a=0)]).replace("0", value)).outcome == "error"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES)


@settings(UNHURRIED, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["f", "g.h"]), ARGUMENTS), min_size=1, max_size=3), st.randoms())
def test_any_plain_calls_are_correct_in_every_syntax_and_order_and_not_without_one(calls, random):
    expected = [{"name": name, "arguments": arguments} for name, arguments in calls]
    shuffled = random.sample(expected, len(expected))
    python = "\n".join(
        f"{c['name']}({', '.join(f'{key}={value!r}' for key, value in c['arguments'].items())})" for c in shuffled
    )
    pairs = [(c["name"], json.dumps(c["arguments"])) for c in shuffled]
    for text in (json.dumps(shuffled), tagged(*shuffled), python, "So:\n" + actions(*pairs) + "\nObservation: done"):
        assert grade(f"\n {text}\n", expected).outcome == "correct"
    assert grade(json.dumps(shuffled[1:]), expected).outcome == "wrong"
    assert grade(json.dumps([*shuffled, shuffled[0]]), expected).outcome == "wrong"
