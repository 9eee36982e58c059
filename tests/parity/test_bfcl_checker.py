"""The strict tool-call scorer against BFCL's own AST checker, on every row of its eight Python categories.

Both judge the same calls: the checker as Python objects, ours as the Python text of them. Every accepted value of every
argument is tried, and every row is mutated in every way that `mutations_of_value` and `mutations_of_calls` list (about
98,000 pairs of verdicts; nothing is sampled). `EXCEPTIONS` is all that the two disagree on.

BFCL's decoder is compared only on whether a text is a call where none is wanted: it evaluates arithmetic and takes bare
names for strings; ours reads literals only.
`make setup` installs `bfcl-eval` without its dependencies.
"""

import ast
import json
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import bfcl_eval
import pytest
from bfcl_eval.constants.enums import Language, ReturnFormat

from pbsd.rewards.tools import grade

BFCL = Path(bfcl_eval.__file__).parent

CATEGORIES = {
    "simple_python": 400,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
}
"""Rows of each."""

IMPOSSIBLE = {
    "live_simple_106-63-0": "the accepted values of two required arguments are empty lists",
    "live_simple_112-68-0": "the accepted values of five required arguments are empty lists",
    "live_multiple_862-181-3": "the answer has an argument that the function does not declare",
    "live_multiple_964-207-0": "the answer lacks an argument that the function requires",
}
"""Rows that no call can pass, by either."""


class Exceptions(NamedTuple):
    bfcl: bool
    """Does BFCL accept, where we do the opposite?"""
    reason: str
    rows: set[str]


EXCEPTIONS = {
    "calls_reversed": Exceptions(
        False,
        "an answer's accepted values overlap: BFCL gives it the first call that fits, which another answer needs; "
        "we look for a matching of all",
        {"parallel_178"},
    ),
    "object.bool_as_int": Exceptions(
        True,
        "inside objects BFCL compares by Python's ==, where 1 equals true; here never",
        {"live_simple_40-17-0", "live_simple_51-23-0", "live_multiple_996-227-0"},
    ),
    "object.int_as_bool": Exceptions(
        True,
        "inside objects BFCL compares by Python's ==, where true equals 1; here never",
        {"parallel_29", "live_simple_51-23-0", "live_simple_52-23-1"},
    ),
    "object.list.upper": Exceptions(
        False,
        "BFCL ignores case only one level deep, we at every level",
        {"simple_python_337", "parallel_multiple_135"},
    ),
    "object.list.punctuation": Exceptions(
        False,
        "BFCL ignores punctuation only one level deep, we at every level",
        {"simple_python_337", "parallel_multiple_135"},
    ),
    "object.list_as_tuple": Exceptions(
        False,
        "where nothing is declared a tuple equals the list of its items here",
        {"simple_python_337", "parallel_multiple_135"},
    ),
    "list.float_as_int": Exceptions(
        False,
        "BFCL takes an integer for a float as an argument, but not as an item of a list of floats; we take both",
        {
            "simple_python_13",
            "simple_python_82",
            "simple_python_87",
            "simple_python_103",
            "parallel_multiple_67",
            "live_simple_116-72-0",
        },
    ),
    "list.list.int_as_float": Exceptions(
        True,
        "BFCL checks the types of items only one level deep, we at every level",
        {"simple_python_122"},
    ),
}


DECODING_EXCEPTIONS = {
    "f(a=1)\ng(b=2)": "one call a line",
    "```python\nf(a=1)\n```": "a call in a code fence",
    "```\nf(a=1)\n```\nor\n```\nf(a=2)\n```": "a call in each of two code fences",
    '{"name": "f", "arguments": {"a": 1}}': "a JSON call",
    '{"name": "f", "arguments": {"a": 1, "a": 2}}': "a JSON call with a repeated key",
    '[{"name": "f", "argu': "a JSON call that is cut off",
    '<tool_call>{"name": "f"}</tool_call>': "a tag",
    "Action: f\nAction Input: {}": "an Action line",
    "f(a=b c)": "a call that is no Python",
    "[f(a=1": "a call that is cut off: BFCL adds the bracket of the list, but no parenthesis",
    "x = f(a=1)": "a call whose result is kept",
}
"""What BFCL's decoder cannot read, so that it counts as no call there, and is a call here; never the other way."""


