"""One run of a study: its schedule, the weights that it is tested with, and what it may read."""

import contextlib
import json

import pytest
import torch
from tiny_study import STUDY, compare, write_study

from pbsd.accuracy import measure_accuracy
from pbsd.api import SelfDistillationTrainer
from pbsd.compare.execute import Curve, execute
from pbsd.compare.plan import final_runs, resolved_options, tuning_runs
from pbsd.compare.store import METRICS, RESULT, read_lines
from pbsd.compare.study import Cell, Place
from pbsd.compare.study_file import load_study
from pbsd.config import SFTConfig
from pbsd.lab import worlds


@pytest.mark.parametrize(("tokens", "steps"), [(600, 20), (5000, 5)])
def test_the_learning_rate_falls_as_the_budget_is_spent(tmp_path, tokens, steps):
    """1e-3 times the share of tokens (of those counted when the step before began) or steps that is left, whichever is
    less; at most 160 tokens a step, so 5000 are never spent and 5 steps end the run, 600 before 20 steps."""
    budget = {"generated_tokens": tokens, "max_steps": steps}
    tuning = {**STUDY["tuning"], "generated_tokens": tokens}
    folder = write_study(tmp_path / "tiny", budget=budget, tuning=tuning)
    assert compare(folder, "--only", "tuning", "pbsd", "trial0") == 0
    lines = read_lines(next((folder / "work" / "runs").glob("tuning-pbsd-*")) / METRICS)
    spent = [0, *(line["tokens/generated_total"] for line in lines)]
    left = [1 - max(spent[max(0, k - 1)] / tokens, k / steps) for k in range(len(lines))]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3 * share for share in left])
    assert len(lines) >= 5


def test_the_tested_weights_are_those_of_the_rule(tmp_path):
    """At learning rate 0 every checkpoint is the base: its test counts, measured here by hand, and the first step."""
    study = load_study(write_study(tmp_path / "tiny") / "study.yaml")
    run = next(
        r
        for r in final_runs(study, {Place("sft", Cell("arithmetic", "dense", "packaged")): {"learning_rate": 0.0}})
        if r.method == "sft"
    )
    execute(run, tmp_path / "run", resolved_options([run])[run.key], 50)
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    args = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, num_generations_eval=2, max_completion_length=40, disable_tqdm=True
    )
    rows = worlds.dataset_rows("arithmetic-dense", "test", 8)
    base = SelfDistillationTrainer("lab/arithmetic-0.2m", args, None, rows, "pbsd.lab.arithmetic:reward")
    expected = measure_accuracy(base.engine, base.eval_dataset.prompts, greedy=False).problems
    assert result["problems"] == [[p.row, p.num_samples, p.num_correct, p.generated_tokens] for p in expected]
    assert result["tested_step"] == 0
    assert len({point["accuracy"] for point in result["curve"]}) == 1


@pytest.mark.parametrize(("rule", "equal"), [("best_validation", True), ("last", False)])
def test_the_best_weights_are_put_back(tmp_path, rule, equal):
    """A ruinous learning rate: the base is the best point, so its counts return by that rule and not by the other."""
    study = load_study(write_study(tmp_path / "tiny", checkpoint=rule) / "study.yaml")
    problems = []
    for rate in (0.0, 1.0):
        run = final_runs(study, {Place("sft", Cell("arithmetic", "dense", "packaged")): {"learning_rate": rate}})[1]
        assert run.method == "sft"
        execute(run, tmp_path / str(rate), resolved_options([run])[run.key], 50)
        problems.append(json.loads((tmp_path / str(rate) / RESULT).read_text())["problems"])
    assert (problems[0] == problems[1]) == equal


