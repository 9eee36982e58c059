"""The reward-tilted target on a finite set of completions: optimum, value and gap (DESIGN 2.1 to 2.3).

Shapes: Y completions. Distributions are arrays [Y] of probabilities that sum to one; rewards are arrays [Y]; logarithms
are natural and beta has the reward's unit per nat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, rel_entr

Array = NDArray[np.float64]


def kl(p: Array, q: Array) -> float:
    """KL(p || q) in nats; infinite where p has mass and q has none."""
    return float(rel_entr(p, q).sum())


def reward_tilted(teacher: Array, reward: Array, beta: float) -> Array:
    """P*(y) = T(y) exp(r(y) / beta) / Z, [Y]: the maximiser of `objective`. A reward scale eta goes in as eta * reward.

    Raises:
        ValueError: beta not positive, shapes that differ, or a teacher that is not a distribution.
    """
    log_weight = _log_tilted(teacher, reward, beta)
    return np.exp(log_weight - logsumexp(log_weight))


def optimal_value(teacher: Array, reward: Array, beta: float) -> float:
    """J(P*) = beta log Z with Z = E_T[exp(r / beta)]."""
    return beta * float(logsumexp(_log_tilted(teacher, reward, beta)))


def objective(policy: Array, teacher: Array, reward: Array, beta: float) -> float:
    """J(p) = E_p[r] - beta KL(p || T); minus infinity when the policy leaves the teacher's support."""
    _check(teacher, reward, beta)
    return float(policy @ np.where(policy > 0, reward, 0.0)) - beta * kl(policy, teacher)


def optimality_gap(policy: Array, teacher: Array, reward: Array, beta: float) -> float:
    """J(P*) - J(p) = beta KL(p || P*), by the right-hand side (without cancellation), in units of reward."""
    return beta * kl(policy, reward_tilted(teacher, reward, beta))


def _log_tilted(teacher: Array, reward: Array, beta: float) -> Array:
    _check(teacher, reward, beta)
    with np.errstate(divide="ignore"):
        return np.log(teacher) + reward / beta


def _check(teacher: Array, reward: Array, beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if teacher.ndim != 1 or teacher.shape != reward.shape:
        raise ValueError(f"teacher and reward must both be [Y]; got shapes {teacher.shape} and {reward.shape}")
    if (teacher < 0).any() or not np.isclose(teacher.sum(), 1.0):
        raise ValueError(f"teacher must be a distribution; it sums to {teacher.sum():g}, least entry {teacher.min():g}")
