"""Imitation and direct losses: by hand, masks, and exact enumeration of the sequences of a tiny model."""

import itertools
import math

import pytest
import torch

from pbsd.losses.projection import direct_loss, imitation_loss, mixture_log_ratio


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# Imitation


def test_imitation_by_hand():
    """beta 0.5, rewards 1 and 0: weights e^2 : 1; log pi = -1 and -3: loss = (e^2 + 3) / (e^2 + 1)."""
    loss = imitation_loss(rows([-1, -3]), rows([1, 0]), beta=0.5)
    assert loss.item() == pytest.approx((math.e**2 + 3) / (math.e**2 + 1), abs=1e-12)
    scaled = imitation_loss(rows([-1, -3]), rows([0.5, 0]), beta=0.5, reward_scale=2.0)
    assert scaled.item() == pytest.approx(loss.item(), abs=1e-12)


def test_equal_rewards_copy_the_teacher():
    assert imitation_loss(rows([-1, -2, -6]), rows([0, 0, 0]), beta=0.1).item() == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_imitation_does_not_read_masked_members(bad):
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    policy = rows([-1, -2, -3], [-4, -5, -6], [-7, -8, -9]).masked_fill(~mask, bad).requires_grad_()
    reward = rows([1, 0, 0], [1, 0, 0], [1, 0, 0]).masked_fill(~mask, bad)
    loss = imitation_loss(policy, reward, mask, beta=0.5, log_ratio_BG=torch.zeros_like(reward).masked_fill(~mask, bad))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([(math.e**2 + 3) / (math.e**2 + 1), 5.0, 0.0], abs=1e-12)
    share = math.e**2 / (math.e**2 + 1)
    expected = [-share, 0, share - 1, 0, -1, 0, 0, 0, 0]
    assert policy.grad.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_imitation_gradient_reaches_the_policy_only():
    policy, reward, ratio = (rows([-1, -2]).requires_grad_() for _ in range(3))
    imitation_loss(policy, reward, beta=0.5, log_ratio_BG=ratio).sum().backward()
    assert policy.grad is not None
    assert reward.grad is None
    assert ratio.grad is None


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_importance_weights_undo_the_sampler(fraction):
    """A group in exactly the proportions of q: with weights exp(r/beta) T/q it gives the cross-entropy with P*."""
    beta, reward = 0.5, rows(1, 0, 0.5)
    teacher, student, policy = rows(0.5, 0.25, 0.25), rows(0.125, 0.5, 0.375), rows(0.2, 0.3, 0.5)
    q = fraction * teacher + (1 - fraction) * student
    members = torch.repeat_interleave(torch.arange(3), (q * 32).round().long())[None]
    assert torch.equal(torch.bincount(members[0]) / 32, q)
    ratio = mixture_log_ratio(teacher.log()[members], student.log()[members], teacher_fraction=fraction)
    if fraction > 0:
        assert ratio.exp().max().item() <= 1 / fraction + 1e-12
    tilted = teacher * torch.exp(reward / beta)
    expected = -(tilted / tilted.sum() * policy.log()).sum()
    loss = imitation_loss(policy.log()[members], reward[members], beta=beta, log_ratio_BG=ratio)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    if fraction < 1:
        assert abs(imitation_loss(policy.log()[members], reward[members], beta=beta).item() - expected.item()) > 1e-2


def test_exact_weights_by_hand():
    """beta 0.5, rewards 1 and 0, largest 1: weights 1/2 and e^-2 / 2. Nothing rewarded: both e^-2 / 2."""
    loss = imitation_loss(rows([-1, -3], [-1, -3]), rows([1, 0], [0, 0]), beta=0.5, reward_max=1.0)
    assert loss.tolist() == pytest.approx([(1 + 3 * math.exp(-2)) / 2, 2 * math.exp(-2)], abs=1e-12)
    masked = imitation_loss(rows([-1, -3]), rows([1, 0]), torch.tensor([[True, False]]), beta=0.5, reward_max=1.0)
    assert masked.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("taught", "own"), [(1, 0), (2, 0), (1, 1), (1, 2)])
