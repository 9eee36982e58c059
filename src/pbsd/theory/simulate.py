"""Monte Carlo twins of `asymptotics`: sample labelled pairs, fit, measure; errors are standard errors of means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, rel_entr

from pbsd.theory.asymptotics import fisher_information, likelihood_derivatives, sigmoid_slope, value
from pbsd.theory.tabular import Array
from pbsd.theory.worlds import PromptMix, World, Yardstick

# A fit is pulled towards the prior by this much of a pair's information: enough to exist when the labels are separable.
RIDGE = 1e-3


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates and its standard error."""

    mean: float
    error: float


def sample_fits(world: World | PromptMix, n: int, *, replicates: int, rng: np.random.Generator) -> Array:
    """theta^ of `replicates` independent experiments of n labelled pairs, [R, D].

    Maximum likelihood with the ridge (RIDGE / n) ||theta||_I^2 / 2, so that the fit exists when every label agrees.
    """
    design = world.design
    pairs = len(design.weight_N)
    # Outcomes: the first wins, the second wins; the last one is a pair of a completion with itself.
    won, lost = design.weight_N * world.label_N, design.weight_N * (1.0 - world.label_N)
    same = max(1.0 - design.weight_N.sum(), 0.0)
    outcome = np.concatenate([won, lost, [same]])
    counts = rng.multinomial(n, outcome / outcome.sum(), size=replicates)
    return _fit(world, counts[:, :pairs] / n, counts[:, pairs : 2 * pairs] / n, n)


def _fit(world: World | PromptMix, won_RN: Array, lost_RN: Array, n: int) -> Array:
    """Damped Newton on every replicate at once; replicates leave as they converge."""
    design = world.design
    d = design.difference_ND
    offset_N, flip = world.offset_N, world.assumed_flip_rate
    ridge_DD = RIDGE / n * (fisher_information(design) + 1e-9 * np.eye(d.shape[1]))
    # Products of features of every pair, so that all replicates' Hessians are one matrix product.
    square_NE = (d[:, :, None] * d[:, None, :]).reshape(len(d), -1)

    def loss(theta_RD: Array, won: Array, lost: Array) -> Array:
        margin = theta_RD @ d.T + offset_N
        if flip == 0.0:
            log_q = -np.logaddexp(0.0, margin)
            fit = won * (log_q + margin) + lost * log_q
        else:
            p = flip + (1.0 - 2.0 * flip) * expit(margin)
            fit = won * np.log(p) + lost * np.log1p(-p)
        return 0.5 * ((theta_RD @ ridge_DD) * theta_RD).sum(-1) - fit.sum(-1)

    fitted = np.zeros((len(won_RN), d.shape[1]))
    active, theta, won, lost = np.arange(len(won_RN)), fitted.copy(), won_RN, lost_RN
    current = loss(theta, won, lost)
    for _ in range(5000):
        total = won + lost
        label = np.divide(won, total, out=np.zeros_like(won), where=total > 0)
        score_N, curvature_N, _ = likelihood_derivatives(theta @ d.T + offset_N, label, flip)
        if flip > 0.0:  # the corrected likelihood is not concave; its expected curvature is a safe direction
            p = flip + (1.0 - 2.0 * flip) * expit(theta @ d.T + offset_N)
            curvature_N = -((1.0 - 2.0 * flip) ** 2) * sigmoid_slope(theta @ d.T + offset_N) ** 2 / (p * (1.0 - p))
        score = (total * score_N) @ d - theta @ ridge_DD
        curvature = ((total * -curvature_N) @ square_NE).reshape(len(theta), d.shape[1], d.shape[1]) + ridge_DD
        step = np.linalg.solve(curvature, score[..., None])[..., 0]
        # Where the likelihood is nearly flat a Newton step would leave the range in which exp makes sense.
        step /= np.maximum(1.0, np.abs(step @ d.T).max(-1, keepdims=True) / 10.0)
        for _ in range(40):
            proposed = loss(theta + step, won, lost)
            worse = proposed > current + 1e-13 * np.abs(current)
            if not worse.any():
                break
            step[worse] /= 2.0
        # A likelihood that rises for ever is left where a step gains nothing any more.
        moving = (np.abs(step).max(-1) > 1e-7) & (current - proposed > 1e-13 * np.abs(current))
        theta, current = theta + step, proposed
        fitted[active] = theta
        if not moving.any():
            return fitted
        active, theta, won, lost, current = (x[moving] for x in (active, theta, won, lost, current))
    raise ArithmeticError(f"{len(active)} of {len(fitted)} fits of {n} pairs did not converge")


