"""`pbsd options`: every option of a method, where it is declared, its default and what it does."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import Field
from enum import Enum
from typing import Any

from rich.markup import escape
from transformers import TrainingArguments

from pbsd.methods import METHODS
from pbsd.progress import console
from pbsd.recipe import RecipeError, RunArguments


def options(method: str) -> Iterator[tuple[str, Field[Any], Any]]:
    """(the class that declares it, the option, its default or MISSING) for a recipe's own keys, then the method's;
    without those that are transformers' alone. A default that follows from others, as from PBSD's `preset`, is what it
    comes to.

    Raises RecipeError for an unknown method.
    """
    if method not in METHODS:
        raise RecipeError(f"unknown method {method!r}; choose among {', '.join(METHODS)}")
    for option in dataclasses.fields(RunArguments):
        yield RunArguments.__name__, option, option.default
    config = METHODS[method][0]
    made = config()
    known = {option.name: option for option in dataclasses.fields(config) if option.init}
    lineage = [kind for kind in reversed(config.__mro__) if issubclass(kind, TrainingArguments)][1:]
    # A class repeats the options whose default it changes: the last one holds.
    owner = {name: kind for kind in lineage for name in inspect.get_annotations(kind)}
    for kind in lineage:
        for name in inspect.get_annotations(kind):
            if owner[name] is kind and name in known:
                yield kind.__name__, known[name], getattr(made, name)


def show(method: str) -> None:
    screen = console()
    group = ""
    for kind, option, default in options(method):
        if kind != group:
            screen.print(f"\n[bold]{kind}[/bold]")
            group = kind
        value = "(required)" if default is dataclasses.MISSING else f"= {_as_in_recipe(default)}"
        help = textwrap.fill(option.metadata["help"], screen.width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        screen.print(f"  {option.name} {escape(value)}\n{escape(help)}", soft_wrap=True, highlight=False)
    screen.print(
        "\nBeside these every option of transformers.TrainingArguments. "
        "In a recipe `name: value`, as a flag --name value.",
        soft_wrap=True,
    )


def _as_in_recipe(default: Any) -> str:
    return json.dumps(default.value if isinstance(default, Enum) else default, ensure_ascii=False)
