"""What a pilot of preference pairs says of a teacher kind, and which of two kinds it favours (DESIGN 2.11).

A pilot is pairs y+ ~ teacher, y- ~ student, several per prompt, with the log-probabilities of both completions under
both roles and their rewards. Everything is estimated from weighted means over pairs and resampled by prompt.

Shapes: N pairs, Q prompts, D features, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import logsumexp, softmax

from pbsd.theory.asymptotics import sigmoid_slope
from pbsd.theory.tabular import Array
from pbsd.theory.worlds import Yardstick

RESAMPLES = 1000
MIN_PROMPTS = 20
MIN_INFORMATIVE_PAIRS = 20
# The confidence takes resamples this much further from the point estimate than they are. Two teachers are more often
# close to each other than a resample's flat prior says; chosen on one set of worlds and checked on another
# (studies/theory/calibration.py).
WIDENING = 1.25
# Share of resamples in which a kind must have both the better target and the smaller cost to be recommended without a
# dimension.
DOMINANCE = 0.9

Kind = Literal["self", "external"]


class PilotTooSmall(ValueError):
    """The pilot cannot carry an answer; the message says what is missing."""


@dataclass(frozen=True)
class Pilot:
    """Pairs of one teacher kind; log-probabilities in nats, summed over completion tokens.

    Attributes:
        prompt_N: which prompt a pair belongs to, 0 to Q-1.
        features_chosen_ND, features_rejected_ND: what the student can vary to fit rewards, for example a hidden state
            projected to a few dimensions; None where they are not known.
    """

    prompt_N: np.ndarray
    student_chosen_N: Array
    student_rejected_N: Array
    teacher_chosen_N: Array
    teacher_rejected_N: Array
    reward_chosen_N: Array
    reward_rejected_N: Array
    features_chosen_ND: Array | None = None
    features_rejected_ND: Array | None = None

    @property
    def prompts(self) -> int:
        return int(self.prompt_N.max()) + 1 if len(self.prompt_N) else 0


@dataclass(frozen=True)
class Estimated:
    """A figure with its 95% interval over resamples of prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Setting:
    """What the student will be trained with: the tilt's temperature, reward scale, and how values are compared.

    `dimension` is the number of directions in which the student has to learn the reward, for pilots without features.
    """

    beta: float
    reward_scale: float = 1.0
    dimension: float | None = None
    yardstick: Yardstick = "soft_value"


def describe(pilot: Pilot, setting: Setting, *, seed: int = 0) -> dict[str, Estimated]:
    """Figures of one teacher kind, each with its interval.

    - `reward_teacher`, `reward_student`, `reward_gap`: mean rewards of y+ and y- and of their difference.
    - `pair_accuracy`: how often the student's margin m = h(y+) - h(y-) has the reward gap's sign; ties left out.
    - `margin_mean`, `margin_spread`: mean and standard deviation of m, in units of reward.
    - `margin_slope`: E[sigmoid'(m)] at the student's own margins: how much gradient the pairs carry now, at most 1/4.
    - `label_information`: E[sigmoid'(m*)], m* = reward_scale (r+ - r-): what a label says at the target.
    - `discordant`: share of pairs whose rewards differ.
    - `overlap_ess`: effective share of the student's samples under weights T/S, (sum w)^2 / (N sum w^2).
    - `tilt_ess`: the same of the teacher's samples under weights exp(reward_scale r / beta).
    - `kl_teacher_student`: KL(T || student) in nats per completion.
    - `target_value`: what P* is worth by the yardstick, in units of (scaled) reward.
    """
    weights_RN = _resamples(pilot, seed)
    figures: dict[str, Callable[[Array], Array]] = _figures(pilot, setting)
    whole = np.ones((1, len(pilot.prompt_N)))
    return {name: _estimated(figure(whole)[0], figure(weights_RN)) for name, figure in figures.items()}


@dataclass(frozen=True)
class Advice:
    """Which teacher the pilot favours for a budget.

    Attributes:
        recommendation: the preferable kind, or None when it depends on an unknown `dimension`.
        confidence: share of (widened) resamples in which that kind has the smaller excess risk; without a dimension,
            of resamples in which it has the better target and the smaller cost.
        difference: excess risk of the external teacher minus that of the self-teacher at the budget, units of reward.
        crossover: pairs at which the two meet (per dimension where that is unknown); infinite when one is preferable
            throughout.
        value_gap: target value of the external teacher minus that of the self-teacher.
        learning_cost: v of each kind, or v per dimension when `dimension` is not known.
        break_even_dimension: with an unknown dimension, the kind with the better target is preferable below it.
    """

    recommendation: Kind | None
    confidence: float
    difference: Estimated | None
    crossover: Estimated
    value_gap: Estimated
    learning_cost: dict[str, Estimated]
    break_even_dimension: float | None
    reason: str


