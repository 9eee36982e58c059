"""How much n labelled pairs teach, and when a self-teacher is preferable (docs/theory.md).

The learner fits theta on n pairs by the `bradley_terry` loss; sqrt(n) (theta^ - theta*) -> N(0, I^-1). Everything is
exact at leading order in 1/n; `simulate` has the Monte Carlo twins. Rewards are in units of the labels' log-odds, beta
in reward per nat, regrets in reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from pbsd.theory.tabular import Array, optimality_gap
from pbsd.theory.worlds import PairDesign, World, Yardstick

# Values closer than this, in units of reward, are the same: what is left is rounding.
TIE = 1e-12


def sigmoid_slope(x: Array) -> Array:
    """sigmoid'(x), which is what a label says about its margin: 1/4 at 0, e^-|x| far out."""
    return expit(x) * expit(-x)


def fisher_information(design: PairDesign, *, flip_rate: float = 0.0) -> Array:
    """I = E[sigmoid'(m*) dphi dphi^T] of one labelled pair, [D, D].

    With labels flipped at a known rate e, P = (1 - e) sigmoid(m*) + e sigmoid(-m*) and
    sigmoid' becomes (1 - 2e)^2 sigmoid'(m*)^2 / (P (1 - P)).
    """
    slope = sigmoid_slope(design.gap_N)
    label = (1.0 - flip_rate) * expit(design.gap_N) + flip_rate * expit(-design.gap_N)
    information_N = (1.0 - 2.0 * flip_rate) ** 2 * slope**2 / (label * (1.0 - label))
    return _second_moment(design.difference_ND, design.weight_N * information_N)


def regression_information(design: PairDesign, *, variance_Y: Array) -> Array:
    """The same for the `squared` loss on rewards with independent noise of variance variance_Y per sample, [D, D].

    n Cov(theta^) = A^-1 E[(variance(y+) + variance(y-)) dphi dphi^T] A^-1 with A = E[dphi dphi^T], whatever the noise's
    distribution; the inverse is returned. A reward bounded in an interval of length R has variance at most R^2 / 4, a
    success with probability p has p (1 - p); without a finite variance there is no 1/n law.
    """
    moment = _second_moment(design.difference_ND, design.weight_N)
    noise_N = variance_Y[design.first_N] + variance_Y[design.second_N]
    return moment @ np.linalg.inv(_second_moment(design.difference_ND, design.weight_N * noise_N)) @ moment


def target_covariance(target_Y: Array, features_YD: Array) -> Array:
    """Cov_P*(phi), [D, D]."""
    centred = features_YD - target_Y @ features_YD
    return _second_moment(centred, target_Y)


def regret_constant(covariance_DD: Array, information_DD: Array) -> float:
    """v = tr(Cov_P*(phi) I^-1): the mean regret after n pairs is v / (2 beta n) at leading order.

    Raises:
        ValueError: the pairs never differ in some direction in which the target does, so no number of them is enough.
    """
    eigenvalues, vectors = np.linalg.eigh(information_DD)
    spread = np.einsum("dk,de,ek->k", vectors, covariance_DD, vectors)
    seen = eigenvalues > 1e-12 * max(eigenvalues[-1], 1e-300)
    if (spread[~seen] > 1e-12 * max(np.trace(covariance_DD), 1e-300)).any():
        raise ValueError("the pairs carry no information in a direction in which the target varies; v is infinite")
    return float((spread[seen] / eigenvalues[seen]).sum())


@dataclass(frozen=True)
class Limit:
    """Where the fit of n pairs goes: theta^ = theta + O(n^-1/2).

    Attributes:
        theta_D: the minimiser of the population loss; theta* when the model is well specified.
        covariance_DD: limit of n Cov(theta^), A^-1 B A^-1 (I^-1 when well specified).
        bias_D: limit of n E[theta^ - theta].
    """

    theta_D: Array
    covariance_DD: Array
    bias_D: Array


