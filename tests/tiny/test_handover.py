"""How much of the teacher's advantage its first half hands over to the student, and what that does to imitation."""

import itertools
import math
from dataclasses import replace

import pytest

from pbsd.handover import Handover, finish_teacher_samples, successes_where_failing
from pbsd.rollouts import SampleRequest

GATED = {
    "preference_coef": 0.0, "imitation_coef": 1.0, "direct_coef": 1.0, "imitation_gate": "handover",
    "imitation_weights": "exact", "imitation_from": "union",
}  # fmt: skip


def observed(student, teacher, both):
    handover = Handover()
    handover.observe({"student": [(1.0, student)], "teacher": [(1.0, teacher)], "both": [(1.0, both)]})
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
    handover.observe(
        {"student": [(1.0, 0.0), (1.0, 0.5)], "teacher": [(1.0, 1.0)] * 2, "both": [(1.0, 0.0), (1.0, 1.0)]}
    )
    assert handover.value == pytest.approx((0.5 - 0.25) / (0.25**0.5 - 0.25))
    handover.observe({"student": [(1.0, 0.25)], "teacher": [(1.0, 1.0)], "both": []})
    assert handover.value == pytest.approx(1.0)
    handover.observe({"student": [(1.0, 0.25)], "teacher": [(1.0, 1.0)], "both": [(1.0, 0.0)]})
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


