"""Signal and noise of one prompt's stochastic gradient, exact (docs/theory.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pbsd.theory.tabular import (
    PAIR_LOSSES,
    Array,
    Pairing,
    PairPolicy,
    count_log_probability,
    count_vectors,
    kept_pairs,
    pair_terms,
)


@dataclass(frozen=True)
class GradientNoise:
    """Of one prompt's stochastic gradient g: its mean [D], tr Cov(g), and ||E g||^2 / tr Cov(g).

    `cosine` is the cosine of E g with the gradient of -J, so a strong signal for another objective shows; `progress` is
    <E g, grad J>^2 / (||grad J||^2 E||g||^2), the share of steepest ascent on J that one sample's step keeps, in
    [0, 1]. Both are free of the loss's scale.
    """

    mean: Array
    noise: float
    snr: float
    cosine: float
    progress: float


def gradient_snr(
    loss: str,
    *,
    policy: Array,
    teacher: Array,
    reward: Array,
    beta: float,
    reward_scale: float = 1.0,
    pairing: Pairing = "cross",
    pair_policy: PairPolicy = "all",
    keep_ties: bool = False,
    correct: Array | None = None,
    teacher_samples: int = 1,
    student_samples: int = 1,
    features: Array | None = None,
) -> GradientNoise:
    """Exact mean and variance of one prompt's gradient, over every group of teacher and student samples.

    `loss` is one of `tabular.Loss`, or `direct_sampled`: `direct` with the KL by the samples' own log-ratios in the
    return instead of the full vocabulary. `direct` takes the KL gradient as exact, which the full vocabulary gives for
    completions of one token, or of several when neither policy nor teacher looks back. Its policy gradient has the
    leave-one-out baseline (none for one sample). Pair losses are means over the candidate pairs; a group without
    any kept pair has gradient zero.

    Args:
        features: [Y, D]; the policy's logits are features @ theta and the gradient is theta's. Not given: the logits
            themselves. Completions of L independent tokens have one-hot features for every position and token.

    Raises:
        ValueError: an unknown loss, or too few samples for it.
    """
    group = teacher_samples + student_samples
    needs = {"group_log_variance": group >= 2, "imitation": teacher_samples >= 1, "nll": teacher_samples >= 1}
    needs |= {"direct": student_samples >= 1, "direct_sampled": student_samples >= 1}
    if not needs.get(loss, group >= 2 if pairing == "all" else min(teacher_samples, student_samples) >= 1):
        raise ValueError(f"{loss} has no gradient with {teacher_samples} teacher and {student_samples} student samples")
    size = len(policy)
    teacher_counts, student_counts = count_vectors(teacher_samples, size), count_vectors(student_samples, size)
    log_probability = np.add.outer(
        count_log_probability(teacher_counts, teacher), count_log_probability(student_counts, policy)
    ).ravel()
    n_t = np.repeat(teacher_counts, len(student_counts), axis=0)
    n_s = np.tile(student_counts, (len(teacher_counts), 1))
    scaled = reward_scale * reward
    excess = beta * (np.log(policy) - np.log(teacher)) - scaled  # f = h - eta r
    exact = policy * (excess - policy @ excess)  # of -J
    if loss in PAIR_LOSSES:
        same, candidates = np.zeros((1, size, size)), float(teacher_samples * student_samples)
        if pairing == "all":
            same = _same_role(n_t) + _same_role(n_s)
            candidates = group * (group - 1) / 2.0
        kept = kept_pairs(
            n_t[:, :, None] * n_s[:, None, :], same, reward=reward, pair_policy=pair_policy, keep_ties=keep_ties,
            needs_rewards=loss != "logistic", correct=correct,
        )  # fmt: skip
        margin = excess + scaled
        slope = kept * pair_terms(loss, np.subtract.outer(margin, margin), np.subtract.outer(scaled, scaled))[1]
        gradient = beta * (slope.sum(2) - slope.sum(1)) / candidates
    elif loss == "group_log_variance":
        gradient = 2.0 * beta * _centred(n_t + n_s, excess)
    elif loss in ("direct", "direct_sampled"):
        gradient = _centred(n_s, -scaled if loss == "direct" else excess) + np.zeros_like(n_s)
        if loss == "direct":
            gradient = gradient + policy * (excess + scaled - policy @ (excess + scaled))
        gradient -= policy * gradient.sum(-1, keepdims=True)
    elif loss in ("imitation", "nll"):
        weight = n_t * (np.exp((scaled - scaled.max()) / beta) if loss == "imitation" else 1.0)
        gradient = policy - weight / weight.sum(-1, keepdims=True)
    else:
        raise ValueError(f"unknown loss {loss!r}")
    if features is not None:
        gradient, exact = gradient @ features, exact @ features
    probability = np.exp(log_probability)
    mean = probability @ gradient
    noise = float(probability @ ((gradient - mean) ** 2).sum(-1))
    signal, steepest = float(mean @ mean), float(exact @ exact)
    along = float(mean @ exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        return GradientNoise(
            mean=mean,
            noise=noise,
            snr=float(np.divide(signal, noise)),
            cosine=float(np.divide(along, np.sqrt(signal * steepest))),
            progress=float(np.divide(along**2, steepest * (signal + noise))),
        )


def _same_role(counts: Array) -> Array:
    """How many pairs of samples fall on each two different completions, either order half, [N, Y, Y]."""
    return counts[:, :, None] * counts[:, None, :] / 2.0  # a completion against itself has no gradient


def _centred(counts: Array, value: Array) -> Array:
    """sum_i (v_i - mean of the others) e_{y_i} / n over a group's n members; without the mean for one member."""
    members = counts.sum(-1, keepdims=True)
    if members.flat[0] < 2:
        return counts * value
    return counts * (value - counts @ value[:, None] / members) / (members - 1.0)
