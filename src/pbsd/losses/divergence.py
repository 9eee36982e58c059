"""Divergences between the next-token distributions of a teacher and a student.

A function's name says the order of the mathematics: `kl_teacher_student` is KL(teacher || student). Its arguments are
always the student first and the teacher second. The teacher's side never gets gradient, so a swapped call gives a loss
without a graph, and `backward` fails.

Conventions of the whole module:

- Log-probabilities are natural and normalised; divergences are in nats, one per token. Aggregation is the caller's.
- 0 log 0 = 0: where the left side of a KL has no mass (log-probability -inf, or an exponential that underflows), the
  token adds nothing to value or gradient, so a vocabulary mask common to both sides is harmless.
- KL(p || q) is +inf where p has mass and q has none, as by definition: it is not clamped, and KL(student || teacher)
  then has an infinite gradient. `jensen_shannon` is finite for any two distributions.
- Half-precision inputs are computed, and the result returned, in float32.

Compared are the conditionals at one prefix. Summed over the tokens of the student's own samples, their gradient leaves
out how a token changes the later prefixes; `sampled_kl_student_teacher` on summed log-probabilities has that term.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_teacher_student(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(T || S) = sum_v T(v) [log T(v) - log S(v)] over the last dimension, [.., V] -> [..].

    Covers the teacher's modes. The gradient with respect to log S(v) is -T(v).
    """
    return divergence_terms(student_logprobs, teacher_logprobs, alpha=0.0).sum(-1)