def test_samples_that_the_guard_drops_are_not_asked(make_trainer):
    """The student finishes the first teacher sample of a prompt that does not leak; T is of those alone, and S of these
    prompts: the student fails on the prompts all of whose teacher samples leak, which S must not see."""
    options = {**GATED, "leakage_guard": "drop", "num_teacher_generations": 2}
    probe = make_trainer(**options, leakage_phrases=["[a-m]"])
    batch, _ = probe.method.collect(probe.train_dataset.prompts[:6], 0)
    taught = [rollout for rollout in batch.rollouts if rollout.role == "teacher"]
    first = {rollout.prompt: rollout for rollout in reversed(taught) if rollout.weight}
    assert 0 < len(first) < 6
    assert any(first[rollout.prompt] != rollout for rollout in taught[::2] if rollout.prompt in first)
    failing = {rollout.text for rollout in batch.rollouts if rollout.role == "student" and rollout.prompt not in first}
    graded = []

    def reward(completions, **columns):
        graded.append(list(completions))
        return [float(text not in failing) for text in completions]

    trainer = make_trainer(rewards=reward, **options, leakage_phrases=["[a-m]"])
    trainer.method.collect(trainer.train_dataset.prompts[:6], 0)
    halves = [first[prompt].completion_ids[: len(first[prompt].completion_ids) // 2] for prompt in sorted(first)]
    for whole, half in zip(graded[-1], halves, strict=True):
        assert whole.startswith(trainer.engine.tokenizer.decode(half, skip_special_tokens=True))
    handover = trainer.method.handover
    assert handover.counts["student"] == handover.counts["teacher"] == handover.sums["student"] == len(first)


def test_where_the_guard_drops_all_the_handover_is_unknown(make_trainer):
    """There is nothing to finish, and nothing to grade."""
    trainer = make_trainer(**GATED, leakage_guard="drop", leakage_phrases=["."])
    _, metrics = trainer.method.collect(trainer.train_dataset.prompts[:6], 0)
    assert trainer.method.handover.value == 1.0
    assert metrics.counts["tokens/handover"] == 0


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


def test_where_the_student_fails_by_hand(make_trainer):
    """Shares that fail 1/2, 1, 0 and unknown. A right sample is weighed by the other: of prompt 0 one fails, mean 1/2.
    The teacher is right in 1 of 1, 1 of 2 and 1 of 1, times these weights; a prompt that is not judged is no prompt."""
    trainer = make_trainer()
    sample = trainer.method.collect(trainer.train_dataset.prompts[:1], 0)[0].rollouts[0]

    def judged(*outcomes):
        return [replace(sample, prompt=prompt, correct=correct) for prompt, correct in outcomes]

    student = judged((0, True), (0, False), (1, False), (1, False), (2, True), (2, True), (3, True), (3, None))
    teacher = judged((0, True), (1, True), (1, False), (2, True), (3, True))
    found = successes_where_failing({"student": student, "teacher": teacher, "both": judged((1, True), (2, None))}, 2)
    assert found == {
        "student": [(0.5, 0.5), (1.0, 0.0), (0.0, 0.0)],
        "teacher": [(0.5, 0.5), (1.0, 0.5), (0.0, 0.0)],
        "both": [(1.0, 1.0)],
    }


def test_where_the_student_fails_its_own_luck_has_no_part(make_trainer):
    """Over all outcomes of three samples that succeed with probability .3 the weight is .7 and the success .7 x .3."""
    trainer = make_trainer()
    sample = trainer.method.collect(trainer.train_dataset.prompts[:1], 0)[0].rollouts[0]
    weight = success = 0.0
    for outcomes in itertools.product([True, False], repeat=3):
        probability = math.prod(0.3 if correct else 0.7 for correct in outcomes)
        samples = {"student": [replace(sample, correct=correct) for correct in outcomes], "teacher": [], "both": []}
        [(w, s)] = successes_where_failing(samples, 3)["student"]
        weight, success = weight + probability * w, success + probability * s
    assert (weight, success) == pytest.approx((0.7, 0.21))


@pytest.mark.parametrize(
    ("gate", "finishes", "value"),
    # S = T = 1/2 over all prompts. Weighed by failures (0, 1/2, 1, 1/2): S = (0 + 1/2 + 0 + 1/2) / 2 = 1/2 and T = 3/4
    # of samples, H is all or none of them.
    [("handover", True, 0.0), ("failing_handover", True, 1.0), ("failing_handover", False, 0.0)],
)
def test_a_student_as_good_as_its_teacher_may_learn_where_it_fails(make_trainer, gate, finishes, value):
    """The student solves prompt 0, half of 1 and 3, and not 2; the teacher 2, 3 and no other."""
    right = set()

    def reward(completions, **columns):
        return [float(text in right) for text in completions]

    trainer = make_trainer(rewards=reward, **{**GATED, "imitation_gate": gate})
    prompts = trainer.train_dataset.prompts[:4]
    rollouts = trainer.method.sample(prompts, {"student": 2, "teacher": 2}, 0)[0]
    finished, _ = finish_teacher_samples(trainer.engine, prompts, rollouts, 0)
    own = {i: [r.text for r in rollouts if r.role == "student" and r.prompt == i] for i in range(4)}
    right |= {*own[0], own[1][0], own[3][0]} | {r.text for r in rollouts if r.role == "teacher" and r.prompt >= 2}
    wrong = {own[1][1], *own[2], own[3][1]} | {r.text for r in rollouts if r.role == "teacher" and r.prompt < 2}
    assert not right & wrong
    right |= {r.text for r in finished} if finishes else set()
    assert trainer.method.collect(prompts, 0)[0].totals["handover"] == value


def test_only_the_first_samples_tell_where_the_student_fails(make_trainer):
    """Who fails first gets fewer more. Of the student's 2 first samples of each prompt one is right, of its later ones
    each: weight 1/2 and success 1/2 x 1, which the later ones would make 1/3 x 2/3 x 3/2 and the like."""
    later = False

    def reward(completions, **columns):
        nonlocal later
        scores, later = [1.0 if later else float(i % 2) for i in range(len(completions))], True
        return scores

    options = {**GATED, "imitation_gate": "failing_handover", "adaptive_generations": True, "num_generations": 4}
    trainer = make_trainer(rewards=reward, **options)
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:4], 0)
    assert sum(r.role == "student" for r in batch.rollouts) > 8
    assert trainer.method.handover.sums["student"] == 4 * 0.5
    assert trainer.method.handover.counts["student"] == 4 * 0.5


@pytest.mark.parametrize("options", [{"num_generations": 1}, {"num_generations": 2, "adaptive_generations": True}])
def test_one_sample_cannot_tell_where_the_student_fails(make_trainer, options):
    with pytest.raises(ValueError, match="needs at least 2 that are drawn first, here 1; raise num_generations"):
        make_trainer(**{**GATED, "imitation_gate": "failing_handover", **options})


def test_a_checkpoint_keeps_it(make_trainer):
    trainer, other = make_trainer(**GATED), make_trainer(**GATED)
    trainer.method.handover.observe({"student": [(1.0, 0.16)], "teacher": [(1.0, 0.64)], "both": [(1.0, 0.24)]})
    other.method.load_state_dict(trainer.method.state_dict())
    assert other.method.handover.value == pytest.approx(0.5)
