"""Each method's loss against a slow definition on the same batch."""

from dataclasses import replace

import pytest
import torch

from pbsd.records import Batch


def next_token_logprobs(model, prompt, completion, temperature=1.0):
    """[T, V], by the model's own logits on one sequence."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def drifted(trainer):
    """The student away from its initial weights, so that mixing up roles or weights shows."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(3.0)
    return trainer


def divergences(trainer, rollout, prompt, teacher_ids, temperature=1.0):
    student = next_token_logprobs(trainer.model, prompt.student_ids, rollout.completion_ids, temperature)
    with trainer.engine.teacher.acting() as teacher:
        return student, next_token_logprobs(teacher, teacher_ids, rollout.completion_ids, temperature)


def both(trainer, batch, expected):
    """Our loss and the slow one, values and gradients."""
    loss, _, samples = trainer.method.loss(trainer.model, batch)
    parameters = list(trainer.model.parameters())
    torch.testing.assert_close(loss, expected, rtol=5e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value, parameters) for value in (loss, expected)]
    assert max(gradient.abs().max() for gradient in gradients[1]) > 1e-4
    for ours, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-3, atol=1e-5)
    return samples


def jensen_shannon(student, teacher, weight):
    mean = (weight * teacher.exp() + (1 - weight) * student.exp()).log()
    return weight * teacher.exp() * (teacher - mean) + (1 - weight) * student.exp() * (student - mean)


TERMS = {
    0.0: lambda student, teacher: teacher.exp() * (teacher - student),
    1.0: lambda student, teacher: student.exp() * (student - teacher),
    0.3: lambda student, teacher: jensen_shannon(student, teacher, 0.3),
}


@pytest.fixture(params=["whole", "chunks"])
def chunks(request, monkeypatch):
    """The logits of all tokens at once, or of seven at a time: chunks that begin inside a completion."""
    if request.param == "chunks":
        monkeypatch.setattr("pbsd.scoring.forward.CHUNK_LOGITS", 7 * 99)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("alpha", list(TERMS))
@pytest.mark.parametrize("clip", [None, 0.002])
def test_opsd_by_definition(make_method, alpha, clip):
    """The sum over tokens and vocabulary entries of the capped terms, both sides tempered; divided by the tokens."""
    trainer = drifted(make_method("opsd", distillation_alpha=alpha, distillation_entry_clip=clip, temperature=1.3))
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:2], 0)
    expected, capped = torch.zeros(()), 0
    for rollout in batch.rollouts:
        prompt = batch.prompts[rollout.prompt]
        student, teacher = divergences(trainer, rollout, prompt, prompt.teacher_ids, 1.3)
        terms = TERMS[alpha](student, teacher)
        capped += 0 if clip is None else (terms > clip).sum()
        expected = expected + (terms if clip is None else terms.clamp(max=clip)).sum()
    both(trainer, batch, expected)
    assert (clip is None) == (capped == 0)
    assert trainer.method.weight(batch) == sum(len(rollout.completion_ids) for rollout in batch.rollouts)


@pytest.mark.parametrize(("tail", "skip"), [(False, 0), (True, 2)])
def test_sdft_by_definition(make_method, tail, skip):
    """Jensen-Shannon on the student's five most likely tokens; the mean over tokens after the skipped ones."""
    trainer = drifted(
        make_method("sdft", distillation_topk=5, distillation_add_tail=tail, num_loss_tokens_to_skip=skip)
    )
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:2], 0)
    expected = torch.zeros(())
    for rollout in batch.rollouts:
        prompt = batch.prompts[rollout.prompt]
        sides = divergences(trainer, rollout, prompt, prompt.teacher_ids)
        top = sides[0].topk(5).indices
        kept = [side.gather(-1, top) for side in sides]
        if tail:
            kept = [torch.cat([side, torch.log1p(-side.exp().sum(-1, keepdim=True))], -1) for side in kept]
        else:
            kept = [side - side.logsumexp(-1, keepdim=True) for side in kept]
        expected = expected + jensen_shannon(*kept, 0.5).sum(-1)[skip:].mean()
    both(trainer, batch, expected)
    assert trainer.method.weight(batch) == len(batch.rollouts)


def first_two_succeed(completions, **columns):
    """In every group of three."""
    return [float(place % 3 < 2) for place in range(len(completions))]


