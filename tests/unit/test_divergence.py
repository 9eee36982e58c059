"""Divergences of whole distributions: values by hand, and the definition spelled out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pbsd.losses.divergence import (
    coarsen,
    jensen_shannon,
    kl_student_teacher,
    kl_teacher_student,
    with_tail,
)

INF = math.inf


def log(*probabilities, dtype=torch.float64):
    return torch.tensor(probabilities, dtype=dtype).log()


def logits(seed, *shape, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kl_by_definition(p, q):
    """sum p log(p / q) over plain Python numbers, with 0 log 0 = 0 and p log(p / 0) = inf."""
    return sum(0.0 if a == 0 else INF if b == 0 else a * math.log(a / b) for a, b in zip(p, q, strict=True))


def js_by_definition(student, teacher, mixture):
    mean = [mixture * t + (1 - mixture) * s for s, t in zip(student, teacher, strict=True)]
    return mixture * kl_by_definition(teacher, mean) + (1 - mixture) * kl_by_definition(student, mean)


def half(student, teacher):
    return jensen_shannon(student, teacher, mixture=0.5)


def quarter(student, teacher):
    return jensen_shannon(student, teacher, mixture=0.25)


DIVERGENCES = [kl_teacher_student, kl_student_teacher, half, quarter]
DEFINITIONS = {
    kl_teacher_student: lambda s, t: kl_by_definition(t, s),
    kl_student_teacher: lambda s, t: kl_by_definition(s, t),
    half: lambda s, t: js_by_definition(s, t, 0.5),
    quarter: lambda s, t: js_by_definition(s, t, 0.25),
}

weights = st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(any)


def normalised(integers):
    return [value / sum(integers) for value in integers]


def test_directions_by_hand():
    """S = (3/4, 1/4), T = (1/2, 1/2).

    KL(T || S) = 1/2 log(2/3) + 1/2 log 2 = 0.1438410; KL(S || T) = 3/4 log(3/2) + 1/4 log(1/2) = 0.1308120.
    """
    student, teacher = log(0.75, 0.25), log(0.5, 0.5)
    assert kl_teacher_student(student, teacher).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-12)
    assert kl_student_teacher(student, teacher).item() == pytest.approx(
        0.75 * math.log(1.5) - 0.25 * math.log(2), abs=1e-12
    )


def test_jensen_shannon_by_hand():
    """Disjoint S = (1, 0), T = (0, 1) at w = 1/4: M = (3/4, 1/4), JSD = 1/4 log 4 + 3/4 log(4/3), the entropy of w."""
    value = jensen_shannon(log(1.0, 0.0), log(0.0, 1.0), mixture=0.25)
    assert value.item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(student=weights, teacher=weights)
def test_equals_the_definition(divergence, student, teacher):
    """Zeros included: 0 log 0 = 0, and +inf just where the definition says so."""
    student, teacher = normalised(student), normalised(teacher)
    value = divergence(log(*student), log(*teacher)).item()
    assert value == pytest.approx(DEFINITIONS[divergence](student, teacher), abs=1e-12)
    assert value >= -1e-15


@given(student=weights, teacher=weights, mixture=st.floats(0.01, 0.99))
def test_jensen_shannon_is_symmetric_and_bounded(student, teacher, mixture):
    student, teacher = log(*normalised(student)), log(*normalised(teacher))
    value = jensen_shannon(student, teacher, mixture=mixture).item()
    swapped = jensen_shannon(teacher, student, mixture=1 - mixture).item()
    assert value == pytest.approx(swapped, abs=1e-12)
    entropy = -mixture * math.log(mixture) - (1 - mixture) * math.log1p(-mixture)
    assert value <= entropy + 1e-12


def test_jensen_shannon_limits():
    """JSD_w / w -> KL(T || S) as w -> 0, JSD_w / (1 - w) -> KL(S || T) as w -> 1; the error is O(w)."""
    student, teacher = logits(0, 6).log_softmax(-1), logits(1, 6).log_softmax(-1)
    w = 1e-6
    low = jensen_shannon(student, teacher, mixture=w) / w
    high = jensen_shannon(student, teacher, mixture=1 - w) / w
    assert low.item() == pytest.approx(kl_teacher_student(student, teacher).item(), rel=1e-4)
    assert high.item() == pytest.approx(kl_student_teacher(student, teacher).item(), rel=1e-4)


@pytest.mark.parametrize("mixture", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_jensen_shannon_refuses_its_endpoints(mixture):
    with pytest.raises(ValueError, match="kl_teacher_student and kl_student_teacher"):
        jensen_shannon(log(0.5, 0.5), log(0.5, 0.5), mixture=mixture)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_reaches_the_student_only(divergence):
    student, teacher = logits(0, 3, 5).requires_grad_(), logits(1, 3, 5).requires_grad_()
    divergence(student.log_softmax(-1), teacher.log_softmax(-1)).sum().backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_equals_finite_differences(divergence):
    teacher = logits(1, 2, 5).log_softmax(-1)
    student = logits(0, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence(z.log_softmax(-1), teacher), student)


def test_gradients_by_hand():
    """With respect to the student's logits: KL(T || S) gives S - T; KL(S || T) gives S (l - KL), l = log S - log T."""
    teacher = logits(1, 5).log_softmax(-1)
    z = logits(0, 5).requires_grad_()
    student = z.log_softmax(-1)
    (gradient,) = torch.autograd.grad(kl_teacher_student(student, teacher), z, retain_graph=True)
    torch.testing.assert_close(gradient, student.exp() - teacher.exp())
    value = kl_student_teacher(student, teacher)
    (gradient,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(gradient, student.exp() * (student - teacher - value))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_common_vocabulary_mask_changes_nothing(divergence):
    """Masking the last two of six logits on both sides equals leaving them out, in value and in gradient."""
    masked = torch.tensor([False] * 4 + [True] * 2)
    gradients, values = [], []
    for mask_or_cut in (lambda z: z.masked_fill(masked, -INF), lambda z: z[..., :4]):
        z = logits(0, 3, 6).requires_grad_()
        value = divergence(mask_or_cut(z).log_softmax(-1), mask_or_cut(logits(1, 3, 6)).log_softmax(-1))
        value.sum().backward()
        values.append(value.detach())
        gradients.append(z.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    assert (gradients[0][:, 4:] == 0).all()


@pytest.mark.parametrize(
    ("divergence", "masked_side"),
    [(kl_teacher_student, "teacher"), (kl_student_teacher, "student"), (half, "teacher"), (half, "student")],
)
def test_a_one_sided_mask_keeps_a_finite_gradient(divergence, masked_side):
    """Finite where the left side has no mass, as by definition, and everywhere for the Jensen-Shannon divergence."""
    masked = torch.tensor([False] * 4 + [True] * 2)
    z, teacher = logits(0, 6).requires_grad_(), logits(1, 6)
    student = z.masked_fill(masked, -INF) if masked_side == "student" else z
    teacher = teacher.masked_fill(masked, -INF) if masked_side == "teacher" else teacher
    value = divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    value.backward()
    expected = DEFINITIONS[divergence](student.softmax(-1).tolist(), teacher.softmax(-1).tolist())
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert z.grad.isfinite().all() and z.grad.abs().max() > 1e-3


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("underflows", ["student", "teacher"])
def test_mass_that_underflows_is_no_mass(divergence, underflows):
    """exp(-200) is 0 in float32; against -inf on the other side the product would be 0 * inf."""
    small, none = torch.tensor([0.0, -200.0]), torch.tensor([0.0, -INF])
    student, teacher = (small, none) if underflows == "student" else (none, small)
    student.requires_grad_()
    value = divergence(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-7)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_half_precision_is_computed_in_float32(divergence):
    student = logits(0, 3, 50).log_softmax(-1).bfloat16().requires_grad_()
    teacher = logits(1, 3, 50).log_softmax(-1).bfloat16()
    value = divergence(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, divergence(student.float(), teacher.float()), rtol=0, atol=0)
    torch.testing.assert_close(value.double(), divergence(student.double(), teacher.double()), rtol=1e-5, atol=1e-6)
    value.sum().backward()
    assert student.grad.dtype == torch.bfloat16 and student.grad.isfinite().all()


def coarse(probabilities, ids):
    kept = [probabilities[i] for i in ids]
    return [*kept, 1 - sum(kept)]


def test_tail_by_hand():
    """p = (1/2, 1/4, 1/8, 1/8); tokens 2 and 0 and the rest: (1/8, 1/2, 3/8)."""
    buckets = coarsen(log(0.5, 0.25, 0.125, 0.125), torch.tensor([2, 0]))
    torch.testing.assert_close(buckets, log(0.125, 0.5, 0.375))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(student=weights, teacher=weights, k=st.integers(1, 3))
def test_top_k_with_tail_is_the_coarsened_divergence(divergence, student, teacher, k):
    """The definition on K + 1 buckets, and never above the full divergence (data processing)."""
    student, teacher = [normalised([value + 1 for value in side]) for side in (student, teacher)]
    ids = log(*teacher).topk(k).indices
    value = divergence(coarsen(log(*student), ids), coarsen(log(*teacher), ids)).item()
    expected = DEFINITIONS[divergence](coarse(student, ids.tolist()), coarse(teacher, ids.tolist()))
    assert value == pytest.approx(expected, abs=1e-12)
    assert value <= divergence(log(*student), log(*teacher)).item() + 1e-12


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_coarsening_loses_nothing_where_the_ratio_is_constant(divergence):
    """S = (.6, .1, .3), T = (.2, .2, .6): T/S = 2 on the last two, so one bucket for them is sufficient."""
    student, teacher, ids = log(0.6, 0.1, 0.3), log(0.2, 0.2, 0.6), torch.tensor([0])
    value = divergence(coarsen(student, ids), coarsen(teacher, ids))
    torch.testing.assert_close(value, divergence(student, teacher))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_an_empty_tail_gives_the_full_divergence(divergence):
    """k = V in float32: the two buckets hold only rounding, and neither value nor gradient knows it."""
    teacher = logits(1, 64, 1000).float().log_softmax(-1)
    ids = teacher.argsort(-1, descending=True)
    values, gradients = [], []
    for view in (lambda logprobs: coarsen(logprobs, ids), lambda logprobs: logprobs):
        z = logits(0, 64, 1000).float().requires_grad_()
        value = divergence(view(z.log_softmax(-1)), view(teacher))
        value.sum().backward()
        values.append(value.detach())
        gradients.append(z.grad)
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_gradient_sees_the_tail():
    """KL(T || S) of buckets with respect to log S(0), S(0) = 3/4, T(0) = 1/2, tail 1/4 and 1/2.

    -T(0) + T(tail) S(0) / S(tail) = -1/2 + 1/2 * 3 = 1.
    """
    student = log(0.75).requires_grad_()
    kl_teacher_student(with_tail(student), with_tail(log(0.5))).backward()
    assert student.grad.item() == pytest.approx(1.0)


@pytest.mark.parametrize("tail", [1e-1, 1e-3, 1e-5])
def test_a_small_tail_is_exact_to_rounding(tail):
    """The bucket's mass 1 - p is known to half an epsilon of float32, so its log to epsilon / tail."""
    bucket = with_tail(torch.tensor([1.0 - tail], dtype=torch.float64).log().float())[-1].item()
    assert bucket == pytest.approx(math.log(tail), abs=2 * torch.finfo(torch.float32).eps / tail)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tail_below_rounding_is_epsilon(dtype):
    """Also where the sum rounds to above 1; and there is no gradient through it."""
    eps = torch.finfo(dtype).eps
    for top in (torch.zeros(1, dtype=dtype), torch.full((3,), 0.33333337, dtype=dtype).log()):
        top.requires_grad_()
        tail = with_tail(top)[-1]
        tail.backward()
        assert tail.item() == pytest.approx(math.log(eps))
        assert (top.grad == 0).all()


def test_with_tail_of_tokens_without_mass():
    """The K tokens are all masked: the bucket holds everything, log 1 = 0, and the gradient is 0, not NaN."""
    top = torch.full((2,), -INF, requires_grad=True)
    buckets = with_tail(top)
    buckets[-1].backward()
    assert buckets.tolist() == [-INF, -INF, 0.0]
    assert top.grad.tolist() == [0.0, 0.0]
