"""The padded scorer against its slow definition: one row at a time, no padding, log-softmax of the full logits."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pbsd.scoring import ScoringGroup, score, score_frozen

PAD = 0
GROUPS = [
    ScoringGroup((5, 6, 7, 8), ((9, 10, 1), (11, 1))),
    ScoringGroup((12,), ((13, 14, 15, 16, 1),)),
    ScoringGroup((20, 21, 22, 23, 24, 25, 26), ((1,), (30, 31))),
]


@pytest.fixture(params=["llama", "gpt2"])
def decoder(request, model):
    if request.param == "llama":
        return model
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()


def slow(model, prompt, completion):
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])


def test_equals_the_definition(decoder):
    scores = score(decoder, GROUPS, pad_id=PAD)
    rows = [(group.prompt_ids, completion) for group in GROUPS for completion in group.completion_ids]
    for row, (prompt, completion) in enumerate(rows):
        expected = slow(decoder, prompt, completion)
        torch.testing.assert_close(scores.logprobs_BT[row, : len(completion)], expected, atol=2e-6, rtol=0)
        assert scores.mask_BT[row].tolist() == [1.0] * len(completion) + [0.0] * (5 - len(completion))
        assert scores.logprobs_BT[row, len(completion) :].abs().sum() == 0


def test_gradient_equals_the_definition(decoder):
    score(decoder, GROUPS, pad_id=PAD).sequence_logprobs_B.sum().backward()
    fast = {name: p.grad.clone() for name, p in decoder.named_parameters()}
    decoder.zero_grad()
    sum(slow(decoder, g.prompt_ids, c).sum() for g in GROUPS for c in g.completion_ids).backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(fast[name], parameter.grad, atol=2e-5, rtol=1e-4)


def test_padding_is_never_read(model):
    one = score(model, GROUPS, pad_id=0).logprobs_BT
    other = score(model, GROUPS, pad_id=37).logprobs_BT
    assert torch.equal(one, other)


def test_entropy_by_definition(model):
    """H = -sum p log p at the position that predicts the token."""
    scores = score(model, GROUPS[1:2], pad_id=PAD)
    (prompt, (completion,)) = GROUPS[1].prompt_ids, GROUPS[1].completion_ids
    logp = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    expected = -(logp.exp() * logp).sum(-1)[len(prompt) - 1 : -1]
    torch.testing.assert_close(scores.entropy_BT[0], expected.detach(), atol=2e-6, rtol=0)
    assert not scores.entropy_BT.requires_grad


@pytest.mark.parametrize("budget", [1, 10, 30, 10_000])
def test_frozen_scores_do_not_depend_on_the_chunks(model, budget):
    rows = score_frozen(model, GROUPS, pad_id=PAD, max_tokens=budget)
    assert [len(row) for row in rows] == [3, 2, 5, 1, 2]
    flat = [value for row in rows for value in row]
    expected = [v for g in GROUPS for c in g.completion_ids for v in slow(model, g.prompt_ids, c).tolist()]
    assert flat == pytest.approx(expected, abs=2e-6)
