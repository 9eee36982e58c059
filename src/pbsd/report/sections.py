"""The sections of the page, from what was read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pbsd.records import quantile
from pbsd.report.charts import X_TITLES, axis, banded, curve_choices, dots, fan, final_choices, heat
from pbsd.report.comparison import comparison
from pbsd.report.elements import MISSING, Chart, Choice, Section, Table, figure, interval, percent
from pbsd.report.manifest import manifest
from pbsd.report.runs import Run, difference
from pbsd.report.study import Study
from pbsd.report.trials import Trial, by_cell, final_accuracy, generates, spreads_by_place, spreads_by_step

MEASURES = {"sampled": "avg@k at temperature 1", "greedy": "greedy"}
SIGNALS = {
    "reward/student": "Reward of student samples",
    "reward/teacher": "Reward of teacher samples",
    "loss": "Loss",
    "pairs/accuracy": "Pairs whose margin agrees with the rewards",
    "pairs/saturated": "Saturated pairs (share)",
    "pairs/kept": "Pairs kept",
    "health/student_entropy": "Entropy of the student (nats a token)",
    "tokens/student_length": "Length of student samples (tokens)",
    "tokens/student_truncated": "Student samples cut at the length limit (share)",
    "teacher/kl_teacher_student": "KL(T || student), nats a completion",
    "health/student_leakage": "Student samples that cite the context (share)",
    "pairs/style_gap": "Style gap of the pairs (AUC)",
    "grad_norm": "Gradient norm",
}
"""Training metrics worth a curve, in the order of the picker."""
WINDOWS = 40
"""Points of a training curve: steps are averaged in at most so many windows."""
NOT_EVALUATED = "No evaluation has been written yet."
QUANTILES = (10, 25, 50, 75, 90)


def sections(runs: Sequence[Run], studies: Sequence[Study], trials: Sequence[Trial]) -> list[Section]:
    """All sections but the explorer, in the order of the page."""
    colors = {name: place for place, name in enumerate(dict.fromkeys(trial.label for trial in trials))}
    cells = by_cell(trials)
    return [
        _overview(runs, studies),
        _accuracy(runs, studies, cells, colors),
        *([comparison(studies, colors)] if studies else []),
        _curves(runs, trials, cells, colors),
        _tokens(cells, colors),
        _distributions(runs),
        _stability(runs, cells),
        manifest(runs, studies),
    ]


def _overview(runs: Sequence[Run], studies: Sequence[Study]) -> Section:
    tables = []
    if runs:
        rows = [
            [
                run.name,
                run.method,
                run.data,
                run.seed,
                run.state,
                figure(run.generated_tokens),
                figure(run.train_seconds),
            ]
            for run in runs
        ]
        columns = ("run", "method", "data", "seed", "state", "generated tokens", "seconds of training")
        tables.append(Table("Runs", columns, rows))
    if studies:
        rows = [[study.name, *_counts(study)] for study in studies]
        tables.append(Table("Studies", ("study", "training runs", "methods", "cells", "seeds"), rows))
    notes = [[run.name, note] for run in runs for note in run.notes]
    notes += [[study.name, note] for study in studies for note in study.notes]
    if notes:
        tables.append(Table("Notes on the files", ("folder", "note"), notes))
    return Section("overview", "Overview", tiles=_tiles(runs[0]) if len(runs) == 1 else (), tables=tables)


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = [("method", run.method, f"{run.data}, seed {run.seed}")]
    if run.before is not None and run.after is not None:
        for measure, name in (("sampled", f"avg@{run.after.samples_per_problem}, T = 1"), ("greedy", "greedy")):
            first, last = run.before.accuracy(measure).estimate, run.after.accuracy(measure).estimate
            gain = interval(difference(run.before, run.after, measure), signed=True)
            if not math.isnan(last):
                tiles.append((name, f"{percent(first)} → {percent(last)}%", f"{gain} points"))
    elif run.before is not None:
        tiles.append(("before training", f"{percent(run.before.accuracy('sampled').estimate)}%", run.state))
    tiles.append(("generated tokens", figure(run.generated_tokens), f"{run.steps} steps"))
    return tiles


def _counts(study: Study) -> list[str]:
    trials, planned = figure(len(study.trials)), study.findings.planned if study.findings is not None else ()
    if planned:
        trials += f" of {len(planned):,}"
    return [trials, *(figure(len({getattr(t, key) for t in study.trials})) for key in ("label", "cell", "seed"))]


def _accuracy(
    runs: Sequence[Run],
    studies: Sequence[Study],
    cells: Mapping[str, Mapping[str, list[Trial]]],
    colors: Mapping[str, int],
) -> Section:
    charts, tables = [], []
    measured = [run for run in runs if run.before is not None or run.after is not None]
    if measured:
        choices = [_before_after(measured, measure) for measure in MEASURES]
        caption = "Held-out problems; bars are 95% intervals, clustered by problem."
        charts.append(Chart("before-after", "Before and after training", caption, choices, pick="Measure"))
    finals = final_choices(cells, colors)
    if finals and (studies or len(runs) > 1):
        caption = (
            "Bars are 95% intervals over problems and, where several seeds were tested on the same problems, over "
            "seeds too. A single seed says nothing of the spread over seeds."
        )
        charts.append(Chart("final", "Final accuracy", caption, finals, pick="World"))
        if len(finals) > 1:
            tables.append(_all_finals(cells, [choice.name for choice in finals]))
    return Section("accuracy", "Accuracy", charts=charts, tables=tables, lacking=NOT_EVALUATED)


def _all_finals(cells: Mapping[str, Mapping[str, list[Trial]]], names: Sequence[str]) -> Table:
    labels = dict.fromkeys(label for name in names for label in cells[name])
    rows = [[label, *(interval(final_accuracy(cells[name].get(label, ()))) for name in names)] for label in labels]
    return Table("Final accuracy in % in all worlds, with the same intervals", ("run", *names), rows)


def _before_after(runs: Sequence[Run], measure: str) -> Choice:
    before = [(run.name, run.before.accuracy(measure)) for run in runs if run.before is not None]
    after = [(run.name, run.after.accuracy(measure)) for run in runs if run.after is not None]
    rows = [
        [
            run.name,
            MISSING if run.before is None else interval(run.before.accuracy(measure)),
            MISSING if run.after is None else interval(run.after.accuracy(measure)),
            MISSING
            if run.before is None or run.after is None
            else interval(difference(run.before, run.after, measure), signed=True),
            figure(next(len(found.problems) for found in (run.after, run.before) if found)),
        ]
        for run in runs
    ]
    sampled = {evaluation.samples_per_problem for run in runs for evaluation in (run.before, run.after) if evaluation}
    k = f" (k = {', '.join(map(str, sorted(sampled)))})" if measure == "sampled" else ""
    table = Table(
        f"Accuracy in %, {MEASURES[measure]}{k}, with 95% intervals; the difference is paired by problem",
        ("run", "before", "after", "difference", "problems"),
        rows,
    )
    series = {name: values for name, values in (("before", before), ("after", after)) if values}
    return Choice(MEASURES[measure], dots(series, "accuracy", {"before": 0, "after": 1}), [table])


def _curves(
    runs: Sequence[Run],
    trials: Sequence[Trial],
    cells: Mapping[str, Mapping[str, list[Trial]]],
    colors: Mapping[str, int],
) -> Section:
    charts = []
    if choices := curve_choices(cells, colors, "step"):
        caption = "The line is the mean over seeds, the band their range."
        charts.append(Chart("curves", "Held-out accuracy over training", caption, choices, pick="World"))
    labels = {trial.source: trial.label for trial in trials}
    signals = [choice for key in SIGNALS if (choice := _signal(runs, labels, colors, key))]
    if signals:
        caption = f"Means over at most {WINDOWS} windows of steps; with several seeds the band is their range."
        charts.append(Chart("signals", "Training signals", caption, signals, pick="Metric"))
    if metrics := _metrics_of_studies(cells, colors):
        caption = "Means over the steps between two points of the validation curve. The line is the mean over seeds, "
        caption += f"the band their range.{_not_drawn(trial for trial in trials if trial.windows)}"
        title = "Metrics of training in studies"
        charts.append(Chart("metrics", title, caption, metrics, pick="World", pick_group="Metric"))
    return Section("curves", "Learning curves", charts=charts, lacking="No step has been logged yet.")


def _signal(runs: Sequence[Run], labels: Mapping[str, str], colors: Mapping[str, int], key: str) -> Choice | None:
    seeds: dict[str, list[list[tuple[float, float]]]] = {}
    rows = []
    for run in runs:
        if points := _windows(run.series(key)):
            seeds.setdefault(labels[run.name], []).append(points)
            rows += [[run.name, figure(step), figure(value)] for step, value in points]
    if not seeds:
        return None
    series = {name: spreads_by_step(curves) for name, curves in seeds.items()}
    plot = banded(series, colors, "step", axis(SIGNALS[key]))
    for trace in plot["data"]:
        trace["mode"] = "lines"
    return Choice(SIGNALS[key], plot, [Table(f"{SIGNALS[key]} ({key})", ("run", "step", "value"), rows)])


def _metrics_of_studies(cells: Mapping[str, Mapping[str, list[Trial]]], colors: Mapping[str, int]) -> list[Choice]:
    """Metric by metric, in each every cell of a study."""
    own = {cell: labels for cell, labels in cells.items() if any(trial.windows for trial in _all(labels))}
    logged = {
        key for labels in own.values() for trial in _all(labels) for window in trial.windows for key in window.values
    }
    return [_metric(key, cell, labels, colors) for key in SIGNALS if key in logged for cell, labels in own.items()]


def _metric(key: str, cell: str, labels: Mapping[str, list[Trial]], colors: Mapping[str, int]) -> Choice:
    """A metric over generated tokens; a method that generates nothing has its numbers in the table alone."""
    series, rows = {}, []
    for name, trials in labels.items():
        curves = [[(w.tokens, w.values.get(key, math.nan)) for w in trial.windows] for trial in trials]
        if generates(trials) and (found := spreads_by_place(curves)):
            series[name] = found
        rows += [
            [name, trial.seed, figure(window.step), figure(window.tokens), figure(window.values[key])]
            for trial in trials
            for window in trial.windows
            if key in window.values
        ]
    plot = banded(series, colors, X_TITLES["tokens"], axis(SIGNALS[key]))
    plot["layout"]["xaxis"]["rangemode"] = "tozero"
    table = Table(f"{SIGNALS[key]} ({key}), {cell}", ("method", "seed", "step", "tokens", "value"), rows)
    return Choice(cell, plot, [table], group=SIGNALS[key])


def _all(labels: Mapping[str, Sequence[Trial]]) -> list[Trial]:
    return [trial for trials in labels.values() for trial in trials]


def _not_drawn(trials: Iterable[Trial]) -> str:
    """Of charts over generated tokens."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.label, []).append(trial)
    idle = [name for name, own in found.items() if own and not generates(own)]
    if not idle:
        return ""
    return f" Without a line here, since nothing is generated: {', '.join(idle)}; the numbers have them."


