"""What the runs and studies of the page were made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pbsd.compare.training_tables import chosen_options
from pbsd.redact import public
from pbsd.report.elements import MISSING, Section, Table
from pbsd.report.runs import Run
from pbsd.report.study import Study
from pbsd.report.trials import differing_options, option


def manifest(runs: Sequence[Run], studies: Sequence[Study]) -> Section:
    """Without secrets, also those that an earlier version left in the files."""
    tables = []
    if len(runs) > 1 and (keys := differing_options(runs)):
        rows = [[key, *(str(option(run, key)) for run in runs)] for key in keys]
        tables.append(Table("Options in which the runs differ", ("option", *(run.name for run in runs)), rows))
    for run in runs:
        rows = [list(pair) for pair in flat(run.manifest)]
        if rows:
            tables.append(Table(f"Manifest of {run.name}", ("entry", "value"), rows))
    for study in studies:
        tables += _of_study(study)
    return Section("manifest", "Manifest", tables=tables, lacking="No manifest was found.")


def _of_study(study: Study) -> list[Table]:
    if study.findings is None:
        rows = [list(pair) for pair in flat(public(study.choices))] if study.choices else []
        return [Table(f"Choices of {study.name}", ("entry", "value"), rows)] if rows else []
    choices = study.findings.choices
    titles, chosen = chosen_options(study.findings)
    columns = (
        "method", "task", "world", "scale", "seed", "steps", "generated_tokens", "ended_by", "tested_step", "versions",
        "key",
    )  # fmt: skip
    ran = [[_text(run.get(name)) for name in columns] for run in choices["runs"]]
    tables = [
        Table(f"Chosen options of {study.name}", titles, chosen),
        Table(f"Plan of {study.name}", ("entry", "value"), [list(pair) for pair in flat(public(choices["study"]))]),
        Table(f"Runs of {study.name}", [name.replace("_", " ") for name in columns], ran),
    ]
    return [table for table in tables if table.rows]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return MISSING if value is None else str(value)


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested objects and lists of objects as (path, value) lines."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [line for place, item in enumerate(value) for line in flat(item, f"{name}[{place}]")]
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
