"""Figures for plotly.js, as plain dictionaries, each with the numbers behind it as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pbsd.intervals import Interval
from pbsd.report.elements import Choice, Plot, Table, figure, interval, label, percent, short
from pbsd.report.trials import Spread, Trial, band, final_accuracy, generates

PERCENT_AXIS = {"tickformat": ".0%", "hoverformat": ".1%"}
X_TITLES = {"step": "step", "tokens": "tokens generated for training"}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "hexagon")


def axis(title: str, **options: Any) -> dict[str, Any]:
    return {"title": {"text": label(title)}, **options}


def categories(names: Sequence[str]) -> dict[str, Any]:
    """An axis of names, which may be long; those of cells in lines."""
    ticks = [short(name).replace(" · ", "<br>") for name in names]
    return {"type": "category", "automargin": True, "tickvals": [label(name) for name in names], "ticktext": ticks}


def dots(
    rows: Mapping[str, Sequence[tuple[str, Interval]]],
    title: str,
    colors: Mapping[str, int],
    form: Mapping[str, Any] = PERCENT_AXIS,
    start: float | None = None,
) -> Plot:
    """Series -> (row, interval): a line of dots with intervals for each row. `start`: a value always in sight."""
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "orientation": "h",
            "name": short(name),
            "y": [label(row) for row, _ in values],
            "x": [defined(value.estimate) for _, value in values],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [defined(value.high - value.estimate) for _, value in values],
                "arrayminus": [defined(value.estimate - value.low) for _, value in values],
                "thickness": 2,
                "width": 0,
            },
            "marker": {"size": 11, "symbol": SYMBOLS[colors[name] % len(SYMBOLS)]},
            "meta": {"color": colors[name]},
        }
        for name, values in rows.items()
    ]
    names = list(dict.fromkeys(row for values in rows.values() for row, _ in values))
    seen = [value for values in rows.values() for _, value in values]
    seen += [] if start is None else [Interval(start, start, start)]
    return {
        "data": data,
        "layout": {
            "height": 150 + 42 * len(names),
            "xaxis": axis(title, **form, range=_around(seen)),
            "yaxis": {**categories(names), "autorange": "reversed"},
            "hovermode": "closest",
            "scattermode": "group",
        },
    }


def _around(intervals: Sequence[Interval]) -> list[float]:
    """The span of the intervals and a little more: plotly.js would begin at zero."""
    ends = [end for value in intervals for end in (value.estimate, value.low, value.high) if math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.05 * (high - low) or 0.05
    return [low - room, high + room]


def banded(series: Mapping[str, Sequence[Spread]], colors: Mapping[str, int], x: str, y: Mapping[str, Any]) -> Plot:
    """A mean line per series and, where it has several seeds, the range they span."""
    data: list[dict[str, Any]] = []
    for name, spreads in series.items():
        color, xs = colors[name], [defined(spread.x) for spread in spreads]
        if any(spread.seeds > 1 for spread in spreads):
            data += _range(xs, [s.low for s in spreads], [s.high for s in spreads], color, name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": short(name),
                "legendgroup": label(name),
                "x": xs,
                "y": [defined(spread.mean) for spread in spreads],
                "marker": {"size": 7, "symbol": SYMBOLS[color % len(SYMBOLS)]},
                "meta": {"color": color},
            }
        )
    return {
        "data": data,
        "layout": {"xaxis": axis(x), "yaxis": dict(y), "hovermode": "x unified", "showlegend": True},
    }


def _range(xs: Sequence[Any], low: Sequence[float], high: Sequence[float], color: int, group: str) -> list[Any]:
    shared = {
        "type": "scatter",
        "mode": "lines",
        "x": xs,
        "line": {"width": 0},
        "showlegend": False,
        "hoverinfo": "skip",
        "legendgroup": label(group),
    }
    return [
        {**shared, "y": [defined(value) for value in low], "meta": {"color": color}},
        {**shared, "y": [defined(value) for value in high], "fill": "tonexty", "meta": {"color": color}},
    ]


def fan(bins: Sequence[tuple[float, Mapping[str, Sequence[float]]]], names: Sequence[str], y: str) -> Plot:
    """Per name the 10% to 90% range and the median line over steps; values are (p10, p25, p50, p75, p90)."""
    data: list[dict[str, Any]] = []
    for color, name in enumerate(names):
        here = [(step, values[name]) for step, values in bins if name in values]
        steps = [step for step, _ in here]
        for low, high in ((0, 4), (1, 3)):
            data += _range(steps, [q[low] for _, q in here], [q[high] for _, q in here], color, name)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name}, median",
                "legendgroup": label(name),
                "x": steps,
                "y": [q[2] for _, q in here],
                "customdata": [[q[0], q[4]] for _, q in here],
                "hovertemplate": "%{y:.3f} (10% to 90%: %{customdata[0]:.3f} to %{customdata[1]:.3f})",
                "meta": {"color": color},
            }
        )
    return {"data": data, "layout": {"xaxis": axis("step"), "yaxis": axis(y), "hovermode": "x unified"}}


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], float],
    alarms: Mapping[tuple[str, str], int],
    hover: Mapping[tuple[str, str], str],
) -> Plot:
    """Drops from the peak, in percentage points, each with its number of alarms; an empty cell has none."""
    marks = [[f" ⚠{count}" if (count := alarms.get((row, column))) else "" for column in columns] for row in rows]
    values = [[defined(100 * cells.get((row, column), math.nan)) for column in columns] for row in rows]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [label(column) for column in columns],
                "y": [label(row) for row in rows],
                "z": values,
                "zmin": 0,
                "zmax": max([10.0, *(value for line in values for value in line if value is not None)]),
                "text": [
                    ["" if value is None else f"{value:.1f}{mark}" for value, mark in zip(line, own, strict=True)]
                    for line, own in zip(values, marks, strict=True)
                ],
                "customdata": [
                    [label(f"{row}, {column}: {hover.get((row, column), 'no curve')}") for column in columns]
                    for row in rows
                ],
                "texttemplate": "%{text}",
                "hovertemplate": "%{customdata}<extra></extra>",
                "xgap": 3,
                "ygap": 3,
                "showscale": False,  # every cell says its number
                "meta": {"color": "heat"},
            }
        ],
        "layout": {
            "height": 190 + 44 * len(rows),
            "width": 130 + 56 * len(columns),  # at least; the page widens it to its own
            "xaxis": {**categories(columns), "showgrid": False},
            "yaxis": {**categories(rows), "autorange": "reversed", "showgrid": False},
            "hovermode": "closest",
        },
    }


def curve_choices(cells: Mapping[str, Mapping[str, list[Trial]]], colors: Mapping[str, int], by: str) -> list[Choice]:
    """Held-out accuracy over `step` or `tokens`, a choice for each cell that has points. Methods that generate nothing
    have no line over tokens."""
    choices = []
    for cell, labels in cells.items():
        drawn = {name: trials for name, trials in labels.items() if by == "step" or generates(trials)}
        series = {name: spreads for name, trials in drawn.items() if (spreads := band(trials, by))}
        if not series:
            continue
        plot = banded(series, colors, X_TITLES[by], axis("held-out accuracy", **PERCENT_AXIS))
        rows = [
            [name, trial.seed, figure(point.step), figure(point.tokens), percent(point.accuracy)]
            for name, trials in labels.items()
            for trial in trials
            for point in trial.points
        ]
        table = Table(f"Held-out accuracy in % by {by}, {cell}", ("run", "seed", "step", "tokens", "accuracy"), rows)
        choices.append(Choice(cell, plot, [table]))
    return choices


def final_choices(cells: Mapping[str, Mapping[str, list[Trial]]], colors: Mapping[str, int]) -> list[Choice]:
    """Final accuracy with intervals, best first, a choice for each cell that has results."""
    choices = []
    for cell, labels in cells.items():
        finished = {name: [trial for trial in trials if trial.final] for name, trials in labels.items()}
        measured = [(name, trials, final_accuracy(trials)) for name, trials in finished.items() if trials]
        if not measured:
            continue
        measured.sort(key=lambda found: -found[2].estimate)
        plot = dots({name: [(name, value)] for name, _, value in measured}, "final accuracy", colors)
        plot["layout"] |= {"showlegend": False, "scattermode": "overlay"}
        rows = [
            [
                name,
                interval(value),
                ", ".join(f"{trial.seed}: {percent(final_accuracy([trial]).estimate)}" for trial in trials),
                figure(len({problem for trial in trials for problem in trial.final})),
            ]
            for name, trials, value in measured
        ]
        columns = ("run", "accuracy", "by seed", "problems")
        choices.append(Choice(cell, plot, [Table(f"Final accuracy in %, {cell}", columns, rows)]))
    return choices


def defined(value: float) -> float | None:
    """JSON has no NaN: null, which plotly.js leaves out."""
    return value if math.isfinite(value) else None