def _windows(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most WINDOWS means of neighbouring points, at the last step of each."""
    size = math.ceil(len(points) / WINDOWS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], math.fsum(value for _, value in part) / len(part)) for part in parts]


def _tokens(cells: Mapping[str, Mapping[str, list[Trial]]], colors: Mapping[str, int]) -> Section:
    choices = curve_choices(cells, colors, "tokens")
    for choice in choices:
        choice.plot["layout"]["xaxis"]["rangemode"] = "tozero"
    drawn = (trial for labels in cells.values() for trial in _all(labels) if trial.points)
    caption = f"The line is the mean over seeds, the band their range.{_not_drawn(drawn)}"
    title = "Held-out accuracy for generated tokens"
    charts = [Chart("tokens", title, caption, choices, pick="World")] if choices else []
    return Section("tokens", "Tokens against accuracy", charts=charts, lacking=NOT_EVALUATED)


def _distributions(runs: Sequence[Run]) -> Section:
    margins, ratios = [], []
    for run in runs:
        if choice := _fan(run, {"margin": _margin}, "margin"):
            margins.append(choice)
        sides = {
            name: lambda record, name=name: _ratio(record, name)
            for name in ("chosen y⁺", "rejected y⁻", "student samples", "teacher samples")
        }
        if choice := _fan(run, sides, "log-ratio (nats)"):
            ratios.append(choice)
    caption = "Lines are medians, bands the 25% to 75% and 10% to 90% ranges of the pairs of each window of steps."
    charts = []
    if margins:
        charts.append(Chart("margins", "Margin", caption, margins, pick="Run"))
    if ratios:
        where = "Log-ratios are log π(y|x) less the log of the teacher's (for online DPO the reference's) probability. "
        charts.append(Chart("ratios", "Log-ratio", where + caption, ratios, pick="Run"))
    lacking = "These folders hold no pairs and no log-ratios: methods without a teacher write none, studies keep none."
    return Section("distributions", "Margins and log-ratios", charts=charts, lacking=lacking)


def _margin(record: Mapping[str, Any]) -> Any:
    return record.get("margin")


def _ratio(record: Mapping[str, Any], name: str) -> Any:
    kind = name.split()[0]
    side = record.get(kind) if kind in ("chosen", "rejected") else record
    if not isinstance(side, dict) or (kind in ("student", "teacher") and side.get("role") != kind):
        return None
    return side.get("log_ratio")


def _fan(run: Run, series: Mapping[str, Any], title: str) -> Choice | None:
    steps: dict[float, dict[str, list[float]]] = {}
    for _, record in run.samples:
        here = steps.setdefault(float(record["step"]), {})
        for name, value_of in series.items():
            value = value_of(record)
            if isinstance(value, int | float) and math.isfinite(value):
                here.setdefault(name, []).append(float(value))
    numbers = sorted(steps)
    size = math.ceil(len(numbers) / WINDOWS) or 1
    bins, rows = [], []
    for start in range(0, len(numbers), size):
        window = numbers[start : start + size]
        found = {name: [v for step in window for v in steps[step].get(name, ())] for name in series}
        quantiles = {name: _quantiles(sorted(values)) for name, values in found.items() if values}
        bins.append((window[-1], quantiles))
        rows += [
            [figure(window[-1]), name, figure(len(found[name])), *(f"{value:.3f}" for value in values)]
            for name, values in quantiles.items()
        ]
    names = [name for name in series if any(name in quantiles for _, quantiles in bins)]
    if not names:
        return None
    columns = ("to step", "of", "number", *(f"{percent}%" for percent in QUANTILES))
    return Choice(run.name, fan(bins, names, title), [Table(f"Quantiles of the {title}, {run.name}", columns, rows)])


def _quantiles(ordered: Sequence[float]) -> list[float]:
    return [quantile(ordered, percent / 100) for percent in QUANTILES]


def _stability(runs: Sequence[Run], cells: Mapping[str, Mapping[str, list[Trial]]]) -> Section:
    labels = list(dict.fromkeys(label for found in cells.values() for label in found))
    drops, counts, hover, rows = {}, {}, {}, []
    for cell, found in cells.items():
        for name, trials in found.items():
            curves = [trial for trial in trials if not math.isnan(trial.drop)]
            if not curves:
                continue
            drops[name, cell] = math.fsum(trial.drop for trial in curves) / len(curves)
            peaks, lasts = ([getattr(trial, which).accuracy for trial in curves] for which in ("peak", "last"))
            known = [trial.alarms for trial in curves if trial.alarms is not None]
            counts[name, cell] = sum(known)
            alarms = figure(sum(known)) if known else "not recorded"
            peak, last = percent(math.fsum(peaks) / len(peaks)), percent(math.fsum(lasts) / len(lasts))
            hover[name, cell] = f"peak {peak}%, last {last}%, seeds {len(curves)}, alarms {alarms}"
            rows.append([name, cell, figure(len(curves)), peak, last, percent(drops[name, cell]), alarms])
    charts = []
    if rows:
        columns = ("run", "world", "seeds", "peak", "last", "drop", "alarms")
        table = Table("Peak and last held-out accuracy in %, and the drop in points, means over seeds", columns, rows)
        caption = (
            "Held-out accuracy at its best point of training minus that at the last: 0 is stable. The best of several "
            "noisy points lies above the truth, so a small drop means little. Every seed has its own peak (table.md "
            "takes that of the seeds' mean curve). ⚠2: two alarms, over all seeds."
        )
        plot = heat(labels, list(cells), drops, counts, hover)
        charts.append(Chart("stability", "Drop from the peak", caption, [Choice("drop", plot, [table])]))
    return Section(
        "stability",
        "Stability",
        charts=charts,
        tables=[*_alarms(runs), *_rules(cells)],
        lacking="A drop needs two evaluations of a run; there are none yet, and no alarms were recorded.",
    )


def _alarms(runs: Iterable[Run]) -> list[Table]:
    rows = [
        [run.name, figure(float(record["step"])), str(record.get("rule", "")), str(record.get("message", ""))]
        for run in runs
        for _, record in run.alarms
    ]
    return [Table("Alarms", ("run", "step", "rule", "message"), rows)] if rows else []


def _rules(cells: Mapping[str, Mapping[str, list[Trial]]]) -> list[Table]:
    """Alarms of studies, which keep the rules alone."""
    rows = [
        [name, cell, rule, ", ".join(trial.seed for trial in trials if rule in trial.rules)]
        for cell, labels in cells.items()
        for name, trials in labels.items()
        for rule in sorted({rule for trial in trials for rule in trial.rules})
    ]
    return [Table("Alarms in studies", ("method", "world", "rule", "seeds"), rows)] if rows else []
