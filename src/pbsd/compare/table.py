"""table.md of a study, from its result files alone: no torch, no runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from pbsd.compare.files import TABLE, write_text
from pbsd.compare.findings import Findings, read_findings
from pbsd.compare.markdown import TitledRows, cell_name, counted, markdown_table, percent
from pbsd.compare.statistics import Interval, average_ranks, crossed_interval
from pbsd.compare.study import Cell
from pbsd.compare.training_tables import choices_section, usage_section

CLOSE = 0.9
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
    if findings.missing:
        parts += _two_by_two(findings)
    parts += [*_cell_tables(findings), *usage_section(findings), *choices_section(findings)]
    return "\n\n".join(parts) + "\n"


def _rules(findings: Findings) -> str:
    study = findings.choices["study"]
    rule = {"last": "the last step", "best_validation": "the step of best validation accuracy"}[study["checkpoint"]]
    # Those that were tested: prompts over their budget are left out.
    tested = {len(problems) for problems in findings.problems.values()} or {study["test"]["problems"]}
    problems = " to ".join(str(number) for number in sorted({min(tested), max(tested)}))
    return (
        f"Made by `pbsd compare` from the result files alone. Accuracy is that at T = 1 on {problems} test problems "
        f"with {study['test']['samples']} samples each, at {rule} of runs of "
        f"{study['budget']['generated_tokens']:,} generated tokens (student and teacher) or "
        f"{study['budget']['max_steps']} steps, whichever comes first. A cell is a task, a world and a scale; means "
        "over cells have equal weights. Intervals are of 95%, two-way clustered by problem and seed "
        "(`pbsd.compare.statistics`); with one seed there is none, and with two that of a single cell covers about 90% "
        "where seeds differ much. Tokens and drops are read on validation curves, averaged over seeds."
    )


def _missing(findings: Findings) -> list[str]:
    if not findings.missing:
        return []
    seeds: dict[tuple[Cell, str], list[int]] = {}
    for unit in findings.missing:
        seeds.setdefault((unit.cell, unit.method), []).append(unit.seed)
    lacking: dict[tuple[Cell, tuple[int, ...]], list[str]] = {}
    for (cell, method), own in seeds.items():
        lacking.setdefault((cell, tuple(own)), []).append(method)
    lines = [
        f"- {cell_name(cell)}: seeds {', '.join(map(str, own))} of {', '.join(methods)}"
        for (cell, own), methods in lacking.items()
    ]
    return [f"## Missing: {len(findings.missing)} of {len(findings.planned)} runs", "\n".join(lines)]


def _comparison(findings: Findings, methods: Sequence[str], cells: Mapping[Cell, Sequence[int]]) -> list[str]:
    """Ranks, accuracies and leads of a set of methods over the cells that have all of them, whole and by part."""
    first, *others = methods
    counts = sorted({len(seeds) for seeds in cells.values()})
    seeds = "1 seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"
    title = f"## {', '.join(methods)}: {counted(len(cells), 'cell')}, {seeds}"
    accuracy = {method: mean_accuracy(findings, cells, method) for method in methods}
    lead = {method: paired_lead(findings, cells, first, method) for method in others}
    ranks = mean_ranks(findings, cells, methods)
    whole = markdown_table(
        ["method", "average rank", "accuracy, %", f"lead of {first} over it, points"],
        (
            [method, f"{ranks[method]:.2f}", percent(accuracy[method]), percent(lead.get(method), signed=True)]
            for method in methods
        ),
    )
    parts: list[list[str]] = []
    for name, own in parts_of(cells).items():
        ranks = mean_ranks(findings, own, methods)
        texts = [f"{100 * mean_accuracy(findings, own, first).estimate:.1f} (rank {ranks[first]:.1f})"]
        for method in others:
            estimate = 100 * mean_accuracy(findings, own, method).estimate
            texts.append(f"{estimate:.1f}; {percent(paired_lead(findings, own, first, method), signed=True)}")
        parts.append([name, *texts])
    note = f"By task, world and scale: accuracy in %, and the lead of {first} in points."
    return [title, whole, note, markdown_table(["", *methods], parts)]


def _two_by_two(findings: Findings) -> list[str]:
    """The first method and each other by themselves, where they have more runs in common than a whole set has."""
    first, *others = findings.methods
    shown = [(methods, findings.comparable(methods)) for methods in findings.method_sets]
    rows, by_cell = [], []
    for method in others:
        cells = findings.comparable([first, method])
        if cells and not any(method in methods and cells == own for methods, own in shown):
            own, leader = (100 * mean_accuracy(findings, cells, name).estimate for name in (method, first))
            lead = percent(paired_lead(findings, cells, first, method), signed=True)
            runs = sum(map(len, cells.values()))
            rows.append([method, str(len(cells)), str(runs), f"{own:.1f}", f"{leader:.1f}", lead])
            parts = {cell: paired_lead(findings, {cell: seeds}, first, method) for cell, seeds in cells.items()}
            by_cell.append(
                [method, *(f"{100 * parts[cell].estimate:+.1f}" if cell in parts else "" for cell in findings.cells)]
            )
    if not rows:
        return []
    titles = [
        "method",
        "cells",
        "pairs of runs",
        "accuracy, %",
        f"{first} there, %",
        f"lead of {first} over it, points",
    ]
    return [
        f"## {first} and each other method, over the cells and seeds that both have finished",
        "Rows may be of different cells. A cell with one seed leaves a row without an interval.",
        markdown_table(titles, rows),
        f"The lead of {first} by cell, points.",
        markdown_table(["method", *map(cell_name, findings.cells)], by_cell),
    ]


def parts_of(cells: Mapping[Cell, Sequence[int]]) -> dict[str, dict[Cell, Sequence[int]]]:
    """The cells of every task, world and scale, by names such as `world dense`."""
    return {
        f"{kind} {value}": {cell: seeds for cell, seeds in cells.items() if getattr(cell, kind) == value}
        for kind in ("task", "world", "scale")
        for value in dict.fromkeys(getattr(cell, kind) for cell in cells)
    }


def mean_accuracy(findings: Findings, cells: Mapping[Cell, Sequence[int]], method: str) -> Interval:
    return crossed_interval(
        [findings.cell_values(cell, findings.values(cell, method, seeds)) for cell, seeds in cells.items()]
    )


def paired_lead(findings: Findings, cells: Mapping[Cell, Sequence[int]], first: str, other: str) -> Interval:
    """Of the first method over the other: paired by cell, seed and problem."""
    return crossed_interval(
        [
            findings.cell_values(cell, findings.values(cell, first, seeds) - findings.values(cell, other, seeds))
            for cell, seeds in cells.items()
        ]
    )


def mean_ranks(findings: Findings, cells: Mapping[Cell, Sequence[int]], methods: Sequence[str]) -> dict[str, float]:
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
        return [[cell_name(cell), *(entry(cell, method) for method in methods)] for cell in findings.cells]

    def accuracy(cell: Cell, method: str) -> str:
        seeds = findings.seeds(cell, [method])
        return percent(mean_accuracy(findings, {cell: seeds}, method)) if seeds else ""

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
        ["largest of a run", *(f"{100 * largest_drop(findings, method):.1f}" for method in methods)],
        ["deepest fall on the way, of a run", *(f"{100 * deepest_fall(findings, method):.1f}" for method in methods)],
    ]
    return [
        "## By cell\n\nEvery method over all seeds that it has finished.",
        "### Test accuracy, %",
        markdown_table(titles, by_cell(accuracy)),
        f"### Generated tokens to {CLOSE:.0%} of the best method's final validation accuracy",
        markdown_table(titles, by_cell(lambda cell, method: tokens_to_best(findings, cell, method))),
        "### Drop of validation accuracy from its peak to the end, points",
        markdown_table(titles, [*by_cell(drop), *summary]),
        *_race(findings, methods),
    ]


def largest_drop(findings: Findings, method: str) -> float:
    """Of validation accuracy from the peak to the end, of any run: noise of the measurements is part of it."""
    return max(max(curve) - curve[-1] for unit, (_, curve) in findings.curves.items() if unit.method == method)


def deepest_fall(findings: Findings, method: str) -> float:
    """Of validation accuracy below its best so far, at any point of any run, whether it was made up for or not."""
    curves = [curve for unit, (_, curve) in findings.curves.items() if unit.method == method]
    return max(best - value for curve in curves for best, value in zip(accumulate(curve, max), curve, strict=True))


def tokens_to_best(findings: Findings, cell: Cell, method: str) -> str:
    """Tokens (steps where nothing is generated) until validation accuracy is close to the best method's final one:
    `1,200`, `40 steps`, `never`, or nothing where the method has no run in the cell."""
    curve = findings.curve(cell, method)
    if curve is None:
        return ""
    spent = curve.reaches(CLOSE * _best_final(findings, cell))
    unit = "" if method in findings.generates else " steps"
    return "never" if spent is None else f"{spent:,.0f}{unit}"


def _best_final(findings: Findings, cell: Cell) -> float:
    curves = (findings.curve(cell, method) for method in findings.methods)
    return max(curve.final for curve in curves if curve is not None)


def _race(findings: Findings, methods: Sequence[str]) -> list[str]:
    titles, rows = race(findings, methods)
    if not rows:
        return []
    return [
        f"### Tokens of {methods[0]} to the best validation accuracy of another method",
        markdown_table(titles, rows),
    ]


def race(findings: Findings, methods: Sequence[str]) -> TitledRows:
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
            reached = sum(math.isfinite(ratio) for ratio in ratios)
            shares = (statistics.median(ratios), max(ratios))
            texts = ["never" if math.isinf(share) else f"{share:.2f}" for share in shares]
            rows.append([method, f"{reached} of {len(ratios)}", *texts])
    share = f"tokens of {first} as a share of its own"
    return ["method", f"cells in which {first} reaches its best", f"{share}, median", "largest"], rows
