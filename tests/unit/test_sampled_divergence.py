"""Estimators of a divergence from sampled tokens: their exact expectations over all tokens or sequences, by hand."""

import math

import pytest
import torch

from pbsd.losses.divergence import (
    kl_student_teacher,
    kl_teacher_student,
    reweighted_kl_teacher_student,
    sampled_kl_student_teacher,
    sampled_kl_teacher_student,
)
from pbsd.losses.policy_gradient import k1, k2, k3

INF = math.inf


def logits(seed, *shape, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_gradient(estimator, student_logits, teacher, weigh_by):
    """Exact expectation over all tokens: sum_v w(v) d estimator(v) / d logits, with w constant; the value likewise."""
    z = student_logits.clone().requires_grad_()
    student = z.log_softmax(-1)
    weight = (student if weigh_by == "student" else teacher).exp().detach()
    value = (weight * estimator(student, teacher)).sum()
    (gradient,) = torch.autograd.grad(value, z)
    return value.item(), gradient


def exact(divergence, student_logits, teacher):
    z = student_logits.clone().requires_grad_()
    value = divergence(z.log_softmax(-1), teacher)
    (gradient,) = torch.autograd.grad(value, z)
    return value.item(), gradient


@pytest.mark.parametrize(
    ("estimator", "sampler", "divergence"),
    [
        (sampled_kl_student_teacher, "student", kl_student_teacher),
        (sampled_kl_teacher_student, "teacher", kl_teacher_student),
    ],
)
def test_sampled_tokens_give_the_divergence_and_its_gradient(estimator, sampler, divergence):
    z, teacher = logits(0, 6), logits(1, 6).log_softmax(-1)
    value, gradient = expected_gradient(estimator, z, teacher, sampler)
    expected_value, expected = exact(divergence, z, teacher)
    assert value == pytest.approx(expected_value, abs=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_the_other_divergence_by_reweighting():
    """Its mean over the student's tokens is KL(T || S). At log S = -1, log T = -3 it is 1 - 3 e^-2, where T excludes
    the token 1, where they agree 0; nothing gets a gradient."""
    z, teacher = logits(0, 6), logits(1, 6).log_softmax(-1)
    student = z.log_softmax(-1)
    mean = (student.exp() * reweighted_kl_teacher_student(student, teacher)).sum()
    assert mean.item() == pytest.approx(kl_teacher_student(student, teacher).item(), abs=1e-12)
    own = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    values = reweighted_kl_teacher_student(own, torch.tensor([-3.0, -INF, -1.0]))
    assert values.tolist() == pytest.approx([1 - 3 * math.exp(-2), 1.0, 0.0])
    assert not values.requires_grad
    far = reweighted_kl_teacher_student(torch.tensor([-1e-3]), torch.tensor([-20.0]))  # of a KL of about 20 nats
    assert far.item() == pytest.approx(1.0, abs=1e-6)
    near = reweighted_kl_teacher_student(torch.zeros(2), torch.tensor([1e-2, -1e-2]))  # x^2 / 2 but for x^3 / 3
    assert near.tolist() == pytest.approx([5e-5 + 1e-6 / 3, 5e-5 - 1e-6 / 3], rel=1e-2)


def test_what_the_gradient_of_each_estimator_estimates():
    """On the student's samples: k1 nothing, k2 KL(S || T), k3 KL(T || S); the values of k1 and k3 are KL(S || T)."""
    z, teacher = logits(0, 6), logits(1, 6).log_softmax(-1)
    value, toward = exact(kl_student_teacher, z, teacher)
    _, other = exact(kl_teacher_student, z, teacher)
    assert (toward - other).abs().max() > 1e-2

    k1_value, k1_gradient = expected_gradient(k1, z, teacher, "student")
    k2_value, k2_gradient = expected_gradient(k2, z, teacher, "student")
    k3_value, k3_gradient = expected_gradient(k3, z, teacher, "student")
    assert k1_value == pytest.approx(value) and k3_value == pytest.approx(value)
    assert abs(k2_value - value) > 1e-2
    torch.testing.assert_close(k1_gradient, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(k2_gradient, toward, rtol=0, atol=1e-12)
    torch.testing.assert_close(k3_gradient, other, rtol=0, atol=1e-12)


def test_k3_times_the_importance_ratio():
    """On samples of any `old`: sum_v old(v) rho(v) k3(v), rho = S / old differentiated, is KL(S || T)."""
    z, teacher, old = logits(0, 6), logits(1, 6).log_softmax(-1), logits(2, 6).log_softmax(-1)
    expected_value, expected = exact(kl_student_teacher, z, teacher)

    def corrected(student, teacher):
        return (old.exp() * (student - old).exp() * k3(student, teacher)).sum()

    value, gradient = exact(corrected, z, teacher)
    assert value == pytest.approx(expected_value, abs=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_sampled_sequences_give_the_sequence_level_gradient():
    """A two-token model over 3 tokens, all 9 sequences enumerated.

    On summed log-probabilities the estimator's mean gradient is that of KL(pi(y1 y2) || T(y1 y2)). On tokens it is that
    of sum_t E_prefix[KL of the conditionals] with the distribution of prefixes held fixed, which is another one.
    """
    first_teacher, second_teacher = logits(2, 3).log_softmax(-1), logits(3, 3, 3).log_softmax(-1)
    z = [logits(0, 3).requires_grad_(), logits(1, 3, 3).requires_grad_()]
    first, second = z[0].log_softmax(-1), z[1].log_softmax(-1)
    joint = first[:, None] + second
    joint_teacher = first_teacher[:, None] + second_teacher
    weight = joint.exp().detach()

    def gradients(value):
        return torch.autograd.grad(value, z, retain_graph=True)

    sampled = gradients((weight * sampled_kl_student_teacher(joint, joint_teacher)).sum())
    whole = gradients(kl_student_teacher(joint.reshape(-1), joint_teacher.reshape(-1)))
    for gradient, expected in zip(sampled, whole, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)

    by_token = sampled_kl_student_teacher(first, first_teacher)[:, None] + sampled_kl_student_teacher(
        second, second_teacher
    )
    sampled = gradients((weight * by_token).sum())
    prefix = first.exp().detach()
    fixed = gradients(
        kl_student_teacher(first, first_teacher) + (prefix * kl_student_teacher(second, second_teacher)).sum()
    )
    for gradient, expected in zip(sampled, fixed, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert (fixed[0] - whole[0]).abs().max() > 1e-2


def test_sampled_value_is_exact_and_gradient_is_the_log_ratio():
    """log S = -1, log T = -3: value 2, gradient 2 (log S of the sample); the other direction: value -2, gradient -1."""
    student, teacher = torch.tensor([-1.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    for estimator, value, slope in ((sampled_kl_student_teacher, 2.0, 2.0), (sampled_kl_teacher_student, -2.0, -1.0)):
        result = estimator(student, teacher)
        gradient, to_teacher = torch.autograd.grad(result, (student, teacher), allow_unused=True)
        assert result.item() == value and gradient.item() == slope
        assert to_teacher is None


def test_sampled_token_that_the_teacher_excludes_is_infinite():
    value = sampled_kl_student_teacher(torch.tensor([-1.0]), torch.tensor([-INF]))
    assert value.item() == INF


@pytest.mark.parametrize("estimator", [sampled_kl_student_teacher, sampled_kl_teacher_student])
def test_sampled_half_precision_is_computed_in_float32(estimator):
    """-10.5 - (-0.01) in bfloat16 would round to -10.5; float32 keeps the difference of the stored values."""
    student, teacher = torch.tensor([-10.5]).bfloat16(), torch.tensor([-0.01]).bfloat16()
    value = estimator(student, teacher)
    assert value.dtype == torch.float32
    assert abs(value.item()) == pytest.approx(10.5 - 0.01, abs=1e-4)
