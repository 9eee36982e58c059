"""A run that really collapses: the alarm, the stop, the checkpoint that is kept, and the same again when resumed."""

import json
import sys
from statistics import fmean

import pytest

from pbsd import PBSDConfig
from pbsd.cli import main
from pbsd.recipe import load_recipe

VARIETY = "def reward(completions, **columns):\n    return [len(set(text)) / 6 for text in completions]\n"


@pytest.fixture
def command(recipe, tmp_path, monkeypatch):
    """`pbsd train` of the tiny model, rewarded for different characters; the learning rate climbs by 1/6 a step."""
    (tmp_path / "variety.py").write_text(VARIETY)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("variety", None)
    text = recipe.read_text().replace("pbsd.lab.arithmetic:reward", "variety:reward")
    text = text.replace("num_generations: 2", "num_generations: 4").replace(
        "learning_rate: 1.0e-3", "learning_rate: 10"
    )
    recipe.write_text(text + "warmup_steps: 60\nalarm_window: 5\nsave_total_limit: 4\ndataset_test_split: null\n")
    return lambda folder, *flags: main(["train", str(recipe), "--output_dir", str(tmp_path / folder), *flags])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder):
    return [
        {k: v for k, v in line.items() if not k.startswith("time/")} for line in lines(folder / "metrics.jsonl")
    ]  # fmt: skip


def test_a_collapse_is_stopped_and_the_healthy_checkpoint_kept(command, tmp_path, caplog):
    """Every step is saved, that of the alarm too if it were not left out, and six are kept: one more than the alarm's
    window of five steps. So the step before the window is there."""
    folder = tmp_path / "stopped"
    often = ["--save_steps", "1", "--save_total_limit", "6"]
    assert command("stopped", "--max_steps", "60", "--on_alarm", "stop", *often) == 0
    summary, log = json.loads((folder / "summary.json").read_text()), metrics(folder)
    alarms = lines(folder / "alarms.jsonl")
    alarm = alarms[0]
    assert summary["stopped_by"] == alarm
    assert summary["steps"] == log[-1]["step"] == alarm["step"] < 30
    assert [line["health/alarms"] for line in log] == [0] * (alarm["step"] - 1) + [len(alarms)]

    assert alarm["healthy_until"] == alarm["step"] - 5
    newest = alarm["healthy_until"]
    assert alarm["healthy_checkpoint"] == f"checkpoint-{newest}"
    assert (folder / alarm["healthy_checkpoint"] / "model.safetensors").is_file()
    assert not (folder / f"checkpoint-{alarm['step']}").exists()
    rewards = [line["reward/student"] for line in log]
    assert fmean(rewards[:newest]) > 1.5 * fmean(rewards[newest:])

    assert f"step {alarm['step']}, alarm {alarm['rule']}: {alarm['message']} Training stops" in caplog.text
    assert str(folder / alarm["healthy_checkpoint"]) in caplog.text
    assert caplog.text.count(f"alarm {alarm['rule']}") == 1


def test_a_resumed_run_comes_to_the_same_stop(command, tmp_path):
    """Interrupted after 8 steps; and once more after the stop, from the checkpoint before it."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert command("whole", "--max_steps", "60", "--on_alarm", "stop") == 0
    assert command("resumed", "--max_steps", "8", "--on_alarm", "stop") == 0
    assert not (resumed / "alarms.jsonl").exists()
    assert "stopped_by" not in json.loads((resumed / "summary.json").read_text())
    for _ in range(2):
        assert command("resumed", "--max_steps", "60", "--on_alarm", "stop", "--resume") == 0
        assert (resumed / "alarms.jsonl").read_text() == (whole / "alarms.jsonl").read_text()
        assert metrics(resumed) == metrics(whole)
        assert (resumed / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_warn_goes_on_and_so_does_a_stopped_run_that_is_told_to(command, tmp_path):
    warned, stopped = tmp_path / "warned", tmp_path / "stopped"
    assert command("warned", "--max_steps", "18") == 0
    assert command("stopped", "--max_steps", "18", "--on_alarm", "stop") == 0
    assert command("stopped", "--max_steps", "18", "--resume") == 0
    for folder in (warned, stopped):
        assert json.loads((folder / "summary.json").read_text()).keys() >= {"steps"}
        assert "stopped_by" not in json.loads((folder / "summary.json").read_text())
        assert len({alarm["rule"] for alarm in lines(folder / "alarms.jsonl")}) > 1
    assert metrics(warned) == metrics(stopped)
    assert lines(warned / "alarms.jsonl") == lines(stopped / "alarms.jsonl")


def test_a_healthy_run_has_no_alarm(command, tmp_path):
    assert command("run", "--max_steps", "14", "--learning_rate", "1e-3") == 0
    assert not (tmp_path / "run" / "alarms.jsonl").exists()
    assert {line["health/alarms"] for line in metrics(tmp_path / "run")} == {0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"save_strategy": "no"}, "save_strategy='no' saves none"),
        ({"save_steps": 10}, "(save_total_limit - 1) * save_steps must be at least alarm_window * logging_steps"),
        ({"save_steps": 10, "save_total_limit": 2}, "with save_total_limit=2"),
        ({"logging_steps": 10}, "(save_total_limit - 1) * save_steps must"),
        ({"save_strategy": "epoch"}, "raise save_total_limit or set it to null"),
        ({"alarm_window": 4}, "alarm_window must be at least 5"),
        ({"on_alarm": "halt"}, "on_alarm must be one of warn, stop"),
        ({"alarms": {"saturation": -1}}, "positive threshold"),
    ],
)
def test_refusals(tmp_path, options, words):
    with pytest.raises(ValueError) as caught:
        PBSDConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "on_alarm": "stop", **options})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{}, {"save_steps": 10, "save_total_limit": 3}, {"save_strategy": "epoch", "save_total_limit": None}],
)
def test_what_keeps_a_healthy_checkpoint_is_accepted(tmp_path, options):
    PBSDConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "on_alarm": "stop", **options})


def test_thresholds_from_the_command_line(recipe):
    _, config = load_recipe(recipe, ["--alarms", '{"saturation": null, "truncation": 0.7}'])
    assert "saturation" not in config.alarm_thresholds
    assert config.alarm_thresholds["truncation"] == 0.7
