"""Users' reward functions in a run: what they log, what they are given, and what is left when they end the process."""

import json
import sys

import pytest
from conftest import ROWS

from pbsd.cli import main
from pbsd.config import GRPOConfig, OPSDConfig

LOGGED = """
def reward(completions, trainer_state, log_metric, log_extra, answer, **columns):
    log_metric("words", len(completions))
    log_metric("own/step", trainer_state.global_step)
    log_extra("expected", [letter * 2 for letter in answer])
    return [float(len(completion) % 2) for completion in completions]
"""
ENDS = """
import os, sys
calls = -1
def reward(completions, **columns):
    global calls
    calls += 1
    if calls >= 2 or os.path.exists({marker!r}):
        open({marker!r}, "w").close()
        {end}
    return [float(len(completion) % 2) for completion in completions]
"""


@pytest.fixture
def module(tmp_path, monkeypatch, recipe):
    """Writes a module with a reward function and names it in the recipe; returns the recipe's path."""

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop(name, None)
        recipe.write_text(recipe.read_text().replace("pbsd.lab.arithmetic:reward", f"{name}:reward"))
        return recipe

    return write


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_and_columns_that_a_function_logs_are_in_the_runs_files(module, tmp_path):
    """Four prompts with two samples of each role are a batch of 16; step n is scored before it is counted. Evaluated
    are 4 prompts, 2 samples and a greedy one each: 12."""
    recipe = module("logged_reward", LOGGED)
    flags = ["--max_steps", "2", "--logging_steps", "1", "--eval_strategy", "steps", "--eval_steps", "2"]
    assert main(["train", str(recipe), *flags]) == 0
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    trained = [line for line in metrics if "loss" in line]
    assert [(line["words"], line["own/step"]) for line in trained] == [(16, 0), (16, 1)]
    (evaluated,) = [line for line in metrics if "eval_accuracy" in line]
    assert (evaluated["eval_words"], evaluated["eval_own/step"]) == (12, 2)
    samples = lines(tmp_path / "run" / "samples.jsonl")
    sides = [(sample[side], sample["prompt"]) for sample in samples for side in ("chosen", "rejected")]
    assert sides and all(side["extra"] == {"expected": prompt[4] * 2} for side, prompt in sides)
    assert all(side["grades"] == {"reward": "scored"} for side, _ in sides)


@pytest.mark.parametrize("name", ["loss", "reward/student", "health/alarms", "step", "epoch"])
def test_a_metric_with_a_name_of_pbsds_own_is_refused(make_trainer, name):
    def own(completions, log_metric):
        log_metric(name, 1.0)
        return [float(len(completion) % 2) for completion in completions]

    with pytest.raises(ValueError, match=f"logs the metric '{name}', a name of pbsd's own: rename it"):
        make_trainer(rewards=own, logging_steps=1).train()


def test_a_function_reads_the_trainers_state_at_every_step(make_trainer):
    """In this process it is the trainer's own object, as in TRL."""
    seen = []

    def own(completions, trainer_state):
        seen.append((trainer_state.global_step, trainer_state.max_steps, trainer_state is trainer.state))
        return [float(len(completion) % 2) for completion in completions]

    trainer = make_trainer(rewards=own, max_steps=3)
    trainer.train()
    assert seen == [(0, 3, True), (1, 3, True), (2, 3, True)]


@pytest.mark.parametrize("column", ["completions", "trainer_state", "log_metric", "environments"])
def test_columns_with_reserved_names_are_refused_when_rows_are_read(make_trainer, column):
    rows = [{**row, column: 1} for row in ROWS]
    with pytest.raises(ValueError, match=f"column '{column}' has the name of an argument that reward functions get"):
        make_trainer(rows=rows)
    with pytest.raises(ValueError, match=f"column '{column}'"):
        make_trainer(eval_rows=rows)


@pytest.mark.parametrize("end", ["sys.exit(0)", "os._exit(0)", "os.kill(os.getpid(), 11)", "raise KeyError('x')"])
def test_a_function_that_ends_its_process_leaves_a_checkpoint_and_a_sentence(module, tmp_path, capsys, end):
    """Call 0 is the evaluation, 1 the first step; call 2 ends the worker, and a marker the ones that are started after
    it at their first call."""
    marker = tmp_path / "marker"
    recipe = module("ends_reward", ENDS.format(marker=str(marker), end=end))
    assert main(["train", str(recipe), "--save_steps", "100"]) != 0
    said = capsys.readouterr().err
    assert "reward 'reward'" in said and "rows" in said and "Traceback" not in said
    word = {"s": "SystemExit: 0", "o": "worker process", "r": "KeyError: 'x'"}[end[0]]
    assert word in said
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()


def test_an_exit_in_this_process_leaves_a_checkpoint_too(make_trainer, tmp_path):
    calls = []

    def own(completions, **columns):
        calls.append(1)
        if len(calls) > 1:
            raise SystemExit(3)
        return [float(len(completion) % 2) for completion in completions]

    with pytest.raises(ValueError, match="'own' raised SystemExit: 3"):
        make_trainer(rewards=own, save_strategy="steps", save_steps=100).train()
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


@pytest.mark.parametrize(("value", "words"), [("0.0", "reward 0"), ("1.0", "reward 1"), ("None", "could be judged")])
def test_doctor_shows_graded_samples_where_rewards_are_all_equal(module, capsys, value, words):
    recipe = module("flat_reward", f"def reward(completions, **columns): return [{value}] * len(completions)")
    assert main(["doctor", str(recipe), "--max_completion_length", "5"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert words in out
    for row in range(3):
        assert f"row {row}: '" in out
    outcome = "unjudged" if value == "None" else "scored"
    assert out.count(f"reward {outcome}") == 3
    assert "does the grader read their format" in out


def test_equal_rewards_ring_after_the_first_steps_where_they_are_learnt_from(make_trainer, make_method, caplog):
    make_trainer(rewards=lambda completions, **_: [0.0] * len(completions), max_steps=6, logging_steps=1).train()
    assert caplog.text.count("alarm flat_reward: in the first 5 logs every sample has the reward 0") == 1
    caplog.clear()
    make_trainer(rewards=lambda completions, **_: [None] * len(completions), max_steps=6, logging_steps=1).train()
    assert caplog.text.count("alarm unjudged: 100% of the samples have no reward") == 1
    assert "flat_reward" in GRPOConfig(use_cpu=True).alarm_thresholds
    assert "flat_reward" not in OPSDConfig(use_cpu=True).alarm_thresholds
    assert OPSDConfig(use_cpu=True, alarms={"flat_reward": 0.1}).alarm_thresholds["flat_reward"] == 0.1