def test_exact_weights_have_the_target_in_groups_of_any_size(taught, own):
    """All groups of so many samples of T and of S, each times its probability: the expected loss is Z times the
    cross-entropy with P*, for T alone and for the mixture. Self-normalised weights miss it."""
    beta, reward, largest = 0.5, rows(1, 0, 0.5), 1.5
    teacher, student, policy = rows(0.5, 0.25, 0.25), rows(0.125, 0.5, 0.375), rows(0.2, 0.3, 0.5)
    tilted = teacher * torch.exp((reward - largest) / beta)
    expected = -(tilted * policy.log()).sum().item()
    total = {largest: 0.0, None: 0.0}
    for members in itertools.product(range(3), repeat=taught + own):
        index = torch.tensor(members)
        probability = teacher[index[:taught]].prod() * student[index[taught:]].prod()
        ratio = mixture_log_ratio(
            teacher.log()[index], student.log()[index], teacher_fraction=torch.tensor(taught / (taught + own))
        )
        for reward_max in total:
            loss = imitation_loss(
                policy.log()[index][None], reward[index][None], beta=beta, log_ratio_BG=ratio[None],
                reward_max=reward_max,
            )  # fmt: skip
            total[reward_max] += (probability * loss).item()
    assert total[largest] == pytest.approx(expected, abs=1e-7)
    assert abs(total[None] - expected / tilted.sum().item()) > 1e-3


# Direct, by hand


def direct_example():
    """Two rows of one group and a lone one; three tokens, two tokens, one token."""
    policy = rows([-1, -2, -3], [-1, -1, 0], [-2, 0, 0]).requires_grad_()
    divergence = rows([0.1, 0.2, 0.3], [0.4, 0.5, 0], [0.6, 0, 0]).requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    return policy, divergence, mask, rows(1, 0, 1), torch.tensor([0, 0, 1])


def test_direct_by_hand():
    """beta 2, eta 3. Costs 2 KL: (.2 .4 .6), (.8 1 -), (1.2 - -); values 1.2 - 3, 1.8 - 0, 1.2 - 3.

    Exact returns: 3 - (1, .6, 0) = (2, 2.4, 3); 0 - (1, 0) = (-1, 0, [0]); lone row 3. Less the other row: (3, 2.4, 3),
    (-3, -2.4); the lone row keeps 3. Pathwise: 3 - 0 = 3 and -3 at each token. The gradient is minus that.
    """
    for kind, first, second in (("exact", [-3, -2.4, -3], [3, 2.4, 0]), ("pathwise", [-3, -3, -3], [3, 3, 0])):
        policy, divergence, mask, reward, group = direct_example()
        loss = direct_loss(policy, divergence, mask, reward, group, beta=2.0, reward_scale=3.0, kl_gradient=kind)
        loss.sum().backward()
        assert loss.tolist() == pytest.approx([-1.8, 1.8, -1.8], abs=1e-12)
        assert policy.grad.flatten().tolist() == pytest.approx([*first, *second, -3, 0, 0], abs=1e-12)
        assert torch.equal(divergence.grad, 2.0 * mask)


def test_direct_without_baseline():
    policy, divergence, mask, reward, group = direct_example()
    direct_loss(policy, divergence, mask, reward, group, beta=2.0, reward_scale=3.0, baseline="none").sum().backward()
    assert policy.grad.flatten().tolist() == pytest.approx([-2, -2.4, -3, 1, 0, 0, -3, 0, 0], abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_direct_does_not_read_padding(bad):
    policy, divergence, mask, reward, group = direct_example()
    clean = direct_loss(policy, divergence, mask, reward, group, beta=2.0)
    dirty = [value.detach().masked_fill(~mask, bad).requires_grad_() for value in (policy, divergence)]
    loss = direct_loss(*dirty, mask, reward, group, beta=2.0)
    loss.sum().backward()
    assert torch.equal(loss, clean)
    assert all(value.grad.isfinite().all() for value in dirty)


def test_direct_rows_may_be_permuted_and_groups_renamed():
    policy, divergence, mask, reward, _ = direct_example()
    order = torch.tensor([2, 0, 1])
    gradients = []
    for index, group in ((torch.arange(3), [0, 0, 1]), (order, [5, 2, 2])):
        policy.grad = None
        direct_loss(
            policy[index], divergence[index], mask[index], reward[index], torch.tensor(group), beta=2.0
        ).sum().backward()  # fmt: skip
        gradients.append(policy.grad)
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


# Direct, over every sequence of a tiny autoregressive model: 3 tokens, 0 ends, at most 3 of them

SEQUENCES = [s for n in (1, 2, 3) for s in itertools.product(range(3), repeat=n) if 0 not in s[:-1]]
SEQUENCES = [s for s in SEQUENCES if s[-1] == 0 or len(s) == 3]
PREFIXES = sorted({s[:t] for s in SEQUENCES for t in range(len(s))}, key=lambda p: (len(p), p))
NODE = torch.tensor([[PREFIXES.index(s[:t]) if t < len(s) else 0 for t in range(3)] for s in SEQUENCES])
TOKEN = torch.tensor([[s[t] if t < len(s) else 0 for t in range(3)] for s in SEQUENCES])
MASK = torch.tensor([[t < len(s) for t in range(3)] for s in SEQUENCES])


def sequence_logprobs(logits):
    """[15] from logits [7 prefixes, 3 tokens]."""
    return (logits.log_softmax(-1)[NODE, TOKEN] * MASK).sum(-1)


def conditionals(sequence_probs):
    """log p(token | prefix), [7, 3], of a distribution over the sequences."""
    mass = torch.zeros(len(PREFIXES), 3, dtype=torch.float64)
    return mass.index_put((NODE[MASK], TOKEN[MASK]), sequence_probs[:, None].expand(-1, 3)[MASK], accumulate=True).log()


def model(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, len(PREFIXES), 3, generator=generator, dtype=torch.float64)
    reward = torch.rand(len(SEQUENCES), generator=generator, dtype=torch.float64)
    return student, teacher, reward


def objective(logits, teacher, reward, beta):
    logp, log_teacher = sequence_logprobs(logits), sequence_logprobs(teacher)
    return (logp.exp() * (reward - beta * (logp - log_teacher))).sum()


def token_kl(logits, teacher):
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - teacher.log_softmax(-1))).sum(-1)[NODE]


