"""Study folders, as `pbsd compare` writes them: test results by problem, validation curves, training metrics, and what
was planned and tuned."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pbsd.compare.files import CHOICES, CURVES, RESULTS, TRAINING
from pbsd.compare.findings import Findings, read_findings
from pbsd.compare.study import Cell
from pbsd.compare.table import make_table
from pbsd.redact import public
from pbsd.report.files import Notes, Record, number, read_json, read_lines, text
from pbsd.report.trials import Point, Trial, Window

STUDY_FILES = (RESULTS, CURVES)

Key = tuple[str, str, str]
"""Method, cell and seed."""


@dataclass(frozen=True, slots=True)
class Study:
    """`findings` are None where the folder does not hold all that `pbsd compare` writes; `shared` are the methods whose
    names another study of the page has too."""

    name: str
    path: Path
    trials: list[Trial]
    choices: Record | None
    findings: Findings | None = None
    notes: Notes = field(default_factory=list)
    shared: frozenset[str] = frozenset()

    def label(self, method: str) -> str:
        return f"{method} ({self.name})" if method in self.shared else method


def is_study(path: Path) -> bool:
    return any((path / name).is_file() for name in STUDY_FILES)


def told_apart(studies: Sequence[Study]) -> list[Study]:
    """The studies with labels under which no two of them meet: the same method may have other options in each."""
    owners = Counter(method for study in studies for method in {trial.label for trial in study.trials})
    apart = []
    for study in studies:
        named = replace(study, shared=frozenset(method for method, count in owners.items() if count > 1))
        trials = [replace(trial, label=named.label(trial.label)) for trial in study.trials]
        apart.append(replace(named, trials=trials))
    return apart


def cell_name(cell: Cell) -> str:
    return " · ".join(cell)


def read_study(path: Path, name: str) -> Study:
    """Read a study folder; all but one of its tables may be missing.

    Raises:
        ValueError: file, line and field of what cannot be read, or a problem that is counted twice.
    """
    notes: Notes = []
    points: dict[Key, list[Point]] = defaultdict(list)
    finals: dict[Key, dict[str, float]] = defaultdict(dict)
    for where, record in read_lines(path / CURVES, notes):
        step, tokens, accuracy = (
            number(record, key, where) for key in ("step", "generated_tokens", "validation_accuracy")
        )
        points[_trial(record, where)].append(Point(step, tokens, accuracy))
    for where, record in read_lines(path / RESULTS, notes):
        problems, problem = finals[_trial(record, where)], str(record.get("problem_id"))
        if problem in problems:
            raise ValueError(f"{where}: problem {problem} is there twice for {' / '.join(_trial(record, where))}")
        judged, correct = number(record, "num_samples", where), number(record, "num_correct", where)
        problems[problem] = correct / judged if judged else math.nan
    notes += [f"{file}: not in this folder." for file in (*STUDY_FILES, TRAINING) if not (path / file).is_file()]
    windows = _windows(path, points, notes)
    choices = public(read_json(path / CHOICES, notes))
    findings, rules = _findings(path, choices, notes)
    trials = [
        Trial(
            *key,
            source=name,
            points=tuple(sorted(points[key])),
            final=dict(finals[key]),
            alarms=len(rules[key]) if key in rules else None,
            windows=tuple(windows.get(key, ())),
            rules=rules.get(key, ()),
        )
        for key in _ordered(points.keys() | finals.keys() | windows.keys(), findings)
    ]
    return Study(name, path, trials, choices, findings, notes)


def _ordered(keys: Iterable[Key], findings: Findings | None) -> list[Key]:
    """In the study's order; what it did not plan, or says nothing of, by name."""
    planned = () if findings is None else findings.planned
    place = {(unit.method, cell_name(unit.cell), str(unit.seed)): number for number, unit in enumerate(planned)}
    return sorted(keys, key=lambda key: (place.get(key, len(place)), key))


def _windows(path: Path, points: Mapping[Key, list[Point]], notes: Notes) -> dict[Key, list[Window]]:
    """Of training metrics, by their last step; tokens are those of the curve's point at that step."""
    windows: dict[Key, list[Window]] = defaultdict(list)
    tokens = {(*key, point.step): point.tokens for key, own in points.items() for point in own}
    for where, record in read_lines(path / TRAINING, notes):
        key, step = _trial(record, where), number(record, "step", where)
        values = {
            name: float(value)
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("seed", "step")
        }
        windows[key].append(Window(step, tokens.get((*key, step), math.nan), values))
    return windows


def _findings(
    path: Path, choices: Record | None, notes: Notes
) -> tuple[Findings | None, Mapping[Key, tuple[str, ...]]]:
    """What the tables of `pbsd compare` are made of, where the folder has it, and the alarms of every run."""
    if choices is None or "study" not in choices or any(not (path / file).is_file() for file in STUDY_FILES):
        notes.append(f"{CHOICES}: without it and both tables, as `pbsd compare` writes them, methods are not ranked.")
        return None, {}
    try:
        findings = read_findings(path)
        rules = {_trial(run, CHOICES): tuple(run["alarms"]) for run in findings.choices["runs"]}
        make_table(findings)  # reads every field that the page will show
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: {CHOICES} or a table is not as `pbsd compare` writes it ({error!r}): make it anew by --table"
        ) from error
    missing = [f"{unit.method} ({cell_name(unit.cell)}, seed {unit.seed})" for unit in findings.missing]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        notes.append(
            f"{len(missing)} of {len(findings.planned)} planned runs are missing: {', '.join(missing[:3])}{more}."
        )
    return findings, rules


def _trial(record: Record, where: str) -> Key:
    method, task, world, scale = (text(record, key, where) for key in ("method", "task", "world", "scale"))
    if "seed" not in record:
        raise ValueError(f"{where}: seed is missing")
    return method, cell_name(Cell(task, world, scale)), str(record["seed"])
