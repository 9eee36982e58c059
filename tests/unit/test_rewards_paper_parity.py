"""The papers' tool-use score. Expected verdicts are read off the papers' two regular expressions by hand."""

import json

import pytest

from pbsd.rewards.tools import grade

WILD = [{"Action": "search", "Action_Input": '{"color": "wild", "page": 1}'}]
TWO = [{"Action": "f", "Action_Input": '{"a": 1}'}, {"Action": "g", "Action_Input": '{"b": 2}'}]
SHARED = [{"Action": "f", "Action_Input": '{"a": 1}'}, {"Action": "g", "Action_Input": '{"a": 2}'}]
NESTED = [{"Action": "f", "Action_Input": '{"a": {"b": 1}}'}]
EMPTY = [{"Action": "random", "Action_Input": "{}"}]


def actions(*pairs):
    return "\n".join(f"Action: {name}\nAction Input: {arguments}" for name, arguments in pairs)


@pytest.mark.parametrize(
    ("completion", "golden", "parity", "strict"),
    [
        (actions(("search", '{"page": 1, "color": "wild"}')), WILD, "correct", "correct"),
        ("Thought: pages.\n" + actions(("search", '{"color": "wild", "page": 1}')), WILD, "correct", "correct"),
        (actions(("search", '{"color": "wild", "page": 2}')), WILD, "wrong", "wrong"),
        (actions(("search", '{"color": "wild"}')), WILD, "wrong", "wrong"),
        (actions(("find", '{"color": "wild", "page": 1}')), WILD, "wrong", "wrong"),
        ("I would search.", WILD, "unparsed", "unparsed"),
        (actions(("g", '{"b": 2}'), ("f", '{"a": 1}')), TWO, "correct", "correct"),  # in any order
        (actions(("f", '{"a": 1}')), TWO, "wrong", "wrong"),
        # Flaws that let wrong calls pass.
        (actions(("f", '{"b": 2}'), ("g", '{"a": 1}')), TWO, "correct", "wrong"),  # swapped inputs
        ('Action: f\nAction: g\nAction Input: {"a": 1, "b": 2}', TWO, "correct", "unparsed"),  # one input for both
        (actions(("f", '{"a": 7}'), ("g", '{"a": 2}')), SHARED, "correct", "wrong"),  # the last value hides the first
        (actions(("random", '{"a": 1')), EMPTY, "correct", "unparsed"),  # an unreadable input is none
        (actions(("random", '{"a": {"b": 1}}')), EMPTY, "correct", "wrong"),  # nor can a nested one be read
        (actions(("search", '{"color": "wild", "page": true}')), WILD, "correct", "wrong"),  # true is 1
        (actions(("search", '{"color": "x", "color": "wild", "page": 1}')), WILD, "correct", "unparsed"),  # twice
        ('Action Input: {"color": "wild", "page": 1}\nAction: search', WILD, "correct", "unparsed"),  # in no order
        ("nothing to do", [], "correct", "correct"),
        ('Action Input: {"a": 1, "a"}', [], "correct", "correct"),  # an unreadable input without an action
        # Flaws that let right calls fail.
        (actions(("f", '{"a": {"b": 1}}')), NESTED, "wrong", "correct"),
        (actions(("f", '{"a": "}"}')), [{"Action": "f", "Action_Input": '{"a": "}"}'}], "wrong", "correct"),
        (actions(("a.b", "{}")), [{"Action": "a.b", "Action_Input": "{}"}], "wrong", "correct"),
        ("<think>Action: find</think>" + actions(("search", WILD[0]["Action_Input"])), WILD, "wrong", "correct"),
        ("Action:\n" + actions(("search", WILD[0]["Action_Input"])), WILD, "wrong", "unparsed"),  # takes `Action`
    ],
)
def test_paper_parity_has_the_papers_flaws_and_strict_has_not(completion, golden, parity, strict):
    result = grade(completion, golden, scorer="paper_parity")
    assert (result.outcome, result.score) == (parity, 1.0 if parity == "correct" else 0.0)
    assert grade(completion, json.dumps(golden), syntax="action", scorer="paper_parity") == result
    assert grade(completion, golden).outcome == strict


def test_paper_parity_reads_the_golden_answers_as_the_papers_do():
    right = actions(("f", '{"a": 1}'))
    for golden in (
        {"Action": "f", "Action_Input": {"a": 1}},  # SDPO's reading
        {"name": "f", "arguments": {"a": 1}},
        {"name": "f", "arguments": '{"a": 1}'},
    ):
        assert grade(right, [golden], scorer="paper_parity").outcome == "correct"
    for empty in ({"Action": "f"}, {"Action": "f", "Action_Input": "not JSON"}, {"Action": "f", "Action_Input": None}):
        assert grade(actions(("f", "{}")), [empty], scorer="paper_parity").outcome == "correct"
        assert grade(right, [empty], scorer="paper_parity").outcome == "wrong"
    for unreadable in ([{"f": {"a": [1]}}], ["f"], [{"Action": 1}], [{"Action": "f", "Action_Input": "[1]"}]):
        assert grade(right, unreadable, scorer="paper_parity").outcome == "error"
