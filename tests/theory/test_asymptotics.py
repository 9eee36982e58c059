"""The asymptotic statements against values by hand, numerical derivatives, and their Monte Carlo twins."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pbsd.theory import asymptotics, simulate
from pbsd.theory.tabular import optimality_gap
from pbsd.theory.worlds import PromptMix, random_world, self_and_external, sparse_world


def world_of(seed, **options):
    return random_world(np.random.default_rng(seed), **options)


def learning_cost(world):
    information = asymptotics.fisher_information(world.design)
    return asymptotics.regret_constant(asymptotics.target_covariance(world.target_Y, world.features_YD), information)


def within(found, expected, errors=4.0):
    """4 standard errors: one failure in 16,000 were the seed not fixed."""
    assert abs(found.mean - expected) < errors * found.error, (found, expected)


# Information and v


def test_v_of_two_completions_by_hand():
    """Success or failure, theta = 2, T(success) = .3, S(success) = .1, beta .5.

    D = .3 * .9 + .1 * .7 = .34; sigmoid'(2) = .104994; P*(success) = .3 e^4 / (.7 + .3 e^4) = .959015;
    v = .959015 * .040985 / (.104994 * .34) = 1.10106.
    """
    world = sparse_world(success_teacher=0.3, success_student=0.1, beta=0.5)
    assert world.design.weight_N == pytest.approx([0.34])
    assert world.target_Y[1] == pytest.approx(0.959015, abs=1e-5)
    assert asymptotics.fisher_information(world.design)[0, 0] == pytest.approx(0.104994 * 0.34, abs=1e-6)
    assert learning_cost(world) == pytest.approx(1.10106, abs=1e-4)


def test_information_is_the_expected_outer_product_over_ordered_pairs():
    world = world_of(0)
    expected = np.zeros((3, 3))
    for i, p in enumerate(world.teacher_Y):
        for j, q in enumerate(world.student_Y):
            d = world.features_YD[i] - world.features_YD[j]
            m = d @ world.theta_D
            expected += p * q * np.outer(d, d) / (2.0 + 2.0 * math.cosh(m))
    assert_allclose(asymptotics.fisher_information(world.design), expected, rtol=1e-12)


def test_far_margins_say_little():
    """sigmoid'(m) is at most e^-|m|: scaling the reward by ten makes v larger by orders of magnitude."""
    world = world_of(1)
    far = replace(world, theta_D=10 * world.theta_D)
    assert (
        np.linalg.eigvalsh(asymptotics.fisher_information(far.design))[0]
        < 0.3 * np.linalg.eigvalsh(asymptotics.fisher_information(world.design))[0]
    )


def test_v_is_infinite_where_pairs_never_differ():
    world = world_of(0)
    blind = replace(
        world, features_YD=np.column_stack([world.features_YD, np.zeros(12)]), theta_D=np.append(world.theta_D, 0.0)
    )
    assert learning_cost(blind) == pytest.approx(learning_cost(world))  # a direction nobody varies in costs nothing
    information = asymptotics.fisher_information(blind.design)
    with pytest.raises(ValueError, match="no information in a direction"):
        asymptotics.regret_constant(np.eye(4), information)


@pytest.mark.parametrize("knows", [True, False])
def test_likelihood_derivatives_by_differences(knows):
    flip, margin, label = 0.2 if knows else 0.0, np.linspace(-4, 4, 9), np.linspace(0, 1, 9)

    def log_likelihood(m):
        p = flip + (1 - 2 * flip) / (1 + np.exp(-m))
        return label * np.log(p) + (1 - label) * np.log(1 - p)

    h = 1e-4
    numbers = [log_likelihood(margin + k * h) for k in (-2, -1, 0, 1, 2)]
    first = (numbers[3] - numbers[1]) / (2 * h)
    second = (numbers[3] - 2 * numbers[2] + numbers[1]) / h**2
    third = (numbers[4] - 2 * numbers[3] + 2 * numbers[1] - numbers[0]) / (2 * h**3)
    for ours, numeric, tolerance in zip(
        asymptotics.likelihood_derivatives(margin, label, flip), (first, second, third), (1e-7, 1e-6, 2e-3), strict=True
    ):
        assert_allclose(ours, numeric, atol=tolerance)