def advise(own: Pilot, external: Pilot, setting: Setting, *, budget: float, seed: int = 0) -> Advice:
    """Compare b + v / (2 beta n) of two kinds at n = budget labelled pairs, resampling both pilots by prompt.

    b is the target's value against the better of the two. v = tr(Cov_P*(phi) I^-1) with the pilot's features; without
    them, features are taken as independent of the rewards and alike in spread under every sampler, so that
    v = dimension / (2 E[sigmoid'(m*)]).

    Raises:
        PilotTooSmall: too few prompts, or pairs whose rewards differ, or pairs for the features.
        ValueError: a yardstick other than the soft value, for which v / (2 beta) is not the cost of learning.
    """
    if setting.yardstick != "soft_value":
        raise ValueError("advice compares soft values: v / (2 beta) is the cost of learning by that yardstick only")
    kinds = {"self": own, "external": external}
    for name, pilot in kinds.items():
        check(pilot, setting, name)
    with_features = all(pilot.features_chosen_ND is not None for pilot in kinds.values())
    dimension = 1.0 if with_features or setting.dimension is None else setting.dimension
    values, costs, point = {}, {}, {}
    for index, (name, pilot) in enumerate(kinds.items()):
        figures = _figures(pilot, setting)
        cost = _cost_with_features(pilot, setting) if with_features else _isotropic_cost(figures, dimension)
        whole, weights_RN = np.ones((1, len(pilot.prompt_N))), _resamples(pilot, seed + index)
        point[name] = figures["target_value"](whole)[0], cost(whole)[0]
        values[name], costs[name] = figures["target_value"](weights_RN), cost(weights_RN)
    gap_R = values["external"] - values["self"]
    extra_R = costs["external"] - costs["self"]
    gap, extra = point["external"][0] - point["self"][0], point["external"][1] - point["self"][1]
    scale = 1.0 / (2.0 * setting.beta)

    known = with_features or setting.dimension is not None
    learning_cost = {name: _estimated(point[name][1], costs[name]) for name in kinds}
    crossing = _estimated(_crossing(extra * scale, gap), _crossing(extra_R * scale, gap_R))
    value_gap = _estimated(gap, gap_R)
    if known:
        difference_R = extra_R * scale / budget - gap_R
        difference = _estimated(extra * scale / budget - gap, difference_R)
        widened_R = difference.value + WIDENING * (difference_R - difference.value)
        prefer_self = float((widened_R > 0).mean() + 0.5 * (widened_R == 0).mean())
        recommendation: Kind | None = "self" if prefer_self >= 0.5 else "external"
        return Advice(
            recommendation,
            max(prefer_self, 1.0 - prefer_self),
            difference,
            crossing,
            value_gap,
            learning_cost,
            None,
            _reason(gap, extra * scale / budget),
        )
    # Without the dimension only dominance decides: a kind with the better target that is also cheaper to learn.
    dominates: dict[Kind, float] = {
        "self": float(((gap_R <= 0) & (extra_R >= 0)).mean()),
        "external": float(((gap_R >= 0) & (extra_R <= 0)).mean()),
    }
    kind = max(dominates, key=lambda name: dominates[name])
    if dominates[kind] >= DOMINANCE:
        reason = _reason(gap, extra * scale / budget)
        return Advice(kind, dominates[kind], None, crossing, value_gap, learning_cost, None, reason)
    better = "external" if gap > 0 else "self"
    directions = gap / (extra * scale / budget) if gap * extra > 0 else None
    reason = f"the {better}-teacher's target is worth {abs(gap):.3g} more, " + (
        "and this pilot does not settle which is cheaper to learn; "
        if directions is None
        else f"but costs more to learn: it is preferable when fewer than {directions:.3g} directions are to be learnt; "
    )
    reason += "give the dimension, or features, to decide"
    return Advice(None, float("nan"), None, crossing, value_gap, learning_cost, directions, reason)


