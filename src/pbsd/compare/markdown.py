"""How the tables of a study are written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from pbsd.compare.statistics import Interval
from pbsd.compare.study import Cell

TitledRows = tuple[Sequence[str], list[list[str]]]
"""Of a table that the report shows too: its titles and its rows."""


def counts(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {count}" for word, count in sorted(Counter(words).items()))


def cell_name(cell: Cell) -> str:
    return f"{cell.task} {cell.world} {cell.scale}"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def percent(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return ""
    form = "+.1f" if signed else ".1f"
    estimate, low, high = (format(100 * value, form) for value in (interval.estimate, interval.low, interval.high))
    return estimate if math.isnan(interval.low) else f"{estimate} [{low}, {high}]"


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
