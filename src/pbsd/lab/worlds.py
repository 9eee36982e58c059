"""Worlds: what a task's teacher is told, and which base model plays both parts. No torch.

    world("tools", "noisy").rows("train", 4000)

A world is a base variant and a mixture of context forms. The student's prompt is the same in every world of a task.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from pbsd.lab import arithmetic, tools
from pbsd.lab.bases import TASK_NAMES, Band


class Task(Protocol):
    """A generated task; `arithmetic` and `tools` are modules of this form. A row is a dict of texts."""

    TEACHER_TEMPLATE: str
    """Jinja template of the teacher's prompt; the student's is the row's `prompt` as it is."""
    MAX_COMPLETION_TOKENS: int
    WORDS: Sequence[str]
    """Tokens of the task's tokenizer besides the characters."""

    def rows(self, split: str, size: int, seed: int = 0) -> list[dict[str, str]]: ...
    def flawed_context(self, row: dict[str, str], rng: random.Random) -> str: ...
    def answer_context(self, row: dict[str, str]) -> str: ...
    def leaking_context(self, row: dict[str, str]) -> str: ...
    def leaking_completion(self, row: dict[str, str]) -> str: ...
    def hasty_completion(self, row: dict[str, str], rng: random.Random) -> str: ...
    def leaks(self, completion: str) -> bool: ...
    def reward(self, completions: Sequence[str], **columns: Any) -> list[float]: ...


TASKS: dict[str, Task] = {"arithmetic": cast(Task, arithmetic), "tools": cast(Task, tools)}


def make_context(task: Task, form: str, row: dict[str, str], rng: random.Random) -> str:
    """The row's context in a form, see `World.forms`."""
    match form:
        case "solution":
            return row["privileged_context"]
        case "flawed":
            return task.flawed_context(row, rng)
        case "answer":
            return task.answer_context(row)
        case "leaking":
            return task.leaking_context(row)
    raise ValueError(f"unknown form of context {form!r}")


@dataclass(frozen=True, slots=True)
class World:
    """One task under one teaching situation.

    `forms`: share of the rows whose context is the `solution`, `flawed` (a solution with a mistake), the `answer` alone
    or `leaking` (marked as an answer key, which the base was trained to cite). `student`, `teacher`: the bands
    in which the base's success rates at T = 1 on this world's rows are meant to lie.
    """

    task: str
    name: str
    variant: str
    forms: Mapping[str, float]
    student: Band
    teacher: Band

    @property
    def dataset_name(self) -> str:
        return f"lab/{self.task}-{self.name}"

    @property
    def teacher_prompt_template(self) -> str:
        return TASKS[self.task].TEACHER_TEMPLATE

    @property
    def reward_funcs(self) -> list[str]:
        return [f"pbsd.lab.{self.task}:reward"]

    @property
    def max_completion_length(self) -> int:
        """In tokens, longer than any reference."""
        return TASKS[self.task].MAX_COMPLETION_TOKENS

    def base_name(self, scale: str) -> str:
        """The world's base model at a scale, such as `lab/tools-1m-sparse`."""
        return f"lab/{self.task}-{scale}-{self.variant}"

    def rows(self, split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
        """The task's rows with this world's contexts; which form a row has depends on `seed` and its prompt alone."""
        task = TASKS[self.task]
        found = []
        for row in task.rows(split, size, seed):
            rng = random.Random(f"{self.name}-{seed}-{row['prompt']}")
            form = draw_form(self.forms, rng)
            found.append({**row, "privileged_context": make_context(task, form, row, rng), "context_form": form})
        return found


def draw_form(forms: Mapping[str, float], rng: random.Random) -> str:
    """One of the forms, by their shares, which sum to 1."""
    left = rng.random()
    for form, share in forms.items():
        left -= share
        if left < 0:
            return form
    return form


_DENSE, _SPARSE = Band(0.3, 0.6), Band(0.02, 0.08)
WORLDS: dict[tuple[str, str], World] = {
    (task, name): World(task, name, variant, forms, student, teacher)
    for task in TASK_NAMES
    for name, variant, forms, student, teacher in (
        ("dense", "dense", {"solution": 1.0}, _DENSE, Band(0.75, 1.0)),
        ("sparse", "sparse", {"solution": 1.0}, _SPARSE, Band(0.6, 0.9)),
        ("noisy", "dense", {"flawed": 0.1, "leaking": 0.1, "solution": 0.8}, _DENSE, Band(0.6, 0.95)),
        ("answer-only", "dense", {"answer": 1.0}, _DENSE, Band(0.5, 1.0)),
    )
}


def world(task: str, name: str) -> World:
    """The world of that name. Raises ValueError, naming those that exist, when there is none."""
    if (task, name) not in WORLDS:
        known = ", ".join(f"{task}-{name}" for task, name in WORLDS)
        raise ValueError(f"no world {name!r} of a task {task!r} in the laboratory: use one of {known}")
    return WORLDS[task, name]


def dataset_rows(name: str, split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of `<task>-<world>`, or of a task alone with its solutions as contexts.

    Raises:
        ValueError: no such dataset, an unknown split, or a size out of range.
    """
    if name in TASKS:
        return TASKS[name].rows(split, size, seed)
    task, _, world_name = name.partition("-")
    return world(task, world_name).rows(split, size, seed)
