"""What a person sees of an evaluation: a bar while it runs, and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from pbsd.evaluate.compare import Comparison
from pbsd.evaluate.records import ProblemRecord
from pbsd.evaluate.statistics import SHARES, accuracy
from pbsd.progress import LiveLine, console

_NAMES = {
    "score": "mean score",
    "tokens": "tokens per completion",
    "tokens_per_correct": "tokens per correct answer",
    "truncated": "cut by the length limit",
    "hedging": "hedging, per 100 words",
    "leakage": "speaks of a given solution",
}


class EvaluationBar:
    """Problems done, accuracy so far, tokens per second and time left; plain lines where there is no terminal."""

    def __init__(self) -> None:
        self.line = LiveLine("problems", bar_from_width=100)
        self.accuracies: list[float] = []
        self.tokens = 0
        self.done = 0
        self.clock = time.monotonic()

    def __enter__(self) -> EvaluationBar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.line.stop()

    def __call__(self, records: Sequence[ProblemRecord], total: int) -> None:
        """The first call is of what an earlier process did, which counts for no speed."""
        self.accuracies += [value for record in records if not math.isnan(value := accuracy(record))]
        self.done += len(records)
        if not self.line.started:
            if records:
                console().print(f"{self.done} of {total} problems were done before", soft_wrap=True)
            self.line.start(total, self.done)
            return
        self.tokens += sum(sample.tokens for record in records for sample in record.completions)
        mean = sum(self.accuracies) / len(self.accuracies) if self.accuracies else math.nan
        rate = self.tokens / max(time.monotonic() - self.clock, 1e-9)
        self.line.update(self.done, f"accuracy {100 * mean:.1f}%  {rate:.0f} tok/s")


def print_summary(summary: Mapping[str, Any], settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """The table an evaluation ends with."""
    screen = console()
    title = f"{about['model']} on {settings['benchmark']} ({settings['split']}, {summary['problems']} problems)"
    table = Table(
        Column("", justify="left"), Column("95% interval, clustered by problem", justify="right"), title=escape(title)
    )
    for name, figure in summary["figures"].items():
        few = f"  ({figure['problems']} problems)" if figure["problems"] < summary["problems"] else ""
        table.add_row(_NAMES.get(name, name), _interval(name, figure) + few)
    table.add_row(_NAMES["tokens_per_correct"], _interval("tokens_per_correct", summary["tokens_per_correct"]))
    screen.print(table)
    quantiles = ", ".join(f"{name} {value}" for name, value in summary["token_quantiles"].items())
    outcomes = ", ".join(f"{count} {name}" for name, count in summary["outcomes"].items())
    screen.print(f"tokens {quantiles}; outcomes: {outcomes}", soft_wrap=True)
    asked = ", ".join(f"{name} {settings[name]}" for name in ("n", "temperature", "top_p", "top_k", "min_p", "seed"))
    screen.print(
        f"{asked}, at most {settings['max_completion_length']} tokens, thinking {settings['thinking']}, prompts as "
        f"{settings['prompt_format']}, {settings['dtype']}; rows from {escape(str(about['source']))}",
        soft_wrap=True,
    )
    for line in _of_fewer(summary["figures"], summary["problems"]):
        screen.print(line, soft_wrap=True)
    if about["left_out"]:
        screen.print("left out: " + ", ".join(f"{count} {why}" for why, count in about["left_out"].items()))


def print_comparison(comparison: Comparison) -> None:
    screen = console()
    first, second = comparison.models
    screen.print(f"first: {escape(first)}\nsecond: {escape(second)}", soft_wrap=True)
    table = Table(
        *(Column(name, justify="right" if name else "left") for name in ("", "first", "second", "second - first")),
        title=f"{comparison.benchmark}: {comparison.problems} problems, paired, 95% intervals",
    )
    for name, figure in comparison.figures.items():
        difference = {key: figure[f"difference_{key}"] for key in ("estimate", "low", "high")}
        table.add_row(
            _NAMES.get(name, name),
            _number(name, figure["first"]),
            _number(name, figure["second"]),
            _interval(name, difference, signed=True),
        )
    screen.print(table)
    for line in _of_fewer(comparison.figures, comparison.problems):
        screen.print(line, soft_wrap=True)
    for note in comparison.notes:
        screen.print(f"differs: {escape(note)}", soft_wrap=True)


def _of_fewer(figures: Mapping[str, Mapping[str, float]], total: int) -> Iterator[str]:
    """A sentence for every figure that leaves problems out since samples of theirs could not be judged."""
    for name, figure in figures.items():
        if not name.startswith(("avg@", "pass@", "maj@", "score")) or figure["problems"] == total:
            continue
        k = name.removeprefix("pass@")
        fewer = "no sample" if k in (name, "1") else f"fewer than {k} samples"
        yield (
            f"{_NAMES.get(name, name)} is of {figure['problems']} of {total} problems: the others have {fewer} that "
            "could be judged (a time-out or an error of the grader is neither right nor wrong)"
        )


def _interval(name: str, figure: Mapping[str, float], *, signed: bool = False) -> str:
    if math.isnan(figure["low"]):
        return _number(name, figure["estimate"], signed=signed)
    low, high, estimate = (_number(name, figure[key], signed=signed) for key in ("low", "high", "estimate"))
    return f"{estimate} [{low.removesuffix('%')}, {high.removesuffix('%')}]"


def _number(name: str, value: float, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "-"
    sign = "+" if signed else ""
    if name.startswith(SHARES):
        return f"{100 * value:{sign}.1f}%"
    return f"{value:{sign}.2f}" if name == "hedging" else f"{value:{sign},.0f}"
