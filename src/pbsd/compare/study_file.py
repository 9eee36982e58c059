"""The study file: YAML -> a checked `Study`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pbsd.compare.fields import StudyError, check_keys, counts, items, mapping, names, one_of, seeds, whole
from pbsd.compare.study import (
    OWN_WORLD,
    Budget,
    CellSpec,
    CheckpointRule,
    Decay,
    FinalTest,
    MethodSpec,
    Study,
    TaskSpec,
    Tuning,
    Validation,
)
from pbsd.lab.bases import SCALES, TASK_NAMES
from pbsd.lab.worlds import WORLDS
from pbsd.reading import read_yaml
from pbsd.redact import secrets_in

SET_BY_THE_STUDY = (
    "method", "model_name_or_path", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split",
    "dataset_train_size", "dataset_test_size", "dataset_seed", "reward_funcs", "teacher_prompt_template",
    "max_completion_length", "num_generations_eval", "output_dir", "max_steps", "num_train_epochs", "seed", "data_seed",
    "num_threads", "use_cpu", "disable_tqdm", "save_strategy", "save_steps", "save_total_limit", "logging_steps",
    "eval_strategy",
)  # fmt: skip
"""Options of a recipe that no study may give: the world, the budget, the seeds or the command decide them."""


OF_A_TASK = ("reward_funcs", "teacher_prompt_template", "max_completion_length")
"""Of these, what a task of the user's own gives."""


def load_study(path: str | Path) -> Study:
    """Read and check a study file. What only the methods know of (their options) is checked when runs are planned.

    Raises:
        StudyError: no such file, not YAML, an unknown or missing key, a value that does not fit; says where and the
            mend.
    """
    path = Path(path)
    if not path.is_file():
        raise StudyError(f"{path}: no such study file")
    try:
        values = read_yaml(path)
    except ValueError as error:
        raise StudyError(str(error)) from error
    if secret := next(secrets_in(values), None):
        raise StudyError(
            f"{path}: {secret} is or holds a secret, and a study's options are written into its files: leave it out, "
            "and set it in the environment (HF_TOKEN, say)"
        )
    try:
        return _study(path, values)
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from error


def _study(path: Path, values: Any) -> Study:
    check_keys(
        values,
        "the study",
        required=("methods", "cells", "budget", "train", "validation", "test", "checkpoint"),
        optional=("options", "learning_rate_decay", "tuning", "choices", "models", "tasks", "dataset_seed"),
    )
    tasks = _tasks(values.get("tasks"))
    methods = _methods(values["methods"], [*TASK_NAMES, *tasks])
    models = mapping(values.get("models"), "models")
    study = Study(
        path=path,
        methods=methods,
        cells=_cells(values["cells"], methods, [*SCALES, *models], tasks),
        options=_options(values.get("options"), "options"),
        budget=Budget(**counts(values["budget"], "budget", Budget._fields)),
        train_problems=counts(values["train"], "train", ("problems",))["problems"],
        validation=Validation(**counts(values["validation"], "validation", Validation._fields)),
        test=FinalTest(**counts(values["test"], "test", FinalTest._fields)),
        checkpoint=one_of(values["checkpoint"], "checkpoint", get_args(CheckpointRule)),
        learning_rate_decay=one_of(values.get("learning_rate_decay", "none"), "learning_rate_decay", get_args(Decay)),
        tuning=_tuning(values.get("tuning"), [*SCALES, *models]),
        choices=path.parent / values["choices"] if "choices" in values else None,
        models={scale: str(folder) for scale, folder in models.items()},
        tasks=tasks,
        dataset_seed=whole(values.get("dataset_seed", 0), "dataset_seed", least=0),
    )
    _check_tasks(study)
    _check_budget(study)
    _check_tuning(study)
    return study


def _tasks(values: Any) -> dict[str, TaskSpec]:
    found = {}
    for name, spec in mapping(values, "tasks").items():
        where = f"tasks.{name}"
        if name in TASK_NAMES:
            raise StudyError(f"{where}: the laboratory has a task of that name: choose another")
        check_keys(spec, where, required=("dataset", "options"))
        options = mapping(spec["options"], f"{where}.options")
        _options({key: value for key, value in options.items() if key not in OF_A_TASK}, f"{where}.options")
        found[name] = TaskSpec(dataset=str(spec["dataset"]), options=options)
    return found


def _methods(values: Any, tasks: Sequence[str]) -> dict[str, MethodSpec]:
    found = {}
    for name, spec in mapping(values, "methods", least=1).items():
        where = f"methods.{name}"
        check_keys(spec, where, required=("method",), optional=("options", "task_options", "tune", "choices_of"))
        by_task = mapping(spec.get("task_options"), f"{where}.task_options")
        for task in by_task:
            one_of(task, f"{where}.task_options", tasks)
        found[name] = MethodSpec(
            name=name,
            method=str(spec["method"]),
            options=_options(spec.get("options"), f"{where}.options"),
            task_options={task: _options(options, f"{where}.task_options.{task}") for task, options in by_task.items()},
            trials=_trials(spec.get("tune"), f"{where}.tune"),
            choices_of=spec.get("choices_of", name),
        )
    return found