# The limit of the fit


@pytest.mark.parametrize("seed", range(3))
def test_well_specified_limit_is_theta_star_with_inverse_information(seed):
    world = world_of(seed)
    limit = asymptotics.estimator_limit(world)
    assert_allclose(limit.theta_D, world.theta_D, atol=1e-12)
    assert_allclose(limit.covariance_DD @ asymptotics.fisher_information(world.design), np.eye(3), atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_a_known_flip_rate_costs_information_and_nothing_else(seed):
    world = replace(world_of(seed), flip_rate=0.2, knows_flip_rate=True)
    limit = asymptotics.estimator_limit(world)
    information = asymptotics.fisher_information(world.design, flip_rate=0.2)
    assert_allclose(limit.theta_D, world.theta_D, atol=1e-12)
    assert_allclose(limit.covariance_DD @ information, np.eye(3), atol=1e-9)
    assert np.linalg.eigvalsh(asymptotics.fisher_information(world.design) - information)[0] > 0


def test_an_unknown_flip_rate_shrinks_theta_by_hand():
    """One direction: P = .8 sigmoid(2) + .2 sigmoid(-2) = .728478, so theta goes to logit(.728478) = .98692."""
    world = replace(sparse_world(success_teacher=0.3, success_student=0.1, beta=0.5), flip_rate=0.2)
    assert asymptotics.estimator_limit(world).theta_D[0] == pytest.approx(0.98692, abs=1e-4)
    assert asymptotics.expansion(world, world.target_value("soft_value")).bias == pytest.approx(
        optimality_gap(world.policy(np.array([0.98692])), world.teacher_Y, world.reward_Y, 0.5), abs=1e-4
    )


@pytest.mark.parametrize("case", ["plain", "flipped", "corrected", "offset"])
def test_bias_and_covariance_of_the_fit(case):
    """Monte Carlo mean and covariance of sqrt(n) (theta^ - theta) against the limit."""
    world = world_of(4, completions=6, dimension=2, beta=1.0)
    if case in ("flipped", "corrected"):
        world = replace(world, flip_rate=0.15, knows_flip_rate=case == "corrected")
    if case == "offset":
        world = replace(world, offset_Y=0.7 * np.random.default_rng(0).normal(size=6))
    limit, n, replicates = asymptotics.estimator_limit(world), 8000, 40000
    deviation = simulate.sample_fits(world, n, replicates=replicates, rng=np.random.default_rng(5)) - limit.theta_D
    error = np.sqrt(np.diag(limit.covariance_DD) / n / replicates)
    assert np.all(np.abs(deviation.mean(0) - limit.bias_D / n) < 4 * error)
    assert np.abs(limit.bias_D / n).max() > 3 * error.min(), "the bias must be visible for the test to mean anything"
    assert_allclose(np.cov(deviation.T) * n, limit.covariance_DD, rtol=0.05, atol=0.05 * limit.covariance_DD.max())


# Regret


def test_expansion_is_v_over_two_beta_when_well_specified():
    for seed in range(4):
        world = world_of(seed, beta=0.3)
        found = asymptotics.expansion(world, world.target_value("soft_value"))
        assert found.bias == pytest.approx(0.0, abs=1e-12)
        assert found.constant == pytest.approx(learning_cost(world) / (2 * 0.3), rel=1e-10)
        assert asymptotics.excess_risk(50, bias=0.1, regret_constant=learning_cost(world), beta=0.3) == pytest.approx(
            0.1 + found.at(50)
        )


@pytest.mark.parametrize("beta", [0.2, 1.0])
@pytest.mark.parametrize("dimension", [1, 4])
@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_predicted_regret_is_the_simulated_one(beta, dimension, distance):
    """At 3000 and 12000 times the regularity scale, where the next order is under a percent."""
    world = world_of(0, beta=beta, dimension=dimension, distance=distance)
    constant = learning_cost(world) / (2 * beta)
    sizes = [math.ceil(k * asymptotics.regularity_scale(world)) for k in (3000, 12000)]
    found = [simulate.regret(world, n, replicates=8000, rng=np.random.default_rng(1)) for n in sizes]
    for n, estimate in zip(sizes, found, strict=True):
        within(estimate, constant / n)
    slope = math.log(found[1].mean / found[0].mean) / math.log(sizes[1] / sizes[0])
    error = math.hypot(*(e.error / e.mean for e in found)) / math.log(4)
    assert abs(slope + 1.0) < 4 * error


@pytest.mark.parametrize("yardstick", ["soft_value", "reward"])
@pytest.mark.parametrize("case", ["plain", "flipped", "offset"])
def test_predicted_excess_is_the_simulated_one(yardstick, case):
    """Also for learners that are wrong about their labels or cannot express the target, and for plain reward."""
    world = world_of(2, dimension=2, beta=0.7)
    if case == "flipped":
        world = replace(world, flip_rate=0.2)
    if case == "offset":
        world = replace(world, offset_Y=0.5 * np.random.default_rng(1).normal(size=12))
    best, n = world.target_value(yardstick), 20000
    predicted = asymptotics.expansion(world, best, yardstick)
    found = simulate.excess_risk(
        world, n, best=best, replicates=40000, rng=np.random.default_rng(3), yardstick=yardstick
    )
    within(found, predicted.at(n))
    if case != "plain":
        assert abs(predicted.bias) > 20 * found.error


def test_value_by_definition():
    world = world_of(3)
    theta = np.array([[0.3, -0.2, 0.5], world.theta_D])
    policies = world.policy(theta)
    assert_allclose(policies.sum(-1), 1.0)
    for policy, soft, reward in zip(
        policies, asymptotics.value(world, theta, "soft_value"), asymptotics.value(world, theta, "reward"), strict=True
    ):
        assert soft == pytest.approx(
            policy @ world.reward_Y - 0.5 * float(policy @ np.log(policy / world.teacher_Y)), abs=1e-12
        )
        assert reward == pytest.approx(policy @ world.reward_Y)
    assert asymptotics.value(world, theta, "soft_value")[1] == pytest.approx(world.target_value("soft_value"))


def test_a_mix_of_prompts_pools_its_pairs():
    """Information of a mix is the mean of its parts', and a mix of one prompt is that prompt."""
    one, two = world_of(0), replace(world_of(1), theta_D=world_of(0).theta_D)
    mix = PromptMix((one, two))
    assert_allclose(
        asymptotics.fisher_information(mix.design),
        (asymptotics.fisher_information(one.design) + asymptotics.fisher_information(two.design)) / 2,
    )
    fits = [
        simulate.sample_fits(world, 500, replicates=20, rng=np.random.default_rng(0))
        for world in (one, PromptMix((one,)))
    ]
    assert_allclose(*fits)


# The finite-sample bound


@pytest.mark.parametrize(("dimension", "seed"), [(1, 0), (3, 1), (3, 2), (5, 3)])
def test_bound_holds_as_often_as_it_says_and_is_not_empty(dimension, seed):
    world, delta = world_of(seed, dimension=dimension), 0.1
    sizes = np.unique(np.geomspace(10, 1e7, 200).astype(int))
    bounds = np.array([asymptotics.finite_sample_bound(world.design, n=int(n), delta=delta) for n in sizes])
    assert np.isinf(bounds[0]) and np.isfinite(bounds[-1])
    n = int(sizes[np.isfinite(bounds)][0])
    norms = simulate.information_norm(world, n, replicates=2000, rng=np.random.default_rng(seed))
    bound = asymptotics.finite_sample_bound(world.design, n=n, delta=delta)
    assert (norms <= bound).mean() >= 1 - delta
    regrets = simulate.regrets(world, simulate.sample_fits(world, n, replicates=2000, rng=np.random.default_rng(seed)))
    assert (regrets <= asymptotics.regret_bound(world, bound)).mean() >= 1 - delta
    large = asymptotics.finite_sample_bound(world.design, n=10**9, delta=delta)
    asymptotic = np.sqrt(dimension / 1e9)
    assert asymptotic < large < (1.0 + np.sqrt(2 * np.log(2 / delta))) * asymptotic * 1.1


def test_regret_bound_covers_every_direction_of_the_sphere():
    world, norm = world_of(5), 0.3
    whiten = np.linalg.cholesky(np.linalg.inv(asymptotics.fisher_information(world.design)))
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    worst = simulate.regrets(world, world.theta_D + norm * directions @ whiten.T).max()
    assert worst <= asymptotics.regret_bound(world, norm)
    tiny = simulate.regrets(world, world.theta_D + 1e-4 * directions @ whiten.T).max()
    assert tiny == pytest.approx(asymptotics.regret_bound(world, 1e-4), rel=0.02)


def test_bound_refuses_a_delta_that_is_no_probability():
    with pytest.raises(ValueError, match="delta"):
        asymptotics.finite_sample_bound(world_of(0).design, n=100, delta=1.0)


# Self against external


def test_crossover_by_hand():
    """b_self - b_ext = .1, v_ext - v_self = 4, beta .5: n* = 4 / (2 * .5 * .1) = 40."""
    assert asymptotics.crossover_sample_size(
        bias_self=0.1, bias_external=0.0, v_self=1.0, v_external=5.0, beta=0.5
    ) == pytest.approx(40)


@pytest.mark.parametrize(
    ("own", "external", "size", "below"),
    [
        ((0.1, 1.0), (0.0, 5.0), 40.0, "self"),
        ((0.0, 5.0), (0.1, 1.0), 40.0, "external"),
        ((0.0, 1.0), (0.1, 5.0), math.inf, "self"),
        ((0.1, 5.0), (0.0, 1.0), math.inf, "external"),
        ((0.0, 1.0), (0.0, 5.0), math.inf, "self"),
        ((0.1, 1.0), (0.0, 1.0), math.inf, "external"),
    ],
)
def test_every_order_of_the_two(own, external, size, below):
    met = asymptotics.crossover(asymptotics.Expansion(*own), asymptotics.Expansion(*external))
    assert (met.sample_size == pytest.approx(size)) and met.below == below
    for n in (1.0, 1e6):
        difference = asymptotics.Expansion(*external).at(n) - asymptotics.Expansion(*own).at(n)
        assert (difference > 0) == ((below == "self") == (n < size))


def test_two_alike_never_meet():
    same = asymptotics.Expansion(0.1, 1.0)
    assert math.isnan(asymptotics.crossover(same, same).sample_size)


@pytest.mark.parametrize("yardstick", ["soft_value", "reward"])
def test_the_family_is_what_it_says(yardstick):
    own, external = self_and_external(advantage=0.07, overlap=0.15, yardstick=yardstick)
    assert external.target_value(yardstick) - own.target_value(yardstick) == pytest.approx(0.07, abs=1e-9)
    style = own.features_YD[:, -1]
    assert external.teacher_Y @ (style == 0) == pytest.approx(0.15)
    assert own.teacher_Y @ (style == 0) == pytest.approx(0.8)


def test_less_overlap_makes_the_external_target_dearer():
    costs = [learning_cost(self_and_external(advantage=0.05, overlap=overlap)[1]) for overlap in (0.5, 0.2, 0.1, 0.05)]
    assert costs == sorted(costs) and costs[-1] > 3 * costs[0]


@pytest.mark.parametrize("options", [{"overlap": 0.0}, {"overlap": 0.3, "advantage": 9.0}])
def test_the_family_refuses_what_it_cannot_be(options):
    with pytest.raises(ValueError, match="must lie"):
        self_and_external(**{"advantage": 0.1, **options})


@pytest.mark.parametrize(("overlap", "advantage"), [(0.5, 0.01), (0.1, 0.05), (0.02, 0.05)])
def test_predicted_crossover_is_the_simulated_one_within_a_fifth(overlap, advantage):
    own, external = self_and_external(advantage=advantage, overlap=overlap)
    best = external.target_value("soft_value")
    predicted = asymptotics.crossover(asymptotics.expansion(own, best), asymptotics.expansion(external, best))
    n_K = np.unique(np.round(predicted.sample_size * np.array([0.5, 0.7, 1.0, 1.4, 2.0])).astype(int))
    found = simulate.crossover(own, external, n_K, replicates=1500, rng=np.random.default_rng(0))
    assert predicted.below == "self" and found.changes >= 1
    assert found.sample_size == pytest.approx(predicted.sample_size, rel=0.2)
    assert found.low < found.sample_size < found.high


# Other rewards


@pytest.mark.parametrize("flip_rate", [0.0, 0.2, 0.4])
def test_flips_divide_information_by_a_known_factor(flip_rate):
    """At margin 0 the factor is (1 - 2e)^2 exactly."""
    world = replace(world_of(0), theta_D=np.zeros(3))
    ratio = asymptotics.fisher_information(world.design, flip_rate=flip_rate) / asymptotics.fisher_information(
        world.design
    )
    assert_allclose(ratio, (1 - 2 * flip_rate) ** 2)


@pytest.mark.parametrize("tails", ["normal", "student_t", "bernoulli"])
def test_squared_loss_feels_the_variance_only(tails):
    world = world_of(0, dimension=2)
    if tails == "bernoulli":
        world = replace(world, theta_D=world.theta_D * 0.45 / np.abs(world.reward_Y).max())
    variance = {"normal": np.ones(12), "student_t": np.full(12, 5 / 3), "bernoulli": 0.25 - world.reward_Y**2}[tails]
    noise = {
        "normal": lambda rng, mean: rng.normal(size=len(mean)),
        "student_t": lambda rng, mean: rng.standard_t(5, size=len(mean)),
        "bernoulli": lambda rng, mean: (rng.uniform(size=len(mean)) < 0.5 + mean) - (0.5 + mean),
    }[tails]
    information = asymptotics.regression_information(world.design, variance_Y=variance)
    v = asymptotics.regret_constant(asymptotics.target_covariance(world.target_Y, world.features_YD), information)
    n = math.ceil(500 * v / (2 * world.beta**2))
    fits = simulate.sample_regression_fits(world, n, noise, replicates=1500, rng=np.random.default_rng(0))
    regrets = simulate.regrets(world, fits)
    within(simulate.Estimate(regrets.mean(), regrets.std() / math.sqrt(1500)), v / (2 * world.beta * n))
    if tails == "bernoulli":
        bound = asymptotics.regression_information(world.design, variance_Y=np.full(12, 0.25))
        assert v < asymptotics.regret_constant(asymptotics.target_covariance(world.target_Y, world.features_YD), bound)


@pytest.mark.parametrize(("teacher", "student"), [(0.05, 0.05), (0.5, 0.05), (0.9, 0.4)])
def test_sparse_rewards(teacher, student):
    world = sparse_world(success_teacher=teacher, success_student=student, beta=0.5)
    discordant = teacher * (1 - student) + student * (1 - teacher)
    slope = math.exp(-2) / (1 + math.exp(-2)) ** 2
    v = world.target_Y.prod() / (slope * discordant)
    assert learning_cost(world) == pytest.approx(v)
    # Not 1000 v / (2 beta^2): a target that is nearly certain of success has few nats to lose, and n would be tiny.
    assert asymptotics.regularity_scale(world) == pytest.approx(max(v / (2 * 0.5**2), 1 / discordant))
    n = math.ceil(1000 * asymptotics.regularity_scale(world))
    within(simulate.regret(world, n, replicates=8000, rng=np.random.default_rng(0)), v / (2 * 0.5 * n))
    few = math.ceil(1 / discordant)
    rng = np.random.default_rng(1)
    unlucky = rng.binomial(few, discordant, size=100_000) == 0
    gap = optimality_gap(world.teacher_Y, world.teacher_Y, world.reward_Y, 0.5)
    found = simulate.Estimate(gap * unlucky.mean(), gap * unlucky.std() / math.sqrt(100_000))
    within(found, asymptotics.sparse_regret_with_soft_labels(world, few))
