"""A study as runs: each is a recipe, a budget and what is measured, and has a key made of all that determines it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from pbsd.adapters import ADAPTER_CONFIG, adapter_config
from pbsd.compare.fields import StudyError
from pbsd.compare.study import Budget, Cell, CheckpointRule, Decay, FinalTest, Place, Study, Unit, Validation
from pbsd.determines import determining_options
from pbsd.lab.worlds import world
from pbsd.loading import model_folder
from pbsd.recipe import RecipeError, load_recipe
from pbsd.redact import public

_WITHOUT_EFFECT = ("model_name_or_path", "teacher_model", "num_threads", "disable_tqdm", "use_cpu")
"""Keys of a run's recipe that its results do not depend on; models have hashes of their own."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        kind: `tuning` runs are read on validation problems only; `final` ones are tested.
        trial: the number of a tuning run's trial.
        recipe: the keys of a recipe file, without its folder.
        models_sha256: of the files of the base model and of an external teacher.
        dataset_sha256: of the files of a local data set; None: generated, or on the hub.
        test: None for tuning runs.
    """

    kind: Literal["tuning", "final"]
    method: str
    cell: Cell
    seed: int
    trial: int | None
    recipe: Mapping[str, Any]
    models_sha256: tuple[str, ...]
    dataset_sha256: str | None
    budget: Budget
    validation: Validation
    test: FinalTest | None
    checkpoint: CheckpointRule
    learning_rate_decay: Decay

    @property
    def words(self) -> tuple[str, ...]:
        """What a run is called by, see `--only`."""
        trial = () if self.trial is None else (f"trial{self.trial}",)
        return (self.kind, self.method, *self.cell, *trial, f"seed{self.seed}")

    @property
    def name(self) -> str:
        return "/".join(self.words)

    @property
    def unit(self) -> Unit:
        return Unit(self.method, self.cell, self.seed)

    @property
    def place(self) -> Place:
        return self.unit.place

    @cached_property
    def key(self) -> str:
        """SHA-256 over everything the study and the models decide of the result. Defaults of options are compared
        apart (`store.is_current`), so that a new option with a neutral default leaves finished runs as they are."""
        facts = {**asdict(self), "recipe": {k: v for k, v in self.recipe.items() if k not in _WITHOUT_EFFECT}}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def folder_name(name: str, key: str) -> str:
    """Of a run in the working folder."""
    return f"{name.replace('/', '-')}-{key[:12]}"


def tuning_runs(study: Study) -> list[Run]:
    """Every trial of every place that the study tunes, with the seeds of its tuning."""
    tuning = study.tuning
    if tuning is None:
        return []
    # As far as the budget is cut, so is the bound on the steps of methods that generate nothing.
    share = tuning.generated_tokens / study.budget.generated_tokens
    budget = Budget(tuning.generated_tokens, math.ceil(study.budget.max_steps * share))
    return [
        replace(
            _run(study, Unit(*place, seed), options),
            kind="tuning",
            trial=number,
            budget=budget,
            test=None,
        )
        for place in study.tuned_places()
        for (number, options), seed in itertools.product(enumerate(study.methods[place.method].trials), tuning.seeds)
    ]


def final_runs(study: Study, chosen: Mapping[Place, Mapping[str, Any]]) -> list[Run]:
    """Every run that is tested, under the chosen options."""
    return [_run(study, unit, chosen.get(unit.place, {})) for unit in study.units()]


def training_seed(cell: Cell, seed: int) -> int:
    """The seed of data order and sampling: the same for all methods of a cell, so that they are compared on equal
    draws, and another in every cell, so that the cells' seeds are independent."""
    digest = hashlib.sha256(f"{cell.task} {cell.world} {cell.scale} {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _run(study: Study, unit: Unit, tuned: Mapping[str, Any]) -> Run:
    cell, spec = unit.cell, study.methods[unit.method]
    task = _task(study, cell)
    recipe = {
        "method": spec.method,
        "model_name_or_path": study.models.get(cell.scale, task["model_name_or_path"]),
        "dataset_name": task["dataset_name"],
        "dataset_train_size": study.train_problems,
        "dataset_test_split": "validation",
        "dataset_test_size": study.validation.problems,
        "dataset_seed": study.dataset_seed,
        **{key: value for key, value in task.items() if key not in ("model_name_or_path", "dataset_name")},
        "num_generations_eval": study.validation.samples,
        "seed": training_seed(cell, unit.seed),
        "use_cpu": True,
        "num_threads": 1,
        "disable_tqdm": True,
        **study.options,
        **spec.options,
        **spec.task_options.get(cell.task, {}),
        **tuned,
    }
    models = (recipe["model_name_or_path"], recipe.get("teacher_model"))
    return Run(
        kind="final",
        method=unit.method,
        cell=cell,
        seed=unit.seed,
        trial=None,
        recipe=recipe,
        models_sha256=tuple(_model_sha256(name) for name in models if name),
        dataset_sha256=_dataset_sha256(recipe["dataset_name"]),
        budget=study.budget,
        validation=study.validation,
        test=study.test,
        checkpoint=study.checkpoint,
        learning_rate_decay=study.learning_rate_decay,
    )


def _task(study: Study, cell: Cell) -> dict[str, Any]:
    """Keys of the recipe that come with a task."""
    if own := study.tasks.get(cell.task):
        return {"model_name_or_path": study.models[cell.scale], "dataset_name": own.dataset, **own.options}
    found = world(cell.task, cell.world)
    return {
        "model_name_or_path": found.base_name(cell.scale),
        "dataset_name": found.dataset_name,
        "reward_funcs": found.reward_funcs,
        "teacher_prompt_template": found.teacher_prompt_template,
        "max_completion_length": found.max_completion_length,
    }


@cache
def _model_sha256(model: str) -> str:
    """Over the weights, the tokenizer and the configurations of a model folder, of an adapter also its base's."""
    folder = Path(model_folder(model))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise StudyError(
            f"model {model}: {folder} holds no *.safetensors: give a model folder or a base of the laboratory"
        )
    digest = hashlib.sha256()
    names = ("tokenizer.json", "config.json", "generation_config.json", ADAPTER_CONFIG)
    for path in [*weights, *(folder / name for name in names)]:
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    if (adapter := adapter_config(str(folder))) is not None:
        digest.update(_model_sha256(adapter.base_model_name_or_path).encode())
    return digest.hexdigest()


@cache
def _dataset_sha256(name: str) -> str | None:
    path = Path(name)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def write_recipe(run: Run, folder: Path, **options: Any) -> Path:
    """The run as a recipe that `pbsd train` takes as well (without the budget in tokens)."""
    path = folder / "recipe.yaml"
    recipe = {**run.recipe, "output_dir": str(folder), "max_steps": run.budget.max_steps, **options}
    path.write_text(yaml.safe_dump(public(recipe), sort_keys=False, allow_unicode=True), "utf-8")
    return path


def resolved_options(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """By run key, all options of the runs' methods that bear on the result, defaults too. Runs that differ by world,
    scale or seed alone are checked once.

    Raises:
        StudyError: options that do not fit their method.
    """
    found: dict[str, dict[str, Any]] = {}
    checked: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            recipe = {**run.recipe, "model_name_or_path": "", "dataset_name": "", "seed": 0}
            same = json.dumps(recipe, sort_keys=True)
            if same not in checked:
                path = write_recipe(replace(run, recipe=recipe), Path(folder))
                try:
                    _, config = load_recipe(path)
                except RecipeError as error:
                    raise StudyError(f"methods.{run.method}: {str(error).removeprefix(f'{path}: ')}") from error
                checked[same] = determining_options(config)
            found[run.key] = {**checked[same], "seed": run.recipe["seed"]}
    return found