@pytest.mark.parametrize("mode", ["sampled_token", "full_logits"])
def test_sdpo_by_definition(make_method, tokenizer, mode):
    """The teacher of each sample sees the first successful sibling: that of the first sample is the second."""
    trainer = drifted(make_method("sdpo", reward=first_two_succeed, distillation_mode=mode, teacher="initial"))
    batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:2], 0)
    expected = torch.zeros(())
    for place, rollout in enumerate(batch.rollouts):
        prompt, group = batch.prompts[rollout.prompt], batch.rollouts[3 * rollout.prompt :][:3]
        shown = group[1 if place % 3 == 0 else 0].text
        text = f"{prompt.prompt}\nCorrect solution:\n\n{shown}\n\n\n\nCorrectly solve the original question.\n"
        assert rollout.teacher_prompt_ids == tuple(tokenizer.encode(text))
        student, teacher = divergences(trainer, rollout, prompt, tuple(tokenizer.encode(text)))
        if mode == "full_logits":
            expected = expected + TERMS[1.0](student, teacher).sum(-1).mean()
        else:
            ids = torch.tensor(rollout.completion_ids)[:, None]
            ours, theirs = student.gather(-1, ids), teacher.gather(-1, ids)
            value = (ours - theirs).detach()
            expected = expected + (value + value * (ours - ours.detach())).mean()
    both(trainer, batch, expected)
    assert metrics.summary()["teacher/reprompted"] == metrics.summary()["reward/group_success"] == 1.0


def test_sdpo_learns_only_where_the_teacher_knows_more(make_method):
    """One success of three: its two siblings are reprompted, it is not, yet it counts in the mean (TRL). Without any,
    nothing is learnt; feedback stands in; and a prompt over the budget is counted, not cut."""

    def first_succeeds(completions, **columns):
        return [float(place % 3 == 0) for place in range(len(completions))]

    def reprompted(**options):
        trainer = make_method("sdpo", **options)
        batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:1], 0)
        return trainer, batch, [bool(r.teacher_prompt_ids) for r in batch.rollouts], metrics.summary()

    trainer, batch, flags, _ = reprompted(reward=first_succeeds)
    assert (flags, trainer.method.weight(batch)) == ([False, True, True], 3)
    _, _, flags, _ = reprompted(reward=first_succeeds, dont_reprompt_on_self_success=False)
    assert flags == [True, True, True]

    def zero(completions, **columns):
        return [0.0] * len(completions)

    trainer, batch, flags, summary = reprompted(reward=zero)
    assert (flags, summary["reward/group_success"]) == ([False] * 3, 0.0)
    loss, _, samples = trainer.method.loss(trainer.model, batch)
    assert (loss.item(), samples) == (0.0, [])
    _, batch, flags, summary = reprompted(reward=zero, include_environment_feedback=True)
    assert (flags, summary["teacher/feedback_used"]) == ([True] * 3, 3)
    text = trainer.processing_class.decode(list(batch.rollouts[0].teacher_prompt_ids))
    assert "feedback from your unsuccessful earlier attempt:\n\naaa\n\n" in text
    _, _, flags, summary = reprompted(
        reward=zero, include_environment_feedback=True, max_teacher_prompt_length=60, max_prompt_length=60
    )
    assert (flags, summary["teacher/reprompt_overlong"]) == ([False] * 3, 3)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpo_by_definition(make_method, loss_type, scale):
    """REINFORCE with the group's baseline plus beta k3 times the ratio; an unjudged sample is in neither sum nor
    divisor. The reward varies with the completion; the first sample of the batch is not judged."""

    def reward(completions, **columns):
        return [None, *(len(set(text)) / 2 for text in completions[1:])]

    trainer = drifted(make_method("grpo", reward=reward, loss_type=loss_type, scale_rewards=scale, beta=0.1))
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:3], 0)
    judged = [rollout for rollout in batch.rollouts if rollout.reward is not None]
    assert len(judged) == 8
    every = torch.tensor([rollout.reward for rollout in judged])
    expected = torch.zeros(())
    for rollout in judged:
        group = torch.tensor([other.reward for other in judged if other.prompt == rollout.prompt])
        deviation = {"group": group.std(), "batch": every.std(), "none": 1.0 - 1e-4}[scale]
        advantage = (rollout.reward - group.mean()) / (deviation + 1e-4)
        ids = torch.tensor(rollout.completion_ids)[:, None]
        prompt = batch.prompts[rollout.prompt].student_ids
        policy = next_token_logprobs(trainer.model, prompt, rollout.completion_ids).gather(-1, ids)
        with trainer.engine.teacher.acting() as initial:
            reference = next_token_logprobs(initial, prompt, rollout.completion_ids).gather(-1, ids)
        ratio = (policy - policy.detach()).exp()
        token = -advantage * ratio + 0.1 * ((reference - policy).exp() - 1 - (reference - policy)) * ratio
        divisor = {"grpo": len(ids), "dr_grpo": 6}.get(loss_type, 1)
        expected = expected + token.sum() / divisor
    both(trainer, batch, expected)
    tokens = sum(len(rollout.completion_ids) for rollout in judged)
    assert trainer.method.weight(batch) == (tokens if loss_type in ("dapo", "bnpo") else 8)