def kl_student_teacher(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(S || T) = sum_v S(v) [log S(v) - log T(v)] over the last dimension, [.., V] -> [..].

    Seeks a mode of the teacher. The gradient with respect to log S(v) is S(v) [log S(v) - log T(v) + 1].
    """
    return divergence_terms(student_logprobs, teacher_logprobs, alpha=1.0).sum(-1)


def jensen_shannon(student_logprobs: Tensor, teacher_logprobs: Tensor, *, mixture: float) -> Tensor:
    """Generalised Jensen-Shannon divergence, [.., V] -> [..], with w = `mixture` the teacher's weight, 0 < w < 1:

        M = w T + (1 - w) S,    JSD_w = w KL(T || M) + (1 - w) KL(S || M).

    It is 0 only at S = T, at most the entropy of (w, 1 - w), which is log 2 at w = 1/2, and finite for any S and T.
    Swapping S with T and w with 1 - w leaves it unchanged. At both ends it vanishes, and in proportion it tends to the
    two divergences: JSD_w / w -> KL(T || S) as w -> 0 and JSD_w / (1 - w) -> KL(S || T) as w -> 1.

    w is the `beta` of GKD (arXiv 2306.13649, eq. 1) and of TRL's GKD, and the `distillation_alpha` of TRL's SDFT and
    SDPO. TRL puts KL(T || S) at 0 and KL(S || T) at 1, a jump from the values next to them; here the endpoints are an
    error, and the two divergences have functions of their own. Gradient to the student flows through M too.

    Raises:
        ValueError: `mixture` not strictly between 0 and 1.
    """
    if not 0.0 < mixture < 1.0:
        raise ValueError(
            f"mixture must lie strictly between 0 and 1, got {mixture}; for what TRL computes at 0 and at 1, "
            "use kl_teacher_student and kl_student_teacher"
        )
    return divergence_terms(student_logprobs, teacher_logprobs, alpha=mixture).sum(-1)


def divergence_terms(student_logprobs: Tensor, teacher_logprobs: Tensor, *, alpha: float) -> Tensor:
    """The entries of a divergence before they are summed over the vocabulary, [.., V] -> [.., V], by TRL's `alpha`:
    of KL(T || S) at 0, of KL(S || T) at 1, of `jensen_shannon(mixture=alpha)` between.

    A single entry may be negative. OPSD (arXiv 2601.18734) caps each from above before the sum.
    """
    student, teacher = _full_precision(student_logprobs), _full_precision(teacher_logprobs).detach()
    if alpha == 0.0:
        return _kl_terms(teacher, student)
    if alpha == 1.0:
        return _kl_terms(student, teacher)
    weight = student.new_tensor(alpha)
    # logaddexp(-inf, -inf) has a NaN gradient; the filled entries have no weight in either sum.
    absent = torch.isneginf(student) & torch.isneginf(teacher)
    mean = torch.logaddexp(
        student.masked_fill(absent, 0.0) + torch.log1p(-weight), teacher.masked_fill(absent, 0.0) + weight.log()
    )
    return alpha * _kl_terms(teacher, mean) + (1.0 - alpha) * _kl_terms(student, mean)


def coarsen(logprobs_V: Tensor, ids_K: Tensor) -> Tensor:
    """The distribution over the K tokens `ids_K` and one bucket for all others, [.., V], [.., K] -> [.., K + 1].

    Coarsen both sides with the same ids, then take any divergence of this module:

        ids = teacher_logprobs.topk(k).indices
        kl_teacher_student(coarsen(student_logprobs, ids), coarsen(teacher_logprobs, ids))

    That is the exact divergence of the coarsened distributions. It is never above the full one (up to rounding), and
    equal to it when T/S is constant over the bucket. Gradient flows through the bucket too, so mass that the student
    moves outside the K tokens is seen. `with_tail` says how the bucket is rounded.

    Args:
        ids_K: distinct token ids; of the teacher's or the student's most likely tokens, or any others.
    """
    return with_tail(logprobs_V.gather(-1, ids_K))


def renormalized(logprobs_V: Tensor, ids_K: Tensor) -> Tensor:
    """The distribution given that the token is one of the K tokens `ids_K`, [.., V], [.., K] -> [.., K].

    Unlike `coarsen`, mass that the student moves outside the K tokens is not seen.
    """
    return _full_precision(logprobs_V.gather(-1, ids_K)).log_softmax(-1)


def with_tail(logprobs_K: Tensor) -> Tensor:
    """Appends log(1 - sum_k p_k), the mass outside K tokens, to their true log-probabilities: [.., K] -> [.., K + 1].

    A remaining mass below the dtype's epsilon (1.2e-7 in float32) cannot be told from the rounding of the sum: it is
    set to epsilon, with zero gradient. So K = V gives both sides the same bucket up to rounding, which adds about
    nothing, and a tail lost to rounding on one side costs at most 16 nats per unit of the other's mass, not +inf.
    """
    logprobs_K = _full_precision(logprobs_K)
    mass = logprobs_K.exp().sum(-1, keepdim=True)
    tail = torch.log1p(-mass.clamp(max=1.0 - torch.finfo(mass.dtype).eps))
    return torch.cat([logprobs_K, tail], dim=-1)


def sampled_kl_student_teacher(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(S || T) from log-probabilities of tokens sampled from S itself (untempered, untruncated), [..] -> [..].

    With l = log S - log T at the sampled token, the value is l: unbiased, of either sign. The gradient is the score
    function's, l grad log S, whose mean is the gradient of KL(S || T):

        grad sum_v S(v) l(v) = sum_v S(v) l(v) grad log S(v) + sum_v S(v) grad log S(v),

    where the last sum is grad 1 = 0. To differentiate the value l itself is to keep that last sum alone: it trains
    nothing. The gradient is zero on every sample when S = T. `policy_gradient` has other estimators: `k1`, `k2`, `k3`.

    Given summed log-probabilities of whole completions, value and gradient are those of the sequence-level KL; given
    tokens, those of each conditional's KL with the prefix held fixed. Padding must be finite, and masked by the caller.
    """
    student, teacher = _full_precision(student_logprobs), _full_precision(teacher_logprobs).detach()
    # The bracket is 1 with the gradient of log S.
    return (student.detach() - teacher) * (1.0 + (student - student.detach()))


def sampled_kl_teacher_student(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(T || S) from log-probabilities of tokens sampled from the teacher, log T - log S, [..] -> [..].

    Value and gradient (-grad log S, the cross-entropy's) are unbiased: the sampler does not depend on the student. On
    the student's own samples neither is; there, the pathwise gradient of `policy_gradient.k3` is that of KL(T || S).
    """
    return _full_precision(teacher_logprobs).detach() - _full_precision(student_logprobs)


def reweighted_kl_teacher_student(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(T || S) from log-probabilities of tokens sampled from S itself, a value to watch, [..] -> [..], no gradient.

    rho log rho - (rho - 1) with rho = T / S: unbiased where S covers T, since rho has mean 1, not negative, and
    heavy-tailed where T exceeds S by much. Far from T nearly all tokens have rho = 0 and a value of 1, however large
    the divergence: what makes up its mean is hardly ever sampled.
    """
    log_ratio = (_full_precision(teacher_logprobs) - _full_precision(student_logprobs)).detach()
    ratio = log_ratio.exp()
    return torch.where(ratio > 0, ratio * log_ratio, 0.0) - torch.expm1(log_ratio)


def _kl_terms(p: Tensor, q: Tensor) -> Tensor:
    mass = p.exp()
    # Filled before the subtraction: -inf - (-inf) is NaN, and so is the gradient of a product with an infinite factor.
    absent = mass == 0
    return mass * (p.masked_fill(absent, 0.0) - q.masked_fill(absent, 0.0))


def _full_precision(logprobs: Tensor) -> Tensor:
    return logprobs.float() if logprobs.dtype in (torch.bfloat16, torch.float16) else logprobs
