"""Run folders: what a run wrote, and its accuracy before and after with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pbsd.intervals import Interval, difference_interval, share_interval
from pbsd.redact import public
from pbsd.report.files import Notes, Record, integer, number, read_json, read_lines, read_yaml

RUN_FILES = ("manifest.json", "config.yaml", "metrics.jsonl", "samples.jsonl", "eval_before.json", "summary.json")


@dataclass(frozen=True, slots=True)
class Problem:
    """Accuracy on one held-out problem; NaN where nothing could be judged."""

    sampled: float
    greedy: float
    num_samples: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One of eval_before.json and eval_after.json, by row of the held-out data."""

    step: int
    problems: dict[int, Problem]

    @property
    def samples_per_problem(self) -> int:
        return max((problem.num_samples for problem in self.problems.values()), default=0)

    def accuracy(self, measure: str) -> Interval:
        """95% interval, clustered by problem, of `sampled` (avg@k at temperature 1) or `greedy`."""
        return share_interval(_known(getattr(problem, measure) for problem in self.problems.values()))


def difference(before: Evaluation, after: Evaluation, measure: str) -> Interval:
    """95% interval of the mean per-problem difference after - before, over the problems judged in both."""
    return difference_interval(
        _known(
            getattr(problem, measure) - getattr(before.problems[row], measure)
            for row, problem in after.problems.items()
            if row in before.problems
        )
    )


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder as read. `before`, `after` and `summary` are None until the run has written them."""

    name: str
    path: Path
    config: Record
    manifest: Record
    metrics: Sequence[tuple[str, Record]]
    samples: Sequence[tuple[str, Record]]
    alarms: Sequence[tuple[str, Record]]
    before: Evaluation | None
    after: Evaluation | None
    summary: Record | None
    notes: Notes = field(default_factory=list)

    @property
    def method(self) -> str:
        return str(self.manifest.get("method") or self.config.get("method") or "unknown method")

    @property
    def data(self) -> str:
        return str(self.config.get("dataset_name") or "unknown data")

    @property
    def seed(self) -> str:
        seeds = self.manifest.get("seeds")
        return str(seeds.get("seed") if isinstance(seeds, dict) else self.config.get("seed", "?"))

    @property
    def state(self) -> str:
        """`finished`, or how far the run has come."""
        if self.summary is not None:
            return "finished"
        return f"unfinished, step {self.steps} of {self.config.get('max_steps', '?')}"

    @property
    def steps(self) -> int:
        return max((int(record["step"]) for _, record in self.metrics), default=0)

    @property
    def generated_tokens(self) -> float:
        """For training, in all; NaN where nothing was logged yet."""
        return self._total("generated_tokens", "tokens/generated_total")

    @property
    def train_seconds(self) -> float:
        return self._total("seconds", "time/train_seconds")

    def _total(self, in_summary: str, metric: str) -> float:
        if self.summary is not None and in_summary in self.summary:
            return number(self.summary, in_summary, f"{self.path}/summary.json")
        series = self.series(metric)
        return series[-1][1] if series else math.nan

    @property
    def watched(self) -> bool:
        """Whether training looked for alarms."""
        return any("health/alarms" in record for _, record in self.metrics)

    def series(self, key: str) -> list[tuple[float, float]]:
        """Steps and values of a training metric, where it was logged and defined."""
        found = [(float(record["step"]), number(record, key, where)) for where, record in self.metrics if key in record]
        return [(step, value) for step, value in found if math.isfinite(value)]


def is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)


def read_run(path: Path, name: str) -> Run:
    """Read a run folder, finished or not.

    Raises:
        ValueError: file, line and field of what cannot be read.
    """
    notes: Notes = []
    metrics, samples, alarms = (read_lines(path / f"{what}.jsonl", notes) for what in ("metrics", "samples", "alarms"))
    for where, record in (*metrics, *samples, *alarms):
        integer(record, "step", where)
    run = Run(
        name=name,
        path=path,
        config=public(read_yaml(path / "config.yaml", notes)),
        manifest=public(read_json(path / "manifest.json", notes) or {}),
        metrics=metrics,
        samples=samples,
        alarms=alarms,
        before=_evaluation(path / "eval_before.json", notes),
        after=_evaluation(path / "eval_after.json", notes),
        summary=read_json(path / "summary.json", notes),
        notes=notes,
    )
    missing = [file for file in RUN_FILES[:4] if not (path / file).is_file()]
    if missing:
        notes.append(f"{', '.join(missing)}: not in this folder.")
    stopped = (run.summary or {}).get("stopped_by")
    if isinstance(stopped, dict):
        notes.append(f"summary.json: the alarm {stopped.get('rule')} ended training at step {stopped.get('step')}.")
    if run.summary is None:
        notes.append(f"summary.json is not there yet: the run is {run.state}.")
    return run


def _evaluation(path: Path, notes: Notes) -> Evaluation | None:
    record = read_json(path, notes)
    if record is None:
        return None
    problems = record.get("problems")
    if not isinstance(problems, list):
        raise ValueError(f"{path}: no list of problems: was it written by `pbsd train`?")
    return Evaluation(
        integer(record, "step", str(path)) if "step" in record else 0,
        dict(_problem(problem, f"{path}, problem {place}") for place, problem in enumerate(problems)),
    )


def _problem(record: Record, where: str) -> tuple[int, Problem]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be a JSON object")
    judged, greedy = integer(record, "num_samples", where), record.get("greedy_correct")
    if greedy is not None and not isinstance(greedy, bool):
        raise ValueError(f"{where}: greedy_correct must be true, false or null, is {greedy!r:.60}")
    sampled = integer(record, "num_correct", where) / judged if judged else math.nan
    return integer(record, "row", where), Problem(sampled, math.nan if greedy is None else float(greedy), judged)


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
