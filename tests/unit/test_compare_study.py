"""The study file: what it may say, and what is refused with which words; the runs it makes."""

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from pbsd.compare.fields import StudyError
from pbsd.compare.plan import _dataset_sha256, final_runs, folder_name, resolved_options, training_seed, tuning_runs
from pbsd.compare.study import Cell, Place, Unit, study_name
from pbsd.compare.study_file import load_study
from pbsd.methods import METHODS

STRENGTH = Path(__file__).parents[2] / "studies" / "strength" / "study.yaml"

STUDY = {
    "budget": {"generated_tokens": 1000, "max_steps": 10},
    "train": {"problems": 16},
    "validation": {"problems": 4, "samples": 2, "every_tokens": 300},
    "test": {"problems": 4, "samples": 2},
    "checkpoint": "last",
    "options": {"per_device_train_batch_size": 4},
    "methods": {
        "pbsd": {"method": "pbsd", "tune": {"learning_rate": [1e-4, 1e-3], "beta": [0.1, 0.2]}},
        "base": {"method": "sft", "tune": [{"learning_rate": x} for x in (1e-5, 1e-4, 1e-3, 1e-2)]},
    },
    "tuning": {"seeds": [8, 9], "generated_tokens": 250, "trials": 4},
    "models": {"tiny": "lab/arithmetic-0.2m"},
    "cells": [
        {"tasks": ["arithmetic"], "worlds": ["dense", "noisy"], "scales": ["tiny"], "seeds": [0, 1]},
        {"tasks": ["arithmetic"], "worlds": ["dense"], "scales": ["tiny"], "seeds": [1, 2], "methods": ["pbsd"]},
    ],
}


@pytest.fixture
def study(tmp_path):
    """Writes STUDY with changes (path of keys -> value; None takes a key out) and loads it."""

    def make(changes=()):
        values = copy.deepcopy(STUDY)
        for (*path, last), value in dict(changes).items():
            place = values
            for key in path:
                place = place[key]
            if value is None:
                del place[last]
            else:
                place[last] = value
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return load_study(tmp_path / "mine.yaml")

    return make


def test_runs_of_a_study(study):
    """4 runs of both methods by 2 worlds and 2 seeds make 8; seed 1 of pbsd in dense is named twice and done once, so
    seed 2 adds one. Trials are grids or lists."""
    made = study()
    units = made.units()
    assert len(units) == len(set(units)) == 9
    assert units[0] == Unit("pbsd", Cell("arithmetic", "dense", "tiny"), 0)
    assert units[-1] == Unit("pbsd", Cell("arithmetic", "dense", "tiny"), 2)
    assert made.methods["pbsd"].trials[1] == {"learning_rate": 1e-4, "beta": 0.2}
    assert made.methods["base"].trials[3] == {"learning_rate": 1e-2}
    assert made.name == "mine"
    assert study_name(Path("studies/strength/study.yaml")) == "strength"


def test_tuning_has_its_own_budget_seeds_and_no_test(study):
    """2 methods x 2 worlds x 4 trials x 2 seeds; a quarter of the tokens, and of 10 steps: 3."""
    runs = tuning_runs(study())
    assert len(runs) == 32
    assert {run.test for run in runs} == {None}
    assert {run.budget for run in runs} == {(250, 3)}
    assert {run.seed for run in runs} == {8, 9}
    assert {run.recipe["dataset_test_split"] for run in runs} == {"validation"}
    assert len({run.key for run in runs}) == 32
    assert len({folder_name(run.name, run.key) for run in runs}) == 32


def test_a_cell_shares_its_seed_among_methods_and_with_no_other_cell(study):
    runs = final_runs(study(), {})
    seeds = {(run.cell, run.seed): run.recipe["seed"] for run in runs}
    assert all(run.recipe["seed"] == seeds[run.cell, run.seed] for run in runs)
    assert len(set(seeds.values())) == len(seeds) == 5
    assert training_seed(Cell("a", "b", "c"), 1) != training_seed(Cell("a", "b", "c"), 2)


