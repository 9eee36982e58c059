"""Chunked log-probabilities against log-softmax of full logits: value, gradient, entropy and memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pbsd.logprobs import LogitHead, chunked_logprobs, map_logits, token_entropy, token_logprobs

T, D, V = 23, 16, 301
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"softcap": 1.5},
    "all": {"bias": True, "scale": 3.0, "softcap": 2.0},
}


def inputs(*, bias=False, scale=1.0, softcap=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    hidden, weight = normal(T, D), normal(V, D)
    head = LogitHead(weight, normal(V) if bias else None, scale, softcap)
    ids = torch.randint(V, (T,), generator=generator)
    grads = torch.randn(T, generator=generator)
    return head, hidden, ids, grads


def by_definition(head, hidden, ids):
    """softcap tanh(scale (h W + b) / softcap), then log-softmax; written out again here."""
    logits = (hidden @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)).float() * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprobs = logits.log_softmax(-1)
    return logprobs[torch.arange(T), ids], -(logprobs.exp() * logprobs).sum(-1)


def gradients(head, hidden, values, grads):
    leaves = [leaf for leaf in (hidden, head.weight_VD, head.bias_V) if leaf is not None and leaf.requires_grad]
    return torch.autograd.grad((values * grads).sum(), leaves)


@pytest.mark.parametrize("chunk", [1, 7, 23, 1000])
@pytest.mark.parametrize("kind", HEADS)
def test_value_entropy_and_gradient_by_definition(kind, chunk):
    head, hidden, ids, grads = inputs(**HEADS[kind])
    values, entropy = chunked_logprobs(head, hidden, ids, chunk_tokens=chunk)
    expected, expected_entropy = by_definition(head, hidden, ids)
    torch.testing.assert_close(values, expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(entropy, expected_entropy, atol=5e-6, rtol=5e-6)
    assert not entropy.requires_grad
    found, wanted = gradients(head, hidden, values, grads), gradients(head, hidden, expected, grads)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=5e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_a_frozen_heads_gradient_is_made_in_the_forward_pass_and_is_the_same(kind):
    head, hidden, ids, grads = inputs(**HEADS[kind])
    expected = gradients(head, hidden, by_definition(head, hidden, ids)[0], grads)[0]
    frozen = head.detached()
    values, _ = chunked_logprobs(frozen, hidden, ids, chunk_tokens=7)
    with _Shapes() as shapes:
        (found,) = gradients(frozen, hidden, values, grads)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=5e-5)
    assert shapes.largest == T * D, "no logits in the backward pass"


def test_gradients_by_finite_differences():
    """Central differences in float64 of the definition; the function's own float32 limits the tolerance."""
    head, hidden, ids, grads = inputs(bias=True, scale=1.3, softcap=2.5, dtype=torch.float64)
    (found, *_) = gradients(head, hidden, chunked_logprobs(head, hidden, ids, chunk_tokens=5)[0], grads.double())
    step = 1e-5
    for place in ((0, 0), (11, 3), (22, 15)):
        values = []
        for sign in (1, -1):
            moved = hidden.detach().clone()
            moved[place] += sign * step
            logits = 2.5 * torch.tanh((moved @ head.weight_VD.T + head.bias_V) * 1.3 / 2.5)
            values.append((logits.log_softmax(-1)[torch.arange(T), ids] * grads).sum())
        assert found[place].item() == pytest.approx(((values[0] - values[1]) / (2 * step)).item(), abs=1e-5)


def test_bfloat16_weights_are_reduced_in_float32():
    """The product is bfloat16's; from there on the result equals float32 arithmetic on the same logits."""
    head, hidden, ids, grads = inputs(dtype=torch.bfloat16)
    values, entropy = chunked_logprobs(head, hidden, ids, chunk_tokens=7)
    logits = (hidden @ head.weight_VD.T).float()
    assert values.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(values, token_logprobs(logits, ids), atol=1e-6, rtol=1e-6)
    found = gradients(head, hidden, values, grads)
    wide = [tensor.detach().float().requires_grad_() for tensor in (hidden, head.weight_VD)]
    wanted = gradients(LogitHead(wide[1]), wide[0], by_definition(LogitHead(wide[1]), wide[0], ids)[0], grads)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.float() - theirs).norm() / theirs.norm()
        assert error < 0.01


def test_autocast_is_followed_in_both_passes():
    """Under autocast the product is bfloat16's, and gradients come back in the parameters' own dtype."""
    head, hidden, ids, grads = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        values, _ = chunked_logprobs(head, hidden, ids)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(hidden, head.weight_VD)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(values, token_logprobs(logits, ids), atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(
        gradients(head, hidden, values, grads),
        gradients(head, hidden, by_definition(head, hidden, ids)[0], grads),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        assert 1e-6 < (ours - theirs).norm() / theirs.norm() < 0.02


def test_a_vocabulary_with_impossible_tokens_has_finite_entropy():
    """Two tokens of equal logits and 299 of -inf: log 2 nats, by hand."""
    bias = torch.full((V,), -torch.inf)
    bias[:2] = 0.0
    head = LogitHead(torch.zeros(V, D), bias)
    values, entropy = chunked_logprobs(head, torch.zeros(T, D), torch.zeros(T, dtype=torch.long), chunk_tokens=4)
    assert values.tolist() == pytest.approx([-math.log(2)] * T)
    assert entropy.tolist() == pytest.approx([math.log(2)] * T)


def test_entropy_is_left_out_where_it_is_not_asked_for():
    head, hidden, ids, _ = inputs()
    values, entropy = chunked_logprobs(head, hidden, ids, entropy=False)
    assert torch.equal(values, chunked_logprobs(head, hidden, ids)[0])
    assert entropy.tolist() == [0.0] * T


def test_map_logits_gives_any_function_its_gradient():
    """A function of two columns of the logits, against the same on full logits."""
    head, hidden, ids, grads = inputs(softcap=2.0)

    def function(logits, part):
        return token_entropy(logits) + logits[:, 3] * logits[:, 7] + ids[part]

    values = torch.cat(map_logits(head.logits, hidden, function, chunk_tokens=6))
    expected = function(head.logits(hidden), slice(0, T))
    torch.testing.assert_close(values, expected)
    for ours, theirs in zip(
        gradients(head, hidden, values, grads), gradients(head, hidden, expected, grads), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


class _Shapes(TorchDispatchMode):
    """The largest tensor, in elements, that any operator makes; autograd's backward included."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("tokens", [64, 256])
def test_memory_does_not_grow_with_vocabulary_times_tokens(tokens):
    """With chunks of 8 rows nothing larger than the weights is ever made; plain log-softmax makes tokens * V."""
    width, vocabulary, chunk = 8, 1000, 8
    hidden = torch.randn(tokens, width, requires_grad=True)
    head = LogitHead(torch.randn(vocabulary, width, requires_grad=True))
    ids = torch.randint(vocabulary, (tokens,))
    with _Shapes() as chunked:
        chunked_logprobs(head, hidden, ids, chunk_tokens=chunk)[0].sum().backward()
    assert chunked.largest == vocabulary * max(chunk, width)
    with _Shapes() as plain:
        token_logprobs(head.logits(hidden), ids).sum().backward()
    assert plain.largest == vocabulary * tokens
