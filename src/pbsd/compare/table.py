"""table.md of a study, from its result files alone: no torch, no runs."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pbsd.compare.files import TABLE, write_text
from pbsd.compare.findings import Findings, read_findings
from pbsd.compare.statistics import Interval, average_ranks, crossed_interval
from pbsd.compare.study import Cell

_CLOSE = 0.9
"""Share of the best method's final accuracy that tokens are counted to."""


def write_table(folder: Path) -> str:
    """Make table.md of the files in the folder; returns a line that says where it is and what is missing.

    Raises:
        ValueError: a file is missing or damaged.
    """
    findings = read_findings(folder)
    write_text(folder / TABLE, make_table(findings))
    missing = len(findings.missing)
    return f"{folder / TABLE}: {len(findings.accuracy)} of {len(findings.planned)} runs" + (
        f", {missing} are missing" if missing else ""
    )


def make_table(findings: Findings) -> str:
    parts = ["# Comparison", _rules(findings), *_missing(findings)]
    for methods in findings.method_sets:
        if cells := findings.comparable(methods):
            parts += _comparison(findings, methods, cells)
    parts += [*_cell_tables(findings), *_usage(findings), *_choices(findings)]
    return "\n\n".join(parts) + "\n"


def _rules(findings: Findings) -> str:
    study = findings.choices["study"]
    rule = {"last": "the last step", "best_validation": "the step of best validation accuracy"}[study["checkpoint"]]
    return (
        f"Made by `pbsd compare` from the result files alone. Accuracy is that at T = 1 on {study['test']['problems']} "
        f"test problems with {study['test']['samples']} samples each, at {rule} of runs of "
        f"{study['budget']['generated_tokens']:,} generated tokens (student and teacher) or "
        f"{study['budget']['max_steps']} steps, whichever comes first. A cell is a task, a world and a scale; means "
        "over cells have equal weights. Intervals are of 95%, two-way clustered by problem and seed "
        "(`pbsd.compare.statistics`); with one seed there is none. Tokens and drops are read on validation curves, "
        "averaged over seeds."
    )


def _missing(findings: Findings) -> list[str]:
    if not findings.missing:
        return []
    seeds: dict[tuple[str, Cell], list[int]] = {}
    for unit in findings.missing:
        seeds.setdefault((unit.method, unit.cell), []).append(unit.seed)
    lines = [f"- {method}, {_cell(cell)}: seeds {', '.join(map(str, own))}" for (method, cell), own in seeds.items()]
    return [f"## Missing: {len(findings.missing)} of {len(findings.planned)} runs", "\n".join(lines)]


def _comparison(findings: Findings, methods: Sequence[str], cells: Mapping[Cell, Sequence[int]]) -> list[str]:
    """Ranks, accuracies and leads of a set of methods over the cells that have all of them, whole and by part."""
    first, *others = methods
    counts = sorted({len(seeds) for seeds in cells.values()})
    title = f"## {', '.join(methods)}: {_counted(len(cells), 'cell')}, {' or '.join(map(str, counts))} seeds"
    accuracy = {method: _accuracy(findings, cells, method) for method in methods}
    lead = {method: _lead(findings, cells, first, method) for method in others}
    ranks = _ranks(findings, cells, methods)
    whole = _table(
        ["method", "average rank", "accuracy, %", f"lead of {first} over it, points"],
        (
            [method, f"{ranks[method]:.2f}", _percent(accuracy[method]), _percent(lead.get(method), signed=True)]
            for method in methods
        ),
    )
    parts: list[list[str]] = []
    for kind in ("task", "world", "scale"):
        for value in dict.fromkeys(getattr(cell, kind) for cell in cells):
            own = {cell: seeds for cell, seeds in cells.items() if getattr(cell, kind) == value}
            ranks = _ranks(findings, own, methods)
            texts = [f"{100 * _accuracy(findings, own, first).estimate:.1f} (rank {ranks[first]:.1f})"]
            for method in others:
                estimate = 100 * _accuracy(findings, own, method).estimate
                texts.append(f"{estimate:.1f}; {_percent(_lead(findings, own, first, method), signed=True)}")
            parts.append([f"{kind} {value}", *texts])
    note = f"By task, world and scale: accuracy in %, and the lead of {first} in points."
    return [title, whole, note, _table(["", *methods], parts)]


def _accuracy(findings: Findings, cells: Mapping[Cell, Sequence[int]], method: str) -> Interval:
    return crossed_interval(
        [findings.cell_values(cell, findings.values(cell, method, seeds)) for cell, seeds in cells.items()]
    )


def _lead(findings: Findings, cells: Mapping[Cell, Sequence[int]], first: str, other: str) -> Interval:
    """Of the first method over the other: paired by cell, seed and problem."""
    return crossed_interval(
        [
            findings.cell_values(cell, findings.values(cell, first, seeds) - findings.values(cell, other, seeds))
            for cell, seeds in cells.items()
        ]
    )


def _ranks(findings: Findings, cells: Mapping[Cell, Sequence[int]], methods: Sequence[str]) -> dict[str, float]:
    return average_ranks(
        [
            {method: float(findings.values(cell, method, seeds).mean()) for method in methods}
            for cell, seeds in cells.items()
        ]
    )


