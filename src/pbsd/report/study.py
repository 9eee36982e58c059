"""Study folders, as `pbsd compare` writes them: test results by problem, validation curves, and what was tuned."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pbsd.report.files import Notes, Record, number, read_json, read_lines, text
from pbsd.report.trials import Point, Trial

STUDY_FILES = ("results.jsonl.gz", "curves.jsonl.gz")


@dataclass(frozen=True, slots=True)
class Study:
    name: str
    path: Path
    trials: list[Trial]
    choices: Record | None
    notes: Notes = field(default_factory=list)


def is_study(path: Path) -> bool:
    return any((path / name).is_file() for name in STUDY_FILES)


def read_study(path: Path, name: str) -> Study:
    """Read a study folder; one of its two tables may be missing.

    Raises:
        ValueError: file, line and field of what cannot be read, or a problem that is counted twice.
    """
    notes: Notes = []
    points: dict[tuple[str, str, str], list[Point]] = defaultdict(list)
    finals: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for where, record in read_lines(path / "curves.jsonl.gz", notes):
        step, tokens, accuracy = (
            number(record, key, where) for key in ("step", "generated_tokens", "validation_accuracy")
        )
        points[_trial(record, where)].append(Point(step, tokens, accuracy))
    for where, record in read_lines(path / "results.jsonl.gz", notes):
        problems, problem = finals[_trial(record, where)], str(record.get("problem_id"))
        if problem in problems:
            raise ValueError(f"{where}: problem {problem} is there twice for {' / '.join(_trial(record, where))}")
        judged, correct = number(record, "num_samples", where), number(record, "num_correct", where)
        problems[problem] = correct / judged if judged else math.nan
    notes += [f"{file}: not in this folder." for file in STUDY_FILES if not (path / file).is_file()]
    keys = sorted(points.keys() | finals.keys())
    trials = [
        Trial(label, cell, seed, name, tuple(sorted(points[key])), dict(finals[key]))
        for key in keys
        for label, cell, seed in [key]
    ]
    return Study(name, path, trials, read_json(path / "choices.json", notes), notes)


def _trial(record: Record, where: str) -> tuple[str, str, str]:
    """Method, cell and seed."""
    method, task, world, scale = (text(record, key, where) for key in ("method", "task", "world", "scale"))
    if "seed" not in record:
        raise ValueError(f"{where}: seed is missing")
    return method, f"{task} · {world} · {scale}", str(record["seed"])
