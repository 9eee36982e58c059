"""What every method logs of its health, against definitions worked out from the batch and the model."""

import math
from statistics import fmean

import pytest
import torch

from pbsd.diagnostics.text import context_overlap, hedging_rate
from pbsd.methods import METHODS


@torch.no_grad()
def token_logprobs(model, prompt, completion):
    """Of the whole vocabulary at every token of the completion, [T, V]."""
    return model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def logprob(model, prompt, completion):
    return token_logprobs(model, prompt, completion).gather(-1, torch.tensor(completion)[:, None]).sum().item()


def step_metrics(trainer):
    batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:4], 0)
    _, loss_metrics, _ = trainer.method.loss(trainer.model, batch)
    metrics.merge(loss_metrics)
    return batch, metrics


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_logs_what_it_has(make_method, method):
    options = {"rft": {"rft_source": "both"}}.get(method, {})
    trainer = make_method(method, max_steps=1, **options)
    trainer.train()
    (logs,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    expected = {"health/alarms", "health/student_entropy"}
    of_samples = ("entropy_sampled", "hedging", "leakage", "context_overlap")
    if method != "sft":
        expected |= {f"health/student_{name}" for name in of_samples}
    if method in ("pbsd", "rft"):
        expected |= {f"health/teacher_{name}" for name in of_samples}
        expected |= {"tokens/length_gap", "teacher/kl_teacher_student"}
    if method in ("pbsd", "online_dpo"):
        names = ("margin", "margin_p50", "saturated", "reward_chosen", "reward_rejected", "length_gap", "style_gap")
        expected |= {f"pairs/{name}" for name in names}
    if method in ("opsd", "sdft", "sdpo"):
        expected |= {"health/teacher_entropy", "teacher/token_kl"}
    assert expected <= logs.keys()
    assert {key for key in logs if key.startswith("health/teacher")} <= expected
    assert ("pairs/style_gap" in logs) == (method in ("pbsd", "online_dpo"))


def test_of_the_samples(make_trainer):
    trainer = make_trainer(pairing="all", pair_policy="oriented", keep_ties=True)
    batch, metrics = step_metrics(trainer)
    summary = metrics.summary()
    for role in ("student", "teacher"):
        own = [rollout for rollout in batch.rollouts if rollout.role == role]
        entropy = fmean(-fmean(rollout.sampler_logprobs) for rollout in own)
        assert summary[f"health/{role}_entropy_sampled"] == pytest.approx(entropy)
        rates = [rate for rollout in own if not math.isnan(rate := hedging_rate(rollout.text))]
        assert summary[f"health/{role}_hedging"] == pytest.approx(fmean(rates))
        overlaps = [
            context_overlap(rollout.text, prompt.context, prompt.prompt)
            for rollout in own
            for prompt in [batch.prompts[rollout.prompt]]
        ]
        defined = [value for value in overlaps if not math.isnan(value)]
        assert summary[f"health/{role}_context_overlap"] == pytest.approx(
            fmean(defined) if defined else math.nan, nan_ok=True
        )


def test_kl_from_the_teacher_s_samples(make_trainer):
    """log T - log pi of every teacher sample, each under its own role's prompt and weights, per completion."""
    trainer = make_trainer(teacher="ema")
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(2.0)
    batch, metrics = step_metrics(trainer)
    ratios = []
    for rollout in batch.rollouts:
        if rollout.role == "teacher":
            prompt = batch.prompts[rollout.prompt]
            with trainer.method.teacher.acting() as teacher:
                under_teacher = logprob(teacher, prompt.teacher_ids, rollout.completion_ids)
            ratios.append(under_teacher - logprob(trainer.model, prompt.student_ids, rollout.completion_ids))
    assert len(ratios) == 8
    assert metrics.summary()["teacher/kl_teacher_student"] == pytest.approx(fmean(ratios), rel=1e-4)


@pytest.mark.parametrize("mode", ["full_logits", "topk_logits", "sampled_token"])
def test_the_teacher_at_the_student_s_tokens_by_definition(make_method, mode):
    """Entropy and KL(T || pi) over the whole vocabulary, whatever the loss compares; on sampled tokens the KL is
    estimated by rho log rho - rho + 1 with rho = T / pi."""
    sampled = {"distillation_alpha": 1.0} if mode == "sampled_token" else {"distillation_topk": 5}
    trainer = make_method("sdft", distillation_mode=mode, **sampled)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(2.0)
    batch, metrics = step_metrics(trainer)
    entropies, divergences, ratios = [], [], []
    for rollout in batch.rollouts:
        prompt = batch.prompts[rollout.prompt]
        with trainer.method.teacher.acting() as teacher:
            own = token_logprobs(teacher, prompt.teacher_ids, rollout.completion_ids)
        student = token_logprobs(trainer.model, prompt.student_ids, rollout.completion_ids)
        entropies += (-(own.exp() * own).sum(-1)).tolist()
        if mode == "sampled_token":
            ids = torch.tensor(rollout.completion_ids)[:, None]
            rho = (own - student).gather(-1, ids).squeeze(-1).double().exp()
            divergences += (rho * rho.log() - rho + 1).tolist()
            ratios += (-rho.log()).tolist()
        else:
            divergences += (own.exp() * (own - student)).sum(-1).tolist()
    summary = metrics.summary()
    assert summary["health/teacher_entropy"] == pytest.approx(fmean(entropies), rel=1e-4)
    assert summary["teacher/token_kl"] == pytest.approx(fmean(divergences), rel=1e-4)
    assert summary["teacher/token_kl"] > 0.01
    assert ("teacher/token_kl_student_teacher" in summary) == (mode == "sampled_token")
    if mode == "sampled_token":
        assert summary["teacher/token_kl_student_teacher"] == pytest.approx(fmean(ratios), rel=1e-4)


def test_of_the_pairs(make_trainer):
    trainer = make_trainer(pairing="all", pair_policy="oriented", keep_ties=True, rewards=lengths)
    batch, metrics = step_metrics(trainer)
    summary = metrics.summary()
    sides = [(batch.rollouts[pair.chosen], batch.rollouts[pair.rejected]) for pair in batch.pairs]
    gap = fmean(len(chosen.completion_ids) - len(rejected.completion_ids) for chosen, rejected in sides)
    assert summary["pairs/length_gap"] == pytest.approx(gap)
    assert summary["pairs/reward_chosen"] == pytest.approx(fmean(chosen.reward for chosen, _ in sides))
    assert summary["pairs/reward_rejected"] == pytest.approx(fmean(rejected.reward for _, rejected in sides))
    by_roles = [f"pairs/{chosen.role}_over_{rejected.role}" for chosen, rejected in sides]
    assert len(set(by_roles)) >= 3
    for key in set(by_roles):
        assert summary[key] == by_roles.count(key)


def lengths(completions, **columns):
    return [len(completion) % 3 / 2 for completion in completions]


def test_a_checkpoint_holds_the_style_gap_and_the_alarms(make_trainer):
    whole, resumed = (make_trainer(save_strategy="steps", save_steps=1, max_steps=3) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert len(whole._style_gap.state_dict()["pairs"]) == 12
    assert resumed._style_gap.state_dict() == whole._style_gap.state_dict()
    assert resumed._alarms.state_dict() == whole._alarms.state_dict()
