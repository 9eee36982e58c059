"""What a trainer saves and what it does not: nothing that is not finite, by step and not by clock, and as it was."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from pbsd.checkpoints import by_step, faults

SAVES = {"save_strategy": "steps", "save_steps": 1}


class At(TrainerCallback):
    """Calls a function at the end of a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **parts):
        if state.global_step == self.step:
            self.function(**parts)


def break_weights(trainer):
    """As an update with a NaN gradient does; the loss of the step was finite."""
    next(trainer.engine.student.parameters()).data[0, 0] = torch.nan


def break_optimizer(trainer):
    state = next(iter(trainer.optimizer.state.values()))
    state["exp_avg_sq"].view(-1)[0] = torch.inf


def break_teacher(trainer):
    next(iter(trainer.engine.teacher.weights.values())).view(-1)[0] = -torch.inf


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (break_weights, r"the weights are no longer finite \(model.embed_tokens.weight\)"),
        (break_optimizer, r"the optimizer's state is no longer finite \(0.exp_avg_sq\)"),
        (break_teacher, r"the teacher's weights are no longer finite \(method.teacher.weights"),
    ],
)
def test_what_is_not_finite_is_not_saved(make_trainer, tmp_path, spoil, words):
    """With room for one checkpoint: the healthy one of step 2 stays, whole."""
    trainer = make_trainer(max_steps=4, teacher="ema", save_total_limit=1, **SAVES)
    trainer.add_callback(At(3, lambda **_: spoil(trainer)))
    with pytest.raises(ValueError, match=rf"step 3: {words}.*the last checkpoint is .*checkpoint-2"):
        trainer.train()
    assert list(by_step(tmp_path / "run")) == [2]
    assert faults(tmp_path / "run" / "checkpoint-2") == []
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint-2"]


def test_the_rescue_saves_nothing_that_is_not_finite(make_trainer, tmp_path, caplog):
    """Step 2 leaves NaN, which no checkpoint is due to see; step 3 fails by it."""
    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=10)
    trainer.add_callback(At(2, lambda **_: next(trainer.engine.student.parameters()).data.fill_(torch.nan)))
    with pytest.raises(ValueError, match="finite"):
        trainer.train()
    assert by_step(tmp_path / "run") == {}
    assert "the steps before the failure are not saved: step 2: the weights are no longer finite" in caplog.text


def test_a_model_that_is_not_finite_is_not_saved(make_trainer, tmp_path):
    """Where no checkpoint is saved at all, the last guard is that of the model."""
    trainer = make_trainer(max_steps=2)
    trainer.add_callback(At(2, lambda **_: break_weights(trainer)))
    trainer.train()
    with pytest.raises(ValueError, match="step 2: the weights are no longer finite"):
        trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_clock_set_back_deletes_no_new_checkpoint(make_trainer, tmp_path, limit):
    """Every checkpoint seems to be a day newer than those that come after it."""

    class AheadOfTime(TrainerCallback):
        def on_save(self, args, state, control, **parts):
            later = time.time() + 86400 * (10 - state.global_step)
            os.utime(Path(args.output_dir) / f"checkpoint-{state.global_step}", (later, later))

    trainer = make_trainer(max_steps=4, save_total_limit=limit, **SAVES)
    trainer.add_callback(AheadOfTime())
    trainer.train()
    assert list(by_step(tmp_path / "run")) == [3, 4][-limit:]


def test_steps_rescued_from_a_failure_are_those_before_it(make_trainer, tmp_path):
    """A run that fails in step 3, after the step has told the refresh rule its rewards and thrown dice (its loss is
    multiplied by a random number), ends after a resume as one that did not fail."""

    def trainer(folder, failing_step=None):
        made = make_trainer(
            max_steps=6, teacher="refreshed", teacher_refresh_steps=4, teacher_refresh_margin=0.0,
            save_strategy="steps", save_steps=6, output_dir=str(tmp_path / folder),
        )  # fmt: skip
        loss = made.method.loss

        def random_loss(model, batch):
            total, *others = loss(model, batch)
            total = total * (1 + torch.rand(()))
            if made.state.global_step + 1 == failing_step:
                raise RuntimeError("out of memory")
            return total, *others

        made.method.loss = random_loss
        return made

    whole = trainer("whole")
    whole.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer("failing", 3).train()
    assert list(by_step(tmp_path / "failing")) == [2]
    resumed = trainer("failing")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.engine.teacher.quality == whole.engine.teacher.quality
    for one, other in zip(resumed.engine.student.parameters(), whole.engine.student.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_the_best_checkpoint_is_found_in_a_folder_that_moved(make_trainer, tmp_path):
    """And it is checked as one to resume from is."""
    options = {
        "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, **SAVES
    }  # fmt: skip
    rows = [{"prompt": "say w:", "privileged_context": "www", "answer": "w"}]
    trainer = make_trainer(eval_rows=rows, output_dir=str(tmp_path / "run"), **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "run" and best.is_dir()
    state = (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text()
    assert str(best) in state and "_saving" not in state
    (tmp_path / "run").rename(tmp_path / "moved")
    options["output_dir"] = str(tmp_path / "moved")
    resumed = make_trainer(eval_rows=rows, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "moved" / best.name)
    (tmp_path / "moved" / best.name / "model.safetensors").write_bytes(b"")
    if best.name != "checkpoint-3":
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            make_trainer(eval_rows=rows, **options).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("damage", ["missing", "model.safetensors"])
def test_a_lost_best_checkpoint_is_told_before_training(make_trainer, tmp_path, damage):
    """Else the last checkpoint would become the model, or nothing would once all training is done."""
    options = {
        "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 0.0, **SAVES
    }  # fmt: skip
    rows = [{"prompt": "say w:", "privileged_context": "www", "answer": "w"}]
    trainer = make_trainer(eval_rows=rows, max_steps=2, **options)
    trainer.train()
    assert trainer.state.best_global_step == 1  # with nothing learned no later one is better
    best = tmp_path / "run" / "checkpoint-1"
    shutil.rmtree(best) if damage == "missing" else (best / damage).write_bytes(b"")
    resumed = make_trainer(eval_rows=rows, max_steps=3, **options)
    with pytest.raises(ValueError, match=rf"checkpoint-1: .*{damage}.*the best checkpoint of the run so far.*bring"):
        resumed.train(resume_from_checkpoint=True)
    assert list(by_step(tmp_path / "run"))[-1] == 2 and resumed.state.global_step == 0


def test_training_does_not_go_back(make_trainer):
    make_trainer(max_steps=3, **SAVES).train()
    with pytest.raises(ValueError, match="the checkpoint is of step 3, and training is to end at step 2"):
        make_trainer(max_steps=2, **SAVES).train(resume_from_checkpoint=True)
