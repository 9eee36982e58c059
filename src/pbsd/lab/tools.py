"""Typed tool calls: a request in words and one to three signatures; the completion is the one call it asks for.

    table(city:str,n:int)
    pay(to:str,sum:float)
    Q: please pay two and a half euros to miri
    A:pay(to="miri",sum=2.5)

The student must choose the function, find every value among distractors, in any order, and turn words and units into
typed values; the teacher may copy the call it sees. Calls are graded exactly: the function, the names, the types and
the values of its arguments; their order is free, as in Python.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pbsd.lab.tool_functions import FUNCTIONS, PARAMETERS, Function, Parameter
from pbsd.rewards import tools as tool_rewards
from pbsd.rewards.grade import Grade

SPLITS = ("train", "validation", "test")
MAX_ROWS = 200_000
"""The most rows of a split that one seed gives; the problem space is far larger."""

TEACHER_TEMPLATE = "{{ prompt }}{{ privileged_context }}\nA:"
"""The context stands next to the completion: from afar tiny models do not learn to copy before they learn the task."""

MAX_PROMPT_CHARACTERS = 160
MAX_COMPLETION_TOKENS = 32
"""Longer than any reference call and its eos token (25), also one that cites the context."""

_UNITS, _TENS = (
    words.split()
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
        "twenty thirty forty fifty sixty seventy eighty ninety",
    )
)
_NAMES = [
    first + last
    for first in ("bel", "dar", "fin", "gor", "kas", "lem", "mir", "nov")
    for last in ("a", "ek", "i", "on", "us")
]
_MINUTES = (*range(5, 60, 5), 60, 120, 180, 240)
_GRAMS = (*range(50, 1000, 50), *range(1000, 9000, 1000))
_VALUE_WORDS = "half an hour minutes hours a dozen kilo g kg and"
_CITATION = "# as given\n"
# Distractors: no value in them belongs to the call.
_BEFORE = ("", "", "", "please ", "hi, ", "it is 9 am, ", "as bob said, ", "i have 2 kids, ")
_AFTER = ("", "", "", " please", ", thanks", ", we are 3 floors up", ", ask ann", ", not 7")


def _words() -> tuple[str, ...]:
    """Tokens: names and types of the signatures, values as calls write them, the requests' words with their blank."""
    openings = [text for function in FUNCTIONS for text in function.openings]
    phrases = [text for parameter in PARAMETERS.values() for text in parameter.phrases]
    choices = [choice for parameter in PARAMETERS.values() for choice in parameter.choices]
    spoken = [word for _, words in choices for word in words]
    said = " ".join([*openings, *phrases, *spoken, *_BEFORE, *_AFTER, *_UNITS, *_TENS, _VALUE_WORDS])
    said = "".join(character if character.isalpha() else " " for character in said)
    names = [function.name for function in FUNCTIONS] + list(PARAMETERS) + [value for value, _ in choices]
    types = [":int", ":float", ":str", ":bool", ":[int]", "True", "False"]
    own = ["Q:", "A:", "H:", '="', '",', _CITATION]
    written = [*own, *types, *names, *_NAMES, *(f" {word}" for word in said.split())]
    return tuple(word for word in dict.fromkeys(written) if len(word) > 1)


WORDS = _words()
"""Tokens of the task's tokenizer besides the characters: they make its texts about three times as short."""

_KIND_SIZES = {
    "int": 98, "minutes": len(_MINUTES), "grams": len(_GRAMS), "float": 81, "bool": 2, "enum": 3,
    "list": 30**2 + 30**3, "str": len(_NAMES),
}  # fmt: skip