def _cell_tables(findings: Findings) -> list[str]:
    """By cell: accuracy, tokens to come close to the best, drop from the peak; tokens against the first method."""
    if not findings.cells:
        return []
    methods = [name for name in findings.methods if any(unit.method == name for unit in findings.accuracy)]
    titles = ["cell", *methods]

    def by_cell(entry: Callable[[Cell, str], str]) -> list[list[str]]:
        return [[_cell(cell), *(entry(cell, method) for method in methods)] for cell in findings.cells]

    def accuracy(cell: Cell, method: str) -> str:
        seeds = findings.seeds(cell, [method])
        return _percent(_accuracy(findings, {cell: seeds}, method)) if seeds else ""

    def tokens(cell: Cell, method: str) -> str:
        curve = findings.curve(cell, method)
        if curve is None:
            return ""
        spent = curve.reaches(_CLOSE * _best_final(findings, cell))
        unit = "" if method in findings.generates else " steps"
        return "never" if spent is None else f"{spent:,.0f}{unit}"

    drops = {
        method: [100 * curve.drop for cell in findings.cells if (curve := findings.curve(cell, method))]
        for method in methods
    }

    def drop(cell: Cell, method: str) -> str:
        curve = findings.curve(cell, method)
        return "" if curve is None else f"{100 * curve.drop:.1f}"

    summary = [
        ["mean", *(f"{statistics.fmean(drops[method]):.1f}" for method in methods)],
        ["largest", *(f"{max(drops[method]):.1f}" for method in methods)],
    ]
    return [
        "## By cell\n\nEvery method over all seeds that it has finished.",
        "### Test accuracy, %",
        _table(titles, by_cell(accuracy)),
        f"### Generated tokens to {_CLOSE:.0%} of the best method's final validation accuracy",
        _table(titles, by_cell(tokens)),
        "### Drop of validation accuracy from its peak to the end, points",
        _table(titles, [*by_cell(drop), *summary]),
        *_race(findings, methods),
    ]


def _best_final(findings: Findings, cell: Cell) -> float:
    curves = (findings.curve(cell, method) for method in findings.methods)
    return max(curve.final for curve in curves if curve is not None)


def _race(findings: Findings, methods: Sequence[str]) -> list[str]:
    """Where and how soon the first method reaches the best point of another."""
    first, *others = methods
    rows = []
    for method in others:
        ratios: list[float] = []
        for cell in findings.cells:
            own, other = findings.curve(cell, first), findings.curve(cell, method)
            if own is None or other is None or not {first, method} <= findings.generates:
                continue
            best = float(other.accuracy.max())
            ours, theirs = own.reaches(best), other.reaches(best)
            assert theirs is not None
            # A method that is best before training has spent nothing to get there: every ratio to it is 0/0 or worse.
            ratios.append(math.inf if ours is None else ours / theirs if theirs else 1.0 if not ours else math.inf)
        if ratios:
            middle = statistics.median(ratios)
            reached = sum(math.isfinite(ratio) for ratio in ratios)
            rows.append([method, f"{reached} of {len(ratios)}", "never" if math.isinf(middle) else f"{middle:.2f}"])
    if not rows:
        return []
    titles = ["method", f"cells in which {first} reaches its best", f"median tokens of {first}, as a share of its own"]
    return [f"### Tokens of {first} to the best validation accuracy of another method", _table(titles, rows)]


def _usage(findings: Findings) -> list[str]:
    """What training used, and whether prompts per step were equal."""
    runs = findings.choices["runs"]
    if not runs:
        return []
    rows, prompts = [], {}
    for method in findings.methods:
        own = [run for run in runs if run["method"] == method]
        if not own:
            continue
        prompts[method] = sorted({run["prompts_per_step"] for run in own})
        rows.append(
            [
                method,
                str(len(own)),
                f"{statistics.fmean(run['steps'] for run in own):,.0f}",
                f"{statistics.fmean(run['generated_tokens'] for run in own):,.0f}",
                _counts(run["ended_by"] for run in own),
                _counts(rule for run in own for rule in run["alarms"]),
                ", ".join(map(str, prompts[method])),
            ]
        )
    equal = len({tuple(values) for values in prompts.values()}) == 1
    note = "equal for all methods" if equal else "**not equal for all methods**, which favours those with more"
    titles = [
        "method",
        "runs",
        "mean steps",
        "mean generated tokens",
        "ended by",
        "runs with an alarm",
        "prompts per step",
    ]
    return ["## What training used", _table(titles, rows), f"The number of distinct prompts per step is {note}."]


def _choices(findings: Findings) -> list[str]:
    choices = findings.choices["choices"]
    if not choices:
        return []
    rows = []
    for choice in choices:
        tried = [trial["validation_accuracy"] for trial in choice.get("trials", [])]
        scores = " ".join("-" if accuracy is None else f"{100 * accuracy:.1f}" for accuracy in tried)
        rows.append(
            [
                choice["method"],
                choice["task"],
                choice["world"],
                "open" if choice["chosen"] is None else _options(choice["chosen"]),
                scores if tried else f"taken over from another study's {choice['chosen_for']}",
            ]
        )
    titles = ["method", "task", "world", "chosen", "validation accuracy of the trials, %"]
    return ["## Chosen options", _table(titles, rows)]


def _options(options: Mapping[str, Any]) -> str:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def _counts(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {count}" for word, count in sorted(Counter(words).items()))


def _cell(cell: Cell) -> str:
    return f"{cell.task} {cell.world} {cell.scale}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _percent(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return ""
    form = "+.1f" if signed else ".1f"
    estimate, low, high = (format(100 * value, form) for value in (interval.estimate, interval.low, interval.high))
    return estimate if math.isnan(interval.low) else f"{estimate} [{low}, {high}]"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