def load_checker():
    """BFCL's checker from its file, without its import of `model_config`, which pulls in a client for every vendor.

    All it takes from there is whether a model writes dots in function names as underscores: none does here.
    """
    path = BFCL / "eval_checker/ast_eval/ast_checker.py"
    tree = ast.parse(path.read_text("utf-8"))
    (vendors,) = (n for n in tree.body if getattr(n, "module", "") == "bfcl_eval.constants.model_config")
    tree.body.remove(vendors)
    module = ModuleType("ast_checker")
    module.MODEL_CONFIG_MAPPING = {"any": SimpleNamespace(underscore_to_dot=False)}
    exec(compile(tree, path, "exec"), vars(module))
    return module.ast_checker


ast_checker = load_checker()


def load_decoder():
    """BFCL's decoder from its file, without its imports, of which it needs none; every language but Python goes too."""
    tree = ast.parse((BFCL / "model_handler/utils.py").read_text("utf-8"))
    wanted = {"default_decode_ast_prompting", "ast_parse", "resolve_ast_call", "resolve_ast_by_type"}
    tree.body = [node for node in tree.body if getattr(node, "name", "") in wanted]
    module = ModuleType("decoder")
    vars(module).update(ast=ast, ReturnFormat=ReturnFormat)
    exec(compile(tree, "decoder", "exec"), vars(module))
    return module.default_decode_ast_prompting


decode = load_decoder()


def bfcl_sees_a_call(text):
    """`eval_runner`'s rule for irrelevance: the text decodes, and not to an empty list."""
    try:
        return bool(decode(text))
    except Exception:
        return False


class Row(NamedTuple):
    category: str
    id: str
    functions: list
    truth: list

    def schema(self, name):
        return next(function["parameters"] for function in self.functions if function["name"] == name)


def rows(category):
    truths = {row["id"]: row["ground_truth"] for row in lines(f"possible_answer/BFCL_v4_{category}.json")}
    for row in lines(f"BFCL_v4_{category}.json"):
        yield Row(category, row["id"], row["function"], truths[row["id"]])


def lines(name):
    return [json.loads(line) for line in (BFCL / "data" / name).read_text("utf-8").splitlines()]


def bfcl_accepts(row, calls):
    made = [{name: arguments} for name, arguments in calls]
    return ast_checker(row.functions, made, row.truth, Language.PYTHON, row.category, "any")["valid"]


def we_accept(row, calls):
    written = [f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})" for name, args in calls]
    return grade(f"[{', '.join(written)}]", row.truth, row.functions, syntax="python").outcome == "correct"


def first_accepted_calls(row):
    """The row's calls with the first accepted value of every argument; an argument that may be left out is."""
    calls = []
    for answer in row.truth:
        ((name, accepted),) = answer.items()
        required = row.schema(name)["required"]
        given = {key: values for key, values in accepted.items() if key in required or "" not in values}
        calls.append((name, {key: next(iter(stated(values)), "") for key, values in given.items()}))
    return calls


def stated(values):
    return [plain(value) for value in values if value != ""]


def plain(value):
    """A value of the possible-answer form: nested objects hold a list of accepted values for each key."""
    if isinstance(value, dict):
        lists = {key: values if isinstance(values, list) else [values] for key, values in value.items()}
        return {key: plain(values[0]) for key, values in lists.items() if "" not in values}
    return [plain(item) for item in value] if isinstance(value, list) else value


