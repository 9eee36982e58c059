"""The reward-tilted target on a finite set of completions, and what each loss learns (docs/paper_map.md).

Shapes: Y completions. Distributions are arrays [Y] of probabilities that sum to one; rewards are arrays [Y]; logarithms
are natural and beta has the reward's unit per nat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, gammaln, logsumexp, rel_entr, softmax

Array = NDArray[np.float64]
Loss = Literal["logistic", "bradley_terry", "squared", "group_log_variance", "imitation", "direct", "nll"]
Pairing = Literal["cross", "all"]
PairPolicy = Literal["all", "correct", "improving", "oriented"]
PAIR_LOSSES = ("logistic", "bradley_terry", "squared")


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


def pair_terms(loss: str, margin: Array, gap: Array) -> tuple[Array, Array, Array]:
    """Value, slope and curvature in the margin m of a pair loss whose reward gap (already scaled) is d; any shape."""
    if loss == "squared":
        return (margin - gap) ** 2, 2.0 * (margin - gap), np.full_like(margin, 2.0)
    label = np.ones_like(gap) if loss == "logistic" else expit(gap)
    value = label * np.logaddexp(0.0, -margin) + (1.0 - label) * np.logaddexp(0.0, margin)
    return value, expit(margin) - label, expit(margin) * expit(-margin)


def kept_pairs(
    cross: Array,
    same: Array,
    *,
    reward: Array,
    pair_policy: PairPolicy,
    needs_rewards: bool,
    keep_ties: bool = False,
    correct: Array | None = None,
) -> Array:
    """What `pbsd.pairs.make_pairs` keeps of a measure over candidate pairs: weight of (chosen, rejected), [..., Y, Y].

    A tie kept with label 1/2 becomes half a pair either way round, which is the same loss.

    Args:
        cross: weight of (teacher sample, student sample), [..., Y, Y].
        same: weight of two samples of one role, in the order of sampling, [..., Y, Y].
        correct: [Y] of 0 and 1, for `pair_policy = correct`.
    """
    better, tie = reward[:, None] > reward[None, :], reward[:, None] == reward[None, :]
    if pair_policy not in get_args(PairPolicy):
        raise ValueError(f"pair_policy must be one of {', '.join(get_args(PairPolicy))}; got {pair_policy!r}")
    keep: Array = np.ones_like(reward)[:, None]
    if pair_policy == "correct":
        if correct is None:
            raise ValueError("pair_policy 'correct' needs `correct`, an array [Y] of 0 and 1")
        keep = correct[:, None]
    elif pair_policy == "improving":
        keep = better.astype(float)
    oriented = pair_policy == "oriented"
    kept = keep * better * _both_ways(same) + keep * (better * _both_ways(cross) if oriented else cross)
    half = (same + cross) * tie if oriented else same * tie
    half = keep * half if keep_ties or (needs_rewards and not oriented) else 0.0 * half
    return kept + _both_ways(half) / 2.0


def pair_measure(
    teacher_sampler: Array,
    student_sampler: Array,
    *,
    reward: Array,
    pairing: Pairing = "cross",
    pair_policy: PairPolicy = "all",
    needs_rewards: bool = False,
    keep_ties: bool = False,
    correct: Array | None = None,
    teacher_samples: int = 1,
    student_samples: int = 1,
) -> Array:
    """Expected weight of (chosen, rejected) per candidate pair, [Y, Y]; what is missing to 1 has been dropped.

    Samples are independent; `pairing = all` also pairs the samples of one role (docs/paper_map.md, 7 and 8).
    """
    if pairing not in get_args(Pairing):
        raise ValueError(f"pairing must be one of {', '.join(get_args(Pairing))}; got {pairing!r}")
    k_t, k_s = teacher_samples, student_samples
    cross = k_t * k_s * np.outer(teacher_sampler, student_sampler)
    same = np.zeros_like(cross)
    if pairing == "all":
        same = k_t * (k_t - 1) / 2 * np.outer(teacher_sampler, teacher_sampler)
        same = same + k_s * (k_s - 1) / 2 * np.outer(student_sampler, student_sampler)
    total = cross.sum() + same.sum()
    if not total > 0:
        raise ValueError(f"no pairs: pairing {pairing!r} with {k_t} teacher and {k_s} student samples")
    kept = kept_pairs(
        cross,
        same,
        reward=reward,
        pair_policy=pair_policy,
        needs_rewards=needs_rewards,
        keep_ties=keep_ties,
        correct=correct,
    )
    return kept / total


def count_vectors(samples: int, size: int) -> Array:
    """Every way that `samples` draws can fall on `size` completions, [N, Y]."""
    draws = combinations_with_replacement(range(size), samples)
    return np.array([np.bincount(np.array(draw, dtype=int), minlength=size) for draw in draws], dtype=float)


def count_log_probability(counts: Array, sampler: Array) -> Array:
    """Multinomial log-probability of each row of `counts`, [N]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, counts * np.log(sampler), 0.0)
    return gammaln(counts.sum(-1) + 1) - gammaln(counts + 1).sum(-1) + terms.sum(-1)


