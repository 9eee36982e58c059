"""Choices from the results of trials, on a working folder written by hand; and which results a study uses."""

import copy
import json
from dataclasses import replace
from itertools import product

import pytest
import yaml
from test_compare_study import STUDY

from pbsd.compare.fields import StudyError
from pbsd.compare.plan import final_runs, tuning_runs
from pbsd.compare.runner import Costs
from pbsd.compare.store import RESULT, Store
from pbsd.compare.study import Cell, Place
from pbsd.compare.study_file import load_study
from pbsd.compare.tuning import choices_by_trials, choices_of_another, chosen_options

OPTIONS = {"beta": 0.1}


@pytest.fixture
def tuned(tmp_path):
    """A study, its tuning runs, and a store in which every run has the validation curve that `curve(run)` gives."""

    def make(curve, checkpoint="last"):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**STUDY, "checkpoint": checkpoint}, sort_keys=False))
        study = load_study(path)
        runs = tuning_runs(study)
        store = Store(tmp_path / "work")
        store.options = {run.key: OPTIONS for run in runs}
        for run in runs:
            if (points := curve(run)) is not None:
                write(store, run, points)
        return study, store, runs

    return make


def write(store, run, points, options=OPTIONS, key=None, seconds=10.0):
    folder = store.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    curve = [{"accuracy": value} for value in points]
    (folder / RESULT).write_text(
        json.dumps({"key": key or run.key, "options": options, "curve": curve, "seconds": seconds})
    )


def place(method, world, scale="tiny"):
    return Place(method, Cell("arithmetic", world, scale))


def test_the_best_mean_over_seeds_is_chosen_per_method_task_and_world(tuned):
    """Trial k of pbsd has k/10 in dense and (3 - k)/10 in noisy at seed 8, and .2 more at seed 9 except for trial 1,
    which has .9: means .1, .5, .3, .4 in dense and .4, .55, .2, .1 in noisy. Of equals (sft) the first is taken."""

    def curve(run):
        if run.method == "base":
            return [0.9, 0.5]
        value = (run.trial if run.cell.world == "dense" else 3 - run.trial) / 10
        return [0.0, value if run.seed == 8 else 0.9 if run.trial == 1 else value + 0.2]

    study, store, runs = tuned(curve)
    choices = {(c["method"], c["world"]): c for c in choices_by_trials(study, store, runs)}
    assert len(choices) == 4
    dense, noisy = choices["pbsd", "dense"], choices["pbsd", "noisy"]
    assert [t["validation_accuracy"] for t in dense["trials"]] == pytest.approx([0.1, 0.5, 0.3, 0.4])
    assert [t["validation_accuracy"] for t in noisy["trials"]] == pytest.approx([0.4, 0.55, 0.2, 0.1])
    assert dense["chosen"] == noisy["chosen"] == {"learning_rate": 1e-4, "beta": 0.2}
    assert dense["trials"][2]["by_seed"] == {"8": pytest.approx(0.2), "9": pytest.approx(0.4)}
    assert choices["base", "dense"]["chosen"] == {"learning_rate": 1e-5}
    assert (dense["scale"], dense["generated_tokens"]) == ("tiny", 250)


def test_a_world_may_take_the_choices_of_another(tmp_path):
    """noisy has no trials of its own: its choices, final runs and line in the table are dense's."""
    path = tmp_path / "mine.yaml"
    tuning = {**STUDY["tuning"], "same_as": {"noisy": "dense"}}
    path.write_text(yaml.safe_dump({**STUDY, "tuning": tuning}, sort_keys=False))
    study = load_study(path)
    runs = tuning_runs(study)
    assert {run.cell.world for run in runs} == {"dense"}
    store = Store(tmp_path / "work")
    store.options = {run.key: OPTIONS for run in runs}
    for run in runs:
        write(store, run, [run.trial / 10])
    choices = choices_by_trials(study, store, runs)
    dense = {"task": "arithmetic", "world": "dense", "scale": "tiny"}
    assert [(c["method"], c["world"], c.get("decided_in")) for c in choices] == [
        ("pbsd", "dense", None), ("base", "dense", None), ("pbsd", "noisy", dense), ("base", "noisy", dense),
    ]  # fmt: skip
    chosen = chosen_options(choices)
    last = {method: study.methods[method].trials[3] for method in ("pbsd", "base")}
    worlds = ("dense", "noisy")
    assert chosen == {place(method, world): last[method] for method, world in product(last, worlds)}
    assert all(run.recipe.items() >= last[run.method].items() for run in final_runs(study, chosen))


@pytest.mark.parametrize("same_as", [{}, {"large": "tiny"}])
def test_every_scale_has_its_own_choice_or_takes_another_s(same_as, tmp_path):
    """Trial k has k/10 at scale tiny and (3 - k)/10 at scale large, where pbsd alone is tested."""
    path = tmp_path / "mine.yaml"
    large = {**STUDY["cells"][0], "scales": ["large"], "methods": ["pbsd"]}
    models = {**STUDY["models"], "large": "lab/arithmetic-0.2m-dense"}
    tuning = {**STUDY["tuning"], "same_as": same_as}
    values = {**STUDY, "models": models, "tuning": tuning, "cells": [*STUDY["cells"], large]}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    study = load_study(path)
    runs = tuning_runs(study)
    assert {(run.method, run.cell.scale) for run in runs} == {
        ("pbsd", "tiny"), ("base", "tiny"), *([] if same_as else [("pbsd", "large")]),
    }  # fmt: skip
    store = Store(tmp_path / "work")
    store.options = {run.key: OPTIONS for run in runs}
    for run in runs:
        write(store, run, [(run.trial if run.cell.scale == "tiny" else 3 - run.trial) / 10])
    chosen = chosen_options(choices_by_trials(study, store, runs))
    trials = study.methods["pbsd"].trials
    assert chosen[place("pbsd", "noisy")] == trials[3]
    assert chosen[place("pbsd", "noisy", "large")] == trials[3 if same_as else 0]
    assert place("base", "noisy", "large") not in chosen
    at_large = [run for run in final_runs(study, chosen) if run.cell.scale == "large"]
    assert len(at_large) == 4
    assert all(run.recipe.items() >= trials[3 if same_as else 0].items() for run in at_large)


