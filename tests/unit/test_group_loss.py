"""The group log-variance loss: by hand, against pairs, masks, and its expectation over group sizes."""

import itertools
import math

import pytest
import torch

from pbsd.losses.preference import group_log_variance_loss, preference_loss


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def example(seed, groups, members):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(groups, members, generator=generator, dtype=torch.float64) for _ in range(3))


def test_by_hand():
    """beta 0.5, eta 2: h = 0.5 (2, 4, 0) = (1, 2, 0), 2 r = (0, 2, 1), f = (1, 0, -1): mean 0, variance 2 / 2 = 1."""
    loss = group_log_variance_loss(
        rows([0, 1, -2]), rows([-2, -3, -2]), rows([0, 1, 0.5]), beta=0.5, reward_scale=2.0
    )  # fmt: skip
    assert loss.tolist() == pytest.approx([1.0], abs=1e-12)


def test_half_the_mean_squared_pair_loss_over_ordered_pairs():
    policy, teacher, reward = example(0, 3, 5)
    loss = group_log_variance_loss(policy, teacher, reward, beta=0.4, reward_scale=1.7)
    i, j = torch.tensor(list(itertools.permutations(range(5), 2))).T
    chosen, rejected = ([value[:, index].flatten() for value in (policy, teacher, reward)] for index in (i, j))
    pairs = preference_loss(
        chosen[0], rejected[0], chosen[1], rejected[1], beta=0.4, loss="squared",
        reward_chosen_B=chosen[2], reward_rejected_B=rejected[2], reward_scale=1.7,
    )  # fmt: skip
    torch.testing.assert_close(loss, pairs.view(3, -1).mean(-1) / 2, atol=1e-12, rtol=0)


@pytest.mark.parametrize("members", [2, 3, 4])
def test_expectation_does_not_depend_on_the_group_size(members):
    """Members drawn independently from q: E = Var_q(f), over every group. Dividing by G would give 1 - 1/G of it."""
    policy, teacher, reward = (value[0] for value in example(1, 1, 3))
    q = rows(0.2, 0.5, 0.3)
    f = 0.4 * (policy - teacher) - reward
    index = torch.tensor(list(itertools.product(range(3), repeat=members)))
    loss = group_log_variance_loss(policy[index], teacher[index], reward[index], beta=0.4)
    expected = (q * f.square()).sum() - (q * f).sum().square()
    assert (q[index].prod(-1) * loss).sum().item() == pytest.approx(expected.item(), abs=1e-12)


def test_zero_with_zero_gradient_at_the_target():
    """log pi = log T + eta r / beta + constant."""
    _, teacher, reward = example(2, 4, 6)
    policy = (teacher + 1.5 * reward / 0.3 + 11.0).requires_grad_()
    loss = group_log_variance_loss(policy, teacher, reward, beta=0.3, reward_scale=1.5)
    loss.sum().backward()
    assert loss.max().item() < 1e-24
    assert policy.grad.abs().max().item() < 1e-12


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_masked_members_are_not_read(bad):
    """Groups of 4, 2, 1 and 0 valid members: value and gradient of the members alone; 0 where a group says nothing."""
    policy, teacher, reward = example(3, 4, 4)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    policy, teacher, reward = (value.masked_fill(~mask, bad) for value in (policy, teacher, reward))
    policy.requires_grad_()
    loss = group_log_variance_loss(policy, teacher, reward, mask, beta=0.4)
    loss.sum().backward()
    alone = policy.detach()[1, [1, 3]][None].requires_grad_()
    smaller = group_log_variance_loss(alone, teacher[1, [1, 3]][None], reward[1, [1, 3]][None], beta=0.4)
    smaller.sum().backward()
    assert loss[1].item() == pytest.approx(smaller.item(), abs=1e-12)
    torch.testing.assert_close(policy.grad[1, [1, 3]], alone.grad[0], atol=1e-12, rtol=0)
    assert loss[2:].tolist() == [0.0, 0.0]
    assert policy.grad[~mask].abs().max() == 0
    assert policy.grad[2:].abs().max() == 0
    assert policy.grad[0].abs().min() > 0


def test_gradient_reaches_the_policy_only():
    policy, teacher, reward = (value.requires_grad_() for value in example(4, 2, 3))
    group_log_variance_loss(policy, teacher, reward, beta=0.4).sum().backward()
    assert policy.grad.abs().min() > 0
    assert teacher.grad is None
    assert reward.grad is None


def test_members_and_groups_may_be_permuted():
    policy, teacher, reward = example(5, 3, 4)
    order = torch.tensor([2, 0, 3, 1])
    loss = group_log_variance_loss(policy, teacher, reward, beta=0.4)
    permuted = group_log_variance_loss(policy[:, order], teacher[:, order], reward[:, order], beta=0.4)
    torch.testing.assert_close(permuted, loss, atol=1e-12, rtol=0)


def test_beta_must_be_positive():
    with pytest.raises(ValueError, match="beta must be positive"):
        group_log_variance_loss(*example(6, 1, 2), beta=-1.0)