def estimator_limit(world: World) -> Limit:
    """The limit of the maximum-likelihood fit; holds also for a learner that does not know of flipped labels, or whose
    class misses the target.

    With s = (label - P) d the score of a pair, A the mean curvature and Sigma = A^-1 E[s s^T] A^-1, the bias is
    A^-1 (E[H A^-1 s] + E[T Sigma] / 2) / n, H and T the second and third derivatives of the log-likelihood
    (Cox and Snell 1968, in the form for misspecified models).
    """
    design, label = world.design, world.label_N
    d, weight = design.difference_ND, design.weight_N
    offset_N, flip = world.offset_N, world.assumed_flip_rate

    theta = world.theta_D.astype(float)
    score_N, _, _ = likelihood_derivatives(d @ theta + offset_N, label, flip)
    if np.abs(d.T @ (weight * score_N)).max() > 1e-14:  # misspecified: theta* is not the limit
        theta = np.zeros_like(theta)
        for _ in range(1000):
            score_N, curvature_N, _ = likelihood_derivatives(d @ theta + offset_N, label, flip)
            step = np.linalg.solve(_second_moment(d, -weight * curvature_N), d.T @ (weight * score_N))
            # Within a unit of margin the curvature changes by a factor e at most.
            step /= max(1.0, np.abs(d @ step).max())
            theta = theta + step
            if np.abs(step).max() < 1e-12:
                break
        else:
            raise ArithmeticError("the population fit did not converge")
    margin = d @ theta + offset_N
    score_N, curvature_N, third_N = likelihood_derivatives(margin, label, flip)
    inverse = np.linalg.inv(_second_moment(d, -weight * curvature_N))
    win, lose = (likelihood_derivatives(margin, np.full_like(margin, y), flip) for y in (1.0, 0.0))
    squared_score = label * win[0] ** 2 + (1.0 - label) * lose[0] ** 2
    curvature_score = label * win[1] * win[0] + (1.0 - label) * lose[1] * lose[0]
    covariance = inverse @ _second_moment(d, weight * squared_score) @ inverse
    leverage = np.einsum("nd,de,ne->n", d, inverse, d)
    spread = np.einsum("nd,de,ne->n", d, covariance, d)
    bias = inverse @ (d.T @ (weight * (curvature_score * leverage + 0.5 * third_N * spread)))
    return Limit(theta, covariance, bias)


def likelihood_derivatives(margin: Array, label: Array, flip_rate: float) -> tuple[Array, Array, Array]:
    """First three derivatives in the margin of label log P + (1 - label) log(1 - P), P = e + (1 - 2e) sigmoid(margin).

    All three are linear in the label.
    """
    s = expit(margin)
    p1 = (1.0 - 2.0 * flip_rate) * s * (1.0 - s)
    p2, p3 = p1 * (1.0 - 2.0 * s), p1 * (1.0 - 6.0 * s * (1.0 - s))
    p = flip_rate + (1.0 - 2.0 * flip_rate) * s
    q = flip_rate + (1.0 - 2.0 * flip_rate) * expit(-margin)
    if flip_rate == 0.0:  # the same formulas, without the division of two numbers near zero
        return label - s, -p1, -p2

    def terms(value: Array, sign: float) -> tuple[Array, Array, Array]:
        one, two, three = sign * p1 / value, sign * p2 / value, sign * p3 / value
        return one, two - one**2, three - 3.0 * one * two + 2.0 * one**3

    won, lost = terms(p, 1.0), terms(q, -1.0)
    first, second, third = (label * a + (1.0 - label) * b for a, b in zip(won, lost, strict=True))
    return first, second, third


def value(world: World, theta_D: Array, yardstick: Yardstick) -> Array:
    """What pi_theta is worth, [...] for theta [..., D], in units of reward."""
    policy = world.policy(theta_D)
    if yardstick == "reward":
        return policy @ world.reward_Y
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.where(policy > 0, np.log(policy) - np.log(world.teacher_Y), 0.0)
    return policy @ world.reward_Y - world.beta * (policy * log_ratio).sum(-1)


