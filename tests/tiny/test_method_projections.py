"""PBSD's four projections on the tiny model: each alone against its slow definition, mixed, and scheduled."""

import math
from dataclasses import replace

import pytest
import torch

from pbsd import PBSDConfig
from pbsd.losses.preference import preference_loss

OFF = {"preference_coef": 0.0, "nll_coef": 0.0}
BETA, SCALE, REWARD_MAX = 0.3, 2.0, 1.25


def thirds(completions, **columns):
    """Reward of many values; the first completion of a batch cannot be judged."""
    return [None, *(len(set(text)) % 4 / 3 for text in completions[1:])]


@pytest.fixture
def make(make_trainer):
    def make(**options):
        trainer = make_trainer(
            rewards=thirds, num_generations=3, num_teacher_generations=2, beta=BETA,
            **{"reward_scale": SCALE, "loss_type": "bradley_terry", "pairing": "all", **options},
        )  # fmt: skip
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(3.0)
        return trainer

    return make


def logprobs(model, prompt, completion):
    """[T, V], with gradient."""
    return model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


class Slow:
    """A batch's log-probabilities, one sequence at a time."""

    def __init__(self, trainer, batch):
        self.batch = batch
        self.policy, self.tokens, self.kl, self.teacher = [], [], [], []
        for rollout in batch.rollouts:
            prompt, ids = batch.prompts[rollout.prompt], torch.tensor(rollout.completion_ids)[:, None]
            student = logprobs(trainer.model, prompt.student_ids, rollout.completion_ids)
            with trainer.engine.teacher.acting() as module:
                teacher = logprobs(module, prompt.teacher_ids, rollout.completion_ids)
            self.tokens.append(student.gather(-1, ids).squeeze(-1))
            self.policy.append(self.tokens[-1].sum())
            self.teacher.append(teacher.gather(-1, ids).sum().item())
            self.kl.append((student.exp() * (student - teacher)).sum(-1))

    def judged(self, prompt, *roles):
        return [
            index
            for index, rollout in enumerate(self.batch.rollouts)
            if rollout.prompt == prompt and rollout.role in roles and rollout.reward is not None
        ]

    def reward(self, index):
        return SCALE * self.batch.rollouts[index].reward

    def h(self, index):
        return BETA * (self.policy[index] - self.teacher[index])

    def preference(self):
        """Mean over pairs of the cross-entropy between sigmoid(reward gap) and sigmoid(margin)."""
        values = []
        for pair in self.batch.pairs:
            label = 1 / (1 + math.exp(self.reward(pair.rejected) - self.reward(pair.chosen)))
            margin = self.h(pair.chosen) - self.h(pair.rejected)
            logsigmoid = torch.nn.functional.logsigmoid
            values.append(-label * logsigmoid(margin) - (1 - label) * logsigmoid(-margin))
        return torch.stack(values).mean()

    def nll(self):
        return torch.stack([-self.tokens[pair.chosen].mean() for pair in self.batch.pairs]).mean()

    def group(self):
        """Mean over prompts of the unbiased variance of h - r over all judged samples."""
        values = []
        for prompt in range(len(self.batch.prompts)):
            rows = self.judged(prompt, "student", "teacher")
            values.append(torch.stack([self.h(index) - self.reward(index) for index in rows]).var())
        return torch.stack(values).mean()

    def imitation(self):
        """Mean over prompts of -sum w log pi, w the softmax of r / beta over the judged teacher samples."""
        values = []
        for prompt in range(len(self.batch.prompts)):
            rows = self.judged(prompt, "teacher")
            weights = [math.exp(self.reward(index) / BETA) for index in rows]
            values.append(sum(-w / sum(weights) * self.policy[i] for w, i in zip(weights, rows, strict=True)))
        return torch.stack(values).mean()

    def exact_imitation(self, is_union, is_failing):
        """Mean over prompts of -mean w log pi, w = exp((r - max r) / beta) times T / q over the union, and times the
        share of the student's other samples that fail."""
        values = []
        for prompt in range(len(self.batch.prompts)):
            everyone = [index for index, rollout in enumerate(self.batch.rollouts) if rollout.prompt == prompt]
            fraction = sum(self.batch.rollouts[i].role == "teacher" for i in everyone) / len(everyone)
            terms = []
            for index in self.judged(prompt, *(("student", "teacher") if is_union else ("teacher",))):
                weight = math.exp((self.reward(index) - SCALE * REWARD_MAX) / BETA)
                if is_union:
                    policy, teacher = self.policy[index].detach().exp(), math.exp(self.teacher[index])
                    weight *= teacher / (fraction * teacher + (1 - fraction) * policy)
                if is_failing:
                    others = [self.batch.rollouts[i] for i in self.judged(prompt, "student") if i != index]
                    weight *= sum(not other.correct for other in others) / len(others)
                terms.append(-weight * self.policy[index])
            values.append(torch.stack(terms).mean())
        return torch.stack(values).mean()

    def direct(self, kl_gradient="exact"):
        """Mean over the student's judged samples of beta sum KL - r. The gradient is that of sum beta KL_t, and of each
        token's score times its return less the mean return of the others at that place; a shorter sample has nothing
        to come there."""
        values = []
        for prompt in range(len(self.batch.prompts)):
            rows = self.judged(prompt, "student")

            def to_come(index, t):
                later = BETA * self.kl[index][t + 1 :].sum().item() if kl_gradient == "exact" else 0.0
                return self.reward(index) - later

            for index in rows:
                others = [other for other in rows if other != index]
                value = BETA * self.kl[index].sum() - self.reward(index)
                for t, score in enumerate(self.tokens[index]):
                    baseline = sum(to_come(other, t) for other in others) / len(others)
                    value = value - (score - score.detach()) * (to_come(index, t) - baseline)
                values.append(value)
        return torch.stack(values).mean()


