"""Exact training dynamics on a finite set of completions: on-policy steps and moving teachers.

Everything is an expectation, not a simulation: a step is the expected gradient with the current policy as the student's
sampler (docs/paper_map.md, 5), differentiated with the sampler held fixed. Shapes and units as in `tabular`; N steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import entr, log_softmax, softmax

from pbsd.theory.tabular import (
    PAIR_LOSSES,
    Array,
    Pairing,
    PairPolicy,
    Population,
    objective,
    pair_measure,
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
    inner_steps: int = 1,
    **sampling: Any,
) -> Trajectory:
    """Expected gradient steps on the policy's logits, the samplers following the policy and its teacher.

    One step freezes the samplers (y+ from T, y- from pi; groups of `teacher_samples` and `student_samples`), takes
    `inner_steps` gradient steps on the expected loss, or with `learning_rate=None` minimises it to its end, and then
    lets the teacher follow. The loss is per candidate pair: dropped pairs count as zero.

    Args:
        policy: S_0, positive, [Y].
        shift: log T_0 - log S_0, up to a constant, [Y].
        sampling: which samples meet and which pairs stay, as for `sampled_population`.

    Raises:
        ValueError: as `population`; or `learning_rate=None` where the frozen loss has no finite optimum.
    """
    teacher = Teacher() if teacher is None else teacher
    logits = np.log(policy)
    own = logits
    policies, teachers, moves = [policy], [softmax(own + shift)], 0
    for step in range(1, steps + 1):
        frozen = sampled_population(
            loss,
            policy=policies[-1],
            teacher=teachers[-1],
            reward=reward,
            beta=beta,
            reward_scale=reward_scale,
            **sampling,
        )
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

    Args:
        imitation_group: size of the groups of teacher samples for `imitation`; None is the limit of large groups.
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