@dataclass(frozen=True)
class Expansion:
    """Mean excess risk of a teacher kind after n pairs, bias + constant / n at leading order, in units of reward."""

    bias: float
    constant: float

    def at(self, n: Any) -> Any:
        return self.bias + self.constant / n


def expansion(world: World, best: float, yardstick: Yardstick = "soft_value") -> Expansion:
    """Excess risk against the value `best` by the delta method at second order, correct for every `World`.

    bias is best minus the value in the limit: the gap of the kind's own target plus its approximation error. In a
    well-specified world under `soft_value`, constant = v / (2 beta).
    """
    limit = estimator_limit(world)
    policy = world.policy(limit.theta_D)
    centred = world.features_YD - policy @ world.features_YD
    own = 1.0 if yardstick == "soft_value" else 0.0
    gain = world.reward_Y - own * world.implicit_reward(limit.theta_D)
    gain = gain - policy @ gain
    gradient = centred.T @ (policy * gain) / world.beta
    hessian = (
        _second_moment(centred, policy * gain) / world.beta**2 - own * _second_moment(centred, policy) / world.beta
    )
    constant = -(gradient @ limit.bias_D + 0.5 * np.trace(hessian @ limit.covariance_DD))
    return Expansion(best - float(value(world, limit.theta_D, yardstick)), float(constant))


def excess_risk(n: float, *, bias: float, regret_constant: float, beta: float) -> float:
    """excess(n) = b + v / (2 beta n): value gap of the kind's own target plus the mean regret of learning it."""
    return bias + regret_constant / (2.0 * beta * n)


@dataclass(frozen=True)
class Crossover:
    """Where two excess risks meet.

    Attributes:
        sample_size: pairs at which neither is preferable; infinite when `below` is preferable at every n, nan when the
            two are the same at every n.
        below: the kind that is preferable for fewer pairs than that.
    """

    sample_size: float
    below: Literal["self", "external"]


def crossover(own: Expansion, external: Expansion) -> Crossover:
    """n* = (c_external - c_self) / (b_self - b_external) with c the constants of the two expansions."""
    slope, gap = external.constant - own.constant, own.bias - external.bias
    if abs(gap) < TIE:
        gap = 0.0
    if slope == 0.0 and gap == 0.0:
        return Crossover(float("nan"), "self")
    below: Literal["self", "external"] = "self" if slope > 0.0 or (slope == 0.0 and gap < 0.0) else "external"
    if gap == 0.0 or slope / gap <= 0.0:
        return Crossover(float("inf"), below)
    return Crossover(slope / gap, below)


def crossover_sample_size(
    *, bias_self: float, bias_external: float, v_self: float, v_external: float, beta: float
) -> float:
    """n* = (v_external - v_self) / (2 beta (b_self - b_external)); infinite when one kind is preferable at every n."""
    return crossover(
        Expansion(bias_self, v_self / (2.0 * beta)), Expansion(bias_external, v_external / (2.0 * beta))
    ).sample_size