def imitation_target(teacher: Array, reward: Array, beta: float, *, group: int | None = None) -> Array:
    """E[sum_i w_i 1(y_i = y)] over groups of teacher samples, w = softmax(r / beta) in the group, [Y], by enumeration.

    What imitation with groups of that size learns: the teacher itself at group 1, P* as the group grows (None). To
    first order the displacement is P*(y) (E_T[w^2] - w(y)) / group with w = P*/T.
    """
    if group is None:
        return reward_tilted(teacher, reward, beta)
    _check(teacher, reward, beta)
    counts = count_vectors(group, len(teacher))
    weights = counts * np.exp((reward - reward.max()) / beta)
    weights /= weights.sum(-1, keepdims=True)
    return np.exp(count_log_probability(counts, teacher)) @ weights


def logistic_optimum(teacher: Array, chosen: Array, rejected: Array, beta: float) -> Array:
    """T (C/S)^(1/beta) / Z, [Y]: minimiser of the plain logistic loss with frozen independent samplers C and S.

    C_i S_j / (C_i S_j + C_j S_i) = sigmoid(log(C_i/S_i) - log(C_j/S_j)), so the implied reward is log C/S. The paper's
    pairing has C = T. All three must be positive.
    """
    return reward_tilted(teacher, np.log(chosen) - np.log(rejected), beta)


