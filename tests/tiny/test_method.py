"""PBSD's `collect` and `loss` against slow definitions: who is sampled and scored under which prompt and weights, and
the loss recomputed pair by pair with the standard library."""

import math

import pytest
import torch


@pytest.fixture
def trainer(make_trainer):
    """An EMA teacher whose weights differ from the student's, so that mixing up roles or weights shows."""
    trainer = make_trainer(
        teacher="ema", pairing="all", pair_policy="oriented", keep_ties=True, beta=0.3, reward_scale=2.0,
        label_smoothing=0.1, nll_coef=0.7, loss_type="bradley_terry", rewards=lengths_parity,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(3.0)
    return trainer


def lengths_parity(completions, **columns):
    return [len(completion) % 3 / 2 for completion in completions]


def logprobs(model, prompt, completion):
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return [logits[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion)]


def test_each_role_has_its_own_prompt_and_weights(trainer):
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:3], step=0)
    assert [rollout.role for rollout in batch.rollouts].count("teacher") == 6
    for rollout in batch.rollouts:
        prompt = batch.prompts[rollout.prompt]
        with trainer.method.teacher.acting() as teacher:
            under_teacher = logprobs(teacher, prompt.teacher_ids, rollout.completion_ids)
        under_student = logprobs(trainer.model, prompt.student_ids, rollout.completion_ids)
        assert rollout.teacher_logprobs == pytest.approx(under_teacher, abs=1e-5)
        own = under_teacher if rollout.role == "teacher" else under_student
        assert rollout.sampler_logprobs == pytest.approx(own, abs=1e-5)
        assert under_teacher != pytest.approx(under_student, abs=1e-3)


@pytest.mark.parametrize("loss_type", ["logistic", "bradley_terry", "squared"])
def test_loss_by_definition(trainer, loss_type):
    trainer.args.loss_type = loss_type
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:4], step=0)
    assert {pair.label for pair in batch.pairs} == {1.0, 0.5}
    loss, metrics, samples = trainer.method.loss(trainer.model, batch)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def cross_entropy(label, margin):
        return -label * math.log(sigmoid(margin)) - (1 - label) * math.log(sigmoid(-margin))

    expected = 0.0
    for pair, sample in zip(batch.pairs, samples, strict=True):
        chosen, rejected = batch.rollouts[pair.chosen], batch.rollouts[pair.rejected]
        ids = batch.prompts[chosen.prompt].student_ids
        policy = [logprobs(trainer.model, ids, side.completion_ids) for side in (chosen, rejected)]
        ratios = [sum(policy[0]) - chosen.teacher_logprob, sum(policy[1]) - rejected.teacher_logprob]
        margin, gap = 0.3 * (ratios[0] - ratios[1]), 2.0 * (chosen.reward - rejected.reward)
        smoothing = 0.1 if pair.label == 1.0 else 0.5
        label = {"logistic": 1.0, "bradley_terry": sigmoid(gap)}.get(loss_type, 0.0)
        label = (1 - smoothing) * label + smoothing * (1 - label)
        value = (margin - gap) ** 2 if loss_type == "squared" else cross_entropy(label, margin)
        assert sample["margin"] == pytest.approx(margin, abs=1e-4)
        assert sample["loss"] == pytest.approx(value, abs=1e-4)
        expected += value - 0.7 * sum(policy[0]) / len(policy[0])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    right_order = [
        (sample["margin"] > 0) == (sample["chosen"]["reward"] > sample["rejected"]["reward"])
        for sample in samples
        if sample["chosen"]["reward"] != sample["rejected"]["reward"]
    ]
    assert metrics.summary()["pairs/accuracy"] == pytest.approx(sum(right_order) / len(right_order))


def test_samples_depend_on_seed_step_and_role_and_on_nothing_else(trainer):
    prompts = trainer.train_dataset.prompts[:3]

    def ids(step=0, seed=0):
        trainer.args.seed = seed
        return [rollout.completion_ids for rollout in trainer.method.collect(prompts, step)[0].rollouts]

    first = ids()
    assert first == ids()
    assert first != ids(step=1)
    assert first != ids(seed=1)


