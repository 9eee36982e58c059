"""Finite worlds in which the statistics of PBSD can be computed exactly and simulated (docs/theory.md).

Shapes: Y completions, D features, N unordered pairs of completions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from pbsd.theory.tabular import Array, optimal_value, reward_tilted

# What a policy is worth: J = E[r] - beta KL(pi || T) with its own teacher as the prior, or its expected reward alone.
Yardstick = Literal["soft_value", "reward"]


@dataclass(frozen=True)
class PairDesign:
    """The pairs a learner sees, both orders of a pair put together.

    Attributes:
        first_N, second_N: indices of the completions.
        weight_N: probability that a sample is this pair; pairs of a completion with itself carry the rest.
        difference_ND: features of the first minus the second.
        gap_N: true reward of the first minus the second.
    """

    first_N: np.ndarray
    second_N: np.ndarray
    weight_N: Array
    difference_ND: Array
    gap_N: Array


@dataclass(frozen=True)
class World:
    """One prompt, one teacher kind, and the student class pi_theta ∝ T exp((<theta, phi> + offset) / beta).

    The learner sees n pairs, y+ ~ teacher and y- ~ student, each with a label "the first is better" that is true with
    probability sigmoid(r+ - r-), flipped with probability `flip_rate`, and fits theta by the `bradley_terry` loss.

    Attributes:
        teacher_Y, student_Y: distributions.
        features_YD: phi.
        theta_D: theta*, with r = <theta*, phi>: the true reward, in units of the labels' log-odds.
        beta: temperature of the regulariser, in units of reward per nat.
        offset_Y: what the student class adds to the implicit reward; zero when the class holds the target. A student
            class S exp(<theta, phi> / beta) that cannot express log(T/S) has the offset beta log(S/T).
        flip_rate: label noise in [0, 1/2).
        knows_flip_rate: the learner corrects its likelihood for the noise.
    """

    teacher_Y: Array
    student_Y: Array
    features_YD: Array
    theta_D: Array
    beta: float
    offset_Y: Array = field(default_factory=lambda: np.zeros(()))
    flip_rate: float = 0.0
    knows_flip_rate: bool = False

    @cached_property
    def reward_Y(self) -> Array:
        return self.features_YD @ self.theta_D

    @cached_property
    def target_Y(self) -> Array:
        """P*, the teacher tilted by the true reward."""
        return reward_tilted(self.teacher_Y, self.reward_Y, self.beta)

    def target_value(self, yardstick: Yardstick) -> float:
        """What P* is worth, in units of reward."""
        if yardstick == "reward":
            return float(self.target_Y @ self.reward_Y)
        return optimal_value(self.teacher_Y, self.reward_Y, self.beta)

    @cached_property
    def design(self) -> PairDesign:
        pair_YY = np.outer(self.teacher_Y, self.student_Y)
        first, second = np.triu_indices(len(self.teacher_Y), k=1)
        weight = pair_YY[first, second] + pair_YY[second, first]
        return PairDesign(
            first,
            second,
            weight,
            self.features_YD[first] - self.features_YD[second],
            self.reward_Y[first] - self.reward_Y[second],
        )

    @property
    def label_N(self) -> Array:
        """Probability of the label "the first is better"."""
        truth = expit(self.design.gap_N)
        return (1.0 - self.flip_rate) * truth + self.flip_rate * (1.0 - truth)

    @property
    def offset_N(self) -> Array:
        """The margin at theta = 0."""
        offset_Y = np.broadcast_to(self.offset_Y, self.teacher_Y.shape)
        return offset_Y[self.design.first_N] - offset_Y[self.design.second_N]

    @property
    def assumed_flip_rate(self) -> float:
        return self.flip_rate if self.knows_flip_rate else 0.0

    def implicit_reward(self, theta_D: Array) -> Array:
        """h = <theta, phi> + offset, [..., Y] for theta [..., D]."""
        return theta_D @ self.features_YD.T + self.offset_Y

    def policy(self, theta_D: Array) -> Array:
        """pi_theta, [..., Y] for theta [..., D]."""
        with np.errstate(divide="ignore"):
            return softmax(np.log(self.teacher_Y) + self.implicit_reward(theta_D) / self.beta, axis=-1)


@dataclass(frozen=True)
class PromptMix:
    """Equally likely prompts that share one theta: what a teacher kind is on a data set. Fits pool the pairs of all."""

    worlds: tuple[World, ...]

    @cached_property
    def design(self) -> PairDesign:
        parts = [world.design for world in self.worlds]
        return PairDesign(
            np.concatenate([part.first_N for part in parts]),
            np.concatenate([part.second_N for part in parts]),
            np.concatenate([part.weight_N for part in parts]) / len(parts),
            np.concatenate([part.difference_ND for part in parts]),
            np.concatenate([part.gap_N for part in parts]),
        )

    @property
    def label_N(self) -> Array:
        return np.concatenate([world.label_N for world in self.worlds])

    @property
    def offset_N(self) -> Array:
        return np.concatenate([world.offset_N for world in self.worlds])

    @property
    def assumed_flip_rate(self) -> float:
        return self.worlds[0].assumed_flip_rate

    def target_value(self, yardstick: Yardstick) -> float:
        return float(np.mean([world.target_value(yardstick) for world in self.worlds]))


def random_world(
    rng: np.random.Generator, *, completions: int = 12, dimension: int = 3, beta: float = 0.5, distance: float = 1.0
) -> World:
    """Gaussian features and log-probabilities; log T/S has the standard deviation `distance`, in nats."""
    features = rng.normal(size=(completions, dimension))
    student = softmax(rng.normal(size=completions))
    teacher = softmax(np.log(student) + distance * rng.normal(size=completions))
    theta = rng.normal(size=dimension) / np.sqrt(dimension)
    return World(teacher, student, features, theta, beta)


def self_and_external(
    *,
    advantage: float,
    overlap: float,
    beta: float = 0.5,
    dimension: int = 3,
    self_overlap: float = 0.8,
    style_gap: float = 5.0,
    yardstick: Yardstick = "soft_value",
) -> tuple[World, World]:
    """A self-teacher and an external teacher over one student, one reward and one feature space.

    A completion has `dimension - 1` qualities on the levels -1, 0, 1 and a style, the student's own or a foreign one,
    that is worth `style_gap` more. A teacher is the student tilted along the qualities, times its own share of styles:
    `overlap` of the external teacher's samples have the student's style, the rest beat the student's samples by so much
    that their labels say nothing (sigmoid' of the margin is small). The external teacher's tilt is set so that its
    target is worth exactly `advantage` more than the self-teacher's, in units of reward.

    Args:
        self_overlap: share of the student's style in the self-teacher's samples.
        yardstick: what the targets are worth, their expected reward or their `World.soft_value`.

    Raises:
        ValueError: fewer than two features, an overlap outside (0, 1), or an advantage that no tilt reaches.
    """
    if dimension < 2:
        raise ValueError(f"dimension must be at least 2, a quality and a style; got {dimension}")
    for name, value in (("overlap", overlap), ("self_overlap", self_overlap)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}")
    qualities = np.array(list(product((-1.0, 0.0, 1.0), repeat=dimension - 1)))
    features = np.vstack([np.column_stack([qualities, np.full(len(qualities), style)]) for style in (0.0, 1.0)])
    theta = np.append(np.full(dimension - 1, 1.0 / np.sqrt(dimension - 1)), style_gap)

    def tilted(tilt: float, own_style: float) -> Array:
        quality = softmax(tilt * qualities @ theta[:-1])
        return np.concatenate([own_style * quality, (1.0 - own_style) * quality])

    student = tilted(0.0, 0.98)
    own = World(tilted(0.5, self_overlap), student, features, theta, beta)

    def external(tilt: float) -> World:
        return replace(own, teacher_Y=tilted(tilt, overlap))

    def lead(tilt: float) -> float:
        return external(tilt).target_value(yardstick) - own.target_value(yardstick)

    low, high = lead(-30.0), lead(30.0)
    if not low < advantage < high:
        raise ValueError(
            f"advantage must lie between {low:.3g} and {high:.3g} at overlap {overlap:g}, got {advantage:g}"
        )
    return own, external(brentq(lambda tilt: lead(tilt) - advantage, -30.0, 30.0, xtol=1e-13))


def sparse_world(*, success_teacher: float, success_student: float, beta: float, log_odds: float = 2.0) -> World:
    """A binary reward: completions are failures (0) and successes (1), and a success beats a failure by `log_odds`.

    Only pairs of a success with a failure teach. They make up D = p_T (1 - p_S) + p_S (1 - p_T) of all pairs, and
    v = P*(success) P*(failure) / (sigmoid'(log_odds) D).
    """
    teacher, student = (np.array([1.0 - p, p]) for p in (success_teacher, success_student))
    return World(teacher, student, np.array([[0.0], [1.0]]), np.array([log_odds]), beta)
