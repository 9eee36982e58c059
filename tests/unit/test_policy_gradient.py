"""Oracles: values by hand, the definition spelled out, and exact expected gradients over all tokens."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pbsd.losses.policy_gradient import clipped_surrogate, group_advantages, k1, k2, k3


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_by_hand():
    """Rewards 1, 0, 0, 1: mean 1/2, deviation sqrt(4 * 1/4 / 3) = 0.5773503 with n - 1; epsilon 0.1 is added to it."""
    advantage = group_advantages(rows([1, 0, 0, 1]), scale="group", epsilon=0.1)
    size = 0.5 / (math.sqrt(1 / 3) + 0.1)
    torch.testing.assert_close(advantage, rows([size, -size, -size, size]))
    torch.testing.assert_close(group_advantages(rows([1, 0, 0, 1]), scale="none"), rows([0.5, -0.5, -0.5, 0.5]))


def test_batch_scale_by_hand():
    """Rewards (0, 2) and (5, 5): centred (-1, 1) and (0, 0); the batch's deviation is that of 0, 2, 5, 5: sqrt(6)."""
    advantage = group_advantages(rows([0, 2], [5, 5]), scale="batch", epsilon=0.1)
    size = 1 / (math.sqrt(6) + 0.1)
    torch.testing.assert_close(advantage, rows([-size, size], [0, 0]))


def test_leave_one_out_by_hand():
    """Rewards 3, 0, 0 and an unjudged one: each against the mean of the other two judged: 3 - 0, 0 - 3/2, 0 - 3/2."""
    mask = torch.tensor([[True, True, True, False]])
    advantage = group_advantages(rows([3, 0, 0, 99]), mask, scale="none", leave_one_out=True)
    torch.testing.assert_close(advantage, rows([3, -1.5, -1.5, 0]))


rewards = st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=4, max_size=4)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("leave_one_out", [False, True])
@given(batch=st.lists(rewards, min_size=1, max_size=3))
def test_advantages_equal_the_definition(scale, leave_one_out, batch):
    """Plain Python over lists, None being unjudged: a group with one judged rollout, or none, has no advantage."""
    reward = rows(*[[math.nan if r is None else r for r in group] for group in batch])
    judged_batch = [r for group in batch for r in group if r is not None]
    expected = []
    for group in batch:
        judged = [r for r in group if r is not None]
        if scale == "none":
            divisor = 1.0
        else:
            sample = judged if scale == "group" else judged_batch
            divisor = (statistics.stdev(sample) if len(sample) > 1 else 0.0) + 0.01
        row = []
        for index, r in enumerate(group):
            others = [o for i, o in enumerate(group) if o is not None and i != index]
            baseline = statistics.mean(others if leave_one_out else judged) if others and r is not None else r
            row.append(0.0 if r is None else (r - baseline) / divisor)
        expected.append(row)
    advantage = group_advantages(reward, ~reward.isnan(), scale=scale, epsilon=0.01, leave_one_out=leave_one_out)
    torch.testing.assert_close(advantage, rows(*expected))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_constant_group_is_exactly_zero(scale):
    """The float32 mean of seven times 0.1 is not 0.1, and a tiny epsilon would blow the difference up."""
    reward = torch.full((1, 8), 0.1)
    judged = torch.arange(8)[None] < 7
    assert (reward[judged] - reward[judged].mean()).abs().max() > 0
    assert (group_advantages(reward[:, :7], scale=scale, epsilon=1e-12) == 0).all()
    assert (group_advantages(reward, judged, scale=scale, epsilon=1e-12) == 0).all()


def test_advantages_have_no_gradient_and_take_half_precision():
    reward = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    advantage = group_advantages(reward, scale="group")
    assert not advantage.requires_grad
    torch.testing.assert_close(advantage, group_advantages(reward.float(), scale="group"))
    assert advantage.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "words"), [({"scale": "std"}, "group, batch, none"), ({"scale": "none", "epsilon": 0.0}, "positive")]
)
def test_bad_advantage_options(options, words):
    with pytest.raises(ValueError, match=words):
        group_advantages(rows([0, 1]), **options)


