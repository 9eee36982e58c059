"""What a pilot of preference pairs says of a teacher kind, and which of two kinds it favours (docs/theory.md).

A pilot is pairs y+ ~ teacher, y- ~ student, several per prompt, with the log-probabilities of both completions under
both roles and their rewards. Everything is estimated from weighted means over pairs and resampled by prompt.

Shapes: N pairs, Q prompts, D features, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.special import logsumexp, softmax

from pbsd.theory.asymptotics import TIE, sigmoid_slope
from pbsd.theory.tabular import Array

RESAMPLES = 1000
MIN_PROMPTS = 20
MIN_PAIRS_PER_PROMPT = 2
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

    @cached_property
    def same_N(self) -> np.ndarray:
        """Pairs of a completion with itself, told by log-probabilities and rewards; [N] of bool."""
        return _alike(_marks(self)[:, 0], _marks(self)[:, 1])

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
    """What the student will be trained with: temperature of the tilt and reward scale.

    `dimension` is the number of directions in which the student has to learn the reward, for pilots without features.
    """

    beta: float
    reward_scale: float = 1.0
    dimension: float | None = None


def describe(pilot: Pilot, setting: Setting, *, seed: int = 0) -> dict[str, Estimated]:
    """Figures of one teacher kind, each with its interval.

    - `reward_teacher`, `reward_student`, `reward_gap`: mean rewards of y+ and y- and of their difference.
    - `pair_accuracy`: how often the student's margin m = h(y+) - h(y-) has the reward gap's sign; ties left out.
    - `margin_mean`, `margin_spread`: mean and standard deviation of m, in units of reward.
    - `margin_slope`: E[sigmoid'(m)] at the student's own margins: how much gradient the pairs carry now, at most 1/4.
    - `label_information`: E[sigmoid'(m*)], m* = reward_scale (r+ - r-): what a label says at the target; nothing
      where both completions of the pair are the same.
    - `discordant`: share of pairs whose rewards differ.
    - `overlap_ess`: effective share of the student's samples under weights T/S, (sum w)^2 / (N sum w^2).
    - `tilt_ess`: the same of the teacher's samples under weights exp(reward_scale r / beta).
    - `kl_teacher_student`: KL(T || student) in nats per completion.
    - `target_value`: beta log E_T[exp(reward_scale r / beta)], the worth of P*, in units of scaled reward.
    """
    weights_RN = _resamples(pilot, seed)
    figures: dict[str, Callable[[Array], Array]] = _figures(pilot, setting)
    whole = np.ones((1, len(pilot.prompt_N)))
    return {name: _estimated(figure(whole)[0], figure(weights_RN)) for name, figure in figures.items()}


@dataclass(frozen=True)
class Advice:
    """Which teacher the pilot favours for a budget.

    Attributes:
        recommendation: the preferable kind, or None for a tie or when it depends on an unknown `dimension`.
        confidence: share of (widened) resamples in which that kind has the smaller excess risk; without a dimension,
            of resamples in which it has the better target and the smaller cost.
        crossover: pairs at which the two meet (per dimension where that is unknown); infinite when one is preferable
            throughout.
        value_gap: target value of the external teacher minus that of the self-teacher.
        learning_cost: v of each kind, or v per dimension when `dimension` is not known.
        difference: excess risk of the external teacher minus the self-teacher's at the budget, when both are known.
        break_even_dimension: with an unknown dimension, the kind with the better target is preferable below it.
    """

    recommendation: Kind | None
    confidence: float
    crossover: Estimated
    value_gap: Estimated
    learning_cost: dict[Kind, Estimated]
    reason: str
    difference: Estimated | None = None
    break_even_dimension: float | None = None


def advise(own: Pilot, external: Pilot, setting: Setting, *, budget: float, seed: int = 0) -> Advice:
    """Compare b + v / (2 beta n) of two kinds at n = budget labelled pairs, resampling both pilots by prompt.

    b is the target's soft value against the better of the two. v = tr(Cov_P*(phi) I^-1) with the pilots' features.
    Without them, different completions are taken to have features independent of each other and of the rewards, so
    that v = dimension (1 - C) / (2 E[sigmoid'(m*)]), C the chance that two draws from P* are the same completion and
    pairs of a completion with itself counting as zero.

    Raises:
        PilotTooSmall: too few prompts, pairs a prompt, pairs whose rewards differ, or pairs for the features.
        ValueError: features and dimension that do not fit together, or log-probabilities that do not fit the samples.
    """
    kinds: dict[Kind, Pilot] = {"self": own, "external": external}
    for name, pilot in kinds.items():
        check(pilot, name)
    with_features = _features_agree(own, external, setting)
    dimension = 1.0 if setting.dimension is None else setting.dimension
    values, costs, point = {}, {}, {}
    for index, (name, pilot) in enumerate(kinds.items()):
        target_value = _figures(pilot, setting)["target_value"]
        cost = (
            _cost_with_features(pilot, setting, name) if with_features else _isotropic_cost(pilot, setting, dimension)
        )
        whole, weights_RN = np.ones((1, len(pilot.prompt_N))), _resamples(pilot, seed + index)
        point[name] = target_value(whole)[0], cost(whole)[0]
        values[name], costs[name] = target_value(weights_RN), cost(weights_RN)
    scale = 1.0 / (2.0 * setting.beta)
    gap, gap_R = point["external"][0] - point["self"][0], values["external"] - values["self"]
    extra = scale * (point["external"][1] - point["self"][1])
    extra_R = scale * (costs["external"] - costs["self"])

    def advice(kind: Kind | None, confidence: float, reason: str, **more: Any) -> Advice:
        return Advice(
            recommendation=kind,
            confidence=confidence,
            crossover=_estimated(_crossing(extra, gap), _crossing(extra_R, gap_R)),
            value_gap=_estimated(gap, gap_R),
            learning_cost={name: _estimated(point[name][1], costs[name]) for name in kinds},
            reason=reason,
            **more,
        )

    if abs(gap) < TIE and abs(extra) / budget < TIE:
        return advice(None, 0.5, "both targets are worth the same and cost the same to learn")
    reason = _reason(gap, extra / budget)
    if with_features or setting.dimension is not None:
        difference_R = extra_R / budget - gap_R
        difference = _estimated(extra / budget - gap, difference_R)
        prefer_self = float((difference.value + WIDENING * (difference_R - difference.value) > 0).mean())
        best: Kind = "self" if prefer_self >= 0.5 else "external"
        return advice(best, max(prefer_self, 1.0 - prefer_self), reason, difference=difference)
    # Without the dimension only dominance decides: a kind with the better target that is also cheaper to learn.
    dominates: dict[Kind, float] = {
        "self": float(((gap_R <= 0) & (extra_R >= 0)).mean()),
        "external": float(((gap_R >= 0) & (extra_R <= 0)).mean()),
    }
    best = max(dominates, key=lambda kind: dominates[kind])
    if dominates[best] >= DOMINANCE:
        return advice(best, dominates[best], reason)
    better = "external" if gap > 0 else "self"
    directions = gap / (extra / budget) if gap * extra > 0 else None
    reason = f"the {better}-teacher's target is worth {abs(gap):.3g} more, " + (
        "and this pilot does not settle which is cheaper to learn; "
        if directions is None
        else f"but costs more to learn: it is preferable when fewer than {directions:.3g} directions are to be learnt; "
    )
    reason += "give the dimension, or features, to decide"
    return advice(None, float("nan"), reason, break_even_dimension=directions)


def check(pilot: Pilot, name: str) -> None:
    """Refuse a pilot that cannot carry an answer, or whose log-probabilities cannot be those of its samples."""
    if pilot.prompts < MIN_PROMPTS:
        raise PilotTooSmall(
            f"the {name} pilot has {pilot.prompts} prompts; an interval over prompts needs at least {MIN_PROMPTS}"
        )
    pairs = len(pilot.prompt_N)
    if pairs < MIN_PAIRS_PER_PROMPT * pilot.prompts:
        raise PilotTooSmall(
            f"the {name} pilot has {pairs} pairs for {pilot.prompts} prompts; what a target is worth needs "
            f"{MIN_PAIRS_PER_PROMPT} a prompt or more: raise num_generations and num_teacher_generations"
        )
    informative = int((pilot.reward_chosen_N != pilot.reward_rejected_N).sum())
    if informative < MIN_INFORMATIVE_PAIRS:
        raise PilotTooSmall(
            f"only {informative} of the {name} pilot's {pairs} pairs have rewards that differ; at least "
            f"{MIN_INFORMATIVE_PAIRS} are needed: collect more pairs per prompt, or more prompts"
        )
    features = pilot.features_chosen_ND
    if features is not None and len(features) < 5 * features.shape[1]:
        raise PilotTooSmall(
            f"the {name} pilot has {len(features)} pairs for {features.shape[1]} features; it needs five a feature"
        )
    count_Q = np.bincount(pilot.prompt_N)
    ratio = pilot.teacher_chosen_N - pilot.student_chosen_N
    weight = np.exp(np.stack(_mixture_log_ratios(pilot))).mean(0)
    kl_Q, weight_Q = (np.bincount(pilot.prompt_N, x_N) / count_Q for x_N in (ratio, weight))
    kl_error, weight_error = (x_Q.std(ddof=1) / np.sqrt(pilot.prompts) for x_Q in (kl_Q, weight_Q))
    # KL(T || S) is not negative, and T / ((T + S) / 2) has the mean 1 over samples of both, whatever T and S are.
    if kl_Q.mean() < -5.0 * kl_error or abs(weight_Q.mean() - 1.0) > max(5.0 * weight_error, 0.1):
        raise ValueError(
            f"the {name} pilot's log-probabilities are not those its samples were drawn by: over teacher samples the "
            f"mean of log T/S is {kl_Q.mean():.3g} (it cannot be negative), over both sides that of 2T / (T + S) is "
            f"{weight_Q.mean():.3g} (it must be 1); are the roles exchanged, or the temperature not 1?"
        )


def _features_agree(own: Pilot, external: Pilot, setting: Setting) -> bool:
    widths = {
        name: None if pilot.features_chosen_ND is None else pilot.features_chosen_ND.shape[1]
        for name, pilot in (("self", own), ("external", external))
    }
    if widths["self"] != widths["external"]:
        raise ValueError(f"both pilots must have the same features, or none; their numbers are {widths}")
    if widths["self"] is not None and setting.dimension is not None:
        raise ValueError("the pilots have features, which say what has to be learnt: drop the dimension")
    return widths["self"] is not None


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
        "label_information": mean(np.where(p.same_N, 0.0, sigmoid_slope(setting.reward_scale * gap))),
        "discordant": mean((gap != 0).astype(float)),
        "overlap_ess": ess(p.teacher_rejected_N - p.student_rejected_N),
        "tilt_ess": ess(tilt),
        "kl_teacher_student": mean(p.teacher_chosen_N - p.student_chosen_N),
        "target_value": lambda weights_RN: _by_prompt(p, _target_values(p, setting), weights_RN),
    }


def _mixture_log_ratios(pilot: Pilot) -> tuple[Array, Array]:
    """log of T / ((T + S) / 2) of y+ and of y-, [N] each.

    Both sides' samples together are a draw from the mixture of teacher and student, so means over them with these
    weights are unbiased for the teacher (the balance heuristic of Veach and Guibas 1995).
    """
    sides = (
        (pilot.teacher_chosen_N, pilot.student_chosen_N),
        (pilot.teacher_rejected_N, pilot.student_rejected_N),
    )
    chosen, rejected = (teacher - np.logaddexp(teacher, student) + np.log(2.0) for teacher, student in sides)
    return chosen, rejected


def _tilted_log_weights(pilot: Pilot, setting: Setting) -> list[Array]:
    """log of exp(reward_scale r / beta) T / ((T + S) / 2) of each prompt's y+ and y-, [2, K] a prompt."""
    rewards = np.stack([pilot.reward_chosen_N, pilot.reward_rejected_N])
    log_weights_2N = np.stack(_mixture_log_ratios(pilot)) + setting.reward_scale * rewards / setting.beta
    return [log_weights_2N[:, pilot.prompt_N == prompt] for prompt in range(pilot.prompts)]


def _target_values(pilot: Pilot, setting: Setting) -> Array:
    """beta log Z of each prompt, [Q], less the bias of order 1/K that the logarithm of a mean over K pairs has."""
    values = np.empty(pilot.prompts)
    for prompt, log_weight in enumerate(_tilted_log_weights(pilot, setting)):
        log_mean = logsumexp(log_weight) - np.log(log_weight.size)
        relative_K = np.exp(log_weight - log_mean).mean(0)
        variance = relative_K.var(ddof=1) if len(relative_K) > 1 else 0.0
        values[prompt] = setting.beta * (log_mean + 0.5 * variance / len(relative_K))
    return values


def _isotropic_cost(pilot: Pilot, setting: Setting, dimension: float) -> Callable[[Array], Array]:
    """dimension (1 - C) / (2 E[sigmoid'(m*)]), a function of weights [R, N]; C from pairs of a prompt's samples."""
    information, marks = _figures(pilot, setting)["label_information"], _marks(pilot)
    different = np.empty(pilot.prompts)
    for prompt, log_weight in enumerate(_tilted_log_weights(pilot, setting)):
        weight = softmax(log_weight).ravel()
        drawn = np.swapaxes(marks[pilot.prompt_N == prompt], 0, 1).reshape(-1, 3)
        both = np.outer(weight, weight)
        np.fill_diagonal(both, 0.0)
        total = both.sum()
        different[prompt] = (both * ~_alike(drawn[:, None], drawn[None, :])).sum() / total if total > 0 else 0.0
    return lambda weights_RN: dimension * _by_prompt(pilot, different, weights_RN) / (2.0 * information(weights_RN))


def _marks(pilot: Pilot) -> Array:
    """What tells completions of a prompt apart, [N, 2 sides, 3]."""
    sides = (
        (pilot.student_chosen_N, pilot.teacher_chosen_N, pilot.reward_chosen_N),
        (pilot.student_rejected_N, pilot.teacher_rejected_N, pilot.reward_rejected_N),
    )
    return np.stack([np.stack(side, axis=-1) for side in sides], axis=1)


def _alike(marks: Array, others: Array) -> np.ndarray:
    """Equal to the rounding of a forward pass in another batch, [..., 3] and [..., 3] -> [...] of bool."""
    return np.all(np.abs(marks - others) <= 1e-4 + 1e-6 * np.abs(marks), axis=-1)


def _cost_with_features(pilot: Pilot, setting: Setting, name: str) -> Callable[[Array], Array]:
    """v = tr(Cov_P*(phi) I^-1), covariances of each prompt from its tilted samples; of weights [R, N]."""
    chosen, rejected = pilot.features_chosen_ND, pilot.features_rejected_ND
    assert chosen is not None and rejected is not None
    difference = chosen - rejected
    dimension = chosen.shape[1]
    rank = np.linalg.matrix_rank(difference)
    if rank < dimension:
        flat = np.flatnonzero(np.ptp(difference, axis=0) == 0).tolist()
        raise ValueError(
            f"the {name} pilot's {dimension} features vary in {rank} directions within pairs: drop "
            + (f"features {flat} (counted from 0), which never differ" if flat else "features that others determine")
        )
    slope = sigmoid_slope(setting.reward_scale * (pilot.reward_chosen_N - pilot.reward_rejected_N))
    covariance_QDD = np.zeros((pilot.prompts, dimension, dimension))
    for prompt, log_weight in enumerate(_tilted_log_weights(pilot, setting)):
        rows = pilot.prompt_N == prompt
        weight = softmax(log_weight).ravel()
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
