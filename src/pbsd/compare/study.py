"""A study: what is compared with what. `study_file` reads it; studies/strength/study.yaml explains the keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

CheckpointRule = Literal["last", "best_validation"]
Decay = Literal["none", "linear"]
"""How the learning rate of a run falls: not at all, or to zero in proportion to the budget that is spent."""


class Cell(NamedTuple):
    """Where methods meet; its test problems are shared by all methods and seeds."""

    task: str
    world: str
    scale: str


class Place(NamedTuple):
    """Where one choice of options holds."""

    method: str
    cell: Cell


class Unit(NamedTuple):
    """One training run that is tested."""

    method: str
    cell: Cell
    seed: int

    @property
    def place(self) -> Place:
        return Place(self.method, self.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """A method of the study.

    `trials`: the option values to choose among, empty where nothing is tuned. `choices_of`: whose choice to take, where
    the study uses another study's choices; None: nobody's.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    task_options: Mapping[str, Mapping[str, Any]]
    trials: tuple[Mapping[str, Any], ...]
    choices_of: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """Every combination of these is run."""

    tasks: tuple[str, ...]
    worlds: tuple[str, ...]
    scales: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]

    def units(self) -> Iterator[Unit]:
        for scale, task, world, seed, method in itertools.product(
            self.scales, self.tasks, self.worlds, self.seeds, self.methods
        ):
            yield Unit(method, Cell(task, world, scale), seed)


OWN_WORLD = "own"
"""The world of a task that is not the laboratory's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task of the user's own: `dataset` has the splits train, validation and test; `options` are a recipe's."""

    dataset: str
    options: Mapping[str, Any]


class Budget(NamedTuple):
    """A run ends at the first step at which student and teacher have generated so many tokens, or at `max_steps`."""

    generated_tokens: int
    max_steps: int


class Validation(NamedTuple):
    """Measured before training and at the first step past every multiple of `every_tokens`."""

    problems: int
    samples: int
    every_tokens: int


class FinalTest(NamedTuple):
    """Measured once, at the end of a run, after all choices."""

    problems: int
    samples: int


class Tuning(NamedTuple):
    """The trials of every method, per task, world and scale; the best mean validation accuracy is chosen.

    `same_as`: worlds and scales without trials of their own, each with the one whose choices it takes.
    """

    seeds: tuple[int, ...]
    generated_tokens: int
    trials: int
    same_as: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A checked study file; see studies/strength/study.yaml for what each key means."""

    path: Path
    methods: Mapping[str, MethodSpec]
    cells: tuple[CellSpec, ...]
    options: Mapping[str, Any]
    budget: Budget
    train_problems: int
    validation: Validation
    test: FinalTest
    checkpoint: CheckpointRule
    learning_rate_decay: Decay
    tuning: Tuning | None
    choices: Path | None
    models: Mapping[str, str]
    tasks: Mapping[str, TaskSpec]
    dataset_seed: int

    @property
    def name(self) -> str:
        return study_name(self.path)

    def units(self) -> list[Unit]:
        """Every run that is tested, once, in the order of the file; methods of a cell and seed follow each other."""
        return list(dict.fromkeys(unit for cell in self.cells for unit in cell.units()))

    def describe(self) -> dict[str, Any]:
        """What the results rest on, for their readers; JSON-ready."""
        return {
            "methods": {name: asdict(spec) for name, spec in self.methods.items()},
            "cells": [asdict(cell) for cell in self.cells],
            "options": self.options,
            "train_problems": self.train_problems,
            **{name: getattr(self, name)._asdict() for name in ("budget", "validation", "test")},
            "tuning": self.tuning and self.tuning._asdict(),
            "checkpoint": self.checkpoint,
            "learning_rate_decay": self.learning_rate_decay,
            "models": self.models,
            "tasks": {name: asdict(spec) for name, spec in self.tasks.items()},
            "dataset_seed": self.dataset_seed,
        }

    def tuned_places(self) -> list[Place]:
        """Every place whose options are chosen by this study's trials."""
        if self.tuning is None:
            return []
        return list(dict.fromkeys(Place(place.method, self.tuned_cell(place.cell)) for place in self.places()))

    def places(self) -> list[Place]:
        """Every place that is tested."""
        return list(dict.fromkeys(unit.place for unit in self.units()))

    def tuned_cell(self, cell: Cell) -> Cell:
        """The cell whose trials decide for this one."""
        same_as = self.tuning.same_as if self.tuning else {}
        return Cell(cell.task, *(same_as.get(name, name) for name in (cell.world, cell.scale)))


def study_name(path: Path) -> str:
    """The file's name, or its folder's for a file called study.yaml."""
    return path.resolve().parent.name if path.stem == "study" else path.stem
