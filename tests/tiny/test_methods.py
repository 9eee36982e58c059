"""Every method on the tiny model: it trains, counts its tokens, does not depend on micro-batches and resumes; and each
loss against a slow definition on the same batch."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import HELD_OUT, ROWS, tiny_model
from peft import LoraConfig
from transformers import PrinterCallback

import pbsd
from pbsd import SelfDistillationTrainer
from pbsd.cli import main
from pbsd.methods import METHODS
from pbsd.records import Batch

SMALL = {"sdft": {"distillation_topk": 20}}
"""What the defaults of a method need on a vocabulary of 99 tokens."""

every_method = pytest.mark.parametrize("method", list(METHODS))


def lower_case_share(completions, **columns):
    """Varied enough that groups have winners: the share of lower-case letters, 1 where it is at least a quarter."""
    return [min(1.0, 4 * sum(c.islower() for c in text) / max(1, len(text))) for text in completions]


@pytest.fixture
def make(tmp_path, tokenizer):
    def make(method, rows=ROWS, reward=lower_case_share, folder="run", peft_config=None, **options):
        defaults = {
            "output_dir": str(tmp_path / folder), "max_steps": 2, "per_device_train_batch_size": 4,
            "max_completion_length": 6, "num_generations": 3, "num_generations_eval": 2, "learning_rate": 1e-3,
            "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
        }  # fmt: skip
        config = METHODS[method][0](**{**defaults, **SMALL.get(method, {}), **options})
        trainer = SelfDistillationTrainer(
            tiny_model(tokenizer), config, rows, HELD_OUT, reward, tokenizer, peft_config=peft_config
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.engine.student.parameters()])


def logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@every_method
def test_trains_and_logs(make, method):
    trainer = make(method)
    samples = []
    trainer.on_samples = lambda step, records: samples.extend(records)
    before = weights(trainer).clone()
    trainer.train()
    assert (weights(trainer) - before).abs().max() > 1e-4
    sampled = sum(entry.get("tokens/student", 0) + entry.get("tokens/teacher", 0) for entry in logs(trainer))
    assert trainer.generated_tokens == logs(trainer)[-1]["tokens/generated_total"] == sampled
    assert (sampled == 0) == (method == "sft")
    assert json.dumps(samples)
    assert all({"prompt", "row"} <= record.keys() for record in samples)
    for entry in logs(trainer):
        assert math.isfinite(entry["loss"])
        assert entry["tokens/trained"] > 0
        assert entry["health/student_entropy"] > 0
        if method != "sft":
            assert {"reward/student", "tokens/student_length", "tokens/student_truncated"} <= entry.keys()
            assert entry["health/sampler_gap"] < 1e-5


@every_method
def test_one_by_four_equals_four_by_one(make, method):
    """Also in parts of the token budget: 40 tokens hold one prompt."""
    results = []
    for batch, accumulation, budget in ((4, 1, 16384), (1, 4, 16384), (4, 1, 40)):
        trainer = make(
            method, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            train_batch_tokens=budget,
        )  # fmt: skip
        trainer.train()
        results.append((weights(trainer).clone(), logs(trainer)))
    for other_weights, other_logs in results[1:]:
        torch.testing.assert_close(other_weights, results[0][0], atol=5e-6, rtol=0)
        for one, other in zip(results[0][1], other_logs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert one["tokens/trained"] == other["tokens/trained"]


RESUMED = {
    "pbsd": {"teacher": "ema", "ema_decay": 0.5, "loss_type": "bradley_terry"},
    "opsd": {"teacher": "refreshed", "teacher_refresh_steps": 1},
    "sdpo": {"ema_decay": 0.5},
    "grpo": {"beta": 0.1},
    "rft": {"rft_source": "both", "teacher": "ema", "ema_decay": 0.5},
}
"""States that matter: a teacher that moves, or a reference that a fresh start would take from the trained weights."""


@every_method
def test_a_resumed_run_equals_an_uninterrupted_one(make, method):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, **RESUMED.get(method, {})}
    whole = make(method, folder="whole", **options)
    whole.train()
    resumed = make(method, folder="whole", **options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.generated_tokens == whole.generated_tokens
    if whole.engine.teacher is not None:
        for name, value in whole.engine.teacher.weights.items():
            assert torch.equal(resumed.engine.teacher.weights[name], value)


@every_method
def test_external_teachers(make, method, tokenizer, tmp_path):
    """An external teacher is a kind like any other; methods without a teacher have no such option."""
    tiny_model(tokenizer, seed=5).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    options = {"teacher": "external", "teacher_model": str(tmp_path / "other"), "max_steps": 1}
    if method == "rft":
        options["rft_source"] = "teacher"
    if method in ("grpo", "online_dpo", "sft"):
        with pytest.raises(TypeError, match="teacher"):
            make(method, **options)
        return
    trainer = make(method, **options)
    before = weights(trainer).clone()
    trainer.train()
    assert not torch.equal(weights(trainer), before)


@pytest.mark.parametrize("method", ["opsd", "sdpo", "grpo"])
def test_with_an_adapter_teacher_and_reference_cost_nothing(make, method):
    """The initial weights are the model with its adapter off."""
    options = {"grpo": {"beta": 0.1}}.get(method, {"teacher": "initial"})
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(method, peft_config=lora, **options)
    trainer.train()
    assert trainer.engine.teacher.weights == {}
    assert any(p.abs().sum() > 0 for n, p in trainer.engine.student.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("name", [name for name in pbsd.__all__ if name.endswith("Trainer")])
def test_named_trainers(name, tokenizer, tmp_path):
    trainer_class = getattr(pbsd, name)
    wrong = pbsd.SFTConfig if name != "SFTTrainer" else pbsd.PBSDConfig
    if name != "SelfDistillationTrainer":
        assert trainer_class.config_class is getattr(pbsd, name.replace("Trainer", "Config"))
        with pytest.raises(ValueError, match=f"{name} takes a"):
            trainer_class(tiny_model(tokenizer), wrong(output_dir=str(tmp_path), use_cpu=True), ROWS)


# Losses by slow definition


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
def test_opsd_by_definition(make, alpha, clip):
    """The sum over tokens and vocabulary entries of the capped terms, both sides tempered; divided by the tokens."""
    trainer = drifted(make("opsd", distillation_alpha=alpha, distillation_entry_clip=clip, temperature=1.3))
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
def test_sdft_by_definition(make, tail, skip):
    """Jensen-Shannon on the student's five most likely tokens; the mean over tokens after the skipped ones."""
    trainer = drifted(make("sdft", distillation_topk=5, distillation_add_tail=tail, num_loss_tokens_to_skip=skip))
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
def test_sdpo_by_definition(make, tokenizer, mode):
    """The teacher of each sample sees the first successful sibling: that of the first sample is the second."""
    trainer = drifted(make("sdpo", reward=first_two_succeed, distillation_mode=mode, teacher="initial"))
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


