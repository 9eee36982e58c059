"""The tilted target, and what each loss learns, on finite spaces seeded by name (none picked by its outcome)."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import softmax
from spaces import EXACT, LABELLED, NAMES, POLICIES, generator, space

from pbsd.losses.preference import group_log_variance_loss, preference_loss
from pbsd.losses.projection import direct_loss, imitation_loss
from pbsd.pairs import make_pairs
from pbsd.records import Rollout
from pbsd.theory.tabular import (
    PAIR_LOSSES,
    expected_gradient,
    expected_loss,
    imitation_target,
    kl,
    logistic_optimum,
    objective,
    optimal_value,
    optimality_gap,
    pair_measure,
    population,
    population_optimum,
    reward_tilted,
)


def levels(name, size=5):
    """As `space`, with rewards of three levels, so that there are ties, and `correct` where the reward is full."""
    teacher, student, _, beta, scale = space(name, size)
    reward = np.resize([1.0, 0.0, 0.5, 1.0, 0.0], size)
    return teacher, student, reward, beta, scale, (reward == 1.0).astype(float)


# The target and the gap


@pytest.mark.parametrize("name", NAMES)
def test_gap_identity(name):
    """J(P*) - J(p) = beta KL(p || P*) for every p, by the two sides computed apart; J(P*) = beta log Z."""
    teacher, student, reward, beta, _ = space(name)
    optimum = reward_tilted(teacher, reward, beta)
    assert objective(optimum, teacher, reward, beta) == pytest.approx(optimal_value(teacher, reward, beta), abs=EXACT)
    for policy in (student, teacher, optimum, np.eye(5)[2]):
        difference = optimal_value(teacher, reward, beta) - objective(policy, teacher, reward, beta)
        assert difference == pytest.approx(optimality_gap(policy, teacher, reward, beta), abs=EXACT)
        assert difference >= -EXACT


@pytest.mark.parametrize("name", NAMES)
def test_target_beats_the_teacher_unless_the_reward_is_constant(name):
    """J(P*) - J(T) = beta KL(T || P*) > 0 and E_P*[r] > E_T[r]; with a constant reward P* = T and both are equal."""
    teacher, _, reward, beta, _ = space(name)
    optimum = reward_tilted(teacher, reward, beta)
    assert optimality_gap(teacher, teacher, reward, beta) > 1e-4
    assert optimum @ reward > teacher @ reward + 1e-4
    # d E_P[r] / d (1/beta) = Var_P(r): the gain in reward is the integral of the variance along the tilt.
    tilts = np.linspace(0.0, 1 / beta, 2001)[1:]
    path = [teacher, *(reward_tilted(teacher, reward, 1 / tilt) for tilt in tilts)]
    variances = np.array([p @ reward**2 - (p @ reward) ** 2 for p in path])
    assert np.trapezoid(variances, dx=tilts[0]) == pytest.approx((optimum - teacher) @ reward, abs=1e-6)
    constant = np.full(5, 0.7)
    np.testing.assert_allclose(reward_tilted(teacher, constant, beta), teacher, atol=EXACT)
    assert optimality_gap(teacher, teacher, constant, beta) == pytest.approx(0.0, abs=EXACT)


# What each loss learns


@pytest.mark.parametrize("samplers", ["paper", "student only", "mixture", "off policy"])
@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("name", NAMES[:3])
def test_labelled_losses_learn_the_target_under_any_sampler(name, loss, samplers):
    teacher, student, reward, beta, scale = space(name)
    other = softmax(generator(name + "other").normal(size=5))
    chosen, rejected, sampler = {
        "paper": (teacher, student, (teacher + student) / 2),
        "student only": (student, student, student),
        "mixture": (0.2 * teacher + 0.8 * student, student, 0.2 * teacher + 0.8 * student),
        "off policy": (other, other[::-1], other),
    }[samplers]
    learned = population_optimum(
        loss, teacher=teacher, reward=reward, beta=beta, reward_scale=scale,
        chosen=chosen, rejected=rejected, sampler=sampler,
    )  # fmt: skip
    np.testing.assert_allclose(learned, reward_tilted(teacher, scale * reward, beta), atol=EXACT)


@pytest.mark.parametrize("loss", ["bradley_terry", "squared"])
def test_a_chain_of_pairs_is_enough(loss):
    """Only neighbours ever meet, each in one order: the graph is connected, so the target is still found."""
    teacher, _, reward, beta, scale = space("chain")
    pairs = np.diag([0.1, 0.4, 0.2, 0.3], k=1)
    learned = population_optimum(loss, teacher=teacher, reward=reward, beta=beta, reward_scale=scale, pairs=pairs)
    np.testing.assert_allclose(learned, reward_tilted(teacher, scale * reward, beta), atol=EXACT)


@pytest.mark.parametrize("pair_policy", POLICIES)
@pytest.mark.parametrize("loss", ["bradley_terry", "squared"])
@pytest.mark.parametrize("pairing", ["cross", "all"])
def test_labelled_pairs_keep_the_target_under_every_pair_policy(loss, pair_policy, pairing):
    teacher, student, reward, beta, scale, correct = levels("policies")
    pairs = pair_measure(
        teacher, student, reward=reward, pairing=pairing, pair_policy=pair_policy, needs_rewards=True,
        correct=correct, teacher_samples=2, student_samples=3,
    )  # fmt: skip
    learned = population_optimum(loss, teacher=teacher, reward=reward, beta=beta, reward_scale=scale, pairs=pairs)
    np.testing.assert_allclose(learned, reward_tilted(teacher, scale * reward, beta), atol=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_positive_mixtures_keep_the_target(name):
    teacher, student, reward, beta, scale = space(name)
    weights = dict(zip(LABELLED, generator(name + "weights").exponential(size=5), strict=True))
    learned = population_optimum(
        weights, teacher=teacher, reward=reward, beta=beta, reward_scale=scale, rejected=student, sampler=student
    )
    np.testing.assert_allclose(learned, reward_tilted(teacher, scale * reward, beta), atol=EXACT)


@pytest.mark.parametrize("loss", [*LABELLED, "mixture"])
@pytest.mark.parametrize("name", NAMES)
def test_every_step_points_at_the_target(name, loss):
    """<grad, z - z*> > 0 at any logits z: no other stationary point. For `direct` it equals beta Var_p(z - z*)."""
    teacher, student, reward, beta, scale = space(name)
    optimum = reward_tilted(teacher, scale * reward, beta)
    losses = dict.fromkeys(LABELLED, 1.0) if loss == "mixture" else loss
    for policy in softmax(3.0 * generator(name + "far").normal(size=(20, 5)), axis=1):
        gradient = expected_gradient(
            policy, losses, teacher=teacher, reward=reward, beta=beta, reward_scale=scale,
            rejected=student, sampler=student,
        )  # fmt: skip
        offset = np.log(policy) - np.log(optimum)
        assert gradient @ offset > 0
        if loss == "direct":
            variance = policy @ offset**2 - (policy @ offset) ** 2
            assert gradient @ offset == pytest.approx(beta * variance, abs=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_plain_logistic_learns_the_sampler_gap_not_the_reward(name):
    """Frozen samplers C, S: the optimum is T (C/S)^(1/beta) / Z; the reward is nowhere in it."""
    teacher, student, reward, beta, scale = space(name)
    other = softmax(generator(name + "other").normal(size=5))
    for chosen in (teacher, other):
        learned = population_optimum(
            "logistic", teacher=teacher, reward=reward, beta=beta, reward_scale=scale, chosen=chosen, rejected=student
        )
        by_hand = teacher * (chosen / student) ** (1 / beta)
        np.testing.assert_allclose(learned, by_hand / by_hand.sum(), atol=EXACT)
        np.testing.assert_allclose(learned, logistic_optimum(teacher, chosen, student, beta), atol=EXACT)
        assert np.abs(learned - reward_tilted(teacher, scale * reward, beta)).max() > 1e-2
    on_policy = population_optimum("logistic", teacher=teacher, reward=reward, beta=beta, rejected=teacher)
    np.testing.assert_allclose(on_policy, teacher, atol=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_a_likelihood_anchor_moves_the_target(name):
    """NLL on teacher samples of weight w pulls at P* with gradient w (P* - T): the more of it the nearer T."""
    teacher, student, reward, beta, scale = space(name)
    options = {"teacher": teacher, "reward": reward, "beta": beta, "reward_scale": scale, "rejected": student}
    optimum = reward_tilted(teacher, scale * reward, beta)
    learned = [population_optimum({"squared": 1.0, "nll": weight}, **options) for weight in (0.01, 0.1, 1.0, 100.0)]
    to_target = [kl(optimum, policy) for policy in learned]
    assert to_target == sorted(to_target)
    pull = expected_gradient(optimum, {"squared": 1.0, "nll": 0.1}, **options)
    np.testing.assert_allclose(pull, 0.1 * (optimum - teacher), atol=EXACT)
    assert to_target[0] > 0
    np.testing.assert_allclose(learned[-1], teacher, atol=2e-2)
    np.testing.assert_allclose(population_optimum("nll", **options), teacher, atol=EXACT)


# Small groups


@pytest.mark.parametrize("name", NAMES)
def test_small_groups_displace_imitation_by_one_over_the_group(name):
    """Group 1 copies the teacher; G (target_G - P*) -> P* (E_T[w^2] - w), w = P*/T, with an error of order 1/G."""
    teacher, _, reward, beta, _ = space(name, 3)
    optimum = reward_tilted(teacher, reward, beta)
    np.testing.assert_allclose(imitation_target(teacher, reward, beta, group=1), teacher, atol=EXACT)
    weight = optimum / teacher
    limit = optimum * (teacher @ weight**2 - weight)
    errors = [
        np.abs(group * (imitation_target(teacher, reward, beta, group=group) - optimum) - limit).max()
        for group in (16, 32, 64, 128)
    ]
    assert errors[-1] < 0.05 * np.abs(limit).max()
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios[-1], 2.0, atol=0.15)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
def test_imitation_target_with_a_binary_reward(group):
    """K of G teacher samples are correct, K ~ Bin(G, t): correct mass E[K e / (K e + G - K)], e = exp(1/beta)."""
    teacher, reward, beta = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.0, 1.0, 0.0]), 0.5
    k = np.arange(group + 1)
    mass = (
        np.array([float(np.prod([(group - i) / (i + 1) for i in range(j)])) for j in k]) * 0.4**k * 0.6 ** (group - k)
    )
    expected = mass @ (k * np.exp(2.0) / (k * np.exp(2.0) + group - k))
    target = imitation_target(teacher, reward, beta, group=group)
    assert target @ reward == pytest.approx(expected, abs=EXACT)
    np.testing.assert_allclose(target[[0, 2]] / target[0], [1.0, 3.0], atol=EXACT)
    learned = population_optimum("imitation", teacher=teacher, reward=reward, beta=beta, imitation_group=group)
    np.testing.assert_allclose(learned, target, atol=EXACT)


# The pairs that are kept


def rollouts(completions, roles, reward, correct):
    return [
        Rollout(0, role, (y,), "", True, (0.0,), reward=float(reward[y]), correct=bool(correct[y]))
        for y, role in zip(completions, roles, strict=True)
    ]


@pytest.mark.parametrize(
    ("pairing", "needs_rewards", "keep_ties"),
    [(pairing, needs, keep) for pairing in ("cross", "all") for needs in (False, True) for keep in (False, True)],
)
@pytest.mark.parametrize("pair_policy", POLICIES)
def test_pair_measure_is_what_make_pairs_keeps(pair_policy, pairing, needs_rewards, keep_ties):
    """Every group of 2 teacher and 2 student samples through `make_pairs`, weighted by its probability."""
    teacher, student, reward, _, _, correct = levels("pairs", 4)
    roles = ["teacher", "teacher", "student", "student"]
    options = {"pairing": pairing, "pair_policy": pair_policy, "needs_rewards": needs_rewards, "keep_ties": keep_ties}
    expected = np.zeros((4, 4))
    for group in itertools.product(range(4), repeat=4):
        probability = teacher[group[0]] * teacher[group[1]] * student[group[2]] * student[group[3]]
        for pair in make_pairs(rollouts(group, roles, reward, correct), **options)[0]:
            chosen, rejected = group[pair.chosen], group[pair.rejected]
            expected[chosen, rejected] += probability * pair.label / (4 if pairing == "cross" else 6)
            expected[rejected, chosen] += probability * (1 - pair.label) / (4 if pairing == "cross" else 6)
    measure = pair_measure(
        teacher, student, reward=reward, correct=correct, teacher_samples=2, student_samples=2, **options
    )
    if needs_rewards:  # a labelled loss is the same either way round
        measure, expected = measure + measure.T, expected + expected.T
    np.testing.assert_allclose(measure, expected, atol=EXACT)


# The oracle against autograd on the library's losses


def autograd(policy, loss_of_logprobs):
    logits = torch.tensor(np.log(policy)).requires_grad_()
    value = loss_of_logprobs(logits.log_softmax(-1))
    value.backward()
    return value.item(), logits.grad.numpy()


@pytest.mark.parametrize("pair_policy", POLICIES)
@pytest.mark.parametrize("loss", PAIR_LOSSES)
@pytest.mark.parametrize("name", NAMES[:3])
def test_autograd_of_pair_losses(name, loss, pair_policy):
    teacher, student, reward, beta, scale, correct = levels(name)
    policy = softmax(generator(name + "policy").normal(size=5))
    pairs = pair_measure(
        teacher, student, reward=reward, pairing="all", pair_policy=pair_policy, needs_rewards=loss != "logistic",
        keep_ties=True, correct=correct, teacher_samples=2, student_samples=2,
    )  # fmt: skip
    i, j = (torch.tensor(index.ravel()) for index in np.indices((5, 5)))
    log_teacher, reward_t = torch.tensor(np.log(teacher)), torch.tensor(reward)

    def summed(logp):
        losses = preference_loss(
            logp[i], logp[j], log_teacher[i], log_teacher[j], beta=beta, loss=loss,
            reward_chosen_B=reward_t[i], reward_rejected_B=reward_t[j], reward_scale=scale,
        )  # fmt: skip
        return torch.tensor(pairs.ravel()) @ losses

    value, gradient = autograd(policy, summed)
    options = {"teacher": teacher, "reward": reward, "beta": beta, "reward_scale": scale, "pairs": pairs}
    assert value == pytest.approx(expected_loss(policy, loss, **options), abs=EXACT)
    np.testing.assert_allclose(gradient, expected_gradient(policy, loss, **options), atol=EXACT)


def groups(size, members, samplers):
    """Every group [N, G] with its probability [N], member k drawn from samplers[k]."""
    index = np.array(list(itertools.product(range(size), repeat=members)))
    return torch.tensor(index), torch.tensor(np.prod([samplers[k][index[:, k]] for k in range(members)], axis=0))


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES[:2])
def test_autograd_of_group_log_variance(name, members):
    """Independent members of a mixture: the same expectation at every group size."""
    teacher, student, reward, beta, scale = space(name, 4)
    policy = softmax(generator(name + "policy").normal(size=4))
    sampler = 0.3 * teacher + 0.7 * student
    index, probability = groups(4, members, [sampler] * members)
    log_teacher, reward_t = torch.tensor(np.log(teacher)), torch.tensor(reward)
    value, gradient = autograd(
        policy,
        lambda logp: probability @ group_log_variance_loss(
            logp[index], log_teacher[index], reward_t[index], beta=beta, reward_scale=scale
        ),
    )  # fmt: skip
    options = {"teacher": teacher, "reward": reward, "beta": beta, "reward_scale": scale, "sampler": sampler}
    f = beta * (np.log(policy) - np.log(teacher)) - scale * reward
    assert value == pytest.approx(sampler @ f**2 - (sampler @ f) ** 2, abs=EXACT)
    assert value == pytest.approx(expected_loss(policy, "group_log_variance", **options), abs=EXACT)
    np.testing.assert_allclose(gradient, expected_gradient(policy, "group_log_variance", **options), atol=EXACT)


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES[:2])
def test_autograd_of_imitation(name, members):
    teacher, _, reward, beta, scale = space(name, 4)
    policy = softmax(generator(name + "policy").normal(size=4))
    index, probability = groups(4, members, [teacher] * members)
    reward_t = torch.tensor(reward)
    value, gradient = autograd(
        policy,
        lambda logp: probability @ imitation_loss(logp[index], reward_t[index], beta=beta, reward_scale=scale),
    )
    options = {"teacher": teacher, "reward": reward, "beta": beta, "reward_scale": scale, "imitation_group": members}
    assert value == pytest.approx(expected_loss(policy, "imitation", **options), abs=EXACT)
    np.testing.assert_allclose(gradient, expected_gradient(policy, "imitation", **options), atol=EXACT)


@pytest.mark.parametrize("kl_gradient", ["exact", "pathwise"])
@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES[:2])
def test_autograd_of_direct(name, members, kl_gradient):
    """Completions of one token, where both KL gradients are the whole gradient."""
    teacher, _, reward, beta, scale = space(name, 4)
    policy = softmax(generator(name + "policy").normal(size=4))
    index, probability = groups(4, members, [policy] * members)
    rows = index.reshape(-1)

    def summed(logp):
        divergence = (logp.exp() * (logp - torch.tensor(np.log(teacher)))).sum()
        losses = direct_loss(
            logp[rows][:, None], divergence.expand(len(rows), 1), torch.ones(len(rows), 1),
            torch.tensor(reward)[rows], torch.arange(len(index)).repeat_interleave(members),
            beta=beta, reward_scale=scale, kl_gradient=kl_gradient,
        )  # fmt: skip
        return probability @ losses.reshape(-1, members).mean(-1)

    value, gradient = autograd(policy, summed)
    options = {"teacher": teacher, "reward": reward, "beta": beta, "reward_scale": scale}
    assert value == pytest.approx(-objective(policy, teacher, scale * reward, beta), abs=EXACT)
    assert value == pytest.approx(expected_loss(policy, "direct", **options), abs=EXACT)
    np.testing.assert_allclose(gradient, expected_gradient(policy, "direct", **options), atol=EXACT)


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, "group_log_variance", "imitation", "direct", "nll"])
def test_hessian_is_the_derivative_of_the_gradient(loss):
    teacher, student, reward, beta, scale = space("hessian")
    at = population(
        loss, teacher=teacher, reward=reward, beta=beta, reward_scale=scale, rejected=student, sampler=student
    )
    logits, step = np.log(student), 1e-5
    by_differences = np.array(
        [(at.gradient(softmax(logits + e)) - at.gradient(softmax(logits - e))) / (2 * step) for e in step * np.eye(5)]
    )
    np.testing.assert_allclose(at.hessian(student), by_differences, atol=1e-8)


# Refusals

T4, R4 = np.full(4, 0.25), np.array([1.0, 0.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        ("hinge", {}, "loss must be one of"),
        ({}, {}, "no loss"),
        ({"squared": -1.0}, {"rejected": T4}, "weight of squared must be positive"),
        ("squared", {}, "need `rejected`"),
        ("squared", {"rejected": np.array([0.5, 0.2, 0.2, 0.2])}, "rejected must be a distribution"),
        ("squared", {"rejected": np.array([0.5, 0.5])}, "4 completions"),
        ("group_log_variance", {}, "needs `sampler`"),
        ("group_log_variance", {"sampler": np.array([0.5, 0.5, 0.0, 0.0])}, "no finite optimum"),
        ("squared", {"pairs": np.kron(np.eye(2), np.ones((2, 2)))}, "4 completions in 2 parts"),
        ("squared", {"pairs": np.ones((4, 3))}, "pairs must be"),
        ("logistic", {"rejected": np.array([0.5, 0.5, 0.0, 0.0])}, "no finite optimum"),
        ("logistic", {"pairs": pair_measure(T4, T4, reward=R4, pair_policy="oriented")}, "no finite optimum"),
        ("logistic", {"pairs": pair_measure(T4, T4, reward=R4, pair_policy="improving")}, "no finite optimum"),
        ("direct", {"teacher": np.array([0.5, 0.5, 0.0, 0.0])}, "probability zero"),
        ("direct", {"teacher": np.array([0.5, 0.5, 0.5, 0.0])}, "must be a distribution"),
        ("direct", {"beta": 0.0}, "beta must be positive"),
    ],
)  # fmt: skip
def test_unsound_inputs(loss, options, words):
    with pytest.raises(ValueError, match=words):
        population_optimum(loss, **{"teacher": T4, "reward": R4, "beta": 1.0, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pair_policy": "best"}, "pair_policy must be one of"),
        ({"pair_policy": "correct"}, "needs `correct`"),
        ({"pairing": "self"}, "pairing must be one of"),
        ({"student_samples": 0}, "no pairs"),
    ],
)
def test_unsound_pairs(options, words):
    with pytest.raises(ValueError, match=words):
        pair_measure(T4, T4, reward=R4, **options)