def check(pilot: Pilot, setting: Setting, name: str) -> None:
    """Refuse a pilot that cannot carry an answer."""
    if pilot.prompts < MIN_PROMPTS:
        raise PilotTooSmall(
            f"the {name} pilot has {pilot.prompts} prompts; an interval over prompts needs at least {MIN_PROMPTS}"
        )
    informative = int((pilot.reward_chosen_N != pilot.reward_rejected_N).sum())
    if informative < MIN_INFORMATIVE_PAIRS:
        raise PilotTooSmall(
            f"only {informative} of the {name} pilot's {len(pilot.prompt_N)} pairs have rewards that differ; at least "
            f"{MIN_INFORMATIVE_PAIRS} are needed: collect more pairs per prompt, or more prompts"
        )
    features = pilot.features_chosen_ND
    if features is not None and len(features) < 5 * features.shape[1]:
        raise PilotTooSmall(
            f"the {name} pilot has {len(features)} pairs for {features.shape[1]} features; it needs five a feature"
        )


def _figures(pilot: Pilot, setting: Setting) -> dict[str, Callable[[Array], Array]]:
    """Each figure as a function of pair weights [R, N] -> [R]."""
    p = pilot
    gap = p.reward_chosen_N - p.reward_rejected_N
    margin = setting.beta * (p.student_chosen_N - p.teacher_chosen_N - p.student_rejected_N + p.teacher_rejected_N)
    agrees = (np.sign(margin) * np.sign(gap) + 1.0) / 2.0
    tilt = setting.reward_scale * p.reward_chosen_N / setting.beta

    def mean(x_N: Array, of: Array | None = None) -> Callable[[Array], Array]:
        def figure(weights_RN: Array) -> Array:
            weights = weights_RN if of is None else weights_RN * of
            total = weights.sum(-1)
            return np.divide(weights @ x_N, total, out=np.full(len(weights), np.nan), where=total > 0)

        return figure

    def spread(weights_RN: Array) -> Array:
        first, second = mean(margin)(weights_RN), mean(margin**2)(weights_RN)
        return np.sqrt(np.maximum(second - first**2, 0.0))

    def ess(log_weight_N: Array) -> Callable[[Array], Array]:
        scaled = np.exp(log_weight_N - log_weight_N.max())
        return lambda weights_RN: mean(scaled)(weights_RN) ** 2 / mean(scaled**2)(weights_RN)

    return {
        "reward_teacher": mean(p.reward_chosen_N),
        "reward_student": mean(p.reward_rejected_N),
        "reward_gap": mean(gap),
        "pair_accuracy": mean(agrees, (gap != 0).astype(float)),
        "margin_mean": mean(margin),
        "margin_spread": spread,
        "margin_slope": mean(sigmoid_slope(margin)),
        "label_information": mean(sigmoid_slope(setting.reward_scale * gap)),
        "discordant": mean((gap != 0).astype(float)),
        "overlap_ess": ess(p.teacher_rejected_N - p.student_rejected_N),
        "tilt_ess": ess(tilt),
        "kl_teacher_student": mean(p.teacher_chosen_N - p.student_chosen_N),
        "target_value": lambda weights_RN: _by_prompt(p, _target_values(p, setting), weights_RN),
    }


def _tilted_log_weights(pilot: Pilot, setting: Setting) -> tuple[Array, Array]:
    """log of T exp(r / beta) / ((T + S) / 2) of y+ and of y-, [N] each.

    Both sides' samples together are a draw from the mixture of teacher and student, so a prompt's mean weight over them
    is an unbiased estimate of Z (the balance heuristic of Veach and Guibas 1995).
    """

    def log_weight(teacher_N: Array, student_N: Array, reward_N: Array) -> Array:
        mixture = np.logaddexp(teacher_N, student_N) - np.log(2.0)
        return teacher_N - mixture + setting.reward_scale * reward_N / setting.beta

    return (
        log_weight(pilot.teacher_chosen_N, pilot.student_chosen_N, pilot.reward_chosen_N),
        log_weight(pilot.teacher_rejected_N, pilot.student_rejected_N, pilot.reward_rejected_N),
    )