@dataclass(frozen=True)
class Population:
    """The expected loss sum_k weight_k L_k of a policy, with fixed samplers.

    Attributes:
        losses: loss -> weight > 0.
        teacher, reward: [Y]; the teacher positive everywhere.
        pairs: [Y, Y], weight of (chosen, rejected), for the pair losses.
        group: [Y, Y], joint distribution of two distinct members of a group, for `group_log_variance`, whose
            expectation is E[(f - f')^2] / 2 (the unbiased variance), f = h - reward_scale r.
        target: [Y], for `imitation`: -sum_y target(y) log pi(y).
        anchor: [Y], for `nll`, the likelihood anchor: -sum_y anchor(y) log pi(y).
    """

    losses: Mapping[str, float]
    teacher: Array
    reward: Array
    beta: float
    reward_scale: float = 1.0
    pairs: Array | None = None
    group: Array | None = None
    target: Array | None = None
    anchor: Array | None = None

    def loss(self, policy: Array) -> float:
        return self._parts(policy)[0]

    def gradient(self, policy: Array) -> Array:
        """With respect to the policy's logits, [Y]; sums to zero."""
        _, slope, _ = self._parts(policy)
        return slope - policy * slope.sum()

    def hessian(self, policy: Array) -> Array:
        """With respect to the policy's logits, [Y, Y]; singular along constants."""
        _, slope, curvature = self._parts(policy)
        jacobian = np.eye(len(policy)) - policy  # of log pi by the logits
        fisher = np.diag(policy) - np.outer(policy, policy)
        return jacobian.T @ curvature @ jacobian - slope.sum() * fisher

    def _parts(self, policy: Array) -> tuple[float, Array, Array]:
        """Value, gradient [Y] and Hessian [Y, Y] with respect to log pi, its entries taken as free."""
        log_ratio = np.log(policy) - np.log(self.teacher)
        value, slope, curvature = 0.0, np.zeros(len(policy)), np.zeros((len(policy),) * 2)
        for name, weight in self.losses.items():
            if name == "direct":
                excess = self.beta * log_ratio - self.reward_scale * self.reward
                value += weight * float(policy @ excess)
                slope += weight * policy * (excess + self.beta)
                curvature += weight * np.diag(policy * (excess + 2 * self.beta))
            elif name in ("imitation", "nll"):
                target = self.target if name == "imitation" else self.anchor
                assert target is not None
                value -= weight * float(target @ np.log(policy))
                slope -= weight * target
            else:
                measure, kind = (self.pairs, name) if name in PAIR_LOSSES else (self.group, "squared")
                assert measure is not None
                scale = weight * (1.0 if name in PAIR_LOSSES else 0.5)
                margin = self.beta * (log_ratio[:, None] - log_ratio[None, :])
                gap = self.reward_scale * (self.reward[:, None] - self.reward[None, :])
                terms = [scale * measure * term for term in pair_terms(kind, margin, gap)]
                value += float(terms[0].sum())
                slope += self.beta * (terms[1].sum(1) - terms[1].sum(0))
                stiffness = _both_ways(terms[2])
                curvature += self.beta**2 * (np.diag(stiffness.sum(1)) - stiffness)
        return value, slope, curvature

    def optimum(self) -> Array:
        """The minimiser over all policies, [Y], to about 1e-10, by Newton steps on the logits with a line search.

        It is unique: every loss but `direct` is convex in the logits, and a gradient step on `direct` also moves
        towards P*, so labelled losses mixed with it leave no other stationary point. (`direct` mixed with losses of
        another target has no such guarantee.)

        Raises:
            ValueError: no finite minimiser, because the pairs do not connect the support (for `logistic`: some set of
                completions is never rejected in favour of one outside it).
            ArithmeticError: the iteration did not converge.
        """
        self._require_connected()
        logits = np.log(self.teacher)
        for _ in range(500):
            policy = softmax(logits)
            value, gradient, curvature = self.loss(policy), self.gradient(policy), self._gauss_newton(policy)
            # Constants are the null space: scale the diagonal to one, then pin them with a matrix of ones.
            root = np.sqrt(np.diag(curvature))
            step = -np.linalg.solve(curvature / np.outer(root, root) + 1.0, gradient / root) / root
            step -= step.mean()
            size = np.abs(step).max()
            if size < 1e-11:
                return softmax(logits + step)
            share = min(1.0, 4.0 / size)
            while size > 1e-5 and share > 1e-12:
                if self.loss(softmax(logits + share * step)) < value + 1e-4 * share * float(gradient @ step):
                    break
                share /= 2.0
            logits = logits + share * step
        raise ArithmeticError(f"no convergence: last Newton step {size:.1e}")

    def _gauss_newton(self, policy: Array) -> Array:
        """The Hessian, but beta times Fisher's matrix for `direct`: positive everywhere, and the same at P*."""
        convex = {name: weight for name, weight in self.losses.items() if name != "direct"}
        fisher = np.diag(policy) - np.outer(policy, policy)
        return replace(self, losses=convex).hessian(policy) + self.losses.get("direct", 0.0) * self.beta * fisher

    def _require_connected(self) -> None:
        if {"direct", "imitation", "nll"} & set(self.losses):
            return
        edges = np.zeros((len(self.teacher),) * 2)
        for name in self.losses:
            measure = self.group if name == "group_log_variance" else self.pairs
            assert measure is not None
            edges += measure if name == "logistic" else _both_ways(measure)
        parts, _ = connected_components(edges > 0, directed=True, connection="strong")
        if parts > 1:
            raise ValueError(f"no finite optimum: the pairs leave the {len(edges)} completions in {parts} parts")