def test_a_run_that_diverges_is_a_finding(tmp_path):
    """An absurd learning rate makes the loss infinite or NaN within a step or two: the run is tested as it is then."""
    options = {**STUDY["options"], "learning_rate": 1e30}
    study = load_study(write_study(tmp_path / "tiny", options=options, checkpoint="last") / "study.yaml")
    run = next(run for run in final_runs(study, {}) if run.method == "sft")
    execute(run, tmp_path / "run", resolved_options([run])[run.key], 50)
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert result["ended_by"] == "divergence"
    assert 0 < result["steps"] == result["tested_step"] == result["curve"][-1]["step"] < 6
    assert sum(correct for _, _, correct, _ in result["problems"]) == 0


def test_no_test_problem_is_read_before_the_end(tmp_path, monkeypatch):
    """With poisoned test rows tuning runs as ever; the negative control, a final run, meets them after its training."""
    study = load_study(write_study(tmp_path / "tiny") / "study.yaml")
    rows = worlds.dataset_rows

    def poisoned(name, split, size, seed=0):
        if split == "test":
            raise RuntimeError("a test problem was read")
        return rows(name, split, size, seed)

    monkeypatch.setattr(worlds, "dataset_rows", poisoned)
    for run in (tuning_runs(study)[0], final_runs(study, {})[0]):
        guard = contextlib.nullcontext() if run.kind == "tuning" else pytest.raises(RuntimeError, match="test problem")
        options = resolved_options([run])[run.key]
        with guard:
            execute(run, tmp_path / run.kind, options, 1)
        last = json.loads((tmp_path / run.kind / "curve.jsonl").read_text().splitlines()[-1])
        assert last["generated_tokens"] >= run.budget.generated_tokens
    assert json.loads((tmp_path / "tuning" / RESULT).read_text())["problems"] == []
    assert not (tmp_path / "final" / RESULT).exists()
    # And a run that was stopped there ends as one left alone, no step further.
    monkeypatch.undo()
    found = []
    for folder in ("final", "whole"):
        execute(run, tmp_path / folder, options, 1)
        found.append({**json.loads((tmp_path / folder / RESULT).read_text()), "seconds": None})
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["missing", "halved", "one bit flipped"])
def test_damaged_best_weights_are_named(tmp_path, monkeypatch, damage):
    """Between training and the test, where a run that was killed there reads them; torch does not see a flipped bit."""
    study = load_study(write_study(tmp_path / "tiny") / "study.yaml")
    run = tuning_runs(study)[0]
    select = Curve.select

    def damaged_select(self):
        path = self.files.path / "best_weights.pt"
        data = bytearray(path.read_bytes())
        data[data.find(best_bytes(self)) + 5] ^= 1
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(data[: len(data) // 2] if damage == "halved" else data)
        return select(self)

    def best_bytes(curve):
        weights = torch.load(curve.files.path / "best_weights.pt", weights_only=True)["weights"]
        return next(iter(weights.values())).numpy().tobytes()

    monkeypatch.setattr(Curve, "select", damaged_select)
    with pytest.raises(ValueError, match="best_weights.pt is damaged: remove its folder"):
        execute(run, tmp_path / "run", resolved_options([run])[run.key], 1)
    assert not (tmp_path / "run" / RESULT).exists()


def test_a_damaged_checkpoint_of_a_study_is_set_aside(tmp_path, monkeypatch):
    """A study keeps one checkpoint: without it the run is done again from the beginning, and finds the same."""
    study = load_study(write_study(tmp_path / "tiny") / "study.yaml")
    run = tuning_runs(study)[0]
    options = resolved_options([run])[run.key]
    with monkeypatch.context() as patch:
        patch.setattr(Curve, "select", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(run, tmp_path / "run", options, 1)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    (checkpoint / "scheduler.pt").write_bytes(b"")
    found = []
    for folder in ("run", "whole"):
        execute(run, tmp_path / folder, options, 1)
        found.append({**json.loads((tmp_path / folder / RESULT).read_text()), "seconds": None})
    assert found[0] == found[1]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"set aside: {checkpoint}: scheduler.pt is damaged" in log and "training starts from the beginning" in log
    assert not [*(tmp_path / "run").glob("*checkpoint*")]