def test_chosen_options_come_last(study):
    place = Place("pbsd", Cell("arithmetic", "dense", "tiny"))
    changes = {
        ("options", "beta"): 1.0, ("methods", "pbsd", "options"): {"beta": 2.0, "num_generations": 2},
        ("methods", "pbsd", "task_options"): {"arithmetic": {"num_generations": 3}, "tools": {"num_generations": 5}},
    }  # fmt: skip
    runs = final_runs(study(changes), {place: {"beta": 3.0}})
    (run,) = [run for run in runs if run.unit == Unit("pbsd", Cell("arithmetic", "dense", "tiny"), 0)]
    other = next(run for run in runs if run.cell.world == "noisy" and run.method == "pbsd")
    assert (run.recipe["beta"], run.recipe["num_generations"]) == (3.0, 3)
    assert other.recipe["beta"] == 2.0
    assert run.recipe["per_device_train_batch_size"] == 4


@pytest.mark.parametrize(
    "changes",
    [
        {("budget", "generated_tokens"): 999}, {("budget", "max_steps"): 11}, {("train", "problems"): 17},
        {("validation", "problems"): 5}, {("validation", "samples"): 1}, {("validation", "every_tokens"): 301},
        {("test", "problems"): 5}, {("test", "samples"): 3}, {("checkpoint",): "best_validation"},
        {("learning_rate_decay",): "linear"}, {("options", "warmup_steps"): 1}, {("dataset_seed",): 1},
    ],
)  # fmt: skip
def test_everything_that_determines_a_run_changes_its_key(study, changes):
    before = {run.key for run in final_runs(study(), {})}
    assert before.isdisjoint(run.key for run in final_runs(study(changes), {}))


def test_other_runs_of_the_study_do_not_change_a_key(study):
    before = {run.key for run in final_runs(study(), {})}
    more = {run.key for run in final_runs(study({("cells", 0, "seeds"): [0, 1, 5]}), {})}
    assert before < more


def test_the_base_model_is_part_of_the_key_and_its_place_is_not(study, tmp_path):
    from pbsd.lab import checkpoint_path

    copied, other = tmp_path / "copied", tmp_path / "other"
    for folder in (copied, other):
        folder.mkdir()
        for path in checkpoint_path("arithmetic-0.2m").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    keys = [
        {run.key for run in final_runs(study({("models", "tiny"): str(folder)}), {})}
        for folder in ("lab/arithmetic-0.2m", copied, other)
    ]
    assert keys[0] == keys[1]
    assert keys[0].isdisjoint(keys[2])


OWN = {"dataset": "data/mine", "options": {"reward_funcs": ["math"], "max_completion_length": 9}}
OWN_CELLS = [{"tasks": ["mine"], "worlds": ["own"], "scales": ["tiny"], "seeds": [0]}]