def collected(trainer, step=0, prompts=3):
    return trainer.method.collect(trainer.train_dataset.prompts[:prompts], step)[0]


def assert_same_step(trainer, batch, expected):
    """The trainer's quotient of sum and weight, and its gradient."""
    loss, _, _ = trainer.method.loss(trainer.model, batch)
    loss = loss / trainer.method.weight(batch)
    parameters = list(trainer.model.parameters())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected)]
    largest = max(gradient.abs().max() for gradient in gradients[1])
    assert largest > 1e-3
    for ours, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-3, atol=1e-4 * largest.item())


@pytest.fixture(params=["whole", "chunks"])
def chunks(request, monkeypatch):
    """The logits of all tokens at once, or of seven at a time: chunks that begin inside a completion."""
    if request.param == "chunks":
        monkeypatch.setattr("pbsd.scoring.forward.CHUNK_LOGITS", 7 * 99)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("projection", ["preference", "nll", "group", "imitation", "direct"])
def test_each_alone_by_definition(make, projection):
    unread = {"reward_scale": 1.0} if projection == "nll" else {}
    trainer = make(**{**OFF, **unread, f"{projection}_coef": 1.0})
    batch = collected(trainer)
    assert sum(rollout.reward is None for rollout in batch.rollouts) == 1
    assert batch.pairs
    assert_same_step(trainer, batch, getattr(Slow(trainer, batch), projection)())


def test_the_pathwise_gradient_is_an_option(make):
    trainer = make(**OFF, direct_coef=1.0, direct_kl_gradient="pathwise")
    batch = collected(trainer)
    slow = Slow(trainer, batch)
    assert_same_step(trainer, batch, slow.direct("pathwise"))
    with pytest.raises(AssertionError):
        assert_same_step(trainer, batch, slow.direct("exact"))


@pytest.mark.parametrize("is_union", [False, True])
@pytest.mark.parametrize("is_failing", [False, True])
def test_exact_imitation_by_definition(make, is_union, is_failing):
    trainer = make(
        **OFF, imitation_coef=1.0, imitation_weights="exact", reward_max=REWARD_MAX,
        imitation_from="union" if is_union else "teacher", imitation_prompts="failing" if is_failing else "all",
        success_threshold=0.5,
    )  # fmt: skip
    batch = collected(trainer)
    assert {rollout.correct for rollout in batch.rollouts} == {True, False, None}
    assert_same_step(trainer, batch, Slow(trainer, batch).exact_imitation(is_union, is_failing))