def expected_gradient(logits, teacher, reward, beta, kl_gradient, *, members=2, baseline="leave_one_out"):
    """Of direct_loss over every group of independent student samples, weighted by its probability."""
    logits = logits.clone().requires_grad_()
    index = torch.tensor(list(itertools.product(range(len(SEQUENCES)), repeat=members)))
    flat = index.flatten()
    losses = direct_loss(
        logits.log_softmax(-1)[NODE, TOKEN][flat], token_kl(logits, teacher)[flat], MASK[flat], reward[flat],
        torch.arange(len(index)).repeat_interleave(members), beta=beta, kl_gradient=kl_gradient, baseline=baseline,
    )  # fmt: skip
    probability = sequence_logprobs(logits).exp().detach()[index].prod(-1)
    (probability @ losses.view(-1, members).mean(-1)).backward()
    return logits.grad


def pathwise_fixed_point(teacher, reward, beta):
    """Backwards: pi(y_t | prefix) proportional to T(y_t | prefix) exp(E_pi[r | prefix, y_t] / beta), logits [7, 3]."""
    logits = teacher.log_softmax(-1).clone()
    worth = dict(zip(SEQUENCES, reward.tolist(), strict=True))
    for prefix in reversed(PREFIXES):
        row = PREFIXES.index(prefix)
        future = torch.tensor([worth[(*prefix, token)] for token in range(3)], dtype=torch.float64)
        logits[row] += future / beta
        worth[prefix] = (logits[row].softmax(-1) * future).sum().item()
    return logits


def test_the_sequences_are_all_there():
    assert len(SEQUENCES) == 1 + 2 + 4 * 3
    assert sequence_logprobs(model(0)[0]).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("members", "baseline"), [(1, "none"), (1, "leave_one_out"), (2, "none"), (2, "leave_one_out")]
)
@pytest.mark.parametrize("seed", range(4))
def test_exact_kl_gradient_is_that_of_the_objective(seed, members, baseline):
    """At any policy: E[grad direct_loss] = -grad J by autograd of the definition; the pathwise one is off."""
    student, teacher, reward = model(seed)
    logits = student.clone().requires_grad_()
    (-objective(logits, teacher, reward, 0.4)).backward()
    options = {"members": members, "baseline": baseline}
    exact = expected_gradient(student, teacher, reward, 0.4, "exact", **options)
    torch.testing.assert_close(exact, logits.grad, atol=1e-10, rtol=0)
    pathwise = expected_gradient(student, teacher, reward, 0.4, "pathwise", **options)
    assert (pathwise - logits.grad).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_only_the_exact_kl_gradient_is_stationary_at_the_target(seed):
    """P* by its definition over sequences: exact 0 there, pathwise not; and the other way round at its own point."""
    _, teacher, reward = model(seed)
    beta = 0.4
    target = conditionals((sequence_logprobs(teacher) + reward / beta).softmax(-1))
    assert expected_gradient(target, teacher, reward, beta, "exact").abs().max() < 1e-10
    assert expected_gradient(target, teacher, reward, beta, "pathwise").abs().max() > 1e-3
    myopic = pathwise_fixed_point(teacher, reward, beta)
    assert expected_gradient(myopic, teacher, reward, beta, "pathwise").abs().max() < 1e-10
    assert expected_gradient(myopic, teacher, reward, beta, "exact").abs().max() > 1e-3
    lost = objective(target, teacher, reward, beta) - objective(myopic, teacher, reward, beta)
    assert lost.item() > 1e-6


