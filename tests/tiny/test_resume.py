"""A run that is killed or stopped at any moment, then resumed, equals one that was left alone, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pbsd.checkpoints import newest_whole
from pbsd.cli import main
from pbsd.run import RunFolder, _cut_after_step

# The reward function, which runs in a worker, sends the trainer a signal at a chosen call: call 0 is the evaluation
# before training, call n the n-th step, so the moment does not depend on how fast the machine is.
SIGNALLER = """
import os
calls = -1
def reward(completions, answer, **columns):
    global calls
    calls += 1
    if calls == int(os.environ.get("SIGNAL_AT", -1)):
        os.kill(os.getppid(), int(os.environ["SIGNAL"]))
    return [float(letter in completion) for completion, letter in zip(completions, answer)]
"""


@pytest.fixture
def command(recipe, tmp_path, monkeypatch):
    """Returns a function that runs `pbsd train`, in a process of its own when it is to be signalled."""
    (tmp_path / "signaller.py").write_text(SIGNALLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = recipe.read_text().replace("pbsd.lab.arithmetic:reward", "signaller:reward")
    recipe.write_text(text + "teacher: ema\nema_decay: 0.9\nnum_train_epochs: 9\nlr_scheduler_type: cosine\n")

    def run(folder, *flags, signal_at=None, number=signal.SIGKILL):
        words = ["train", str(recipe), "--output_dir", str(tmp_path / folder), *flags]
        if signal_at is None:
            sys.modules.pop("signaller", None)
            return main(words)
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1",
            "SIGNAL_AT": str(signal_at), "SIGNAL": str(int(number)),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "pbsd.cli", *words], env=environment, capture_output=True
        ).returncode

    return run


def contents(folder: Path):
    """Everything of a finished run that must be equal: weights, teacher, metrics, samples, accuracy."""
    (checkpoint,) = folder.glob("checkpoint-6")
    state = torch.load(checkpoint / "method_state.pt", weights_only=True)
    summary = json.loads((folder / "summary.json").read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": next((folder / "model").glob("*model.safetensors")).read_bytes(),
        "optimizer": torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"],
        "teacher": state["method"]["teacher"]["weights"],
        "metrics": [{k: v for k, v in line.items() if not k.startswith("time/")} for line in metrics],
        "samples": (folder / "samples.jsonl").read_text(),
        "before": (folder / "eval_before.json").read_text(),
        "after": (folder / "eval_after.json").read_text(),
        "summary": {key: value for key, value in summary.items() if key != "seconds"},
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        if key in ("teacher", "optimizer"):
            torch.testing.assert_close(one[key], other[key], atol=0, rtol=0)
        else:
            assert one[key] == other[key], f"{key} differs"


@pytest.mark.parametrize("signal_at", [0, 1, 4, 6])
def test_kill_and_resume(command, tmp_path, signal_at):
    """Checkpoints lie at steps 2, 4 and 6; a kill in step 4 loses step 3, one in step 1 everything."""
    assert command("whole") == 0
    assert command("killed", signal_at=signal_at) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert command("killed", "--resume") == 0
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "killed"))
    sessions = json.loads((tmp_path / "killed" / "manifest.json").read_text())["sessions"]
    resumed_from = {0: None, 1: None, 4: "checkpoint-2", 6: "checkpoint-4"}[signal_at]
    assert sessions[-1]["resumed_from"] == resumed_from


def test_kill_and_resume_with_an_adapter(command, tmp_path):
    lora = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
    assert command("whole", *lora) == 0
    assert command("killed", *lora, signal_at=4) == -signal.SIGKILL
    assert command("killed", *lora, "--resume") == 0
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "killed"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_saves_and_leaves_a_resumable_run(command, tmp_path, number):
    """SIGHUP comes when the terminal is closed."""
    assert command("whole") == 0
    assert command("stopped", signal_at=3, number=number) == 128 + signal.SIGTERM
    assert (tmp_path / "stopped" / "checkpoint-3").is_dir()
    assert command("stopped", "--resume") == 0
    assert_same(contents(tmp_path / "whole"), contents(tmp_path / "stopped"))


def test_a_checkpoint_cut_short_is_passed_over(command, tmp_path):
    """A kill while saving leaves a newest checkpoint without its last file, or with half of it."""
    assert command("whole") == 0
    for damage in (lambda f: f.unlink(), lambda f: f.write_text(f.read_text()[:100])):
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / "checkpoint-6" / "trainer_state.json")
        (folder / "summary.json").unlink()
        (folder / "eval_after.json").unlink()
        assert newest_whole(folder)[0].name == "checkpoint-4"
        assert command("damaged", "--resume") == 0
        assert_same(contents(tmp_path / "whole"), contents(folder))
        shutil.rmtree(folder)


def test_resuming_something_else_is_refused(command, tmp_path, capsys):
    assert command("run", "--max_steps", "2") == 0
    assert command("run", "--resume", "--dataset_train_size", "8") == 2
    assert "began with other rows than this command gives" in capsys.readouterr().err
    before = (tmp_path / "run" / "config.yaml").read_text()
    assert command("run", "--resume", "--max_steps", "2", "--beta", "5") == 2
    assert "began with other options, beta than" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_finished_run_can_be_taken_further_and_is_measured_again(command, tmp_path):
    assert command("run", "--max_steps", "2") == 0
    assert command("run", "--resume", "--max_steps", "4") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    assert json.loads((tmp_path / "run" / "eval_after.json").read_text())["step"] == 4


def test_line_separators_in_the_text_do_not_cost_samples(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    folder.append("samples.jsonl", [{"step": step, "text": "a\u2028b\x85c"} for step in (1, 2, 3)])
    with (tmp_path / "run" / "samples.jsonl").open("a") as file:
        file.write('{"step": 4, "te')
    _cut_after_step(tmp_path / "run" / "samples.jsonl", 2)
    lines = (tmp_path / "run" / "samples.jsonl").read_text().split("\n")
    assert [json.loads(line)["step"] for line in lines[:-1]] == [1, 2]


def test_a_second_run_moves_the_first_aside(command, tmp_path, caplog):
    assert command("run", "--max_steps", "2") == 0
    assert command("run", "--max_steps", "2") == 0
    assert (tmp_path / "run.1" / "summary.json").is_file()
    assert (tmp_path / "run" / "summary.json").is_file()
    assert "moved" in caplog.text
