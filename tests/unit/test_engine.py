"""What methods are built from: whose completions are sampled and scored together, and what is reused."""

import pytest
import torch

from pbsd.engine import group_by_prompt
from pbsd.records import Batch
from pbsd.rewards import Grade, GradedReward


@pytest.fixture
def trainer(make_trainer):
    """A frozen teacher and a student that has moved away from it."""
    trainer = make_trainer(num_generations=2, num_teacher_generations=3)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.5)
    return trainer


def rollouts_of(trainer, prompts):
    counts = {"teacher": 3, "student": 2}
    return trainer.engine.sample(prompts, counts, key=(0, 0), params=trainer.args.sampling_params())


def test_rollouts_come_by_role_and_prompt(trainer):
    prompts = trainer.train_dataset.prompts[:2]
    rollouts = rollouts_of(trainer, prompts)
    assert [(r.role, r.prompt) for r in rollouts] == [
        *[("teacher", 0)] * 3, *[("teacher", 1)] * 3, *[("student", 0)] * 2, *[("student", 1)] * 2
    ]  # fmt: skip


def test_rollouts_say_what_they_were_drawn_with(make_trainer):
    trainer = make_trainer(temperature=0.7, top_p=0.9, top_k=5)
    (first, *_) = rollouts_of(trainer, trainer.train_dataset.prompts[:1])
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.7, 0.9, 5, None)


def test_roles_of_equal_weights_are_sampled_in_one_call(make_trainer):
    """A live teacher: one call of the sampler, and the samples that two calls would have given."""
    trainer = make_trainer(teacher="live", loss_type="bradley_terry")
    prompts = trainer.train_dataset.prompts[:3]
    calls = []
    sample = trainer.engine.sampler.sample
    trainer.engine.sampler.sample = lambda model, requests, params: calls.append(1) or sample(model, requests, params)
    together = rollouts_of(trainer, prompts)
    assert len(calls) == 1
    params = trainer.args.sampling_params()
    apart = [
        rollout
        for role, n in (("teacher", 3), ("student", 2))
        for rollout in trainer.engine.sample(prompts, {role: n}, key=(0, 0), params=params)
    ]
    assert [(r.role, r.prompt, r.completion_ids) for r in together] == [
        (r.role, r.prompt, r.completion_ids) for r in apart
    ]
    rollouts_of(make_trainer(), prompts)
    assert len(calls) == 3, "a teacher of other weights is sampled by itself"


def test_groups_hold_every_rollout_once(trainer):
    prompts = trainer.train_dataset.prompts[:3]
    rollouts = rollouts_of(trainer, prompts)[1:]
    groups, order = group_by_prompt(prompts, rollouts, "teacher")
    assert sorted(order) == list(range(len(rollouts)))
    assert [group.prompt_ids for group in groups] == [prompt.teacher_ids for prompt in prompts]
    flat = [completion for group in groups for completion in group.completion_ids]
    assert flat == [rollouts[index].completion_ids for index in order]


def test_reused_log_probabilities_are_the_teachers_to_rounding(trainer):
    prompts = trainer.train_dataset.prompts[:2]
    rollouts = rollouts_of(trainer, prompts)
    reused, metrics = trainer.engine.score_teacher(prompts, rollouts, reuse=True)
    scored, none = trainer.engine.score_teacher(prompts, rollouts, reuse=False)
    for one, other in zip(reused, scored, strict=True):
        assert one.teacher_logprobs == pytest.approx(other.teacher_logprobs, abs=2e-5)
    assert reused[1].teacher_logprobs == reused[1].sampler_logprobs, "taken, not scored"
    assert 0 < metrics.summary()["teacher/reuse_gap"] < 1e-5
    assert none.summary() == {}


def test_the_gap_shows_a_sampler_that_disagrees(trainer):
    """Recorded log-probabilities off by 0.5 nats a token, as a server with other numerics would give them."""
    prompts = trainer.train_dataset.prompts[:1]
    rollouts = rollouts_of(trainer, prompts)
    for rollout in rollouts:
        object.__setattr__(rollout, "sampler_logprobs", tuple(value - 0.5 for value in rollout.sampler_logprobs))
    _, metrics = trainer.engine.score_teacher(prompts, rollouts, reuse=True)
    assert metrics.summary()["teacher/reuse_gap"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("budget", [1, 40, 80, 10_000])
def test_parts_are_whole_prompts_within_the_budget(trainer, budget):
    prompts = trainer.train_dataset.prompts[:5]
    batch = Batch(tuple(prompts), tuple(rollouts_of(trainer, prompts)), ())
    parts = trainer.engine.parts(batch, budget)
    assert [prompt for part in parts for prompt in part.prompts] == list(prompts)
    for part in parts:
        groups, _ = group_by_prompt(part.prompts, part.rollouts, "student")
        assert len(groups) * max(group.tokens for group in groups) <= budget or len(groups) == 1
    assert len(parts) == (1 if budget == 10_000 else 5 if budget == 1 else len(parts))


def test_training_does_not_depend_on_the_token_budget(make_trainer):
    """The same three steps in one part a micro-batch, and in one part a prompt."""
    weights = []
    for budget in (1, 10_000):
        trainer = make_trainer(max_steps=3, train_batch_tokens=budget, scoring_batch_tokens=max(budget, 20))
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        weights.append(torch.tensor([[entry["loss"], entry["grad_norm"]] for entry in entries]))
    torch.testing.assert_close(weights[0], weights[2], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights[1], weights[3], atol=1e-5, rtol=1e-4)


def test_built_in_graders_are_told_of_a_thought_that_the_prompt_opened(make_trainer):
    """A function of the user's gets the completion alone, as in TRL. Only the student's prompt ends with the tag."""
    read = {}

    class Graded(GradedReward):
        def grades(self, completions, **columns):
            read["graded"] = completions
            return [Grade("correct", 1.0, "")] * len(completions)

    def plain(completions, **columns):
        read["plain"] = completions
        return [0.0] * len(completions)

    rewards = [Graded("graded", "no:grader", {}), plain]
    trainer = make_trainer(student_thinking_prefix="<think>\n", rewards=rewards)
    prompts = trainer.train_dataset.prompts[:2]
    rollouts = rollouts_of(trainer, prompts)
    trainer.engine.grade(prompts, rollouts)
    assert read["plain"] == [rollout.text for rollout in rollouts]
    assert read["graded"] == [("<think>\n" if r.role == "student" else "") + r.text for r in rollouts]