@pytest.mark.parametrize("pairs", ["best_worst", "all"])
def test_online_dpo_by_definition(make_method, pairs):
    """-log sigmoid of the margin over the reference, of the student's own pairs in the order of their rewards."""
    rewards = [0.5, 0.0, 1.0, 0.5, 0.5, 0.5]
    trainer = drifted(make_method("online_dpo", reward=lambda completions, **_: rewards, pairs=pairs, beta=0.4))
    batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:2], 0)
    wanted = {"best_worst": [(2, 1)], "all": [(0, 1), (2, 0), (2, 1)]}[pairs]
    assert [(pair.chosen, pair.rejected) for pair in batch.pairs] == wanted
    assert metrics.counts["pairs/dropped_tie"] == 3
    prompt = batch.prompts[0].student_ids

    def log_ratio(rollout):
        ids = torch.tensor(rollout.completion_ids)[:, None]
        with trainer.engine.teacher.acting() as initial:
            reference = next_token_logprobs(initial, prompt, rollout.completion_ids).gather(-1, ids).sum()
        return next_token_logprobs(trainer.model, prompt, rollout.completion_ids).gather(-1, ids).sum() - reference

    margins = [0.4 * (log_ratio(batch.rollouts[one]) - log_ratio(batch.rollouts[other])) for one, other in wanted]
    both(trainer, batch, sum(-torch.nn.functional.logsigmoid(margin) for margin in margins))
    assert trainer.method.weight(batch) == len(wanted)


def slow_nll(trainer, batch, indices, normalization):
    total = torch.zeros(())
    for index in indices:
        rollout = batch.rollouts[index]
        ids = torch.tensor(rollout.completion_ids)[:, None]
        prompt = batch.prompts[rollout.prompt].student_ids
        nll = -next_token_logprobs(trainer.model, prompt, rollout.completion_ids).gather(-1, ids)
        total = total + (nll.sum() if normalization == "token" else nll.mean())
    return total


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("source", ["student", "teacher", "both"])
def test_rft_by_definition(make_method, normalization, source):
    """Rewarded samples only. The second sample of every prompt is made equal to its first: learnt once, or twice
    without deduplication."""
    trainer = make_method("rft", rft_source=source, loss_normalization=normalization, num_teacher_generations=3)
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts[:2], 0)
    assert {rollout.role for rollout in batch.rollouts} == ({"student", "teacher"} if source == "both" else {source})
    rollouts = list(batch.rollouts)
    for place in range(0, len(rollouts), 3):
        rollouts[place] = rollouts[place + 1] = replace(rollouts[place], reward=1.0)
    batch = Batch(batch.prompts, tuple(rollouts))
    rewarded = [index for index, rollout in enumerate(rollouts) if rollout.reward >= 1.0]
    once = [index for index in rewarded if rollouts[index] not in rollouts[:index]]
    assert len(once) < len(rewarded) < len(rollouts) + 1
    for deduplicate, kept in ((True, once), (False, rewarded)):
        trainer.args.deduplicate = deduplicate
        both(trainer, batch, slow_nll(trainer, batch, kept, normalization))
        tokens = sum(len(rollouts[index].completion_ids) for index in kept)
        assert trainer.method.weight(batch) == (tokens if normalization == "token" else len(kept))


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_sft_by_definition(make_method, tokenizer, normalization):
    """`completion` where a row has one, else the privileged context, each with the stop token; of different lengths."""
    rows = [
        {"prompt": "say a:", "completion": "abc", "privileged_context": "x"},
        {"prompt": "p", "privileged_context": "y"},
    ]
    trainer = make_method("sft", rows=rows, loss_normalization=normalization)
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts, 0)
    eos = tokenizer.eos_token_id
    assert [r.completion_ids for r in batch.rollouts] == [
        (*tokenizer.encode("abc"), eos),
        (*tokenizer.encode("y"), eos),
    ]
    assert batch.sampled_tokens == 0
    both(trainer, batch, slow_nll(trainer, batch, [0, 1], normalization))
    assert trainer.method.weight(batch) == (6 if normalization == "token" else 2)