@pytest.mark.usefixtures("chunks")
def test_the_direct_term_scores_the_student_s_samples_for_all(make):
    """Not scored by the teacher before: its distributions, which the direct term meets, give the log-probabilities
    that imitation of the union and the records read."""
    trainer = make(
        **OFF, imitation_coef=1.0, direct_coef=1.0, imitation_weights="exact", reward_max=REWARD_MAX,
        imitation_from="union", success_threshold=0.5,
    )  # fmt: skip
    batch = collected(trainer)
    assert {(rollout.role, bool(rollout.teacher_logprobs)) for rollout in batch.rollouts} == {
        ("student", False),
        ("teacher", True),
    }
    slow = Slow(trainer, batch)
    assert_same_step(trainer, batch, slow.exact_imitation(True, False) + slow.direct())
    _, _, records = trainer.method.loss(trainer.model, batch)
    sides = [side for pair in records if "chosen" in pair for side in (pair["chosen"], pair["rejected"])]
    ratios = {side["text"]: side["log_ratio"] for side in sides if side["role"] == "student"}
    for rollout, policy, teacher in zip(batch.rollouts, slow.policy, slow.teacher, strict=True):
        if rollout.role == "student" and rollout.text in ratios:
            assert ratios[rollout.text] == pytest.approx(policy.item() - teacher, abs=1e-3)
    assert len(ratios) > 3


COEFS = {"preference": 0.5, "group": 0.25, "imitation": 0.125, "direct": 2.0, "nll": 0.75}


def test_a_mixture_is_the_weighted_sum(make):
    trainer = make(**{f"{name}_coef": value for name, value in COEFS.items()})
    batch = collected(trainer)
    slow = Slow(trainer, batch)
    assert_same_step(trainer, batch, sum(coef * getattr(slow, name)() for name, coef in COEFS.items()))


def test_a_mixture_does_not_depend_on_how_the_step_is_cut(make):
    """Prompts with other numbers of pairs, judged samples and tokens: the parts' sums over their weights' sum are the
    whole's quotient."""
    trainer = make(pair_policy="improving", **{f"{name}_coef": value for name, value in COEFS.items()})
    batch = collected(trainer, prompts=4)
    parts = batch.split([1, 1, 2])
    assert len({len(part.pairs) / len(part.prompts) for part in parts}) > 1
    total = sum(trainer.method.loss(trainer.model, part)[0] for part in parts)
    whole = trainer.method.loss(trainer.model, batch)[0]
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-5)
    assert sum(map(trainer.method.weight, parts)) == trainer.method.weight(batch)


def test_parts_without_pairs_or_teacher_samples_still_learn(make):
    """No pair is left in the first prompt, no judged teacher sample in the second, no judged one in the third."""
    trainer = make(**{f"{name}_coef": 1.0 for name in COEFS})
    batch = collected(trainer)
    rollouts = [
        replace(r, reward=None if r.prompt == 2 or (r.prompt == 1 and r.role == "teacher") else r.reward)
        for r in batch.rollouts
    ]
    pairs = [pair for pair in batch.pairs if batch.rollouts[pair.chosen].prompt == 1]
    pairs = [pair for pair in pairs if rollouts[pair.chosen].reward is not None is not rollouts[pair.rejected].reward]
    thinned = replace(batch, rollouts=tuple(rollouts), pairs=tuple(pairs), totals={})
    numbers = trainer.method._numbers(thinned)
    thinned = replace(thinned, totals={"step": 0, **numbers})
    for part in thinned.split([1, 1, 1]):
        loss, _, _ = trainer.method.loss(trainer.model, part)
        assert loss.isfinite()
        loss.backward()
    total = sum(trainer.method.loss(trainer.model, part)[0] for part in thinned.split([1, 1, 1]))
    torch.testing.assert_close(total, trainer.method.loss(trainer.model, thinned)[0], rtol=1e-5, atol=1e-5)