def test_sdpo_learns_only_where_the_teacher_knows_more(make):
    """One success of three: its two siblings are reprompted, it is not, yet it counts in the mean (TRL). Without any,
    nothing is learnt; feedback stands in; and a prompt over the budget is counted, not cut."""

    def first_succeeds(completions, **columns):
        return [float(place % 3 == 0) for place in range(len(completions))]

    def reprompted(**options):
        trainer = make("sdpo", **options)
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
def test_grpo_by_definition(make, loss_type, scale):
    """REINFORCE with the group's baseline plus beta k3 times the ratio; an unjudged sample is in neither sum nor
    divisor. The reward varies with the completion; the first sample of the batch is not judged."""

    def reward(completions, **columns):
        return [None, *(len(set(text)) / 2 for text in completions[1:])]

    trainer = drifted(make("grpo", reward=reward, loss_type=loss_type, scale_rewards=scale, beta=0.1))
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
def test_online_dpo_by_definition(make, pairs):
    """-log sigmoid of the margin over the reference, of the student's own pairs in the order of their rewards."""
    rewards = [0.5, 0.0, 1.0, 0.5, 0.5, 0.5]
    trainer = drifted(make("online_dpo", reward=lambda completions, **_: rewards, pairs=pairs, beta=0.4))
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
def test_rft_by_definition(make, normalization, source):
    """Rewarded samples only. The second sample of every prompt is made equal to its first: learnt once, or twice
    without deduplication."""
    trainer = make("rft", rft_source=source, loss_normalization=normalization, num_teacher_generations=3)
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
def test_sft_by_definition(make, tokenizer, normalization):
    """`completion` where a row has one, else the privileged context, each with the stop token; of different lengths."""
    rows = [
        {"prompt": "say a:", "completion": "abc", "privileged_context": "x"},
        {"prompt": "p", "privileged_context": "y"},
    ]
    trainer = make("sft", rows=rows, loss_normalization=normalization)
    batch, _ = trainer.method.collect(trainer.train_dataset.prompts, 0)
    eos = tokenizer.eos_token_id
    assert [r.completion_ids for r in batch.rollouts] == [
        (*tokenizer.encode("abc"), eos),
        (*tokenizer.encode("y"), eos),
    ]
    assert batch.sampled_tokens == 0
    both(trainer, batch, slow_nll(trainer, batch, [0, 1], normalization))
    assert trainer.method.weight(batch) == (6 if normalization == "token" else 2)


