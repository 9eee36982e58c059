"""Another reward function has another identity, and the same one an equal identity in every process."""

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from pbsd.rewards.identity import code_hash, reward_identity
from pbsd.rewards.limited import LimitedReward


def lower(completions, factor=1, **columns):
    return [factor * float(text.islower()) for text in completions]


def upper(completions, **columns):
    return [float(text.isupper()) for text in completions]


def scaled(by):
    def decorate(function):
        @functools.wraps(function)
        def reward(completions, **columns):
            return [by * score for score in function(completions, **columns)]

        return reward

    return decorate


class Fixed:
    def __init__(self, letter):
        self.letter = letter

    def __call__(self, completions, **columns):
        return [float(self.letter in text) for text in completions]

    def score(self, completions, **columns):
        return self(completions)

    @classmethod
    def of_class(cls, completions, **columns):
        return [0.0 for _ in completions]


class Slots:
    __slots__ = ("letter",)

    def __init__(self, letter):
        self.letter = letter

    def score(self, completions, **columns):
        return [float(self.letter in text) for text in completions]


class Other(Fixed):
    pass


@dataclass
class Options:
    letter: str


def inner(letter):
    def reward(completions, **columns):
        return [float(letter in text) for text in completions]

    return reward


def by_default(value):
    return lambda completions, letter=value, **columns: [float(letter in text) for text in completions]


PAIRS = {
    "functions": (lower, upper),
    "partial's keywords": (functools.partial(lower, factor=1), functools.partial(lower, factor=-1)),
    "partial's function": (functools.partial(lower, factor=1), functools.partial(upper, factor=1)),
    "partial's arguments": (functools.partial(lower, ["a"]), functools.partial(lower, ["b"])),
    "objects": (Fixed("a"), Fixed("e")),
    "classes": (Fixed("a"), Other("a")),
    "methods of objects": (Fixed("a").score, Fixed("e").score),
    "methods of objects with slots": (Slots("a").score, Slots("e").score),
    "methods": (Fixed("a").score, Fixed("a").__call__),
    "methods of classes": (Fixed.of_class, Other.of_class),
    "closures": (inner("a"), inner("e")),
    "patterns": (inner(re.compile("a")), inner(re.compile("b"))),
    "dataclasses": (inner(Options("a")), inner(Options("b"))),
    "tensors": (inner(torch.zeros(2)), inner(torch.ones(2))),
    "functions in closures": (inner(lower), inner(upper)),
    "objects of objects": (Fixed([Fixed("a")]), Fixed([Fixed("e")])),
    "defaults": (by_default("a"), by_default("e")),
    "lambdas' constants": (lambda completions, **_: [1.0], lambda completions, **_: [-1.0]),
    "lambdas' names": (lambda completions, **_: lower(completions), lambda completions, **_: upper(completions)),
    "lambdas' sets": (lambda c, **_: c[0] in {"a", "b"}, lambda c, **_: c[0] in {"a", "c"}),
    "decorators": (scaled(1)(lower), scaled(-1)(lower)),
    "decorated or not": (lower, scaled(1)(lower)),
}


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_another_reward_has_another_identity(pair, limited):
    """Whether or not a time limit is around it."""
    one, other = PAIRS[pair]
    if limited:
        one, other = (LimitedReward("reward", function, 5.0) for function in (one, other))
    assert reward_identity(one) != reward_identity(other)
    assert reward_identity(one) == reward_identity(one)


def test_a_time_limit_is_no_part_of_it():
    assert reward_identity(LimitedReward("lower", lower, 5.0)) == reward_identity(lower) == f"{__name__}:lower"


def test_it_is_equal_in_every_process():
    """No memory address, and no order of a set: each process has its own of both."""
    code = (
        "import json, test_rewards_identity as t; "
        "print(json.dumps([[t.reward_identity(f) for f in p] for p in t.PAIRS.values()]))"
    )
    said = []
    for seed in ("1", "2"):
        environment = {
            **os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])
        }  # fmt: skip
        said.append(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True))
    assert said[0].stdout and said[0].stdout == said[1].stdout, said[0].stderr
    assert "0x" not in said[0].stdout
    assert len(json.loads(said[0].stdout)) == len(PAIRS)


def test_a_function_that_encloses_itself_ends():
    def reward(completions, **columns):
        return reward(completions[1:]) if completions else []

    assert reward_identity(reward) == reward_identity(reward)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_code_of_each_is_found(pair):
    """So that a changed source file is said, whatever the function is wrapped into."""
    assert code_hash(PAIRS[pair][0]) == code_hash(lower) is not None


def test_code_without_a_file_has_a_hash():
    one, other = {}, {}
    exec("def reward(completions): return [1.0]", {"__name__": "__nowhere__"}, one)
    exec("def reward(completions): return [2.0]", {"__name__": "__nowhere__"}, other)
    assert None is not code_hash(one["reward"]) != code_hash(other["reward"])