def test_without_pairs_in_the_step_the_other_terms_learn(make):
    """Every reward equal: no oriented pair, and the group loss is the variance of h."""
    trainer = make(pair_policy="oriented", group_coef=1.0, nll_coef=0.0)
    trainer.engine.reward_funcs[:] = [lambda completions, **_: [1.0] * len(completions)]
    batch = collected(trainer)
    assert not batch.pairs
    slow = Slow(trainer, batch)
    assert trainer.method.weight(batch) == 3
    assert_same_step(trainer, batch, slow.group())


def test_pairs_alone_teach_nothing_where_no_pair_term_is_in_use(make):
    """Unjudged but for one sample a prompt: no group has two. Pairs of the logistic loss need no reward; they are
    watched, and the step has no weight."""
    trainer = make(**OFF, group_coef=1.0, loss_type="logistic", pair_policy="all", pairing="cross")
    trainer.engine.reward_funcs[:] = [lambda completions, **_: [None] * len(completions)]
    batch = collected(trainer)
    assert batch.pairs
    assert trainer.method.weight(batch) == 0
    loss, metrics, samples = trainer.method.loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())
    assert len(samples) == len(batch.pairs)
    assert "pairs/margin" in metrics.values


def test_student_samples_alone(make_trainer):
    """K_T = 0: the group loss on the student's own samples."""
    trainer = make_trainer(**OFF, group_coef=1.0, direct_coef=1.0, num_teacher_generations=0, pairing="all")
    batch = collected(trainer)
    assert {rollout.role for rollout in batch.rollouts} == {"student"}
    trainer.train()
    assert trainer.generated_tokens > 0


def test_schedules(make):
    """Linear between points, constant outside, and a jump at two points of one step. The mixture of a step is that of
    its coefficients, and they are logged."""
    points = {"preference_coef": [[2, 1.0], [4, 0.0]], "group_coef": [[3, 0.0], [3, 0.5]], "reward_scale": [[0, SCALE]]}
    trainer = make(coef_schedule=points, nll_coef=0.0, direct_coef=0.1)
    args = trainer.args
    assert [args.at_step("preference_coef", step) for step in range(6)] == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert [args.at_step("group_coef", step) for step in (0, 2, 3, 9)] == [0.0, 0.0, 0.5, 0.5]
    assert [args.at_step("direct_coef", step) for step in (0, 9)] == [0.1, 0.1]
    for step, (preference, group) in {2: (1.0, 0.0), 3: (0.5, 0.5), 5: (0.0, 0.5)}.items():
        batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:2], step)
        slow = Slow(trainer, batch)
        expected = preference * slow.preference() + group * slow.group() + 0.1 * slow.direct()
        assert_same_step(trainer, batch, expected)
        assert metrics.summary()["loss/group_coef"] == group


def test_the_reward_scale_can_be_scheduled(make):
    """Half way from 1 to 4 the pair loss is that of 2.5 times the gap, whatever the option says."""
    trainer = make(nll_coef=0.0, coef_schedule={"reward_scale": [[0, 1.0], [10, 4.0]]})
    batch = collected(trainer, step=5)
    rewards, policy, teacher = [], [], []
    slow = Slow(trainer, batch)
    for side in ("chosen", "rejected"):
        rows = [getattr(pair, side) for pair in batch.pairs]
        rewards.append(torch.tensor([batch.rollouts[row].reward for row in rows]))
        policy.append(torch.stack([slow.policy[row] for row in rows]))
        teacher.append(torch.tensor([slow.teacher[row] for row in rows]))
    expected = preference_loss(
        *policy, *teacher, beta=BETA, loss="bradley_terry", reward_chosen_B=rewards[0], reward_rejected_B=rewards[1],
        reward_scale=2.5,
    )  # fmt: skip
    assert_same_step(trainer, batch, expected.mean())