def _target_values(pilot: Pilot, setting: Setting) -> Array:
    """What each prompt's target is worth, [Q], without the 1/K bias of a logarithm or ratio of means of K pairs."""
    chosen, rejected = _tilted_log_weights(pilot, setting)
    values = np.empty(pilot.prompts)
    for prompt in range(pilot.prompts):
        rows = np.flatnonzero(pilot.prompt_N == prompt)
        log_weight = np.stack([chosen[rows], rejected[rows]])
        log_mean = logsumexp(log_weight) - np.log(log_weight.size)
        weight = np.exp(log_weight - log_mean)
        weight_K, pairs = weight.mean(0), len(rows)
        if setting.yardstick == "reward":
            reward = setting.reward_scale * np.stack([pilot.reward_chosen_N[rows], pilot.reward_rejected_N[rows]])
            values[prompt] = (weight * reward).mean()
            residual_K = (weight * (reward - values[prompt])).mean(0)
        else:
            values[prompt] = setting.beta * log_mean
            residual_K = 0.5 * setting.beta * (weight_K - 1.0)
        if pairs > 1:
            values[prompt] += float(((weight_K - 1.0) * residual_K).sum()) / (pairs - 1) / pairs
    return values


def _isotropic_cost(figures: dict[str, Callable[[Array], Array]], dimension: float) -> Callable[[Array], Array]:
    return lambda weights_RN: dimension / (2.0 * figures["label_information"](weights_RN))


def _cost_with_features(pilot: Pilot, setting: Setting) -> Callable[[Array], Array]:
    """v = tr(Cov_P*(phi) I^-1), covariances of each prompt from its tilted samples; of weights [R, N]."""
    chosen, rejected = pilot.features_chosen_ND, pilot.features_rejected_ND
    assert chosen is not None and rejected is not None
    difference = chosen - rejected
    slope = sigmoid_slope(setting.reward_scale * (pilot.reward_chosen_N - pilot.reward_rejected_N))
    dimension = chosen.shape[1]
    log_weights = _tilted_log_weights(pilot, setting)
    covariance_QDD = np.zeros((pilot.prompts, dimension, dimension))
    for prompt in range(pilot.prompts):
        rows = pilot.prompt_N == prompt
        weight = softmax(np.concatenate([side[rows] for side in log_weights]))
        features = np.concatenate([chosen[rows], rejected[rows]])
        centred = features - weight @ features
        lost = 1.0 - (weight**2).sum()
        if lost > 1e-6:
            covariance_QDD[prompt] = np.einsum("k,kd,ke->de", weight, centred, centred) / lost
    information_NE = (slope[:, None, None] * difference[:, :, None] * difference[:, None, :]).reshape(len(slope), -1)

    def figure(weights_RN: Array) -> Array:
        information = (weights_RN @ information_NE) / weights_RN.sum(-1, keepdims=True)
        covariance = _by_prompt(pilot, covariance_QDD.reshape(pilot.prompts, -1), weights_RN)
        shape = (len(weights_RN), dimension, dimension)
        return np.trace(np.linalg.solve(information.reshape(shape), covariance.reshape(shape)), axis1=1, axis2=2)

    return figure


def _by_prompt(pilot: Pilot, values_Q: Array, weights_RN: Array) -> Array:
    """Mean over prompts of a figure each prompt has; resamples weigh all pairs of a prompt alike."""
    first = np.unique(pilot.prompt_N, return_index=True)[1]
    weights_RQ = weights_RN[:, first]
    return (weights_RQ @ values_Q) / weights_RQ.sum(-1).reshape(-1, *[1] * (values_Q.ndim - 1))


def _resamples(pilot: Pilot, seed: int) -> Array:
    """How often each pair's prompt is drawn, [R, N]."""
    rng = np.random.default_rng(seed)
    counts_RQ = rng.multinomial(pilot.prompts, np.full(pilot.prompts, 1.0 / pilot.prompts), size=RESAMPLES)
    return counts_RQ[:, pilot.prompt_N].astype(float)


def _crossing(cost: float | Array, gap: float | Array) -> np.ndarray:
    """cost / gap where both have one sign; infinite where one kind is preferable throughout."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(cost) * np.asarray(gap) > 0, np.asarray(cost) / np.asarray(gap), np.inf)


def _estimated(value: float | np.ndarray, resampled_R: Array) -> Estimated:
    low, high = np.nanquantile(resampled_R, (0.025, 0.975), method="nearest")
    return Estimated(float(value), float(low), float(high))


def _reason(gap: float, extra: float) -> str:
    better = "external" if gap > 0 else "self"
    dearer = "external" if extra > 0 else "self"
    if better != dearer:
        return f"the {better}-teacher's target is worth {abs(gap):.3g} more and costs {abs(extra):.3g} less to learn"
    return (
        f"the {better}-teacher's target is worth {abs(gap):.3g} more, "
        f"and at this budget costs {abs(extra):.3g} more to learn"
    )