# Refusals


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("grpo", {"num_generations": 1}, "num_generations must be at least 2"),
        ("grpo", {"num_iterations": 2}, "num_iterations must be 1"),
        ("grpo", {"loss_type": "cispo"}, "loss_type must be one of dapo"),
        ("online_dpo", {"num_generations": 1}, "a pair needs two completions"),
        ("opsd", {"distillation_alpha": 1.5}, "distillation_alpha must lie in"),
        ("opsd", {"distillation_mode": "topk_logits"}, "needs distillation_topk"),
        ("opsd", {"distillation_mode": "sampled_token", "distillation_alpha": 1.0}, "not with sampled_token"),
        ("sdft", {"distillation_mode": "sampled_token"}, "set distillation_alpha=1"),
        ("sdpo", {"temperature": 0.7}, "set temperature=1"),
        ("sdpo", {"use_successful_as_teacher": False, "teacher": "initial"}, "nothing more than the student"),
        ("sdpo", {"num_generations": 1}, "needs siblings"),
        ("sdpo", {"reprompt_template": "{{ prompt "}, "reprompt_template, line 1"),
        ("sdpo", {"reward": None}, "reward_funcs is missing"),
        ("opsd", {"teacher": "refreshed", "teacher_refresh_margin": 0.1}, "teacher_refresh_margin compares"),
        ("rft", {"teacher": "ema"}, "rft_source='student' has no use for teacher='ema'"),
        ("sft", {"rows": [{"prompt": "p"}]}, "row 0: nothing to learn"),
        ("sft", {"max_completion_length": 3}, "`privileged_context` has 4 tokens with the stop token"),
    ],
)  # fmt: skip
def test_refused(make, method, options, words):
    with pytest.raises(ValueError) as caught:
        make(method, **options)
    assert words in str(caught.value)


def test_top_k_over_the_vocabulary_is_refused(make):
    with pytest.raises(ValueError, match="distillation_topk is 100, the vocabulary has"):
        make("sdft", distillation_topk=100).train()


@pytest.mark.parametrize("method", ["opsd", "sdft"])
def test_a_moving_teacher_without_rewards_is_warned_of(make, method):
    with pytest.warns(UserWarning, match="feedback loop"):
        make(method, teacher="ema")


def test_references_over_the_budget_are_dropped_and_counted(make):
    rows = [*ROWS[:4], {"prompt": "p", "completion": "much too long"}]
    trainer = make("sft", rows=rows, overlong="drop")
    assert (len(trainer.train_dataset), trainer.train_dataset.dropped) == (4, 1)


# Recipes


@pytest.fixture
def method_recipe(recipe):
    """The recipe of conftest for any method: without the options that are PBSD's."""

    def write(method, *lines):
        own = ("loss_type", "pairing", "pair_policy", "num_teacher_generations", "max_steps", "save_steps")
        text = [line for line in recipe.read_text().splitlines() if line.split(":")[0] not in own]
        recipe.write_text("\n".join([*text, f"method: {method}", "max_steps: 1", *lines, ""]))
        return str(recipe)

    return write


@every_method
def test_train_doctor_and_render(method_recipe, method, capsys, tmp_path):
    lines = [f"{key}: {value}" for key, value in SMALL.get(method, {}).items()]
    path = method_recipe(method, *lines, "success_threshold: 0.0")
    assert main(["render", path, "-n", "1"]) == 0
    assert ("row 0, completion: 4 tokens, budget 6" in capsys.readouterr().out) == (method == "sft")
    assert main(["doctor", path]) in (0, 1)  # the random model's completions are cut: a finding of its own
    out = capsys.readouterr().out
    assert f"options: {method}: " in out
    assert "one dry step: loss" in out
    if method not in ("opsd", "grpo", "sft"):
        return
    assert main(["train", path]) == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["method"] == method
    assert main(["train", str(tmp_path / "run" / "config.yaml"), "--resume"]) == 0


def test_an_option_of_another_method_is_named(method_recipe, capsys):
    assert main(["train", method_recipe("grpo", "teacher_model: x")]) == 2
    error = capsys.readouterr().err
    assert "unknown key teacher_model; it is an option of pbsd, opsd, sdft, sdpo, rft (method: grpo)" in error
    assert main(["train", method_recipe("grpo"), "--method", "gpro"]) == 2
    assert "unknown method 'gpro'; did you mean grpo?" in capsys.readouterr().err
    assert main(["pilot", method_recipe("grpo"), "--out", "x"]) == 2