def finite_sample_bound(design: PairDesign, *, n: int, delta: float) -> float:
    """A bound on ||theta^ - theta*||_I that a well-specified fit on n pairs keeps with probability 1 - delta or more.

    With z = I^-1/2 dphi, R = max ||z||, L = max sigmoid'(m*) ||z||^2, D features and t = log(2 / delta):

    - the score is at most nu = sqrt(D/n) + sqrt(2 t (1 + 2 R sqrt(D/n)) / n) + R t / (3 n)   (Bousquet 2002);
    - the sample's curvature is at least 1 - eta of I, eta = sqrt(2 L log(2 D / delta) / n)    (Tropp 2012);
    - the log-likelihood is self-concordant along every line, with constant R (Bach 2010), so
      ||theta^ - theta*||_I <= -log(1 - R nu / (1 - eta)) / R.

    Infinite when n is too small for the last step (eta >= 1 or R nu >= 1 - eta): the bound says nothing, as the fit
    may not even exist. The asymptotic size of the same norm is sqrt(D/n).
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta}")
    information = fisher_information(design)
    occurs = design.weight_N > 0
    d = design.difference_ND[occurs]
    squared_norm = np.einsum("nd,nd->n", d, np.linalg.solve(information, d.T).T)
    radius = float(np.sqrt(squared_norm.max()))
    leverage = float((sigmoid_slope(design.gap_N[occurs]) * squared_norm).max())
    dimension, t = d.shape[1], np.log(2.0 / delta)
    root = np.sqrt(dimension / n)
    nu = root + np.sqrt(2.0 * t * (1.0 + 2.0 * radius * root) / n) + radius * t / (3.0 * n)
    eta = np.sqrt(2.0 * leverage * np.log(2.0 * dimension / delta) / n)
    if eta >= 1.0 or radius * nu >= 1.0 - eta:
        return float("inf")
    return float(-np.log1p(-radius * nu / (1.0 - eta)) / radius)


def regret_bound(world: World, norm: float) -> float:
    """An upper bound on the regret beta KL(pi_theta || P*) of every theta with ||theta - theta*||_I <= norm.

    KL(pi_theta || pi_theta*) is the integral of s Var(<delta, phi>) / beta^2 over the segment theta* + s delta, and the
    variance grows at most by e^(s w), w the range of <delta, phi> / beta over completions.
    """
    if not np.isfinite(norm):
        return float("inf")
    information = fisher_information(world.design)
    whiten = np.linalg.cholesky(np.linalg.inv(information))
    covariance = whiten.T @ target_covariance(world.target_Y, world.features_YD) @ whiten
    largest = float(np.linalg.eigvalsh(covariance)[-1])
    d = world.design.difference_ND
    width = norm * float(np.sqrt(np.einsum("nd,nd->n", d, np.linalg.solve(information, d.T).T).max())) / world.beta
    growth = 0.5 if width < 1e-6 else (np.exp(width) * (width - 1.0) + 1.0) / width**2
    return float(growth * largest * norm**2 / world.beta)


def regularity_scale(world: World) -> float:
    """Pairs on whose scale the expansions in 1/n begin to hold: the larger of v / (2 beta^2), where the expected
    KL(pi_theta^ || P*) is a nat, and L = max sigmoid'(m*) ||dphi||^2_{I^-1}, where one pair moves the fit by its own
    standard deviation. A well-specified world is within a few percent at 100 times this (docs/theory.md)."""
    information = fisher_information(world.design)
    v = regret_constant(target_covariance(world.target_Y, world.features_YD), information)
    d = world.design.difference_ND[world.design.weight_N > 0]
    gap = world.design.gap_N[world.design.weight_N > 0]
    leverage = sigmoid_slope(gap) * np.einsum("nd,dn->n", d, np.linalg.solve(information, d.T))
    return max(v / (2.0 * world.beta**2), float(leverage.max()))


def sparse_regret_with_soft_labels(world: World, n: int) -> float:
    """Mean regret of a `sparse_world` when labels are the probabilities sigmoid(r+ - r-) themselves, as in training.

    One pair of a success with a failure then gives theta* exactly, so all that is left is the chance of none among n
    pairs, in which case the policy stays the teacher: (1 - D)^n beta KL(T || P*). Exponential in n, where labels drawn
    once a pair cost v / (2 beta n).
    """
    return float((1.0 - world.design.weight_N.sum()) ** n) * optimality_gap(
        world.teacher_Y, world.teacher_Y, world.reward_Y, world.beta
    )


def _second_moment(x_ND: Array, weight_N: Array) -> Array:
    """Sum of w x x^T, [D, D]."""
    return np.einsum("n,nd,ne->de", weight_N, x_ND, x_ND)
