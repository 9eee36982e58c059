"""Whole training steps on a tiny model: what changes, what must not, and that a known preference is learned."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import ROWS, tiny_model
from light_rewards import always_one, always_zero, contains_answer, first_letter_is_lower
from peft import LoraConfig

from pbsd import GRPOConfig, PBSDTrainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()])


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("loss_type", ["logistic", "bradley_terry", "squared"])
@pytest.mark.parametrize("teacher", ["initial", "live", "ema", "refreshed"])
def test_parameters_change_under_every_loss_and_teacher(make_trainer, loss_type, teacher):
    trainer = make_trainer(loss_type=loss_type, teacher=teacher, pair_policy="oriented", keep_ties=True)
    before = weights(trainer).clone()
    trainer.train()
    assert not torch.equal(weights(trainer), before)
    assert all(math.isfinite(entry["loss"]) for entry in logs(trainer))


def test_first_step_of_the_logistic_loss_is_log_two(make_trainer):
    """With T(.|x,c) = pi(.|x) (no context, the same weights) every margin is 0: loss log 2."""
    trainer = make_trainer(context="none", loss_type="logistic", max_steps=1)
    trainer.train()
    entry = logs(trainer)[0]
    assert entry["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert entry["pairs/margin"] == pytest.approx(0.0, abs=1e-5)
    assert entry["pairs/kept"] == 4 * 2 * 2


def test_a_known_preference_is_learned(make_trainer):
    """A lower-case first letter is rewarded; at the start a random model gives one in about 26 of 99 samples."""
    trainer = make_trainer(
        eval_rows=ROWS[:8], rewards=first_letter_is_lower, max_steps=40, num_generations=4, num_teacher_generations=4,
        num_generations_eval=16, max_completion_length=2, learning_rate=3e-3, beta=0.05,
    )  # fmt: skip
    before = trainer.measure_accuracy().sampled.estimate
    trainer.train()
    after = trainer.measure_accuracy().sampled.estimate
    assert before < 0.45
    assert after > before + 0.3


def test_one_by_eight_equals_eight_by_one(make_trainer):
    """Accumulating 8 micro-batches of one prompt is the same step as one batch of 8, to rounding."""
    results = []
    for batch, accumulation in ((8, 1), (1, 8), (2, 4)):
        trainer = make_trainer(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=3)
        trainer.train()
        results.append((weights(trainer).clone(), logs(trainer)))
    for other_weights, other_logs in results[1:]:
        torch.testing.assert_close(other_weights, results[0][0], atol=2e-6, rtol=0)
        for one, other in zip(results[0][1], other_logs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
            assert one["tokens/generated_total"] == other["tokens/generated_total"]
            assert one["pairs/margin"] == pytest.approx(other["pairs/margin"], abs=1e-5)


def test_sampling_log_probs_are_the_scored_ones(make_trainer):
    """On-policy in fact: what the sampler drew from is what the loss differentiates."""
    trainer = make_trainer(max_steps=3)
    trainer.train()
    assert all(entry["health/sampler_gap"] < 1e-5 for entry in logs(trainer))


def test_a_step_without_pairs_changes_nothing_and_says_so(make_trainer):
    """No reward improves on another, so `improving` keeps no pair: the loss is 0 and every drop is counted."""
    trainer = make_trainer(rewards=lambda completions, **_: [0.0] * len(completions), pair_policy="improving")
    before = weights(trainer).clone()
    trainer.train()
    assert torch.equal(weights(trainer), before)
    for entry in logs(trainer):
        assert entry["loss"] == 0.0
        assert (entry["pairs/kept"], entry["pairs/dropped_not_improving"]) == (0, 16)


def test_nll_anchor_by_definition(make_trainer):
    """loss(coef) - loss(0) = coef * sum over pairs of the chosen completion's mean token NLL."""
    trainer = make_trainer(max_steps=1)
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:3], step=0)
    losses = []
    for trainer.args.nll_coef in (0.0, 2.5):
        losses.append(trainer.method.loss(trainer.model, batch)[0].item())
    expected = 0.0
    for pair in batch.pairs:
        chosen = batch.rollouts[pair.chosen]
        prompt = batch.prompts[chosen.prompt].student_ids
        logits = trainer.model(torch.tensor([prompt + chosen.completion_ids])).logits[0].log_softmax(-1)
        steps = range(len(chosen.completion_ids))
        expected -= sum(logits[len(prompt) - 1 + t, chosen.completion_ids[t]].item() for t in steps) / len(steps)
    assert losses[1] - losses[0] == pytest.approx(2.5 * expected, rel=1e-5)


def test_lora_trains_the_adapter_only(make_trainer, tokenizer):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = tiny_model(tokenizer)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = make_trainer(model=model, peft_config=lora, max_steps=3)
    trainer.train()
    assert trainer.engine.teacher.weights == {}
    for name, parameter in trainer.engine.student.named_parameters():
        if "lora_" in name:
            assert parameter.requires_grad
        else:
            assert torch.equal(parameter, base[name.removeprefix("base_model.model.").replace(".base_layer", "")])
    assert any(p.abs().sum() > 0 for n, p in trainer.engine.student.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_gradient_checkpointing_is_the_same_step(make_trainer, lora):
    results = []
    for checkpointing in (False, True):
        trainer = make_trainer(gradient_checkpointing=checkpointing, peft_config=copy.deepcopy(lora))
        before = weights(trainer).clone()
        trainer.train()
        results.append(weights(trainer).clone())
        assert not torch.equal(results[-1], before)
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)


