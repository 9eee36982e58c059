"""Policy-gradient parts: group advantages, the clipped surrogate, and estimators of KL(policy || reference).

Each is a pure function that leaves the aggregation over tokens and sequences to the caller.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

AdvantageScale = Literal["group", "batch", "none"]
ImportanceLevel = Literal["token", "sequence"]


def group_advantages(
    reward_PG: Tensor,
    mask_PG: Tensor | None = None,
    *,
    scale: AdvantageScale,
    epsilon: float = 1e-4,
    leave_one_out: bool = False,
) -> Tensor:
    """Advantage of each rollout over its group (the rollouts of one prompt), [P, G]; no gradient.

    With n the number of judged rollouts of the group, and their mean and standard deviation (n - 1 in the denominator):

    - baseline: r - mean(group), as in GRPO (arXiv 2402.03300); with `leave_one_out`, r - mean(the others of the group),
      as in RLOO (arXiv 2402.14740), which is n / (n - 1) times as large and keeps the policy gradient unbiased.
    - scale `group`: divided by (std(rewards of the group) + epsilon), GRPO. `batch`: by (std(all judged rewards of the
      batch) + epsilon). `none`: not divided (Dr. GRPO, arXiv 2503.20783).

    An unjudged rollout and every rollout of a group that is constant or has one judged member gets exactly 0.

    Args:
        mask_PG: true where the rollout was judged; the rewards elsewhere are not read and may be NaN. None: all were.

    Raises:
        ValueError: unknown `scale`; epsilon not positive.
    """
    if scale not in get_args(AdvantageScale):
        raise ValueError(f"scale must be one of {', '.join(get_args(AdvantageScale))}; got {scale!r}")
    if epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    reward_PG = _full_precision(reward_PG).detach()
    judged_PG = torch.ones_like(reward_PG, dtype=torch.bool) if mask_PG is None else mask_PG.bool()
    # Measured from the group's lowest reward, a constant group is zero before any rounding.
    lowest_P1 = reward_PG.masked_fill(~judged_PG, torch.inf).amin(dim=1, keepdim=True)
    count_P1 = judged_PG.sum(dim=1, keepdim=True)
    centred_PG = _centred(reward_PG - lowest_P1, judged_PG, count_P1, dim=1)
    advantage_PG = centred_PG * count_P1 / (count_P1 - 1).clamp(min=1) if leave_one_out else centred_PG
    if scale == "group":
        return advantage_PG / (_norm(centred_PG, dim=1) / (count_P1 - 1).clamp(min=1).sqrt() + epsilon)
    if scale == "batch":
        count = judged_PG.sum()
        deviation = _norm(_centred(reward_PG, judged_PG, count, dim=(0, 1)), dim=(0, 1))
        return advantage_PG / (deviation / (count - 1).clamp(min=1).sqrt() + epsilon)
    return advantage_PG


def clipped_surrogate(
    policy_logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantage_B: Tensor,
    mask_BT: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    level: ImportanceLevel = "token",
) -> Tensor:
    """PPO's clipped loss of each token, [B, T]: -min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A).

    rho is the importance ratio policy / old: of each token (`token`: PPO arXiv 1707.06347, GRPO), or the geometric mean
    over the completion's tokens, the same at all of them (`sequence`: GSPO, arXiv 2507.18071).

    Gradient flows to `policy_logprobs_BT` only. It stops where the clip lowers the objective: rho > 1 + epsilon_high
    with A > 0, or rho < 1 - epsilon_low with A < 0. On-policy (old = policy) rho is 1, and summed over a completion the
    gradient is that of -A log pi(y) at either level.

    Args:
        mask_BT: true on completion tokens. Elsewhere the loss is 0, whatever the log-probabilities, without gradient.

    Raises:
        ValueError: unknown `level`; a negative epsilon; epsilon_low above 1.
    """
    if level not in get_args(ImportanceLevel):
        raise ValueError(f"level must be one of {', '.join(get_args(ImportanceLevel))}; got {level!r}")
    if not 0 <= epsilon_low <= 1 or epsilon_high < 0:
        raise ValueError(f"need 0 <= epsilon_low <= 1 and epsilon_high >= 0, got {epsilon_low} and {epsilon_high}")
    outside_BT = ~mask_BT.bool()
    log_rho_BT = _full_precision(policy_logprobs_BT) - _full_precision(old_logprobs_BT).detach()
    log_rho_BT = log_rho_BT.masked_fill(outside_BT, 0.0)
    if level == "sequence":
        length_B1 = (~outside_BT).sum(dim=1, keepdim=True).clamp(min=1)
        log_rho_BT = (log_rho_BT.sum(dim=1, keepdim=True) / length_B1).expand_as(log_rho_BT)
    rho_BT = log_rho_BT.exp()
    advantage_B1 = advantage_B.detach()[:, None]
    clipped_BT = rho_BT.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    return -torch.minimum(rho_BT * advantage_B1, clipped_BT * advantage_B1).masked_fill(outside_BT, 0.0)


# The estimators of KL(policy || reference) of http://joschu.net/blog/kl-approx.html, at tokens sampled from the policy.
# What a value estimates and what its derivative estimates are two things: see each function.


def k1(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi - log ref, any shape. Value: unbiased, of either sign.

    Gradient: grad log pi, which has mean zero and no information on the reference. For use as a penalty in the reward
    (subtracted without gradient) or as a metric. As a loss, take `k2` or `divergence.sampled_kl_student_teacher`.
    """
    return _full_precision(policy_logprobs) - _full_precision(reference_logprobs).detach()


def k2(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(log pi - log ref)^2 / 2, any shape. Value: biased (equal to the KL to second order near pi = ref), not negative.

    Gradient: (log pi - log ref) grad log pi, unbiased for KL(pi || ref).
    """
    return 0.5 * k1(policy_logprobs, reference_logprobs).square()


def k3(policy_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """ref / pi - 1 - log(ref / pi), any shape. Value: unbiased where the policy covers the reference, not negative.

    Gradient: (1 - ref / pi) grad log pi, unbiased for the other divergence, KL(ref || pi), and heavy-tailed where ref
    exceeds pi by much. It agrees with that of KL(pi || ref) to first order near pi = ref. This is the KL term of GRPO
    (arXiv 2402.03300). Times the ratio exp(log pi - old), differentiated too, it has the value and the gradient of
    KL(pi || ref), from samples of `old` (DeepSeek-V3.2, arXiv 2512.02556).
    """
    log_ratio = -k1(policy_logprobs, reference_logprobs)
    return torch.expm1(log_ratio) - log_ratio


def _centred(reward_PG: Tensor, judged_PG: Tensor, count: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    # Where nothing was judged the mean is 0 / 0, and the mask below keeps it out.
    mean = reward_PG.masked_fill(~judged_PG, 0.0).sum(dim=dim, keepdim=True) / count
    return (reward_PG - mean).masked_fill(~judged_PG, 0.0)


def _norm(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    return values.square().sum(dim=dim, keepdim=True).sqrt()


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
