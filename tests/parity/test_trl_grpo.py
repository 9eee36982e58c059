"""GRPO's and RLOO's advantages and the clipped loss with its KL term: TRL's own trainers on a tiny model."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import CHAT_TEMPLATE, tiny_model
from datasets import Dataset

from pbsd.lab.base_model import build_tokenizer
from pbsd.losses.policy_gradient import clipped_surrogate, group_advantages, k1, k3

trl = pytest.importorskip("trl")
sdpo = pytest.importorskip("trl.experimental.sdpo.sdpo_trainer")

REWARDS = [[1.0, 0.0, 0.25, 1.0], [0.5, 0.5, 0.5, 0.5], [None, 2.0, None, -1.0], [None, None, 3.0, None]]
"""A mixed group, a constant one, one with unjudged rollouts and one with a single judged rollout."""


@pytest.fixture
def make_trainer(tmp_path):
    def make(kind="GRPO", **options):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
        # A path, for with beta > 0 the trainers load the reference from it themselves.
        tiny_model(tokenizer).save_pretrained(tmp_path / "model")
        args = getattr(trl, f"{kind}Config")(
            output_dir=str(tmp_path), num_generations=4, per_device_train_batch_size=16, max_completion_length=3,
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], disable_tqdm=True, **options,
        )  # fmt: skip
        return getattr(trl, f"{kind}Trainer")(
            model=str(tmp_path / "model"),
            reward_funcs=lambda completions, **columns: [reward for group in REWARDS for reward in group],
            args=args,
            train_dataset=Dataset.from_list([{"prompt": "a"}]),
            processing_class=tokenizer,
        )

    return make


def trl_advantages(trainer):
    inputs = [{"prompt": prompt} for prompt in "abcd" for _ in range(4)]
    return trainer._generate_and_score_completions(inputs)["advantages"].view(4, 4)


def our_rewards():
    rewards = torch.tensor([[math.nan if r is None else r for r in group] for group in REWARDS])
    return rewards, ~rewards.isnan()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(make_trainer, scale):
    theirs = trl_advantages(make_trainer(scale_rewards=scale))
    rewards, judged = our_rewards()
    torch.testing.assert_close(group_advantages(rewards, judged, scale=scale, epsilon=1e-4), theirs)
    assert (theirs != 0).sum() == 6


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_leave_one_out_advantages(make_trainer):
    theirs = trl_advantages(make_trainer("RLOO", beta=0.0, normalize_advantages=False))
    rewards, judged = our_rewards()
    torch.testing.assert_close(group_advantages(rewards, judged, scale="none", leave_one_out=True), theirs)
    assert (theirs != 0).sum() == 6


B, T = 6, 5


@pytest.fixture
def batch():
    """Ratios on both sides of the clip, both signs of the advantage, several lengths, and an empty completion."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    lengths = torch.tensor([5, 4, 2, 1, 0, 5])
    policy = normal(B, T) - 2.0
    log_rho = torch.tensor([0.6, -0.6, -0.6, 0.6, 0.0, 0.0])
    return SimpleNamespace(
        policy=policy,
        old=policy + 0.3 * normal(B, T) - log_rho[:, None],
        reference=policy + 0.7 * normal(B, T),
        advantage=torch.tensor([1.5, -0.7, 0.3, -1.2, 1.0, -0.4]),
        mask=(torch.arange(T) < lengths[:, None]).long(),
        lengths=lengths,
    )


def per_sequence_mean(losses, batch):
    return ((losses * batch.mask).sum(1) / batch.lengths.clamp(min=1)).mean()