def population(
    loss: str | Mapping[str, float],
    *,
    teacher: Array,
    reward: Array,
    beta: float,
    reward_scale: float = 1.0,
    chosen: Array | None = None,
    rejected: Array | None = None,
    pairs: Array | None = None,
    sampler: Array | None = None,
    imitation_group: int | None = None,
) -> Population:
    """The expected loss under fixed samplers; `loss` is a name or a mixture, name -> weight.

    Args:
        chosen, rejected: samplers [Y] of y+ (the teacher if not given) and y-, independent; or
        pairs: their joint weights [Y, Y], e.g. from `pair_measure`.
        sampler: of the members of a group, [Y], independent; or [Y, Y], the joint distribution of two of them.
        imitation_group: size of the groups of teacher samples; None is the limit of large groups.

    Raises:
        ValueError: an unknown loss or a weight that is not positive; a teacher with zeros (leave such completions out:
            every target is zero there); a sampler that is missing or no distribution.
    """
    losses = {loss: 1.0} if isinstance(loss, str) else dict(loss)
    for name, weight in losses.items():
        if name not in get_args(Loss):
            raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}; got {name!r}")
        if not weight > 0:
            raise ValueError(f"the weight of {name} must be positive, got {weight}")
    if not losses:
        raise ValueError("no loss given")
    _check(teacher, reward, beta)
    if not (teacher > 0).all():
        raise ValueError("teacher has completions of probability zero; leave them out: every target is zero there")
    size = len(teacher)
    chosen = teacher if chosen is None else chosen
    for name, array in {"chosen": chosen, "rejected": rejected, "sampler": sampler}.items():
        shapes = [(size,), (size, size)] if name == "sampler" else [(size,)]
        if array is not None and (array.shape not in shapes or (array < 0).any() or not np.isclose(array.sum(), 1.0)):
            raise ValueError(f"{name} must be a distribution over the teacher's {size} completions")
    if set(losses) & set(PAIR_LOSSES) and pairs is None:
        if rejected is None:
            raise ValueError("pair losses need `rejected` (and `chosen`) or `pairs`")
        pairs = np.outer(chosen, rejected)
    if pairs is not None and (pairs.shape != (size, size) or (pairs < 0).any() or not np.isfinite(pairs).all()):
        raise ValueError(f"pairs must be non-negative weights [{size}, {size}]")
    if "group_log_variance" in losses and sampler is None:
        raise ValueError("group_log_variance needs `sampler`")
    group = np.outer(sampler, sampler) if sampler is not None and sampler.ndim == 1 else sampler
    target = None
    if "imitation" in losses:
        target = imitation_target(teacher, reward_scale * reward, beta, group=imitation_group)
    return Population(losses, teacher, reward, beta, reward_scale, pairs, group, target, chosen)


def population_optimum(loss: str | Mapping[str, float], **options: Any) -> Array:
    """argmin over policies of the expected loss under fixed samplers, [Y]; options as for `population`.

    Raises:
        ValueError: unsound inputs, or samplers that do not connect the support.
    """
    return population(loss, **options).optimum()


def expected_loss(policy: Array, loss: str | Mapping[str, float], **options: Any) -> float:
    """The expected loss of a policy, options as for `population`; cross-entropies without their constant."""
    return population(loss, **options).loss(policy)


def expected_gradient(policy: Array, loss: str | Mapping[str, float], **options: Any) -> Array:
    """Its gradient with respect to the policy's logits, [Y], samplers held fixed; options as for `population`."""
    return population(loss, **options).gradient(policy)


def _both_ways(weights: Array) -> Array:
    return weights + np.swapaxes(weights, -1, -2)


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