def test_external_teacher(make_trainer, tokenizer, tmp_path):
    tiny_model(tokenizer, seed=5).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    trainer = make_trainer(teacher="external", teacher_model=str(tmp_path / "other"))
    trainer.train()
    student = {name: tuple(p.shape) for name, p in trainer.engine.student.named_parameters()}
    other = dict(trainer.engine.teacher.external.named_parameters())
    assert {name: tuple(p.shape) for name, p in other.items()} == student
    assert not any(p.requires_grad for p in other.values())


def test_correct_is_what_the_first_reward_function_says(make_trainer):
    """The second function's points lift the total over the threshold, not the answer to a correct one."""
    trainer = make_trainer(rewards=[always_zero, always_one], pair_policy="correct", max_steps=1)
    trainer.train()
    entry = logs(trainer)[0]
    assert (entry["reward/teacher"], entry["pairs/kept"], entry["pairs/dropped_incorrect"]) == (1.0, 0, 16)


def test_a_bias_that_lora_trains_is_not_the_initial_teachers(make_trainer):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", bias="all")
    assert make_trainer(peft_config=lora).engine.teacher.weights


def test_weights_that_are_no_longer_finite_stop_the_run(make_trainer):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.engine.student.model.norm.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="no longer finite"):
        trainer.train()


def test_unjudged_rewards_are_counted_not_punished(make_trainer):
    trainer = make_trainer(rewards=lambda completions, **_: [None] + [1.0] * (len(completions) - 1), max_steps=1)
    trainer.train()
    entry = logs(trainer)[0]
    assert entry["reward/unjudged"] == 1
    assert entry["pairs/dropped_unjudged"] == 2  # the first teacher sample meets two student samples
    assert entry["reward/student"] == entry["reward/teacher"] == 1.0


def test_evaluation_during_training_and_best_checkpoint(make_trainer):
    trainer = make_trainer(
        eval_rows=ROWS[:4], eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="accuracy", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert len(evaluations) == 2
    assert evaluations[0]["eval_accuracy_low"] <= evaluations[0]["eval_accuracy"]
    assert trainer.state.best_model_checkpoint is not None
    assert trainer.evaluate(ROWS[4:6])["eval_problems"] == 2


def test_a_script_without_main_guard_and_several_rewards(tmp_path, config, tokenizer):
    """Names, mappings and functions side by side, with weights; graders run in worker processes."""
    trainer = PBSDTrainer(
        tiny_model(tokenizer), config(reward_weights=[1.0, 0.5], max_steps=1), ROWS,
        reward_funcs=[contains_answer, {"name": "format", "pattern": "[a-z].*"}], processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    assert "reward/format/wrong" in logs(trainer)[0]


def test_trackers_get_the_same_metric_names(make_trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(report_to="tensorboard")
    trainer.train()
    (events,) = (tmp_path / "run").rglob("events.out.tfevents*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert {"train/pairs/margin", "train/reward/student", "train/loss"} <= set(accumulator.Tags()["scalars"])


def test_model_card_says_the_method_and_cites_pbsd_for_pbsd_only(make_trainer):
    trainer = make_trainer()
    trainer.train()
    trainer.create_model_card()
    path = Path(trainer.args.output_dir) / "README.md"
    card = path.read_text()
    assert "by PBSD with" in card and "arXiv 2605.05040" in card
    assert "- pbsd" in card
    assert "bradley_terry loss" in card and trainer.args.objective in card
    trainer.args = GRPOConfig(output_dir=trainer.args.output_dir, use_cpu=True)
    trainer.create_model_card()
    card = path.read_text()
    assert "by GRPO with" in card and trainer.args.objective in card
    assert "2605.05040" not in card


def test_saved_model_loads_and_scores_alike(make_trainer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = make_trainer()
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("say a:", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, trainer.engine.student.eval()(ids).logits)


def test_samples_are_handed_out_whole(make_trainer):
    seen = []
    trainer = make_trainer(max_steps=1)
    trainer.on_samples = lambda step, samples: seen.extend(samples)
    trainer.train()
    assert len(seen) == 16
    assert json.dumps(seen)
    sample = seen[0]
    assert sample["chosen"]["role"] == "teacher"
    gap = sample["chosen"]["log_ratio"] - sample["rejected"]["log_ratio"]
    assert sample["margin"] == pytest.approx(trainer.args.beta * gap)
    for side in (sample["chosen"], sample["rejected"]):
        assert len(side["token_texts"]) == side["tokens"] == len(side["token_log_ratios"])
        assert "".join(side["token_texts"]).replace("<unk>", "").startswith(side["text"])  # without special tokens
        assert sum(side["token_log_ratios"]) == pytest.approx(side["log_ratio"], abs=0.0005 * side["tokens"] + 1e-9)


def test_log_ratios_of_tokens_can_be_left_out(make_trainer):
    seen = []
    trainer = make_trainer(max_steps=1, log_token_ratios=False)
    trainer.on_samples = lambda step, samples: seen.extend(samples)
    trainer.train()
    assert "log_ratio" in seen[0]["chosen"] and "token_texts" not in seen[0]["chosen"]
