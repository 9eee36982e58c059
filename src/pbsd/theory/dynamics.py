"""Exact training dynamics on a finite set of completions: on-policy steps, moving teachers, signal and noise.

Everything is an expectation, not a simulation: a step is the expected gradient with the current policy as the student's
sampler (DESIGN 2.5), differentiated with the sampler held fixed. Shapes and units as in `tabular`; N steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import entr, log_softmax, softmax

from pbsd.theory.tabular import (
    PAIR_LOSSES,
    Array,
    Pairing,
    PairPolicy,
    Population,
    count_log_probability,
    count_vectors,
    kept_pairs,
    objective,
    pair_measure,
    pair_terms,
    population,
)

TeacherKind = Literal["initial", "live", "ema", "refreshed"]


@dataclass(frozen=True)
class Teacher:
    """Whose weights the self-teacher uses: T(y) proportional to exp(teacher_logits(y) + shift(y)).

    The privileged context acts as a fixed shift = log T_0 - log S_0 of the log-probabilities; only the weights move.

    Attributes:
        kind: `initial`, never moved; `live`, the student's logits; `ema`, after every step decay times its own logits
            plus (1 - decay) times the student's; `refreshed`, the student's logits every `refresh_every` steps.
        min_gain: with `refreshed`, refresh only when the new teacher's expected reward is more than this above the old
            one's; None refreshes always. A positive gain bounds the number of refreshes by (max r - min r) / min_gain.
    """

    kind: TeacherKind = "initial"
    ema_decay: float | None = None
    refresh_every: int | None = None
    min_gain: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(TeacherKind):
            raise ValueError(f"teacher kind must be one of {', '.join(get_args(TeacherKind))}; got {self.kind!r}")
        if (self.kind == "ema") != (self.ema_decay is not None) or not 0 <= (self.ema_decay or 0.0) <= 1:
            raise ValueError(f"kind 'ema', and it alone, takes ema_decay in [0, 1]; got {self.ema_decay}")
        every = 1 if self.refresh_every is None else self.refresh_every
        if (self.kind == "refreshed") != (self.refresh_every is not None) or every < 1:
            raise ValueError(f"kind 'refreshed', and it alone, takes refresh_every >= 1; got {self.refresh_every}")
        if self.min_gain is not None and self.kind != "refreshed":
            raise ValueError(f"min_gain belongs to kind 'refreshed', not {self.kind!r}")

    def follow(self, own: Array, student: Array, *, step: int, shift: Array, reward: Array) -> Array:
        """Its logits after step number `step` (from 1)."""
        if self.kind == "live":
            return student
        if self.ema_decay is not None:
            return self.ema_decay * own + (1.0 - self.ema_decay) * student
        if self.refresh_every is not None and step % self.refresh_every == 0:
            gain = (softmax(student + shift) - softmax(own + shift)) @ reward
            return student if self.min_gain is None or gain > self.min_gain else own
        return own


@dataclass(frozen=True)
class Trajectory:
    """What a run went through, before the first step and after every step.

    Attributes:
        policies, teachers: [N + 1, Y].
        rewards, entropies: E_p[r] and the policy's entropy in nats, [N + 1].
        objectives: J(p) = E_p[reward_scale r] - beta KL(p || T), with the teacher of that time, [N + 1].
        initial_objectives: the same with the first teacher, [N + 1]: what a moving teacher forgets.
        teacher_moves: how many times the teacher's logits changed.
    """

    policies: Array
    teachers: Array
    rewards: Array
    entropies: Array
    objectives: Array
    initial_objectives: Array
    teacher_moves: int


def on_policy(
    loss: str | Mapping[str, float],
    *,
    policy: Array,
    shift: Array,
    reward: Array,
    beta: float,
    steps: int,
    learning_rate: float | None,
    reward_scale: float = 1.0,
    teacher: Teacher | None = None,
    pairing: Pairing = "cross",
    pair_policy: PairPolicy = "all",
    keep_ties: bool = False,
    correct: Array | None = None,
    teacher_samples: int = 1,
    student_samples: int = 1,
    imitation_group: int | None = None,
    inner_steps: int = 1,
) -> Trajectory:
    """Expected gradient steps on the policy's logits, the samplers following the policy and its teacher.

    One step freezes the samplers (y+ from T, y- from pi; groups of `teacher_samples` and `student_samples`), takes
    `inner_steps` gradient steps on the expected loss, or with `learning_rate=None` minimises it to its end, and then
    lets the teacher follow. The loss is per candidate pair: dropped pairs count as zero.

    Args:
        policy: S_0, positive, [Y].
        shift: log T_0 - log S_0, up to a constant, [Y].
        imitation_group: size of the groups of teacher samples for `imitation`; None is the limit of large groups.

    Raises:
        ValueError: as `population`; or `learning_rate=None` where the frozen loss has no finite optimum.
    """
    teacher = Teacher() if teacher is None else teacher
    logits = np.log(policy)
    own = logits
    policies, teachers, moves = [policy], [softmax(own + shift)], 0
    for step in range(1, steps + 1):
        frozen = sampled_population(
            loss, policy=policies[-1], teacher=teachers[-1], reward=reward, beta=beta, reward_scale=reward_scale,
            pairing=pairing, pair_policy=pair_policy, keep_ties=keep_ties, correct=correct,
            teacher_samples=teacher_samples, student_samples=student_samples, imitation_group=imitation_group,
        )  # fmt: skip
        if learning_rate is None:
            logits = np.log(frozen.optimum())
        else:
            for _ in range(inner_steps):
                logits = log_softmax(logits - learning_rate * frozen.gradient(softmax(logits)))
        before, own = own, teacher.follow(own, logits, step=step, shift=shift, reward=reward)
        moves += before is not own
        policies.append(softmax(logits))
        teachers.append(softmax(own + shift))
    scaled = reward_scale * reward
    return Trajectory(
        policies=np.array(policies),
        teachers=np.array(teachers),
        rewards=np.array(policies) @ reward,
        entropies=entr(np.array(policies)).sum(-1),
        objectives=np.array([objective(p, t, scaled, beta) for p, t in zip(policies, teachers, strict=True)]),
        initial_objectives=np.array([objective(p, teachers[0], scaled, beta) for p in policies]),
        teacher_moves=moves,
    )


def sampled_population(
    loss: str | Mapping[str, float],
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
    imitation_group: int | None = None,
) -> Population:
    """The expected losses when y+ comes from the teacher and y- from the policy, frozen as samplers.

    Labelled losses keep ties among samples of one role and `logistic` drops them, as `pbsd.pairs.make_pairs` does; a
    mixture of both kinds of pair loss follows `needs_rewards` of the labelled ones.
    """
    losses = {loss: 1.0} if isinstance(loss, str) else dict(loss)
    pairs = group = None
    if set(losses) & set(PAIR_LOSSES):
        pairs = pair_measure(
            teacher, policy, reward=reward, pairing=pairing, pair_policy=pair_policy, keep_ties=keep_ties,
            needs_rewards=bool({"bradley_terry", "squared"} & set(losses)), correct=correct,
            teacher_samples=teacher_samples, student_samples=student_samples,
        )  # fmt: skip
    if "group_log_variance" in losses:
        # Two distinct members, in either order: every pair of the union, ties and all.
        group = pair_measure(
            teacher, policy, reward=reward, pairing="all", needs_rewards=True,
            teacher_samples=teacher_samples, student_samples=student_samples,
        )  # fmt: skip
    return population(
        losses, teacher=teacher, reward=reward, beta=beta, reward_scale=reward_scale, pairs=pairs, sampler=group,
        imitation_group=imitation_group,
    )  # fmt: skip


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
