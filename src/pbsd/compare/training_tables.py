"""What the training of a study used and what was tuned, for its table.md and the report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

from pbsd.compare.findings import Findings
from pbsd.compare.markdown import TitledRows, cell_name, counts, markdown_table
from pbsd.compare.study import Cell

_EQUAL_TOKENS = 1.02
"""Ratio of mean generated tokens up to which they are called equal."""


def usage_section(findings: Findings) -> list[str]:
    titles, rows = usage(findings)
    if not rows:
        return []
    equal = len({row[-1] for row in rows}) == 1
    note = "equal for all methods" if equal else "**not equal for all methods**, which favours those with more"
    return [
        "## What training used",
        markdown_table(titles, rows),
        f"The number of distinct prompts per step is {note}.",
        *_unequal_tokens(findings),
    ]


def _unequal_tokens(findings: Findings) -> list[str]:
    """Where runs of some methods generated more than those of others, by the means of a cell."""
    spent: dict[Cell, dict[str, list[int]]] = {}
    for run in findings.choices["runs"]:
        if run["generated_tokens"]:
            cell = Cell(run["task"], run["world"], run["scale"])
            spent.setdefault(cell, {}).setdefault(run["method"], []).append(run["generated_tokens"])
    lines = []
    for cell, by_method in spent.items():
        means = {method: statistics.fmean(tokens) for method, tokens in by_method.items()}
        least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        if means[most] > _EQUAL_TOKENS * means[least]:
            lines.append(f"- {cell_name(cell)}: {most} {means[most]:,.0f}, {least} {means[least]:,.0f}")
    title = f"Mean generated tokens differ by more than {_EQUAL_TOKENS - 1:.0%}, of the most and the least:"
    return [title, "\n".join(lines)] if lines else []


def usage(findings: Findings) -> TitledRows:
    """What training used, by method."""
    runs = findings.choices["runs"]
    rows = []
    for method in findings.methods:
        own = [run for run in runs if run["method"] == method]
        if not own:
            continue
        rows.append(
            [
                method,
                str(len(own)),
                f"{statistics.fmean(run['steps'] for run in own):,.0f}",
                f"{statistics.fmean(run['generated_tokens'] for run in own):,.0f}",
                counts(run["ended_by"] for run in own),
                counts(rule for run in own for rule in run["alarms"]),
                ", ".join(map(str, sorted({run["prompts_per_step"] for run in own}))),
            ]
        )
    titles = [
        "method",
        "runs",
        "mean steps",
        "mean generated tokens",
        "ended by",
        "runs with an alarm",
        "prompts per step",
    ]
    return titles, rows


def choices_section(findings: Findings) -> list[str]:
    titles, rows = chosen_options(findings)
    if not rows:
        return []
    parts = ["## Chosen options", markdown_table(titles, rows)]
    titles, rows = trial_means(findings)
    if rows:
        means = "Validation accuracy of the trials by options, over the places where all of a method's were made"
        parts += ["### What other options would have cost", f"{means}, in %.", markdown_table(titles, rows)]
    return parts


def trial_means(findings: Findings) -> TitledRows:
    """By scale, method and options: mean and lowest validation accuracy over tasks and worlds."""
    tried: dict[tuple[str, str], dict[str, list[float]]] = {}
    for choice in findings.choices["choices"]:
        trials = choice.get("trials", [])
        if any(trial["validation_accuracy"] is None for trial in trials):
            continue
        by_options = tried.setdefault((choice["scale"], choice["method"]), {})
        for trial in trials:
            by_options.setdefault(_options(trial["options"]), []).append(100 * trial["validation_accuracy"])
    rows = [
        [scale, method, options, str(len(found)), f"{statistics.fmean(found):.1f}", f"{min(found):.1f}"]
        for (scale, method), by_options in tried.items()
        for options, found in by_options.items()
    ]
    return ["scale", "method", "options", "places", "mean", "lowest"], rows


def chosen_options(findings: Findings) -> TitledRows:
    """What was tuned to, and what the trials found."""
    rows = []
    for choice in findings.choices["choices"]:
        tried = [trial["validation_accuracy"] for trial in choice.get("trials", [])]
        scores = " ".join("-" if accuracy is None else f"{100 * accuracy:.1f}" for accuracy in tried)
        rows.append(
            [
                choice["method"],
                choice["task"],
                choice["world"],
                choice["scale"],
                "open" if choice["chosen"] is None else _options(choice["chosen"]),
                scores if tried else _taken_over(choice),
            ]
        )
    return ["method", "task", "world", "scale", "chosen", "validation accuracy of the trials, %"], rows


def _taken_over(choice: Mapping[str, Any]) -> str:
    if "decided_in" in choice:
        return f"taken over from {choice['decided_in']['world']} {choice['decided_in']['scale']}"
    return f"taken over from another study's {choice['chosen_for']}"


def _options(options: Mapping[str, Any]) -> str:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    return ", ".join(f"{name} {text}" for name, text in texts.items())
