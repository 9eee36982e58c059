"""What runs and studies have in common: a training run of a method in a cell (a world, or a data set) with a seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pbsd.compare.statistics import CellValues, crossed_interval
from pbsd.intervals import Interval, logit_interval, share_interval
from pbsd.report.files import number
from pbsd.report.runs import Run


class Point(NamedTuple):
    """Held-out accuracy (0 to 1) at a step; `tokens` were generated for training until then."""

    step: float
    tokens: float
    accuracy: float


class Window(NamedTuple):
    """Means of training metrics over the steps since the last window's end; `tokens` as in `Point`."""

    step: float
    tokens: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Trial:
    """`label`: the method, or what tells a run's settings from the others'. `final`: accuracy by test problem.

    `alarms` is None where none were recorded, because nothing looked for them. `windows` and `rules` (the alarms'
    names) are a study's; a run has its own metrics and alarms.
    """

    label: str
    cell: str
    seed: str
    source: str
    points: tuple[Point, ...]
    final: dict[str, float]
    alarms: int | None = None
    windows: tuple[Window, ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def peak(self) -> Point | None:
        """The best point, the earliest of equals."""
        known = [point for point in self.points if not math.isnan(point.accuracy)]
        return max(known, key=lambda point: (point.accuracy, -point.step), default=None)

    @property
    def last(self) -> Point | None:
        return self.points[-1] if self.points else None

    @property
    def drop(self) -> float:
        """Peak minus last accuracy; NaN with fewer than two points."""
        if len(self.points) < 2 or self.peak is None:
            return math.nan
        return self.peak.accuracy - self.points[-1].accuracy


def final_accuracy(trials: Sequence[Trial]) -> Interval:
    """95% interval of the mean of the trials' final accuracy.

    Several seeds tested on the same problems: over problems and seeds, which are crossed. Otherwise, or where their
    values do not scatter, over problems, each one's value its mean over the seeds that have it.
    """
    known = [{name: value for name, value in trial.final.items() if not math.isnan(value)} for trial in trials]
    if len(known) > 1 and len({frozenset(problems) for problems in known}) == 1:
        values_SP = np.array([[problems[name] for name in known[0]] for problems in known])
        crossed = crossed_interval([CellValues("", values_SP)])
        if crossed.low != crossed.high:
            return logit_interval(crossed)
    problems: dict[str, list[float]] = {}
    for own in known:
        for name, value in own.items():
            problems.setdefault(name, []).append(value)
    return share_interval([math.fsum(values) / len(values) for values in problems.values()])


def by_cell(trials: Iterable[Trial]) -> dict[str, dict[str, list[Trial]]]:
    """Cell -> label -> its trials, one a seed, in the order of first appearance."""
    cells: dict[str, dict[str, list[Trial]]] = {}
    for trial in trials:
        cells.setdefault(trial.cell, {}).setdefault(trial.label, []).append(trial)
    return cells


class Spread(NamedTuple):
    """Mean, lowest and highest over the seeds that have the point."""

    x: float
    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, x: float, values: Sequence[float]) -> Spread:
        return cls(x, math.fsum(values) / len(values), min(values), max(values), len(values))


def band(trials: Sequence[Trial], axis: str) -> list[Spread]:
    """Accuracy over `step` or `tokens`."""
    return spreads_by_place([[(getattr(point, axis), point.accuracy) for point in trial.points] for trial in trials])


def spreads_by_place(curves: Sequence[Sequence[tuple[float, float]]]) -> list[Spread]:
    """The k-th points (x, value) of the seeds' curves belong together; their x is averaged."""
    found = []
    for place in range(max(map(len, curves), default=0)):
        here = [curve[place] for curve in curves if place < len(curve)]
        values = [value for _, value in here if not math.isnan(value)]
        if values:
            x = math.fsum(x for x, _ in here) / len(here)
            found.append(Spread.of(x, values))
    return found


def spreads_by_step(curves: Sequence[Sequence[tuple[float, float]]]) -> list[Spread]:
    """The points (step, value) of the seeds' curves at one step belong together."""
    steps: dict[float, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            steps.setdefault(step, []).append(value)
    return [Spread.of(step, values) for step, values in sorted(steps.items())]


def generates(trials: Iterable[Trial]) -> bool:
    """Whether training generated anything (NaN: not known)."""
    return any(point.tokens != 0 for trial in trials for point in trial.points)


def run_trials(runs: Sequence[Run]) -> list[Trial]:
    """A run's points are its evaluations before, during and after training."""
    labels = run_labels(runs)
    return [
        Trial(
            label=labels[run.name],
            cell=run.data,
            seed=run.seed,
            source=run.name,
            points=_points(run),
            final={} if run.after is None else {str(row): p.sampled for row, p in run.after.problems.items()},
            alarms=len(run.alarms) if run.alarms or run.watched else None,
        )
        for run in runs
    ]


def _points(run: Run) -> tuple[Point, ...]:
    tokens = {0.0: 0.0, **dict(run.series("tokens/generated_total"))}
    points = {}
    if run.before is not None:
        points[0.0] = Point(0.0, 0.0, run.before.accuracy("sampled").estimate)
    for where, record in run.metrics:
        if "eval_accuracy" in record:
            step = float(record["step"])
            points[step] = Point(step, tokens.get(step, math.nan), number(record, "eval_accuracy", where))
    if run.after is not None:
        step = float(run.after.step)
        points[step] = Point(step, run.generated_tokens, run.after.accuracy("sampled").estimate)
    return tuple(points[step] for step in sorted(points))


def run_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Run name -> method, with the options in which runs of that method on that data differ. Seeds are not part of a
    label: runs that differ in nothing else share one."""
    labels = {}
    for method, data in dict.fromkeys((run.method, run.data) for run in runs):
        same = {run.name: _settings(run) for run in runs if (run.method, run.data) == (method, data)}
        differing = [
            key
            for key in dict.fromkeys(key for settings in same.values() for key in settings)
            if len({repr(settings.get(key)) for settings in same.values()}) > 1
        ]
        for name, settings in same.items():
            parts = [f"{key}={settings.get(key)}" for key in differing[:3]]
            if len(differing) > 3:
                parts.append(f"({name})")
            labels[name] = " ".join([method, *parts])
    return labels


def differing_options(runs: Sequence[Run]) -> list[str]:
    """Options, seeds included, that are not the same in all runs."""
    options = [{**_settings(run), "seed": run.seed} for run in runs]
    keys = dict.fromkeys(key for settings in options for key in settings)
    return [key for key in keys if len({repr(settings.get(key)) for settings in options}) > 1]


def option(run: Run, key: str) -> Any:
    return run.seed if key == "seed" else _settings(run).get(key)


def _settings(run: Run) -> dict[str, Any]:
    """What determines the run but its seed; the data set is its cell."""
    options = run.manifest.get("options")
    settings = dict(options) if isinstance(options, dict) else {}
    for key in ("model_name_or_path", "teacher_model", "use_peft", "lora_r", "lora_alpha", "max_steps"):
        if key in run.config:
            settings[key] = run.config[key]
    return {key: value for key, value in settings.items() if key not in ("seed", "data_seed")}