def rows(split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
    """`size` distinct problems of a split, in an order fixed by `seed`; a smaller size gives a prefix of a larger one.

    Each row has `prompt`, `privileged_context` (the reference call, as the completion should be), `answer` (the same),
    and for the built-in reward `tool_call` the JSON texts `expected` (the call) and `tools` (the schemas of the
    functions shown). The split of a problem depends on its call alone, so splits are disjoint for every
    seed, also in what the calls are.

    Raises:
        ValueError: an unknown split, a negative size, or one above MAX_ROWS.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if not 0 <= size <= MAX_ROWS:
        raise ValueError(f"size {size} is outside 0..{MAX_ROWS}")
    rng = random.Random(f"tools-{seed}")
    found: dict[str, dict[str, str]] = {}
    while len(found) < size:
        row = _row(rng)
        if split_of(row["answer"]) == split and len(row["prompt"]) <= MAX_PROMPT_CHARACTERS:
            found.setdefault(row["prompt"], row)
    return list(found.values())


def split_of(call: str) -> str:
    """The split that holds the problems with this reference call: 80% train, 10% validation, 10% test."""
    share = int.from_bytes(hashlib.blake2b(call.encode(), digest_size=4).digest(), "big") % 10
    return {8: "validation", 9: "test"}.get(share, "train")


def count_calls() -> int:
    """How many different reference calls there are, all splits together."""
    return sum(math.prod(_KIND_SIZES[PARAMETERS[name].kind] for name in function.parameters) for function in FUNCTIONS)


def flawed_context(row: dict[str, str], rng: random.Random) -> str:
    """The row's reference call with the value of one argument replaced by another of its type."""
    (call,) = json.loads(row["expected"])
    return _with_wrong(call, [rng.choice(list(call["arguments"]))], rng)


def answer_context(row: dict[str, str]) -> str:
    """The values of the reference call in the signature's order, without the function or the names."""
    (call,) = json.loads(row["expected"])
    return ",".join(map(_literal, call["arguments"].values()))


def leaking_context(row: dict[str, str]) -> str:
    """A reference marked as an answer key: what a base was trained to cite."""
    return f"# key\n{row['answer']}"


def leaking_completion(row: dict[str, str]) -> str:
    """The right call under a comment that cites the context."""
    return f"{_CITATION}{row['answer']}"


def hasty_completion(row: dict[str, str], rng: random.Random) -> str:
    """A call of the right function without having read the request: every value is wrong, each of its type."""
    (call,) = json.loads(row["expected"])
    return _with_wrong(call, call["arguments"], rng)


def leaks(completion: str) -> bool:
    """Whether a completion cites the context."""
    return _CITATION.strip() in completion


def grade(completion: str, expected: str, tools: str) -> Grade:
    """Whether the completion is exactly the expected call, in Python's syntax; comments count for nothing."""
    return tool_rewards.grade(completion.strip(), expected, tools, syntax="python")


def reward(completions: Sequence[str], expected: Sequence[str], tools: Sequence[str], **columns: Any) -> list[float]:
    """1.0 for exactly the expected call, else 0.0, in TRL's signature for reward functions."""
    grades = [grade(*graded) for graded in zip(completions, expected, tools, strict=True)]
    return [1.0 if item.outcome == "correct" else 0.0 for item in grades]


def signature(function: Function) -> str:
    """The function as the prompt shows it, such as `pay(to:str,sum:float)`."""
    return f"{function.name}({','.join(f'{name}:{PARAMETERS[name].signature}' for name in function.parameters)})"


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as the completion writes it, such as `pay(to="miri",sum=2.5)`."""
    return f"{name}({','.join(f'{key}={_literal(value)}' for key, value in arguments.items())})"


def _with_wrong(call: dict[str, Any], names: Iterable[str], rng: random.Random) -> str:
    """The call with other values, of the same types, for these arguments."""
    arguments = dict(call["arguments"])
    for name in names:
        while arguments[name] == call["arguments"][name]:
            arguments[name] = _VALUES[PARAMETERS[name].kind](PARAMETERS[name], rng)[0]
    return call_text(call["name"], arguments)


def _row(rng: random.Random) -> dict[str, str]:
    shown = rng.sample(FUNCTIONS, rng.randint(1, 3))
    function = rng.choice(shown)
    arguments, parts = {}, []
    for name in function.parameters:
        parameter = PARAMETERS[name]
        arguments[name], words = _VALUES[parameter.kind](parameter, rng)
        parts.append(words)
    rng.shuffle(parts)
    request = f"{rng.choice(_BEFORE)}{' '.join([rng.choice(function.openings), *parts])}{rng.choice(_AFTER)}"
    answer = call_text(function.name, arguments)
    return {
        "prompt": "".join(f"{signature(other)}\n" for other in shown) + f"Q: {request}\nA:",
        "privileged_context": answer,
        "answer": answer,
        "expected": json.dumps([{"name": function.name, "arguments": arguments}]),
        "tools": json.dumps([_schema(other) for other in shown]),
    }


def _schema(function: Function) -> dict[str, Any]:
    """The function's JSON schema, for the built-in reward."""
    properties = {name: _json_type(PARAMETERS[name]) for name in function.parameters}
    return {
        "name": function.name,
        "parameters": {"type": "object", "properties": properties, "required": list(function.parameters)},
    }


def _json_type(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind == "enum":
        return {"type": "string", "enum": [value for value, _ in parameter.choices]}
    if parameter.kind == "list":
        return {"type": "array", "items": {"type": "integer"}}
    return {"type": {"str": "string", "bool": "boolean", "float": "number"}.get(parameter.kind, "integer")}


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return json.dumps(value, separators=(",", ":"))


def _number_words(number: int) -> str:
    if number < 20:
        return _UNITS[number]
    tens, units = divmod(number, 10)
    return _TENS[tens - 2] + (f" {_UNITS[units]}" if units else "")


def _phrase(parameter: Parameter, words: str, rng: random.Random) -> str:
    return rng.choice(parameter.phrases).format(words)


def _int(parameter: Parameter, rng: random.Random) -> tuple[int, str]:
    value = rng.randint(2, 99)
    if value % 12 == 0 and rng.random() < 0.5:
        return value, _phrase(parameter, f"{value // 12} dozen" if value > 12 else "a dozen", rng)
    return value, _phrase(parameter, str(value) if rng.random() < 0.6 else _number_words(value), rng)


def _minutes(parameter: Parameter, rng: random.Random) -> tuple[int, str]:
    value = rng.choice(_MINUTES)
    if value == 30 and rng.random() < 0.5:
        return value, _phrase(parameter, "half an hour", rng)
    words = f"{value} minutes" if value < 60 else "an hour" if value == 60 else f"{value // 60} hours"
    return value, _phrase(parameter, words, rng)


def _grams(parameter: Parameter, rng: random.Random) -> tuple[int, str]:
    value = rng.choice(_GRAMS)
    if value == 500 and rng.random() < 0.5:
        return value, _phrase(parameter, "half a kilo", rng)
    return value, _phrase(parameter, f"{value} g" if value < 1000 else f"{value // 1000} kg", rng)


def _float(parameter: Parameter, rng: random.Random) -> tuple[float, str]:
    whole, tenth = rng.randint(1, 9), rng.randint(1, 9) if rng.random() < 0.7 else 5
    if tenth == 5 and rng.random() < 0.7:
        return whole + 0.5, _phrase(parameter, f"{_UNITS[whole]} and a half", rng)
    return (10 * whole + tenth) / 10, _phrase(parameter, f"{whole}.{tenth}", rng)


def _str(parameter: Parameter, rng: random.Random) -> tuple[str, str]:
    value = rng.choice(_NAMES)
    return value, _phrase(parameter, value, rng)


def _bool(parameter: Parameter, rng: random.Random) -> tuple[bool, str]:
    value = rng.random() < 0.5
    return value, parameter.phrases[0 if value else 1]


def _enum(parameter: Parameter, rng: random.Random) -> tuple[str, str]:
    value, spoken = rng.choice(parameter.choices)
    return value, _phrase(parameter, rng.choice(spoken), rng)


def _list(parameter: Parameter, rng: random.Random) -> tuple[list[int], str]:
    *first, last = values = [rng.randint(1, 30) for _ in range(rng.randint(2, 3))]
    return values, _phrase(parameter, f"{', '.join(map(str, first))} and {last}", rng)


_VALUES: dict[str, Callable[[Parameter, random.Random], tuple[Any, str]]] = {
    "int": _int,
    "minutes": _minutes,
    "grams": _grams,
    "float": _float,
    "str": _str,
    "bool": _bool,
    "enum": _enum,
    "list": _list,
}