AGGREGATION = {
    "grpo": per_sequence_mean,
    "bnpo": lambda losses, batch: (losses * batch.mask).sum() / batch.mask.sum(),
    "dapo": lambda losses, batch: (losses * batch.mask).sum() / batch.mask.sum(),
    "luspo": lambda losses, batch: (losses * batch.mask).sum(1).mean(),
    "dr_grpo": lambda losses, batch: (losses * batch.mask).sum() / (B * 3),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("loss_type", list(AGGREGATION))
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("beta", "corrected"), [(0.0, False), (0.04, False), (0.04, True)])
def test_clipped_loss(make_trainer, batch, loss_type, level, beta, corrected):
    """The KL term is k3; TRL's default multiplies it by the importance ratio, and the gradient passes through both."""
    trainer = make_trainer(
        loss_type=loss_type, importance_sampling_level=level, beta=beta, use_bias_correction_kl=corrected,
        epsilon=0.2, epsilon_high=0.28,
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    theirs_policy = batch.policy.clone().requires_grad_()
    # The one seam: log-probabilities of our choice, in place of those of the model.
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (theirs_policy, torch.zeros(B, T), None)
    ids = torch.zeros(B, T, dtype=torch.long)
    theirs = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": ids,
            "completion_mask": batch.mask,
            "advantages": batch.advantage,
            "old_per_token_logps": batch.old,
            "ref_per_token_logps": batch.reference,
            "num_items_in_batch": batch.mask.sum(),
        },
    )
    theirs.backward()

    policy = batch.policy.clone().requires_grad_()
    losses = clipped_surrogate(
        policy, batch.old, batch.advantage, batch.mask, epsilon_low=0.2, epsilon_high=0.28, level=level
    )
    log_rho = (policy - batch.old) * batch.mask
    if level == "sequence":
        log_rho = log_rho.sum(1, keepdim=True) / batch.lengths[:, None].clamp(min=1)
    kl = k3(policy, batch.reference) * (log_rho.exp() if corrected else 1)
    loss = AGGREGATION[loss_type](losses + beta * kl, batch)
    loss.backward()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy.grad, theirs_policy.grad, rtol=1e-4, atol=1e-6)
    if beta == 0:
        clipped = policy.grad[batch.mask.bool()] == 0
        assert 0 < clipped.sum() < len(clipped)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_policy_loss_of_sdpo(batch, level):
    """SDPO's trainer has a copy of the clipped loss; the method is called with its configuration alone as `self`."""
    vocabulary = 7
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(B, T, vocabulary, generator=generator).requires_grad_()
    ids = torch.randint(vocabulary, (B, T), generator=generator)
    policy = logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    old = policy.detach() + batch.old - batch.policy
    configuration = SimpleNamespace(
        importance_sampling_level=level,
        epsilon_low=0.2,
        epsilon_high=0.28,
        loss_type="grpo",
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda value: value),
        _metrics={"train": {"self_distillation/policy_loss": []}},
    )
    theirs = sdpo.SDPOTrainer._compute_policy_loss(
        configuration,
        {
            "completion_ids": ids,
            "completion_mask": batch.mask,
            "old_per_token_logps": old,
            "advantages": batch.advantage,
        },
        logits,
    )
    losses = clipped_surrogate(
        policy, old, batch.advantage, batch.mask, epsilon_low=0.2, epsilon_high=0.28, level=level
    )
    ours = per_sequence_mean(losses, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[1].abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_kl_penalty_of_rloo_is_k1(make_trainer):
    """RLOO subtracts beta times the summed k1 from the reward."""
    trainer = make_trainer("RLOO", beta=0.5, normalize_advantages=False)
    logprobs = iter([torch.full((16, 3), -1.0), torch.linspace(-3, -1, 48).view(16, 3)])
    seen = []

    def next_logprobs(*args, **kwargs):
        seen.append(next(logprobs))
        return (seen[-1], None, None)

    trainer._get_per_token_logps_and_entropies = next_logprobs
    inputs = [{"prompt": prompt} for prompt in "abcd" for _ in range(4)]
    output = trainer._generate_and_score_completions(inputs)
    policy, reference = seen
    rewards, judged = our_rewards()
    penalised = rewards - 0.5 * (k1(policy, reference) * output["completion_mask"]).sum(1).view(4, 4)
    ours = group_advantages(penalised, judged, scale="none", leave_one_out=True)
    torch.testing.assert_close(ours, output["advantages"].view(4, 4))
