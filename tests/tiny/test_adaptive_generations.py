"""Samples shared out between student and teacher by need."""

from collections import Counter
from dataclasses import replace

import pytest

from pbsd.methods.pbsd import _teacher_share


def counts(trainer, step=0):
    batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:4], step)
    return (
        [Counter(rollout.role for rollout in batch.rollouts if rollout.prompt == prompt) for prompt in range(4)],
        batch,
        metrics.summary(),
    )


def grader(*solved):
    """Rewards the samples of these prompts."""

    def reward(completions, prompts, **columns):
        names = list(dict.fromkeys(prompts))
        return [float(names.index(prompt) in solved) for prompt in prompts]

    return reward


def test_the_teacher_writes_where_the_student_fails(make_trainer):
    """K_S + K_T = 5 + 3. The student writes 3; the other 5 are the teacher's where all 3 fail, but for one the
    student's where all are right."""
    trainer = make_trainer(
        rewards=grader(1, 3), num_generations=5, num_teacher_generations=3, adaptive_generations=True, pairing="all"
    )
    shared, batch, metrics = counts(trainer)
    assert shared == [
        {"student": 3, "teacher": 5}, {"student": 7, "teacher": 1}, {"student": 3, "teacher": 5},
        {"student": 7, "teacher": 1},
    ]  # fmt: skip
    assert metrics["tokens/student"] + metrics["tokens/teacher"] == batch.sampled_tokens
    assert len({rollout.completion_ids for rollout in batch.rollouts}) > 20  # no round repeats another's numbers
    trainer.train()


def test_a_teacher_that_hands_nothing_over_writes_one(make_trainer):
    """Every sample fails, so at a handover of 1 the teacher would write all five; at 0 it writes one of them."""
    trainer = make_trainer(
        rewards=grader(), num_generations=5, num_teacher_generations=3, adaptive_generations=True, pairing="all"
    )
    trainer.method.handover.observe({"student": [(1.0, 0.5)], "teacher": [(1.0, 0.5)], "both": [(1.0, 0.5)]})
    assert counts(trainer)[0] == [{"student": 7, "teacher": 1}] * 4


def test_the_same_step_gives_the_same_samples(make_trainer):
    trainer = make_trainer(num_generations=3, num_teacher_generations=2, adaptive_generations=True, pairing="all")
    first, again, later = (counts(trainer, step)[1].rollouts for step in (0, 0, 1))
    assert first == again != later


def test_share_by_hand(make_trainer):
    """Of two judged samples one fails: half of 6. None judged: half. All right: one all the same. All wrong, at a
    handover of 1, 1/2 and 0: all, half, one."""
    trainer = make_trainer()
    sample = trainer.method.collect(trainer.train_dataset.prompts[:1], 0)[0].rollouts[0]

    def first(*correct):
        return [replace(sample, correct=value) for value in correct]

    assert _teacher_share(first(True, False, None), 6, 1.0) == 3
    assert _teacher_share(first(None, None), 6, 1.0) == 3
    assert _teacher_share(first(True, True), 6, 1.0) == 1
    assert _teacher_share(first(False, False), 6, 1.0) == 6
    assert _teacher_share(first(False, False), 6, 0.5) == 3
    assert _teacher_share(first(False, False), 6, 0.0) == 1


def test_metrics_do_not_depend_on_how_the_samples_were_shared_out(make_trainer):
    """One of four prompts is always solved, whoever writes: both roles have 1/4, though of all samples 7 of the
    student's 16 and 1 of the teacher's 16 are right."""
    trainer = make_trainer(
        rewards=grader(1), num_generations=5, num_teacher_generations=3, adaptive_generations=True, pairing="all"
    )
    _, batch, metrics = counts(trainer)
    assert Counter(r.role for r in batch.rollouts) == {"student": 16, "teacher": 16}
    assert Counter(r.role for r in batch.rollouts if r.correct) == {"student": 7, "teacher": 1}
    assert (metrics["reward/student"], metrics["reward/teacher"]) == (0.25, 0.25)
    lengths = [len(r.completion_ids) for r in batch.rollouts[:12]]  # the student's first ones: three per prompt
    assert {r.role for r in batch.rollouts[:12]} == {"student"}
    assert metrics["tokens/student_length"] == pytest.approx(sum(lengths) / 12)


def test_a_refresh_asks_both_for_the_same_samples(make_trainer):
    """Equal weights write the same completions for each prompt, so a refresh measured under context has no lead; and of
    the student the refresh rule sees the first samples alone."""
    options = {
        "rewards": lambda completions, **_: [float(sum(map(ord, text)) % 7) for text in completions],
        "num_generations": 5, "num_teacher_generations": 3, "adaptive_generations": True, "pairing": "all",
        "teacher": "refreshed", "teacher_refresh_steps": 1, "teacher_refresh_margin": 0.0,
    }  # fmt: skip
    trainer = make_trainer(**options, teacher_refresh_measure="context")
    _, batch, metrics = counts(trainer)
    assert len(set(Counter(r.prompt for r in batch.rollouts if r.role == "teacher").values())) > 1
    assert trainer.method.teacher.quality.lead == 0.0
    assert metrics["tokens/refreshed_teacher"] == metrics["tokens/teacher"]
    trainer = make_trainer(**options)
    _, batch, _ = counts(trainer)
    quality = trainer.method.teacher.quality
    assert quality.challenger_count == 4
    assert quality.challenger_sum == pytest.approx(sum(r.reward for r in batch.rollouts[:12]) / 3)
