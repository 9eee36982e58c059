"""How much of the teacher's advantage its first half hands over to the student, and what that does to imitation."""

from dataclasses import replace

import pytest

from pbsd.handover import Handover, finish_teacher_samples
from pbsd.rollouts import SampleRequest

GATED = {
    "preference_coef": 0.0, "imitation_coef": 1.0, "direct_coef": 1.0, "imitation_gate": "handover",
    "imitation_weights": "exact", "imitation_from": "union",
}  # fmt: skip


def observed(student, teacher, both):
    handover = Handover()
    handover.observe({"student": [student], "teacher": [teacher], "both": [both]})
    return handover.value


@pytest.mark.parametrize(
    ("student", "teacher", "both", "value"),
    [
        (0.16, 0.64, 0.32, 1.0),  # two even steps: .8 of the teacher's, .4 of the student's
        (0.16, 0.64, 0.24, 0.5),
        (0.16, 0.64, 0.16, 0.0),  # its steps are no better than the student's own
        (0.16, 0.64, 0.12, 0.0),
        (0.16, 0.64, 0.64, 1.0),
        (0.5, 0.5, 0.75, 0.0),  # no advantage
        (0.5, 0.25, 0.5, 0.0),
        (0.0, 0.64, 0.0, 1.0),  # nothing to compare with
    ],
)
def test_by_hand(student, teacher, both, value):
    assert observed(student, teacher, both) == pytest.approx(value)


def test_means_forget_and_are_kept_in_checkpoints():
    """Three steps, the first with two prompts. `both`: (0.9 x 0.9 x 1 + 0) / (0.9 x 0.9 x 2 + 1), for in the second
    step it has no prompt and its mean stays."""
    handover = Handover()
    handover.observe({"student": [0.0, 0.5], "teacher": [1.0, 1.0], "both": [0.0, 1.0]})
    assert handover.value == pytest.approx((0.5 - 0.25) / (0.25**0.5 - 0.25))
    handover.observe({"student": [0.25], "teacher": [1.0], "both": []})
    assert handover.value == pytest.approx(1.0)
    handover.observe({"student": [0.25], "teacher": [1.0], "both": [0.0]})
    both = 0.81 / (2 * 0.81 + 1)
    assert handover.value == pytest.approx((both - 0.25) / (0.5 - 0.25))
    other = Handover()
    assert other.value == 1.0  # unknown
    other.load_state_dict(handover.state_dict())
    assert other.value == handover.value


def test_the_student_finishes_the_first_half_of_a_teacher_sample(make_trainer):
    """Each begins with the half of the prompt's first teacher sample; the rest is what the sampler draws from the
    student behind problem and half; the reward function sees the whole."""
    seen = []

    def reward(completions, **columns):
        seen.append(list(completions))
        return [1.0] * len(completions)

    trainer = make_trainer(rewards=reward, **GATED)
    engine, prompts = trainer.engine, trainer.train_dataset.prompts[:3]
    rollouts = trainer.method.sample(prompts, {"student": 1, "teacher": 2}, 5)[0]
    finished, tokens = finish_teacher_samples(engine, prompts, rollouts, 5)
    params = engine.args.sampling_params()
    for index, (prompt, whole) in enumerate(zip(prompts, finished, strict=True)):
        first = next(r for r in rollouts if r.role == "teacher" and r.prompt == index)
        half = first.completion_ids[: len(first.completion_ids) // 2]
        request = SampleRequest(prompt.student_ids + half, 1, (engine.args.seed, 5, 2, prompt.row, 0))
        [[sample]] = engine.sampler.sample(engine.student, [request], params)
        assert half
        assert whole.completion_ids == half + sample.ids
        assert whole.text == engine.tokenizer.decode(half + sample.ids, skip_special_tokens=True)
    assert seen[-1] == [whole.text for whole in finished]
    assert tokens == sum(
        len(w.completion_ids)
        - len(next(r for r in rollouts if r.role == "teacher" and r.prompt == w.prompt).completion_ids) // 2
        for w in finished
    )


def test_the_weight_of_imitation_is_multiplied(make_trainer):
    """The step's loss is linear in the handover, and without one that of direct alone."""
    trainer = make_trainer(**GATED)
    batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:4], 0)
    assert batch.totals["handover"] == trainer.method.handover.value == metrics.summary()["teacher/handover"]

    def loss(handover, method=trainer.method):
        part = replace(batch, totals={**batch.totals, "handover": handover})
        return method.loss(trainer.model, part)[0].item() / method.weight(part)

    none, half, whole = loss(0.0), loss(0.5), loss(1.0)
    assert none != pytest.approx(whole)
    assert half == pytest.approx((none + whole) / 2, rel=1e-5)
    alone = make_trainer(model=trainer.model, **{**GATED, "imitation_coef": 0.0, "imitation_gate": "none"})
    assert none == pytest.approx(loss(1.0, alone.method), rel=1e-5)


def test_its_tokens_count_as_generated(make_trainer):
    trainer = make_trainer(**GATED, logging_steps=1)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "tokens/handover" in line]
    assert len(logs) == 2
    names = ("tokens/student", "tokens/teacher", "tokens/handover")
    assert trainer.generated_tokens == sum(line[name] for line in logs for name in names)
    assert all(line["tokens/handover"] > 0 for line in logs)


def test_a_teacher_that_knows_the_answer_and_not_the_way_is_not_imitated(make_trainer):
    """Half of the student's samples and all of the teacher's are right, and none that the student finishes."""
    own = set()

    def reward(completions, **columns):
        return [float(text in own) for text in completions]

    trainer = make_trainer(rewards=reward, **GATED)
    prompts = trainer.train_dataset.prompts[:4]
    rollouts = trainer.method.sample(prompts, {"student": 2, "teacher": 2}, 0)[0]
    own |= {r.text for r in rollouts if r.role == "teacher"}
    own |= {r.text for r in rollouts if r.role == "student" and r.prompt < 2}
    batch, _ = trainer.method.collect(prompts, 0)
    assert batch.totals["handover"] == 0.0
    assert trainer.method._coefs(batch)["imitation"] == 0.0


def test_a_checkpoint_keeps_it(make_trainer):
    trainer, other = make_trainer(**GATED), make_trainer(**GATED)
    trainer.method.handover.observe({"student": [0.16], "teacher": [0.64], "both": [0.24]})
    other.method.load_state_dict(trainer.method.state_dict())
    assert other.method.handover.value == pytest.approx(0.5)
