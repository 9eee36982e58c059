"""The methods of a study beside each other: what table.md says, as charts and tables of the page.

Bounds of accuracies differ a little from table.md's, which may leave 0 to 100%: see `logit_interval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pbsd.compare.findings import Findings
from pbsd.compare.study import Cell
from pbsd.compare.table import (
    CLOSE,
    mean_accuracy,
    mean_ranks,
    paired_lead,
    parts_of,
    race,
    tokens_to_best,
)
from pbsd.compare.training_tables import usage
from pbsd.intervals import Interval, logit_interval
from pbsd.report.charts import dots
from pbsd.report.elements import MISSING, Chart, Choice, Section, Table, interval
from pbsd.report.study import Study, cell_name

Seeds = Mapping[Cell, Sequence[int]]
"""Cells, and in each the seeds that all compared methods have finished."""

_POINTS_AXIS = {"tickformat": "+.3~g", "hoverformat": "+.1f", "zerolinewidth": 3}


def comparison(studies: Sequence[Study], colors: Mapping[str, int]) -> Section:
    """Ranks, paired leads and costs of all studies that say what they planned."""
    charts: list[Chart] = []
    tables: list[Table] = []
    for study in studies:
        if study.findings is None:
            continue
        of_study = f" in {study.name}" if len(studies) > 1 else ""
        for methods in study.findings.method_sets:
            cells = study.findings.comparable(methods)
            if not cells or len(methods) < 2:
                continue
            own_colors = {method: colors[study.label(method)] for method in methods}
            charts.append(_leads(study.findings, methods, cells, own_colors, of_study, f"lead-{len(charts)}"))
            tables.append(_ranking(f"{_title(methods, cells)}{of_study}", study.findings, methods, cells))
        tables += _costs(study.findings, of_study)
    lacking = "No study here has a seed that several of its methods have finished, or says what it planned."
    return Section("comparison", "Methods compared", charts=charts, tables=tables, lacking=lacking)


def _title(methods: Sequence[str], cells: Seeds) -> str:
    seeds = sorted({len(own) for own in cells.values()})
    worlds = f"{len(cells)} world{'' if len(cells) == 1 else 's'}"
    each = f"{' or '.join(map(str, seeds))} seed{'' if seeds == [1] else 's'} each"
    return f"{len(methods)} methods, {worlds}, {each}: average rank and accuracy in %"


def _leads(
    findings: Findings, methods: Sequence[str], cells: Seeds, colors: Mapping[str, int], of_study: str, chart: str
) -> Chart:
    """How far the first method is before each other one, over all cells and over those of a task, world or scale."""
    first = methods[0]
    parts = {name: own for name, own in parts_of(cells).items() if len(own) < len(cells)}
    choices = []
    for name, own in {"all of them": cells, **parts}.items():
        leads = {method: paired_lead(findings, own, first, method) for method in methods[1:]}
        points = {method: [(method, _in_points(lead))] for method, lead in leads.items()}
        plot = dots(points, f"lead of {first}, percentage points", colors, _POINTS_AXIS, start=0.0)
        plot["layout"] |= {"showlegend": False, "scattermode": "overlay"}
        choices.append(
            Choice(name, plot, [_ranking(f"{_title(methods, own)}, {name}{of_study}", findings, methods, own)])
        )
    caption = (
        "Difference of accuracy on the same test problems under the same seeds; right of zero "
        f"{first} is better. Bars are 95% intervals, two-way clustered by problem and seed; one seed gives none."
    )
    return Chart(chart, f"Lead of {first} over the others{of_study}", caption, choices, pick="Worlds")


def _in_points(value: Interval) -> Interval:
    return Interval(100 * value.estimate, 100 * value.low, 100 * value.high)


def _ranking(caption: str, findings: Findings, methods: Sequence[str], cells: Seeds) -> Table:
    first, ranks = methods[0], mean_ranks(findings, cells, methods)
    rows = [
        [
            method,
            f"{ranks[method]:.2f}",
            interval(logit_interval(mean_accuracy(findings, cells, method))),
            MISSING if method == first else interval(paired_lead(findings, cells, first, method), signed=True),
        ]
        for method in sorted(methods, key=ranks.__getitem__)
    ]
    return Table(caption, ("method", "average rank", "accuracy", f"lead of {first} over it, points"), rows)


def _costs(findings: Findings, of_study: str) -> list[Table]:
    methods = [name for name in findings.methods if any(unit.method == name for unit in findings.accuracy)]
    if not methods:
        return []
    spent = [
        [cell_name(cell), *(tokens_to_best(findings, cell, method) or MISSING for method in methods)]
        for cell in findings.cells
    ]
    close = f"Generated tokens to {CLOSE:.0%} of the best method's final validation accuracy{of_study}"
    tables = [Table(close, ("world", *methods), spent)]
    for caption, (titles, rows) in (
        (f"Tokens of {methods[0]} to the best validation accuracy of another method", race(findings, methods)),
        ("What training used", usage(findings)),
    ):
        if rows:
            filled = [[text or MISSING for text in row] for row in rows]
            tables.append(Table(f"{caption}{of_study}", titles, filled))
    return tables