def test_a_task_of_ones_own(study, tmp_path):
    """Its data set, rewards and lengths instead of the laboratory's; the model of its scale; and the key knows the
    files of the data set."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text("{}\n")
    changes = {("tasks",): {"mine": {**OWN, "dataset": str(tmp_path / "data")}}, ("cells",): OWN_CELLS}
    made = study(changes)
    run = final_runs(made, {})[0]
    assert run.cell == Cell("mine", "own", "tiny")
    assert run.recipe["model_name_or_path"] == "lab/arithmetic-0.2m"
    assert (run.recipe["dataset_name"], run.recipe["max_completion_length"]) == (str(tmp_path / "data"), 9)
    assert "teacher_prompt_template" not in run.recipe
    assert made.describe()["tasks"]["mine"]["options"]["reward_funcs"] == ["math"]
    _dataset_sha256.cache_clear()
    (tmp_path / "data/train.jsonl").write_text("{ }\n")
    assert final_runs(made, {})[0].key != run.key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({("tasks",): {"tools": OWN}}, "the laboratory has a task of that name"),
        ({("tasks",): {"mine": {"dataset": "x"}}}, "tasks.mine: missing options"),
        ({("tasks",): {"mine": {**OWN, "options": {"seed": 1}}}}, "tasks.mine.options: seed is set by the study"),
        ({("tasks",): {"mine": OWN}, ("cells", 0, "tasks"): ["mine"]}, "mine in world 'dense'"),
        ({("tasks",): {"mine": OWN}, ("cells", 0, "worlds"): ["own"]}, "arithmetic in world 'own'"),
        ({("tasks",): {"mine": OWN}, ("cells",): [{**OWN_CELLS[0], "scales": ["1m"]}]}, "models: mine .* '1m'"),
        ({("cells", 0, "worlds"): ["own"]}, "worlds: unknown 'own'"),
    ],
)
def test_refusals_of_own_tasks(study, changes, words):
    with pytest.raises(StudyError, match=words):
        study(changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({("chekpoint",): "last"}, "unknown key 'chekpoint'; did you mean checkpoint?"),
        ({("budget", "tokens"): 3}, "budget: unknown key 'tokens'"),
        ({("budget", "max_steps"): None}, "budget: missing max_steps"),
        ({("budget", "max_steps"): 1.5}, "budget.max_steps: expected a whole number of at least 1, got 1.5"),
        ({("budget", "generated_tokens"): 299}, "validation.every_tokens \\(300\\) is more than"),
        ({("learning_rate_decay",): "cosine"}, "learning_rate_decay: unknown 'cosine'; did you mean none?"),
        ({("checkpoint",): "first"}, "checkpoint: unknown 'first'; choose among last, best_validation"),
        ({("methods",): {}}, "methods: expected `name: value` lines"),
        ({("methods", "pbsd", "optons"): {}}, "methods.pbsd: unknown key 'optons'; did you mean options?"),
        ({("methods", "pbsd", "method"): None}, "methods.pbsd: missing method"),
        ({("methods", "pbsd", "options"): {"seed": 3}}, "methods.pbsd.options: seed is set by the study itself"),
        ({("options", "max_steps"): 3}, "options: max_steps is set by the study itself"),
        ({("methods", "pbsd", "task_options"): {"art": {}}}, "task_options: unknown 'art'"),
        ({("methods", "pbsd", "tune", "beta"): [0.1]}, "trials = 4 .*pbsd 2, base 4"),
        ({("methods", "base", "tune"): None}, "trials = 4 .*pbsd 4, base 0"),
        ({("methods", "pbsd", "tune", "beta"): [0.1, 0.1]}, "methods.pbsd.tune: a trial is there twice"),
        ({("methods", "pbsd", "tune", "beta"): 0.1}, "methods.pbsd.tune.beta: expected a list"),
        ({("methods", "pbsd", "choices_of"): "base"}, "choices_of is for another study's choices"),
        ({("tuning",): None}, "methods.pbsd.tune asks for trials, but there is no `tuning`"),
        ({("tuning", "seeds"): [1, 9]}, "share seed 1"),
        ({("tuning", "scale"): "tiny"}, "tuning.*scale"),
        ({("tuning", "same_as"): {"noisy": "nosy"}}, "tuning.same_as.noisy: unknown 'nosy'"),
        ({("tuning", "same_as"): {"noisy": "noisy"}}, "tuning.same_as.noisy: unknown 'noisy'"),
        (
            {("tuning", "same_as"): {"noisy": "dense"}, ("models", "noisy"): "lab/arithmetic-0.2m"},
            "noisy is a world and one of `models`",
        ),
        ({("tuning", "same_as"): {"noisy": "tiny"}}, "tuning.same_as.noisy: unknown 'tiny'"),
        ({("tuning", "same_as"): {"tiny": "2m"}}, "tuning.same_as.tiny: unknown '2m'; did you mean 0.2m\\?"),
        ({("tuning", "generated_tokens"): 1001}, "more than budget.generated_tokens"),
        ({("choices",): "other.json"}, "give `tuning` or `choices`"),
        ({("choices",): "other.json", ("tuning",): None}, "other.json is not there"),
        ({("cells", 0, "worlds"): ["dens"]}, "cells\\[0\\].worlds: unknown 'dens'; did you mean dense\\?"),
        ({("cells", 1, "methods"): ["rft"]}, "cells\\[1\\].methods: unknown 'rft'"),
        ({("cells", 0, "seeds"): []}, "cells\\[0\\].seeds: expected a list with at least one item"),
        ({("cells", 0, "seeds"): ["a"]}, "whole number of at least 0, got 'a'"),
    ],
)
def test_refusals_name_the_place_and_the_mend(study, changes, words):
    with pytest.raises(StudyError, match=words) as refusal:
        study(changes)
    assert "mine.yaml: " in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({("methods", "pbsd", "options"): {"betta": 1}}, "methods.pbsd: unknown key betta; did you mean beta"),
        ({("methods", "base", "method"): "stf"}, "methods.base: unknown method 'stf'; did you mean sft"),
        ({("methods", "pbsd", "tune", "beta"): [0.1, -1.0]}, "methods.pbsd: beta must be positive"),
        ({("options", "num_teacher_generations"): 2}, "methods.base: .*num_teacher_generations.*an option of pbsd"),
    ],
)
def test_options_are_checked_against_their_method(study, changes, words):
    with pytest.raises(StudyError, match=words):
        resolved_options(tuning_runs(study(changes)))


def test_a_missing_file_or_base_is_said(study, tmp_path):
    with pytest.raises(StudyError, match="no such study file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(StudyError, match="not valid YAML"):
        load_study(tmp_path / "bad.yaml")
    with pytest.raises(StudyError, match="holds no \\*.safetensors"):
        tuning_runs(study({("models", "tiny"): str(tmp_path)}))


def test_the_strength_study_is_sound():
    """Equal trials and prompts per step, options that fit their methods (bases are replaced by the packaged one)."""
    study = load_study(STRENGTH)
    assert list(study.methods) == [
        "pbsd", "opsd", "sdft", "sdpo", "grpo", "online_dpo", "rft", "sft",
    ]  # fmt: skip
    packaged = dataclasses.replace(study, models=dict.fromkeys(("0.2m", "1m", "4m"), "lab/arithmetic-0.2m"))
    runs = [*tuning_runs(packaged), *final_runs(packaged, {})]
    options = resolved_options(runs)
    assert {options[run.key]["per_device_train_batch_size"] for run in runs} == {32}
    assert {options[run.key]["lr_scheduler_type"] for run in runs} == {"constant_with_warmup"}


def form(spec):
    """Every option of a method of a study file, written out or not."""
    return METHODS[spec["method"]][0](output_dir="none", use_cpu=True, **spec.get("options", {})).to_dict()


def test_the_default_of_pbsd_is_the_form_that_the_strength_study_compares():
    written_out = yaml.safe_load(STRENGTH.read_text())["methods"]["pbsd"]
    assert form(written_out) == form({"method": "pbsd"})


@pytest.mark.parametrize("name", ["ablation", "stability"])
def test_the_studies_beside_it_are_its_own_runs_but_for_what_they_ask(name, tmp_path):
    """Same options, methods, worlds and measurements, other seeds; every form's options fit. (Without its choices,
    which come with the results of the strength study.)"""
    strength, beside = (
        yaml.safe_load((STRENGTH.parents[1] / n / "study.yaml").read_text()) for n in ("strength", name)
    )
    assert beside.pop("choices") == "../strength/choices.json"
    for spec in beside["methods"].values():
        spec.pop("choices_of", None)
    for key in ("options", "test", "checkpoint", "learning_rate_decay"):
        assert beside[key] == strength[key], key
    for method in beside["methods"].keys() & strength["methods"].keys():
        assert form(beside["methods"][method]) == form(strength["methods"][method]), method
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(beside, sort_keys=False))
    study = load_study(tmp_path / "study.yaml")
    used = {unit.seed for unit in load_study(STRENGTH).units()}
    assert not used & {unit.seed for unit in study.units()}
    packaged = dataclasses.replace(study, models={"0.2m": "lab/arithmetic-0.2m"})
    assert len(resolved_options(final_runs(packaged, {}))) == len(study.units())


def test_the_largest_scale_is_studied_as_the_others_but_for_pbsd_s_trials():
    """PBSD tries the rates that the others try; everything else is the strength study's."""
    strength, largest = (
        yaml.safe_load((STRENGTH.parents[1] / n / "study.yaml").read_text()) for n in ("strength", "strength_4m")
    )
    for key in largest.keys() - {"methods", "tuning", "cells"}:
        assert largest[key] == strength[key], key
    assert strength["tuning"].items() >= largest["tuning"].items()
    rates = sorted(strength["methods"]["opsd"]["tune"]["learning_rate"])
    for name, spec in largest["methods"].items():
        assert form(spec) == form(strength["methods"][name]), name
        assert sorted(spec["tune"]["learning_rate"]) == rates, name
    study = load_study(STRENGTH.parents[1] / "strength_4m" / "study.yaml")
    assert {unit.cell.scale for unit in study.units()} == {"4m"}
    packaged = dataclasses.replace(study, models={"4m": "lab/arithmetic-0.2m"})
    assert len(resolved_options(final_runs(packaged, {}))) == len(study.units())