def surrogate(rho, advantage, **options):
    """One completion of one token per ratio."""
    policy = rows(rho).log().requires_grad_()
    loss = clipped_surrogate(
        policy, torch.zeros_like(policy), rows(advantage), torch.ones_like(policy),
        **{"epsilon_low": 0.2, "epsilon_high": 0.3, **options},
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    return loss.detach(), gradient


def test_clipping_by_hand():
    """Ratios 0.5, 1.1, 2 with bounds 0.8 and 1.3. A = 2 keeps 0.5 and 1.1 and clips 2 to 1.3; A = -2 clips 0.5 to 0.8.

    Unclipped, the gradient with respect to log pi is -rho A; clipped, it is 0.
    """
    loss, gradient = surrogate([0.5, 1.1, 2.0], 2.0)
    torch.testing.assert_close(loss, rows([-1.0, -2.2, -2.6]))
    torch.testing.assert_close(gradient, rows([-1.0, -2.2, 0.0]))
    loss, gradient = surrogate([0.5, 1.1, 2.0], -2.0)
    torch.testing.assert_close(loss, rows([1.6, 2.2, 4.0]))
    torch.testing.assert_close(gradient, rows([0.0, 2.2, 4.0]))


def test_sequence_level_by_hand():
    """Ratios 1/2 and 2 have the geometric mean 1: both tokens cost -A. The sum is -2 A rho, its gradient -A at each."""
    loss, gradient = surrogate([0.5, 2.0], 3.0, level="sequence")
    torch.testing.assert_close(loss, rows([-3.0, -3.0]))
    torch.testing.assert_close(gradient, rows([-3.0, -3.0]))


def test_sequence_level_counts_only_the_tokens_of_the_mask():
    """Ratios 2, 2 and 100 outside the mask: geometric mean 2 over two tokens, below the bound 3."""
    loss = clipped_surrogate(
        rows([2, 2, 100]).log(), rows([0, 0, 0]), rows(1), torch.tensor([[1, 1, 0]]),
        epsilon_low=0.2, epsilon_high=2.0, level="sequence",
    )  # fmt: skip
    torch.testing.assert_close(loss, rows([-2.0, -2.0, 0.0]))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_on_policy_gradient_is_that_of_reinforce(level):
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    advantage = torch.randn(3, generator=generator, dtype=torch.float64)
    loss = clipped_surrogate(policy, policy.detach(), advantage, mask, epsilon_low=0.2, epsilon_high=0.2, level=level)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    torch.testing.assert_close(gradient, -advantage[:, None] * mask)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("padding", [math.nan, -math.inf, 1e4])
def test_what_is_outside_the_mask_does_not_matter(level, padding):
    """Neither value nor gradient, not even a whole row outside it; nor is there a NaN on the way back."""
    mask = torch.tensor([[True, True, False], [False, False, False]])
    policy = rows([0.1, -0.2, padding], [padding, padding, padding]).requires_grad_()
    old = rows([0.0, 0.0, padding], [padding, padding, 0.0])
    loss = clipped_surrogate(policy, old, rows(1, 1), mask, epsilon_low=0.2, epsilon_high=0.2, level=level)
    with torch.autograd.set_detect_anomaly(True):
        loss.sum().backward()
    assert (loss[~mask] == 0).all() and (policy.grad[~mask] == 0).all()
    assert (loss[mask] < 0).all() and (policy.grad[mask] != 0).all()


def test_surrogate_gradient_reaches_the_policy_only():
    policy, old = rows([0.0, 0.1]).requires_grad_(), rows([0.0, 0.0]).requires_grad_()
    advantage = rows(1).requires_grad_()
    loss = clipped_surrogate(policy, old, advantage, torch.ones(1, 2), epsilon_low=0.2, epsilon_high=0.2)
    loss.sum().backward()
    assert (policy.grad != 0).all() and old.grad is None and advantage.grad is None


def test_surrogate_in_half_precision():
    """The difference of two bfloat16 log-probabilities is taken in float32."""
    policy, old = torch.tensor([[-10.5]]).bfloat16(), torch.tensor([[-10.4375]]).bfloat16()
    loss = clipped_surrogate(policy, old, torch.ones(1), torch.ones(1, 1), epsilon_low=0.2, epsilon_high=0.2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-math.exp(-0.0625), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "word"}, "token, sequence"),
        ({"epsilon_low": -0.1}, "epsilon_low"),
        ({"epsilon_low": 1.1}, "epsilon_low"),
        ({"epsilon_high": -0.1}, "epsilon_high"),
    ],
)
def test_bad_surrogate_options(options, words):
    with pytest.raises(ValueError, match=words):
        surrogate([1.0], 1.0, **options)


def test_estimators_by_hand():
    """log pi = -1, log ref = -1 - log 2, so ref / pi = 1/2: k1 = log 2, k2 = (log 2)^2 / 2, k3 = log 2 - 1/2.

    Gradients with respect to log pi: 1, log 2, 1 - 1/2; none to the reference.
    """
    policy = rows(-1).requires_grad_()
    reference = rows(-1 - math.log(2)).requires_grad_()
    expected = {k1: (math.log(2), 1.0), k2: (math.log(2) ** 2 / 2, math.log(2)), k3: (math.log(2) - 0.5, 0.5)}
    for estimator, (value, slope) in expected.items():
        result = estimator(policy, reference)
        (gradient,) = torch.autograd.grad(result.sum(), policy)
        assert result.item() == pytest.approx(value, abs=1e-12)
        assert gradient.item() == pytest.approx(slope, abs=1e-12)
        assert torch.autograd.grad(estimator(policy, reference).sum(), reference, allow_unused=True)[0] is None


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_k2_and_k3_are_not_negative(policy, reference):
    for estimator in (k2, k3):
        assert estimator(rows(policy), rows(reference)).item() >= -1e-15


def test_k3_underestimates_where_the_policy_does_not_cover_the_reference():
    """pi = (1, 0), ref = (1/2, 1/2): KL(pi || ref) = log 2, yet k3 at the only sample is log 2 - 1/2."""
    assert k3(rows(0.0), rows(math.log(0.5))).item() == pytest.approx(math.log(2) - 0.5)


def test_k3_near_equality_keeps_its_precision():
    """(e^d - 1) - d = d^2 / 2 for d = 1e-3 in float32, where exp(d) - d - 1 loses four digits."""
    policy, reference = torch.tensor([0.0]), torch.tensor([1e-3])
    assert k3(policy, reference).item() == pytest.approx(0.5e-6 + 1e-9 / 6, rel=1e-3)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_estimators_in_half_precision(estimator):
    policy, reference = torch.tensor([-10.5]).bfloat16(), torch.tensor([-10.4375]).bfloat16()
    value = estimator(policy, reference)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, estimator(policy.double(), reference.double()).float(), rtol=1e-4, atol=0)