def _trials(values: Any, where: str) -> tuple[dict[str, Any], ...]:
    """A grid (option -> values: every combination) or a list of trials (option -> value)."""
    if values is None:
        return ()
    if isinstance(values, list):
        trials = [_options(trial, f"{where}[{place}]") for place, trial in enumerate(values)]
    else:
        grid = {name: items(choices, f"{where}.{name}") for name, choices in _options(values, where).items()}
        trials = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    if any(trial in trials[:place] for place, trial in enumerate(trials)):
        raise StudyError(f"{where}: a trial is there twice: take one out")
    return tuple(trials)


def _cells(
    values: Any, methods: Mapping[str, MethodSpec], scales: Sequence[str], tasks: Mapping[str, TaskSpec]
) -> tuple[CellSpec, ...]:
    worlds = [*sorted({name for _, name in WORLDS}), *([OWN_WORLD] if tasks else [])]
    cells = []
    for place, spec in enumerate(items(values, "cells")):
        where = f"cells[{place}]"
        check_keys(spec, where, required=("tasks", "worlds", "scales", "seeds"), optional=("methods",))
        cells.append(
            CellSpec(
                tasks=names(spec["tasks"], f"{where}.tasks", [*TASK_NAMES, *tasks]),
                worlds=names(spec["worlds"], f"{where}.worlds", worlds),
                scales=names(spec["scales"], f"{where}.scales", scales),
                methods=names(spec.get("methods", list(methods)), f"{where}.methods", list(methods)),
                seeds=seeds(spec["seeds"], f"{where}.seeds"),
            )
        )
    return tuple(cells)


def _tuning(values: Any, scales: Sequence[str]) -> Tuning | None:
    if values is None:
        return None
    check_keys(values, "tuning", required=("seeds", "generated_tokens", "trials"), optional=("same_as",))
    numbers = {key: whole(values[key], f"tuning.{key}") for key in ("generated_tokens", "trials")}
    same_as = mapping(values.get("same_as"), "tuning.same_as")
    worlds = sorted({name for _, name in WORLDS})
    for name, other in same_as.items():
        one_of(name, "tuning.same_as", [*worlds, *scales])
        if name in worlds and name in scales:
            raise StudyError(f"tuning.same_as: {name} is a world and one of `models`: give the model another name")
        alike = worlds if name in worlds else scales
        one_of(other, f"tuning.same_as.{name}", [option for option in alike if option not in same_as])
    return Tuning(seeds=seeds(values["seeds"], "tuning.seeds"), same_as=same_as, **numbers)


def _check_tasks(study: Study) -> None:
    for cell in dict.fromkeys(unit.cell for unit in study.units()):
        is_own = cell.task in study.tasks
        if is_own != (cell.world == OWN_WORLD):
            raise StudyError(
                f"cells: {cell.task} in world {cell.world!r}: the tasks under `tasks`, and they alone, have the world "
                f"{OWN_WORLD!r}; put them in a block of their own"
            )
        scales = {cell.scale, study.tuned_cell(cell).scale}
        if is_own and (missing := sorted(scales - study.models.keys())):
            raise StudyError(f"models: {cell.task} is trained at scale {missing[0]!r}: give `{missing[0]}: FOLDER`")


def _check_budget(study: Study) -> None:
    if study.validation.every_tokens > study.budget.generated_tokens:
        raise StudyError(
            f"validation.every_tokens ({study.validation.every_tokens}) is more than budget.generated_tokens "
            f"({study.budget.generated_tokens}): the curves would have no point on the way; lower it"
        )
    if study.tuning and study.tuning.generated_tokens > study.budget.generated_tokens:
        raise StudyError("tuning.generated_tokens is more than budget.generated_tokens: lower it")


def _check_tuning(study: Study) -> None:
    if study.choices:
        _check_choices(study)
        return
    for name, spec in study.methods.items():
        if spec.choices_of != name:
            raise StudyError(f"methods.{name}.choices_of is for another study's choices: give `choices: PATH`")
        if spec.trials and study.tuning is None:
            raise StudyError(f"methods.{name}.tune asks for trials, but there is no `tuning`: add it")
    if study.tuning is None:
        return
    trials = {name: len(spec.trials) for name, spec in study.methods.items()}
    if any(count != study.tuning.trials for count in trials.values()):
        raise StudyError(
            f"every method must have tuning.trials = {study.tuning.trials} trials, but `tune` gives: "
            f"{', '.join(f'{name} {count}' for name, count in trials.items())}; "
            "equal numbers keep the comparison fair: lengthen or shorten the grids"
        )
    overlap = sorted({unit.seed for unit in study.units()} & set(study.tuning.seeds))
    if overlap:
        raise StudyError(
            f"tuning.seeds and the cells share seed {overlap[0]}: what was chosen for a lucky seed must be tested on "
            "others; choose other tuning.seeds"
        )


def _check_choices(study: Study) -> None:
    assert study.choices is not None
    if study.tuning:
        raise StudyError("give `tuning` or `choices` (another study's), not both")
    if not study.choices.is_file():
        raise StudyError(f"choices: {study.choices} is not there: run its study first, or mend the path")
    for name, spec in study.methods.items():
        if spec.trials:
            raise StudyError(f"methods.{name}.tune: with `choices` nothing is tuned: take it out")


def _options(values: Any, where: str) -> dict[str, Any]:
    """Options of a recipe, none of them the study's own business."""
    options = mapping(values, where)
    for key in options:
        if key in SET_BY_THE_STUDY:
            raise StudyError(f"{where}: {key} is set by the study itself (world, budget, seeds, command): take it out")
    return options
