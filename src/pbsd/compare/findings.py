"""What a study's result files hold, by cell, method and seed. Reads files only; numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pbsd.compare.files import CHOICES, CURVES, RESULTS, read_choices, read_rows
from pbsd.compare.statistics import Array, CellValues, MeanCurve, mean_curve
from pbsd.compare.study import Cell, CellSpec, Unit


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that tables are made of.

    Attributes:
        accuracy: per finished run the share of correct samples of every test problem.
        problems: per cell the test problems, in the order of `accuracy`.
        curves: per finished run (generated tokens, or steps where nothing is generated; validation accuracies).
        planned: the runs that the study asks for, and the sets of methods that it compares.
    """

    accuracy: Mapping[Unit, Array]
    problems: Mapping[Cell, tuple[int, ...]]
    curves: Mapping[Unit, tuple[Sequence[float], Sequence[float]]]
    generates: frozenset[str]
    methods: tuple[str, ...]
    planned: tuple[Unit, ...]
    method_sets: tuple[tuple[str, ...], ...]
    choices: Mapping[str, Any]

    @property
    def cells(self) -> list[Cell]:
        """In the study's order, those with a finished run."""
        found = {unit.cell for unit in self.accuracy}
        return [cell for cell in dict.fromkeys(unit.cell for unit in self.planned) if cell in found]

    @property
    def missing(self) -> list[Unit]:
        return [unit for unit in self.planned if unit not in self.accuracy]

    def seeds(self, cell: Cell, methods: Iterable[str]) -> list[int]:
        """Seeds that all of the methods have finished in the cell."""
        found = [{unit.seed for unit in self.accuracy if unit[:2] == (method, cell)} for method in methods]
        return sorted(set.intersection(*found))

    def comparable(self, methods: Sequence[str]) -> dict[Cell, list[int]]:
        """The cells in which all of the methods have finished a common seed, with these seeds."""
        return {cell: seeds for cell in self.cells if (seeds := self.seeds(cell, methods))}

    def values(self, cell: Cell, method: str, seeds: Sequence[int]) -> Array:
        """Accuracies by seed and problem."""
        return np.stack([self.accuracy[Unit(method, cell, seed)] for seed in seeds])

    def cell_values(self, cell: Cell, values_SP: Array) -> CellValues:
        """Worlds and scales of a task have the same problems: they are one set of clusters."""
        return CellValues(f"{cell.task} {self.problems[cell]}", values_SP)

    def curve(self, cell: Cell, method: str) -> MeanCurve | None:
        """Over all seeds that the method has finished in the cell; None where there are none."""
        seeds = self.seeds(cell, [method])
        return mean_curve([self.curves[Unit(method, cell, seed)] for seed in seeds]) if seeds else None


def read_findings(folder: Path) -> Findings:
    """Read `results.jsonl.gz`, `curves.jsonl.gz` and `choices.json`.

    Raises:
        ValueError: a file is missing or damaged, or runs of a cell were tested on different problems.
    """
    choices = read_choices(folder / CHOICES)
    study = choices["study"]
    specs = [CellSpec(**{key: tuple(values) for key, values in spec.items()}) for spec in study["cells"]]
    order = tuple(study["methods"])
    accuracy, problems = _accuracies(folder / RESULTS)
    curves, generates = _curves(folder / CURVES)
    if accuracy.keys() != curves.keys():
        (odd, *_) = accuracy.keys() ^ curves.keys()
        raise ValueError(f"{folder}: {RESULTS} and {CURVES} are not of the same runs, e.g. {odd}: make them anew")
    sets = {frozenset(spec.methods) for spec in specs}
    return Findings(
        accuracy=accuracy,
        problems=problems,
        curves=curves,
        generates=generates,
        methods=order,
        planned=tuple(dict.fromkeys(unit for spec in specs for unit in spec.units())),
        method_sets=tuple(
            tuple(name for name in order if name in members) for members in sorted(sets, key=len, reverse=True)
        ),
        choices=choices,
    )


def _accuracies(path: Path) -> tuple[dict[Unit, Array], dict[Cell, tuple[int, ...]]]:
    found: dict[Unit, dict[int, float]] = {}
    for row in read_rows(path):
        if row["num_samples"] < 1:
            raise ValueError(f"{path}: a problem without samples has no accuracy: {row}")
        found.setdefault(_unit(row), {})[row["problem_id"]] = row["num_correct"] / row["num_samples"]
    problems: dict[Cell, tuple[int, ...]] = {}
    for unit, values in found.items():
        own = tuple(sorted(values))
        if problems.setdefault(unit.cell, own) != own:
            raise ValueError(f"{path}: runs of {'/'.join(unit.cell)} were tested on different problems")
    accuracy = {unit: np.array([values[i] for i in problems[unit.cell]]) for unit, values in found.items()}
    return accuracy, problems


def _curves(path: Path) -> tuple[dict[Unit, tuple[list[float], list[float]]], frozenset[str]]:
    points: dict[Unit, list[dict[str, Any]]] = {}
    for row in read_rows(path):
        points.setdefault(_unit(row), []).append(row)
    generates = frozenset(unit.method for unit, own in points.items() if own[-1]["generated_tokens"] > 0)
    curves = {}
    for unit, own in points.items():
        spent = "generated_tokens" if unit.method in generates else "step"
        curves[unit] = [float(p[spent]) for p in own], [p["validation_accuracy"] for p in own]
    return curves, generates


def _unit(row: Mapping[str, Any]) -> Unit:
    return Unit(row["method"], Cell(row["task"], row["world"], row["scale"]), row["seed"])
