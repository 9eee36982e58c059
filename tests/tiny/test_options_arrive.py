"""Options that one part declares and another reads: each is seen to arrive."""

from dataclasses import replace

import pytest
from conftest import ROWS, tiny_model
from torch import nn

from pbsd import PBSDTrainer
from pbsd.api import resolve_rewards
from pbsd.records import Metrics


@pytest.mark.parametrize("reuse", [True, False])
def test_reuse_sampler_logprobs(make_trainer, reuse):
    """Kept from the sampler they are its very numbers, all but the first sample's; else the scorer's, which round
    otherwise."""
    trainer = make_trainer(reuse_sampler_logprobs=reuse)
    batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:4], 0)
    own = [rollout for rollout in batch.rollouts if rollout.role == "teacher"]
    kept = [rollout.teacher_logprobs == rollout.sampler_logprobs for rollout in own]
    assert all(kept[1:]) if reuse else not all(kept)
    assert ("teacher/reuse_gap" in metrics.values) == reuse
    for rollout in own:
        assert rollout.teacher_logprobs == pytest.approx(rollout.sampler_logprobs, abs=1e-4)


def test_chat_template_kwargs(make_trainer, tokenizer):
    tokenizer.chat_template = "{{ tone }}" + tokenizer.chat_template
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    trainer = make_trainer(rows=rows, chat_template_kwargs={"tone": "calm "})
    prompt = trainer.train_dataset.prompts[0]
    for ids in (prompt.student_ids, prompt.teacher_ids):
        assert tokenizer.decode(list(ids)).startswith("calm <user>")


@pytest.mark.parametrize("disable", [True, False])
def test_disable_dropout(config, tokenizer, disable):
    model = tiny_model(tokenizer)
    model.lm_head = nn.Sequential(nn.Dropout(0.3), model.lm_head)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    args = config(disable_dropout=disable, preset="pairs", loss_type="logistic")
    PBSDTrainer(model, args, ROWS, None, lambda completions, **_: [0.0] * len(completions), tokenizer)
    found = [model.lm_head[0].p, *(layer.self_attn.attention_dropout for layer in model.model.layers)]
    assert found == ([0.0] * 3 if disable else [0.3, 0.2, 0.2])


def test_reward_workers_and_timeout(config):
    (reward,) = resolve_rewards("math", config(reward_workers=3, reward_timeout=7.0))
    assert (len(reward.pool._workers), reward.pool.timeout) == (3, 7.0)


def test_sdpo_shows_the_named_feedback_and_no_thoughts(make_method, tokenizer):
    """Feedback is read from its column; thoughts are cut out of the sibling's text, where that is asked."""
    rows = [{**ROWS[0], "critique": "count again"}]

    def shown(**options):
        trainer = make_method(
            "sdpo", rows=rows, include_environment_feedback=True, feedback_column="critique", **options
        )
        prompts = trainer.train_dataset.prompts
        batch, _ = trainer.method.collect(prompts, 0)
        rollouts = [replace(rollout, text="<think>\nhm</think> 5") for rollout in batch.rollouts]
        return tokenizer.decode(list(trainer.method._reprompt(prompts, rollouts, 0, [[1]], Metrics())))

    whole, bare = shown(), shown(remove_thinking_from_demonstration=True)
    assert "count again" in whole and "count again" in bare
    assert "<think>\nhm</think> 5\n" in whole
    assert "\n5\n" in bare and "hm" not in bare