@pytest.mark.parametrize(("checkpoint", "best"), [("last", 0), ("best_validation", 3)])
def test_trials_are_judged_at_the_checkpoint_that_is_tested(tuned, checkpoint, best):
    """Trial k peaks at .5 + k/10 and ends at .4 - k/10."""
    study, store, runs = tuned(lambda run: [0.2, 0.5 + run.trial / 10, 0.4 - run.trial / 10], checkpoint)
    choices = choices_by_trials(study, store, runs)
    assert all(c["chosen"] == study.methods[c["method"]].trials[best] for c in choices)


def test_a_choice_stays_open_until_its_last_trial_is_finished(tuned):
    last = ("base", "noisy", 3, 9)
    study, store, runs = tuned(lambda r: None if (r.method, r.cell.world, r.trial, r.seed) == last else [0.5])
    choices = choices_by_trials(study, store, runs)
    assert [choice["chosen"] is None for choice in choices] == [False, False, False, True]
    assert choices[-1]["trials"][3] == {
        "options": {"learning_rate": 1e-2}, "validation_accuracy": None, "by_seed": {"8": 0.5, "9": None}
    }  # fmt: skip
    assert [at for at, options in chosen_options(choices).items() if options is None] == [place("base", "noisy")]
    (run,) = [run for run in runs if (run.method, run.cell.world, run.trial, run.seed) == last]
    write(store, run, [0.9])
    chosen = chosen_options(choices_by_trials(study, store, runs))
    assert chosen[place("base", "noisy")] == {"learning_rate": 1e-2}


def test_results_of_other_settings_or_defaults_are_not_used(tuned):
    _, store, (run, *_) = tuned(lambda run: None)
    assert not store.is_finished(run)
    write(store, run, [0.5], key="0" * 64)
    assert not store.is_finished(run)
    write(store, run, [0.5], options={"beta": 0.2})
    assert not store.is_finished(run)
    write(store, run, [0.5], options={"new_option": None})
    assert store.is_finished(run)


def test_costs_are_those_of_the_most_alike_in_proportion_to_the_budget(tuned):
    """250 tokens in 10 s: a run of 1000 takes 40 s. A method not seen yet takes its scale's mean."""
    study, store, runs = tuned(lambda run: None)
    write(store, runs[0], [0.5], seconds=10.0)
    write(store, next(run for run in runs if run.method == "base"), [0.5], seconds=30.0)
    costs = Costs(store, runs)
    assert costs.seconds(runs[1]) == pytest.approx(10)
    assert costs.seconds(replace(runs[1], budget=study.budget)) == pytest.approx(40)
    assert costs.seconds(replace(runs[1], method="other")) == pytest.approx(20)
    assert costs.seconds(replace(runs[1], cell=runs[1].cell._replace(scale="4m"))) is None
    assert costs.total(runs[:4], jobs=2) == pytest.approx(20)
    assert costs.total([replace(runs[1], cell=runs[1].cell._replace(scale="4m"))], jobs=2) is None


@pytest.fixture
def reusing(tmp_path):
    """A study that takes over choices made for pbsd in both worlds; `changes` go to its methods."""

    def make(changes):
        values = copy.deepcopy(STUDY)
        del values["tuning"]
        for spec in values["methods"].values():
            del spec["tune"]
        for name, more in changes.items():
            values["methods"].setdefault(name, {"method": "pbsd"}).update(more)
        made = [
            {
                "method": "pbsd",
                "task": "arithmetic",
                "world": world,
                "scale": "tiny",
                "chosen": {"beta": beta},
                "trials": [],
            }
            for world, beta in (("dense", 0.3), ("noisy", 0.4))
        ]
        (tmp_path / "other.json").write_text(json.dumps({"study": {}, "choices": made, "runs": []}))
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**values, "choices": "other.json"}, sort_keys=False))
        return load_study(path)

    return make


def test_another_studys_choices(reusing):
    study = reusing({"base": {"choices_of": None}, "ablation": {"choices_of": "pbsd"}})
    chosen = chosen_options(choices_of_another(study))
    assert chosen == {
        place(method, world): {"beta": beta}
        for method in ("pbsd", "ablation") for world, beta in (("dense", 0.3), ("noisy", 0.4))
    }  # fmt: skip
    assert tuning_runs(study) == []


def test_a_choice_that_was_not_made_is_refused(reusing):
    with pytest.raises(StudyError, match="no choice for base on arithmetic, dense, tiny: .*choices_of: null"):
        choices_of_another(reusing({}))
    with pytest.raises(StudyError, match="methods.pbsd.tune: with `choices` nothing is tuned"):
        reusing({"pbsd": {"tune": {"beta": [1.0]}}})