def test_how_far_off_the_pathwise_point_can_be():
    """By hand, beta 0.2. Token 0 or 2 first (T 1/2 together): reward 0.6 whatever follows. Token 1 first (T 1/2):
    reward 1 if token 0 is next (T 0.05), else 0. Soft value of token 1: 0.2 log(0.95 + 0.05 e^5) = 0.424946; its reward
    once optimised: 0.05 e^5 / (0.95 + 0.05 e^5) = 0.886508, the difference being the divergence to come. So
    P*(1) = sigmoid((0.424946 - 0.6) / 0.2) = 0.29416, and pathwise sigmoid((0.886508 - 0.6) / 0.2) = 0.80730.
    """
    beta, needle = 0.2, 0.05 * math.exp(5) / (0.95 + 0.05 * math.exp(5))
    soft = beta * math.log(0.95 + 0.05 * math.exp(5))
    teacher = torch.zeros(len(PREFIXES), 3, dtype=torch.float64)
    teacher[PREFIXES.index(())] = rows(0.25, 0.5, 0.25).log()
    teacher[PREFIXES.index((1,))] = rows(0.05, 0.475, 0.475).log()
    reward = torch.tensor([float(s[1] == 0) if s[0] == 1 else 0.6 for s in SEQUENCES], dtype=torch.float64)
    target = conditionals((sequence_logprobs(teacher) + reward / beta).softmax(-1))
    myopic = pathwise_fixed_point(teacher, reward, beta)
    first = [logits[PREFIXES.index(())].softmax(-1)[1].item() for logits in (target, myopic)]
    by_hand = [1 / (1 + math.exp(-(value - 0.6) / beta)) for value in (soft, needle)]
    assert by_hand == pytest.approx([0.29416, 0.80730], abs=1e-5)
    assert first == pytest.approx(by_hand, abs=1e-10)
    assert expected_gradient(myopic, teacher, reward, beta, "pathwise").abs().max() < 1e-10
    # J(P*) - J = beta KL(. || P*), and the two differ in the first token only.
    p, q = by_hand[1], by_hand[0]
    lost = beta * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    gap = objective(target, teacher, reward, beta) - objective(myopic, teacher, reward, beta)
    assert gap.item() == pytest.approx(lost, abs=1e-10)
    assert gap.item() > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_without_reward_both_are_stationary_at_the_teacher(seed):
    """Plain on-policy distillation: every later KL is 0 at T, so the forgotten part vanishes there, and only there."""
    student, teacher, reward = model(seed)
    constant = torch.full_like(reward, 0.3)
    for kind in ("exact", "pathwise"):
        assert expected_gradient(teacher, teacher, constant, 0.4, kind).abs().max() < 1e-10
        assert expected_gradient(student, teacher, constant, 0.4, kind).abs().max() > 1e-3


def test_a_mean_that_includes_the_row_halves_the_tilt_of_pairs():
    """One token, G = 2: the advantage r_i - mean = (1 - 1/2)(r_i - r_j), so the stationary point has half the tilt."""
    teacher, reward, beta = rows(0.3, -0.2, 0.9), rows(1, 0, 0.4), 0.5
    index = torch.cartesian_prod(torch.arange(3), torch.arange(3))

    def gradient(tilt):
        logits = (teacher + tilt * reward / beta).requires_grad_()
        logp = logits.log_softmax(-1)
        divergence = (logp.exp() * (logp - teacher.log_softmax(-1))).sum()
        advantage = reward[index] - reward[index].mean(-1, keepdim=True)
        probability = logp.exp().detach()[index].prod(-1)
        (beta * divergence - probability @ (logp[index] * advantage).mean(-1)).backward()
        return logits.grad.abs().max().item()

    assert gradient(0.5) < 1e-12
    assert gradient(1.0) > 1e-2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: imitation_loss(rows([-1]), rows([1]), beta=0.0), "beta must be positive"),
        (lambda: direct_loss(*direct_example(), beta=-1.0), "beta must be positive"),
        (lambda: direct_loss(*direct_example(), beta=1.0, kl_gradient="k1"), "exact, pathwise"),
        (lambda: direct_loss(*direct_example(), beta=1.0, baseline="mean"), "leave_one_out, none"),
        (lambda: mixture_log_ratio(rows([-1]), rows([-1]), teacher_fraction=1.5), "in \\[0, 1\\]"),
    ],
)
def test_bad_options(call, words):
    with pytest.raises(ValueError, match=words):
        call()
