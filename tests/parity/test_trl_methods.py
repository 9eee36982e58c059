"""Whole methods against TRL's trainers: the same weights, prompts and completions; ours by `collect` and `loss`, theirs
by their own preparation of the batch and their own loss. Loss and gradient are compared."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import ROWS, tiny_model
from datasets import Dataset

import pbsd
from pbsd import SelfDistillationTrainer
from pbsd.methods import METHODS

trl = pytest.importorskip("trl")
sdft = pytest.importorskip("trl.experimental.sdft")
sdpo = pytest.importorskip("trl.experimental.sdpo")
gkd = pytest.importorskip("trl.experimental.gkd")
online_dpo = pytest.importorskip("trl.experimental.online_dpo")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

P, G = 3, 4


def reward(completions, **columns):
    """Many values, and 1 for about half of them."""
    return [min(1.0, sum(map(ord, text)) % 10 / 5) for text in completions]


@pytest.fixture
def base(tmp_path, tokenizer):
    """The initial weights, in a folder as TRL's reference models want it."""
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def drift(model):
    """Away from the initial weights, differently in every parameter."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(1.0))


@pytest.fixture
def ours(base, tokenizer, tmp_path):
    """Our trainer, its student drifted, and a batch whose completions differ in length: a fifth of the vocabulary ends
    one."""

    def make(method, rows=ROWS[:P], **options):
        config = METHODS[method][0](
            output_dir=str(tmp_path / "ours"), per_device_train_batch_size=P, max_completion_length=7,
            use_cpu=True, disable_tqdm=True, report_to=[], **{"num_generations": G, **options},
        )  # fmt: skip
        model = tiny_model(tokenizer)
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(10, 30)]
        trainer = SelfDistillationTrainer(model, config, rows, None, reward, tokenizer)
        drift(trainer.model)
        batch, _ = trainer.method.collect(trainer.train_dataset.prompts, 0)
        assert len({len(rollout.completion_ids) for rollout in batch.rollouts}) > 2
        return trainer, batch

    return make


@pytest.fixture
def theirs(base, tokenizer, tmp_path):
    def make(module, name, **options):
        args = getattr(module, f"{name}Config")(
            output_dir=str(tmp_path / "theirs"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
            disable_tqdm=True, **options,
        )  # fmt: skip
        rewards = {} if name == "SDFT" else {"reward_funcs": reward}
        trainer = getattr(module, f"{name}Trainer")(
            model=base, args=args, train_dataset=Dataset.from_list(ROWS[:P]), processing_class=tokenizer, **rewards
        )
        drift(trainer.model)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    return make


GROUPED = {"num_generations": G, "per_device_train_batch_size": P * G, "max_completion_length": 7}


def inputs():
    return [row for row in ROWS[:P] for _ in range(G)]


def completions(batch):
    return [list(rollout.completion_ids) for rollout in batch.rollouts]


def assert_same(our_trainer, batch, their_model, their_loss):
    loss, _, _ = our_trainer.method.loss(our_trainer.model, batch)
    loss = loss / our_trainer.method.weight(batch)
    torch.testing.assert_close(loss, their_loss.detach(), rtol=1e-4, atol=2e-6)
    assert_same_gradients(
        our_trainer, loss, their_model, torch.autograd.grad(their_loss, list(their_model.parameters()))
    )


def assert_same_gradients(our_trainer, loss, their_model, expected):
    found = torch.autograd.grad(loss, list(our_trainer.model.parameters()))
    largest = max(gradient.abs().max() for gradient in expected).item()
    assert largest > 1e-4
    names = [name for name, _ in their_model.named_parameters()]
    for name, mine, other in zip(names, found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * largest, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "grpo", "dr_grpo"])
@pytest.mark.parametrize(("beta", "scale"), [(0.0, "group"), (0.2, "batch"), (0.2, "none")])
def test_grpo(ours, theirs, loss_type, beta, scale):
    options = {"loss_type": loss_type, "beta": beta, "scale_rewards": scale}
    our_trainer, batch = ours("grpo", **options)
    trainer = theirs(trl, "GRPO", **GROUPED, **options)
    # The one seam: the completions, in place of the sampler's.
    trainer._generate_single_turn = lambda *args, **kwargs: (completions(batch), None)
    prepared = trainer._generate_and_score_completions(inputs())
    assert prepared["advantages"].abs().max() > 0.1
    assert_same(our_trainer, batch, trainer.model, trainer._compute_loss(trainer.model, prepared))


@pytest.mark.parametrize(
    "options",
    [
        {"distillation_topk": 20},
        {"distillation_topk": 5, "distillation_add_tail": True, "distillation_alpha": 0.2},
        {"distillation_mode": "full_logits", "distillation_alpha": 0.0, "num_loss_tokens_to_skip": 2},
        {"distillation_mode": "full_logits", "distillation_alpha": 1.0, "temperature": 0.7},
        {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    ],
)
def test_sdft(ours, theirs, options):
    """TRL renders the teacher's prompt from its template, we from ours: the same text by default."""
    our_trainer, batch = ours("sdft", **options)
    trainer = theirs(sdft, "SDFT", **GROUPED, **options)
    trainer._generate = lambda prompt_ids: (prompt_ids, completions(batch))
    prepared = trainer._prepare_training_batch(inputs())
    their_loss = trainer.compute_loss(trainer.model, prepared)
    if options.get("distillation_mode") == "sampled_token":
        # The gradient is the same; TRL's value is the log-ratio times log S, which estimates nothing.
        loss, _, _ = our_trainer.method.loss(our_trainer.model, batch)
        expected = torch.autograd.grad(their_loss, list(trainer.model.parameters()))
        assert_same_gradients(our_trainer, loss / our_trainer.method.weight(batch), trainer.model, expected)
    else:
        assert_same(our_trainer, batch, trainer.model, their_loss)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distillation_mode": "topk_logits", "distillation_topk": 20, "distillation_alpha": 0.5},
        {"distillation_mode": "full_logits", "dont_reprompt_on_self_success": False},
        {"environment_feedback_only_without_solution": True},
    ],
)
def test_sdpo(ours, theirs, options, feedback):
    """TRL finds the successful siblings and renders the prompts itself; samples that are not reprompted count in both
    means. Its EMA teacher still has the initial weights."""
    options = {"include_environment_feedback": feedback, **options}
    our_trainer, batch = ours("sdpo", **options)
    trainer = theirs(sdpo, "SDPO", **GROUPED, **options)
    trainer._generate = lambda prompt_ids: (prompt_ids, completions(batch))
    prepared = trainer._prepare_training_batch(inputs())
    reprompted = [bool(rollout.teacher_prompt_ids) for rollout in batch.rollouts]
    assert reprompted == prepared["self_distillation_mask"].bool().tolist()
    assert any(reprompted)
    their_loss = trainer.compute_loss(trainer.model, prepared)
    loss, _, _ = our_trainer.method.loss(our_trainer.model, batch)
    expected = torch.autograd.grad(their_loss, list(trainer.model.parameters()), retain_graph=True)
    assert_same_gradients(our_trainer, loss / our_trainer.method.weight(batch), trainer.model, expected)
    if "distillation_mode" in options:
        assert_same(our_trainer, batch, trainer.model, their_loss)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_opsd_without_context_is_gkd(ours, tokenizer, beta):
    """Where both roles see the same prompt and no entry is capped, OPSD's loss is GKD's with the initial weights as the
    teacher: the mean over all completion tokens."""
    options = {"distillation_alpha": beta, "distillation_entry_clip": None, "temperature": 1.0, "context": "none"}
    our_trainer, batch = ours("opsd", **options)
    student = copy.deepcopy(our_trainer.model)
    sequences = [(batch.prompts[r.prompt].student_ids, r.completion_ids) for r in batch.rollouts]
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids, labels, mask = (torch.full((len(sequences), width), fill) for fill in (tokenizer.pad_token_id, -100, 0))
    for row, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
        mask[row, :end] = 1
    self = SimpleNamespace(
        teacher_model=tiny_model(tokenizer), beta=beta, generalized_jsd_loss=gkd.GKDTrainer.generalized_jsd_loss
    )
    batch_of_theirs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    assert_same(our_trainer, batch, student, gkd.GKDTrainer.compute_loss(self, student, batch_of_theirs))