def test_roles_draw_different_numbers(make_trainer):
    """Without context and with equal weights both roles sample one distribution; their samples must still differ."""
    trainer = make_trainer(rows=[{"prompt": "say a:", "answer": "a"}], context="none")
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts, 0)
    teacher = {rollout.completion_ids for rollout in batch.rollouts if rollout.role == "teacher"}
    student = {rollout.completion_ids for rollout in batch.rollouts if rollout.role == "student"}
    assert len(teacher | student) == 4


def test_a_refresh_measured_under_context(make_trainer):
    """At the step of the check alone the refreshed teacher samples too, and these tokens count. Equal weights give
    equal rewards: without learning the lead is 0, and the teacher stays."""
    trainer = make_trainer(
        teacher="refreshed", teacher_refresh_steps=2, teacher_refresh_margin=0.0, teacher_refresh_measure="context",
        learning_rate=0.0, max_steps=2,
    )  # fmt: skip
    leads = []
    observe = trainer.engine.teacher.observe
    trainer.engine.teacher.observe = lambda ours, theirs: (leads.append((ours, theirs)), observe(ours, theirs))
    trainer.train()
    (challenger, teacher), = leads  # fmt: skip
    assert challenger == teacher and len(teacher) == 4
    assert trainer.engine.teacher.refreshes == 0
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert "tokens/refreshed_teacher" not in logs[0]
    assert logs[1]["tokens/refreshed_teacher"] == logs[1]["tokens/teacher"]
    tokens = [
        sum(entry.get(f"tokens/{who}", 0) for who in ("student", "teacher", "refreshed_teacher")) for entry in logs
    ]
    assert trainer.generated_tokens == sum(tokens)


def test_a_refresh_under_context_asks_the_refreshed_teacher(make_trainer):
    """A student that has drifted: the rewards are those of its weights under the teacher's prompt, by the teacher's
    own random numbers, and not those of the teacher that there is."""
    trainer = make_trainer(
        teacher="refreshed", teacher_refresh_steps=1, teacher_refresh_margin=0.0, teacher_refresh_measure="context",
        rewards=lambda completions, **_: [float(sum(map(ord, text))) for text in completions],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(4.0)
    prompts, teacher = trainer.train_dataset.prompts[:4], trainer.method.teacher
    number = trainer.args.num_teacher_generations
    key, params = (trainer.args.seed, 0), trainer.args.sampling_params()
    found = {}
    own = teacher.weights
    for name, weights in (("teacher", own), ("refreshed", teacher._copy_of_student())):
        teacher.weights = weights
        samples = trainer.engine.sample(prompts, {"teacher": number}, key=key, params=params)
        found[name] = [
            sum(sum(map(ord, sample.text)) for sample in samples if sample.prompt == prompt) / number
            for prompt in range(4)
        ]
    teacher.weights = own
    _, metrics = trainer.method.collect(prompts, 0)
    assert found["refreshed"] != found["teacher"]
    assert metrics.values["reward/refreshed_teacher"] == pytest.approx(found["refreshed"])
    assert teacher.quality.teacher_sum == pytest.approx(sum(found["teacher"]))
    assert teacher.quality.challenger_sum == pytest.approx(sum(found["refreshed"]))


def test_the_refresh_rule_sees_the_rewards_of_both_roles(make_trainer):
    trainer = make_trainer(teacher="refreshed", teacher_refresh_steps=100, teacher_refresh_margin=0.1)
    trainer.train()
    quality = trainer.method.teacher.quality
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (quality.challenger_count, quality.teacher_count) == (8, 8)  # a mean per prompt
    assert quality.challenger_sum == pytest.approx(4 * sum(entry["reward/student"] for entry in entries))
    assert quality.teacher_sum == pytest.approx(4 * sum(entry["reward/teacher"] for entry in entries))


def test_generated_tokens_count_both_roles(make_trainer):
    trainer = make_trainer(max_steps=3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    total = sum(entry["tokens/student"] + entry["tokens/teacher"] for entry in entries)
    assert trainer.generated_tokens == entries[-1]["tokens/generated_total"] == total > 0