def sample_regression_fits(
    world: World,
    n: int,
    noise: Callable[[np.random.Generator, Array], Array],
    *,
    replicates: int,
    rng: np.random.Generator,
) -> Array:
    """theta^ of the `squared` loss, least squares of noisy reward gaps on feature differences, [R, D].

    Args:
        noise: (rng, mean_K of the reward) -> what each observed reward deviates from its mean by, [K].
    """
    fits = np.empty((replicates, len(world.theta_D)))
    completions = len(world.teacher_Y)
    for replicate in range(replicates):
        first = rng.choice(completions, size=n, p=world.teacher_Y)
        second = rng.choice(completions, size=n, p=world.student_Y)
        difference = world.features_YD[first] - world.features_YD[second]
        rewards = [world.reward_Y[y] + noise(rng, world.reward_Y[y]) for y in (first, second)]
        fits[replicate] = np.linalg.lstsq(difference, rewards[0] - rewards[1])[0]
    return fits


def regret(world: World, n: int, *, replicates: int, rng: np.random.Generator) -> Estimate:
    """Mean of `regrets` after n labelled pairs; v / (2 beta n) at leading order when the world is well specified."""
    return _estimate(regrets(world, sample_fits(world, n, replicates=replicates, rng=rng)))


def regrets(world: World, theta_RD: Array) -> Array:
    """beta KL(pi_theta || P*), [R]."""
    policy = world.policy(theta_RD)
    return world.beta * rel_entr(policy, world.target_Y).sum(-1)


def excess_risk(
    world: World, n: int, *, best: float, replicates: int, rng: np.random.Generator, yardstick: Yardstick = "soft_value"
) -> Estimate:
    """Mean of `best` minus the value of the learnt policy."""
    theta = sample_fits(world, n, replicates=replicates, rng=rng)
    return _estimate(best - value(world, theta, yardstick))


def information_norm(world: World, n: int, *, replicates: int, rng: np.random.Generator) -> Array:
    """||theta^ - theta*||_I of every replicate, [R]: what `finite_sample_bound` bounds."""
    delta = sample_fits(world, n, replicates=replicates, rng=rng) - world.theta_D
    return np.sqrt(np.einsum("rd,de,re->r", delta, fisher_information(world.design), delta))


@dataclass(frozen=True)
class SimulatedCrossover:
    """Sizes n_K, the difference of excess risks external - self [K] with its errors [K], and where it changes sign.

    Attributes:
        sample_size: the last change of sign, interpolated in log n; nan when there is none.
        low, high: 95% quantiles of the last change over redraws of the differences within their errors.
        changes: how many changes of sign there are. At sizes where many fits are separable there may be more than one.
    """

    n_K: Array
    difference_K: Array
    error_K: Array
    sample_size: float
    low: float
    high: float
    changes: int


def crossover(
    own: World,
    external: World,
    n_K: Array,
    *,
    replicates: int,
    rng: np.random.Generator,
    yardstick: Yardstick = "soft_value",
) -> SimulatedCrossover:
    best = 0.0
    pairs = [
        [
            excess_risk(w, int(n), best=best, replicates=replicates, rng=rng, yardstick=yardstick)
            for w in (own, external)
        ]
        for n in n_K
    ]
    difference = np.array([there.mean - here.mean for here, there in pairs])
    error = np.array([np.hypot(here.error, there.error) for here, there in pairs])
    redraws = [_roots(n_K, difference + error * rng.normal(size=len(n_K))) for _ in range(500)]
    last = [roots[-1] for roots in redraws if len(roots)]
    low, high = np.quantile(last, (0.025, 0.975)) if last else (np.nan, np.nan)
    roots = _roots(n_K, difference)
    if not len(roots):
        return SimulatedCrossover(n_K, difference, error, np.nan, np.nan, np.nan, 0)
    return SimulatedCrossover(n_K, difference, error, float(roots[-1]), float(low), float(high), len(roots))


def _roots(n_K: Array, difference_K: Array) -> Array:
    k = np.flatnonzero(np.sign(difference_K[:-1]) * np.sign(difference_K[1:]) < 0)
    share = difference_K[k] / (difference_K[k] - difference_K[k + 1])
    return np.exp(np.log(n_K[k]) + share * np.log(n_K[k + 1] / n_K[k]))


def _estimate(values_R: Array) -> Estimate:
    return Estimate(float(values_R.mean()), float(values_R.std(ddof=1) / np.sqrt(len(values_R))))