def test_online_dpo(ours, theirs, tokenizer):
    """TRL's whole training step: two completions per prompt, rewards, reference, the sigmoid loss, backward. It has no
    word for ties (it prefers the first); here there are none."""
    our_trainer, batch = ours("online_dpo", num_generations=2, beta=0.3)
    assert len(batch.pairs) == P
    trainer = theirs(
        online_dpo, "OnlineDPO", per_device_train_batch_size=P, max_new_tokens=7, temperature=1.0, beta=0.3
    )
    firsts, seconds = batch.rollouts[::2], batch.rollouts[1::2]
    prompts = [torch.tensor(prompt.student_ids) for prompt in batch.prompts] * 2
    answers = [torch.tensor(rollout.completion_ids) for rollout in (*firsts, *seconds)]

    def padded(rows, side):
        return torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side=side
        )

    def ones(rows, side):
        return torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], True, 0, padding_side=side)

    trainer._generate = lambda *args: (
        padded(prompts, "left"), ones(prompts, "left"), padded(answers, "right"), ones(answers, "right"), None
    )  # fmt: skip
    columns = {name: [row[name] for row in ROWS[:P]] for name in ROWS[0]}
    their_loss = trainer.training_step(trainer.model, columns)
    loss, _, _ = our_trainer.method.loss(our_trainer.model, batch)
    loss = loss / our_trainer.method.weight(batch)
    torch.testing.assert_close(loss.detach(), their_loss, rtol=1e-4, atol=1e-6)
    expected = [parameter.grad for parameter in trainer.model.parameters()]
    assert_same_gradients(our_trainer, loss, trainer.model, expected)


def test_sft(ours, tokenizer, tmp_path):
    """TRL's SFT on prompt-completion rows: the mean negative log-likelihood over the completions' tokens, with the stop
    token."""
    rows = [
        {"prompt": row["prompt"], "completion": text, "answer": "a"}
        for row, text in zip(ROWS[:P], ("abc", "x", "long one"), strict=True)
    ]
    config = pbsd.SFTConfig(
        output_dir=str(tmp_path / "ours"), per_device_train_batch_size=P, max_completion_length=16, use_cpu=True,
        disable_tqdm=True, report_to=[],
    )  # fmt: skip
    our_trainer = SelfDistillationTrainer(tiny_model(tokenizer), config, rows, None, reward, tokenizer)
    batch, _ = our_trainer.method.collect(our_trainer.train_dataset.prompts, 0)
    trainer = trl.SFTTrainer(
        model=tiny_model(tokenizer),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "theirs"),
            per_device_train_batch_size=P,
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "completion")} for row in rows]),
        processing_class=tokenizer,
    )
    their_batch = next(iter(trainer.get_train_dataloader()))
    assert (their_batch["labels"] != -100).sum() == our_trainer.method.weight(batch)
    assert_same(our_trainer, batch, trainer.model, trainer.compute_loss(trainer.model, their_batch))