def mutations_of_value(value):
    """(name, another value), whether or not it is still right."""
    if value is not None:
        yield "none", None
    match value:
        case bool():
            yield "bool_flipped", not value
            yield "bool_as_int", int(value)
            yield "bool_as_string", str(value).lower()
        case int():
            yield "int_changed", value + 1
            yield "int_as_float", float(value)
            yield "int_as_string", str(value)
            if value in (0, 1):
                yield "int_as_bool", bool(value)
        case float():
            yield "float_changed", value + 0.5
            yield "float_as_int", int(value)  # another number unless it is whole
            yield "float_as_string", str(value)
        case str():
            yield "letter_added", value + "x"
            yield "upper", value.upper()
            yield "punctuation", f"{value[:1]}-{value[1:]}. "  # characters that BFCL ignores
            yield "other_punctuation", value + "!"
            yield "empty", ""
            yield "in_a_list", [value]
            yield "string_as_int", 7
        case list():
            yield "list_as_tuple", tuple(value)
            yield "list_reversed", value[::-1]
            yield "list_shorter", value[:-1]
            yield "list_longer", value + value[-1:]
            yield "list_as_string", str(value)
            yield "list_as_item", value[0] if value else 0
            for i, item in enumerate(value[:2]):
                for name, other in mutations_of_value(item):
                    yield f"list.{name}", [*value[:i], other, *value[i + 1 :]]
        case dict():
            yield "key_added", {**value, "zzz": 1}
            yield "object_reversed", dict(reversed(value.items()))
            yield "object_as_string", str(value)
            yield "in_a_list", [value]
            for key, item in value.items():
                yield "key_missing", {k: v for k, v in value.items() if k != key}
                for name, other in mutations_of_value(item):
                    yield f"object.{name}", {**value, key: other}


def mutations_of_calls(row, calls):
    """(name, other calls), whether or not they are still right."""
    yield "none", calls
    for i, (name, arguments) in enumerate(calls):
        for mutation, call in mutations_of_call(row, i, name, arguments):
            yield mutation, [*calls[:i], call, *calls[i + 1 :]]
        yield "call_missing", calls[:i] + calls[i + 1 :]
        yield "call_doubled", [*calls, calls[i]]
    if len(calls) > 1:
        yield "calls_reversed", calls[::-1]
        yield "call_replaced", [calls[-1], *calls[1:]]


def mutations_of_call(row, i, name, arguments):
    yield "name_changed", (f"{name}_x", arguments)
    yield "name_in_another_case", (name.swapcase(), arguments)
    yield "argument_undeclared", (name, {**arguments, "zzz": 1})
    for key, declared in row.schema(name)["properties"].items():
        if key not in arguments:
            value = {"string": "x", "integer": 1, "float": 1.0, "boolean": True}.get(declared["type"], [1])
            yield "argument_added", (name, {**arguments, key: value})
    yield "arguments_reversed", (name, dict(reversed(arguments.items())))
    for key, value in arguments.items():
        yield "argument_missing", (name, {k: v for k, v in arguments.items() if k != key})
        for mutation, other in mutations_of_value(value):
            yield mutation, (name, {**arguments, key: other})
    for key, values in row.truth[i][name].items():
        for value in stated(values):
            yield "another_accepted_value", (name, {**arguments, key: value})


@pytest.fixture(scope="module")
def verdicts():
    """(row's id, mutation) -> the verdicts (BFCL's, ours) on all its variants."""
    found = defaultdict(list)
    for category in CATEGORIES:
        for row in rows(category):
            for mutation, calls in mutations_of_calls(row, first_accepted_calls(row)):
                found[row.id, mutation].append((bfcl_accepts(row, calls), we_accept(row, calls)))
    return found


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_row_passes_with_its_accepted_answer(category):
    made = [(row, first_accepted_calls(row)) for row in rows(category)]
    assert len(made) == CATEGORIES[category]
    failed = {row.id for row, calls in made if not we_accept(row, calls)}
    assert failed == {id for id in IMPOSSIBLE if id.rpartition("_")[0] == category}
    assert failed == {row.id for row, calls in made if not bfcl_accepts(row, calls)}


