"""Oracles: values derived by hand, and the population optimum of docs/paper_map.md, 6 on a small finite space."""

import math

import pytest
import torch

from pbsd.losses.preference import preference_loss


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_logistic_by_hand():
    """beta 0.5, log-ratios 2 and -1: margin 0.5 * (2 - (-1)) = 1.5; loss = log(1 + e^-1.5) = 0.2014133."""
    loss = preference_loss(column(-3), column(-6), column(-5), column(-5), beta=0.5, loss="logistic")
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-12)


def test_label_smoothing_one_half_is_a_tie():
    """s = 1/2: loss = -(log sigmoid(m) + log sigmoid(-m)) / 2, even in m, at its least (log 2) where m = 0."""
    up = preference_loss(
        column(2), column(0), column(0), column(0), beta=1.0, loss="logistic", label_smoothing=column(0.5)
    )
    expected = 0.5 * (math.log1p(math.exp(-2)) + math.log1p(math.exp(2)))
    assert up.item() == pytest.approx(expected, abs=1e-12)
    at_zero = preference_loss(
        column(1), column(1), column(0), column(0), beta=1.0, loss="logistic", label_smoothing=0.5
    )
    assert at_zero.item() == pytest.approx(math.log(2), abs=1e-12)


def test_bradley_terry_by_hand():
    """eta 2, rewards 1 and 0: q = sigmoid(2) = 0.8807971; margin 1: loss = q log(1+e^-1) + (1-q) log(1+e)."""
    loss = preference_loss(
        column(1), column(0), column(0), column(0), beta=1.0, loss="bradley_terry",
        reward_chosen_B=column(1), reward_rejected_B=column(0), reward_scale=2.0,
    )  # fmt: skip
    q = 1 / (1 + math.exp(-2))
    assert loss.item() == pytest.approx(q * math.log1p(math.exp(-1)) + (1 - q) * math.log1p(math.e), abs=1e-12)


def test_squared_by_hand():
    """margin 0.1 * (3 - 1) = 0.2, gap 3 * (1 - 0.5) = 1.5: (0.2 - 1.5)^2 = 1.69."""
    loss = preference_loss(
        column(3), column(1), column(0), column(0), beta=0.1, loss="squared",
        reward_chosen_B=column(1), reward_rejected_B=column(0.5), reward_scale=3.0,
    )  # fmt: skip
    assert loss.item() == pytest.approx(1.69, abs=1e-12)


def test_gradient_reaches_the_policy_only():
    """d/dm of the logistic loss is -sigmoid(-m); dm/dlog pi(y+) = beta. At m = 0 the gradients are -+ beta / 2."""
    terms = [column(0.0).requires_grad_() for _ in range(4)]
    preference_loss(*terms, beta=0.3, loss="logistic").sum().backward()
    assert terms[0].grad.item() == pytest.approx(-0.15)
    assert terms[1].grad.item() == pytest.approx(0.15)
    assert terms[2].grad is None
    assert terms[3].grad is None


@pytest.mark.parametrize("loss", ["bradley_terry", "squared"])
def test_population_optimum_is_the_tilted_teacher(loss):
    """Over all pairs of a 5-element space, the gradient vanishes at P* = T exp(eta r / beta) / Z and not at T."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    reward = torch.rand(5, generator=generator, dtype=torch.float64)
    beta, eta = 0.4, 1.7
    first, second = torch.combinations(torch.arange(5)).T

    def gradient_at(policy):
        logits = policy.clone().requires_grad_()
        logp = logits.log_softmax(-1)
        preference_loss(
            logp[first], logp[second], teacher[first], teacher[second], beta=beta, loss=loss,
            reward_chosen_B=reward[first], reward_rejected_B=reward[second], reward_scale=eta,
        ).sum().backward()  # fmt: skip
        return logits.grad.abs().max().item()

    assert gradient_at(teacher + eta * reward / beta) < 1e-12
    assert gradient_at(teacher) > 1e-2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0.0, "loss": "logistic"}, "beta must be positive"),
        ({"beta": 1.0, "loss": "hinge"}, "logistic, bradley_terry, squared"),
        ({"beta": 1.0, "loss": "squared"}, "reads rewards"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        preference_loss(column(0), column(0), column(0), column(0), **options)
