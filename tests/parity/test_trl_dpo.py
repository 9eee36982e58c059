"""DPO as a special case of `preference_loss`: TRL's own trainer on a tiny model, against ours on the same log-probs."""

import pytest
import torch
from conftest import CHAT_TEMPLATE, tiny_model
from datasets import Dataset

from pbsd.lab.base_model import build_tokenizer
from pbsd.losses.preference import preference_loss

trl = pytest.importorskip("trl")

BETA = 0.3
ROWS = [
    {"prompt": "say a:", "chosen": "abc", "rejected": "b"},
    {"prompt": "say xyz:", "chosen": "x", "rejected": "long and wrong"},
    {"prompt": "x", "chosen": "same length", "rejected": "equal words"},
]


@pytest.fixture
def make_trainer(tmp_path):
    def make(**options):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
        args = trl.DPOConfig(
            output_dir=str(tmp_path), beta=BETA, per_device_train_batch_size=len(ROWS), use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], disable_tqdm=True, **options,
        )  # fmt: skip
        return trl.DPOTrainer(
            model=tiny_model(tokenizer, seed=0),
            ref_model=tiny_model(tokenizer, seed=1),
            args=args,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )

    return make


def sequence_logprobs(model, batch):
    """Summed over completion tokens, [2 B], the chosen ones first; and the number of tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    token_logprobs = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    mask = batch["completion_mask"][:, 1:]
    return (token_logprobs * mask).sum(1), mask.sum(1)


def sigmoid(policy, reference, length):
    del length
    return preference_loss(*policy.chunk(2), *reference.chunk(2), beta=BETA, loss="logistic")


def sigmoid_norm(policy, reference, length):
    return sigmoid(policy / length, reference / length, length)


def ipo(policy, reference, length):
    """beta' = 1 on log-probabilities per token, and a reward gap of 1 / (2 beta)."""
    ones = torch.ones(len(length) // 2)
    return preference_loss(
        *(policy / length).chunk(2), *(reference / length).chunk(2), beta=1.0, loss="squared",
        reward_chosen_B=ones, reward_rejected_B=0 * ones, reward_scale=1 / (2 * BETA),
    )  # fmt: skip


def robust(policy, reference, length):
    """Not our smoothing (that of cDPO), but the unbiased combination [(1 - s) L - s L_flipped] / (1 - 2 s)."""
    flipped = [torch.cat(side.chunk(2)[::-1]) for side in (policy, reference)]
    return (0.9 * sigmoid(policy, reference, length) - 0.1 * sigmoid(*flipped, length)) / 0.8


@pytest.mark.parametrize(
    ("loss_type", "ours", "options"),
    [
        ("sigmoid", sigmoid, {}),
        ("sigmoid_norm", sigmoid_norm, {}),
        ("ipo", ipo, {}),
        ("robust", robust, {"label_smoothing": 0.1}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_loss_and_gradient(make_trainer, loss_type, ours, options):
    trainer = make_trainer(loss_type=[loss_type], **options)
    model = trainer.model
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(model, batch)
    theirs.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    policy, length = sequence_logprobs(model, batch)
    with torch.no_grad():
        reference, _ = sequence_logprobs(trainer.ref_model, batch)
    assert len(set(length.tolist())) > 2 and (policy - reference).abs().min() > 0
    loss = ours(policy, reference, length).mean()
    loss.backward()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