def test_no_variant_of_an_impossible_row_passes(verdicts):
    for (id, _), pairs in verdicts.items():
        assert id not in IMPOSSIBLE or set(pairs) == {(False, False)}


def test_the_verdicts_agree_but_for_the_listed_exceptions(verdicts):
    disagreeing = defaultdict(set)
    for (id, mutation), pairs in verdicts.items():
        for bfcl, ours in pairs:
            if bfcl != ours:
                disagreeing[mutation, bfcl].add(id)
    assert dict(disagreeing) == {(name, listed.bfcl): listed.rows for name, listed in EXCEPTIONS.items()}


def test_the_mutations_try_both_verdicts_often_enough(verdicts):
    """A mutation that never happens, or two checkers that say no to everything, would agree as well."""
    bfcl = Counter(verdict for pairs in verdicts.values() for verdict, _ in pairs)
    assert bfcl[True] > 25_000
    assert bfcl[False] > 60_000
    by_mutation = defaultdict(set)
    for (_, mutation), pairs in verdicts.items():
        by_mutation[mutation] |= {verdict for verdict, _ in pairs}
    always_right = {"arguments_reversed", "another_accepted_value", "upper", "punctuation", "object_reversed"}
    assert all(True in by_mutation[mutation] for mutation in always_right | {"calls_reversed", "float_as_int"})
    always_wrong = {"name_changed", "name_in_another_case", "argument_undeclared", "call_missing", "call_doubled"}
    always_wrong |= {"call_replaced", "argument_missing", "letter_added", "bool_as_int", "int_as_string", "key_added"}
    assert all(False in by_mutation[mutation] for mutation in always_wrong)


@pytest.mark.parametrize(("category", "size"), [("irrelevance", 240), ("live_irrelevance", 884)])
def test_where_no_function_fits_an_answer_without_a_call_is_right(category, size):
    """BFCL's rule for these categories: nothing that can be decoded as a call."""
    questions = lines(f"BFCL_v4_{category}.json")
    assert len(questions) == size
    for row in questions:
        name = row["function"][0]["name"] if row["function"] else "f"
        outcomes = [
            grade(text, [], row["function"]).outcome
            for text in ("None of the functions can answer this.", "", f"{name}(a=1)", f"[{name}(), {name}()]")
        ]
        assert outcomes == ["correct", "correct", "wrong", "wrong"]


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        ("f(a=1)", True),
        ("[f(a=1), g()]", True),
        ("f(1)", True),
        ("f(*a)", True),
        ("print(f(a=1))", True),
        ("f(a=x)", True),
        ("f(a=g(b=1))", True),
        ("f()(a=1)", True),
        ("x[0](a=1)", True),
        ("[f(1)", True),
        ("f(1)]", True),
        ("`f(a=1)`", True),
        ("```f(a=1)```", True),
        ("```f(a=1)\n```", True),
        ("```\nf(a=1)\n```", True),
        ("Sorry (none)", True),  # Python does not mind the blank
        ("", False),
        ("[]", False),
        ("None", False),
        ("{}", False),
        ('{"answer": 5}', False),
        ("None of the functions fits.", False),
        ("Function(s) are not available.", False),
        ("You could call f(a=1), but a is not known.", False),
        ("Let me see:\nf(a=1)", False),
        ("f(x) = 5", False),
        *((text, False) for text in DECODING_EXCEPTIONS),
    ],
)
def test_a_text_that_bfcl_decodes_as_a_call_is_not_correct_where_none_is_wanted(text, is_call):
    assert bfcl_sees_a_call(text) == is_call
    assert (grade(text, []).outcome != "correct") == (is_call or text in DECODING_EXCEPTIONS)