def test_every_projection_trains_and_records_its_samples(make_trainer):
    for name in ("group", "imitation", "direct"):
        trainer = make_trainer(**OFF, **{f"{name}_coef": 1.0}, max_steps=1)
        samples = []
        trainer.on_samples = lambda step, records, samples=samples: samples.extend(records)
        before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        trainer.train()
        assert any(not torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
        entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
        assert sum("margin" in record for record in samples) == entry["pairs/kept"] > 0
        assert entry["loss"] == pytest.approx(entry[f"loss/{name}"], rel=1e-4)


def test_samples_in_no_pair_are_recorded_by_themselves(make):
    """The one that cannot be judged is in none."""
    trainer = make(**OFF, direct_coef=1.0)
    batch = collected(trainer)
    _, _, samples = trainer.method.loss(trainer.model, batch)
    assert [record["reward"] for record in samples[len(batch.pairs) :]] == [None]
    assert all("margin" in record for record in samples[: len(batch.pairs)])


def test_context_free_direct_loss_has_no_divergence(make_trainer):
    """With T(.|x,c) = pi(.|x) the KL is zero everywhere and what is left of the value is -r."""
    trainer = make_trainer(context="none", **OFF, direct_coef=1.0, beta=0.7)
    batch = collected(trainer)
    loss, _, _ = trainer.method.loss(trainer.model, batch)
    rewards = [rollout.reward for rollout in batch.rollouts if rollout.role == "student"]
    assert loss.item() == pytest.approx(-sum(rewards), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (OFF, "every coefficient is 0"),
        ({"group_coef": -1.0}, "group_coef must be at least 0"),
        ({"num_teacher_generations": 0, "pairing": "cross"}, "at least 1 for imitation and for pairing='cross'"),
        ({"num_teacher_generations": 0, "preset": "mixed"}, "at least 1 for imitation"),
        ({"temperature": 0.6, "preset": "mixed"}, "need temperature=1, top_p=1"),
        ({"imitation_from": "union", "top_p": 0.9}, "need temperature=1, top_p=1"),
        ({"direct_coef": 1.0, "temperature": 0.6}, "need temperature=1, top_p=1"),
        ({"direct_coef": 1.0, "generation_kwargs": {"repetition_penalty": 1.1}}, "no generation_kwargs"),
        (
            {**OFF, "group_coef": 1.0, "num_generations": 1, "num_teacher_generations": 0},
            "num_generations + num_teacher_generations >= 2",
        ),
        ({"imitation_coef": 1.0, "imitation_weights": "exact", "reward_scale": -1.0}, "has no bound"),
        (
            {
                "imitation_coef": 1.0, "imitation_weights": "exact",
                "coef_schedule": {"reward_scale": [[0, 1.0], [9, -1.0]]},
            },
            "has no bound",
        ),
        ({"adaptive_generations": True, "num_teacher_generations": 0, "pairing": "all"}, "raise K_T above 0"),
        ({"loss_type": "squared", "label_smoothing": 0.1}, "label_smoothing has no effect"),
        ({"reward_scale": 2.0}, "reward_scale has no effect under this objective (preference (logistic loss"),
        ({"coef_schedule": {"reward_scale": [[0, 1.0], [9, 2.0]]}}, "reward_scale has no effect"),
        ({"preset": "mixed", "label_smoothing": 0.1}, "label_smoothing has no effect under this objective (imit"),
        ({"reward_max": 2.0}, "reward_max has no effect"),
        ({"direct_kl_gradient": "pathwise"}, "direct_kl_gradient has no effect"),
        ({"coef_schedule": {"beta": [[0, 1]]}}, "'beta' cannot be scheduled"),
        ({"coef_schedule": {"group_coef": [[5, 1.0], [0, 0.0]]}}, "in the order of steps"),
        ({"coef_schedule": {"group_coef": [[0, -1.0]]}}, "must be finite and not negative"),
        ({"coef_schedule": {"group_coef": [0, 1]}}, "needs points"),
        ({"coef_schedule": "[1]"}, "must map names to points"),
    ],
)  # fmt: skip
def test_refused(options, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        PBSDConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "preset": "pairs", **options})
    assert words in str(caught.value)
