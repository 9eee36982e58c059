"""Two more projections of the tilted teacher P* proportional to T exp(reward_scale r / beta) (docs/paper_map.md, 8)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

KLGradient = Literal["exact", "pathwise"]
Baseline = Literal["leave_one_out", "none"]


def mixture_log_ratio(teacher_BG: Tensor, student_BG: Tensor, *, teacher_fraction: float | Tensor) -> Tensor:
    """log T - log q for samples of the mixture q = a T + (1 - a) S, a = teacher_fraction, [B, G], without gradient.

    At a > 0 the ratio is at most 1/a, so no weight explodes; at a = 0 (student samples only) it has no bound.

    Args:
        teacher_BG, student_BG: sequence log-probabilities of every member, of both kinds, under both samplers.
        teacher_fraction: one number, or a tensor that goes with the others.

    Raises:
        ValueError: teacher_fraction outside [0, 1].
    """
    teacher_BG, student_BG = teacher_BG.detach(), student_BG.detach()
    fraction = torch.as_tensor(teacher_fraction, dtype=teacher_BG.dtype, device=teacher_BG.device)
    if not ((fraction >= 0) & (fraction <= 1)).all():
        raise ValueError(f"teacher_fraction must be in [0, 1], got {teacher_fraction}")
    return teacher_BG - torch.logaddexp(teacher_BG + fraction.log(), student_BG + (1 - fraction).log())


def imitation_loss(
    policy_BG: Tensor,
    reward_BG: Tensor,
    mask_BG: Tensor | None = None,
    *,
    beta: float,
    reward_scale: float = 1.0,
    log_ratio_BG: Tensor | None = None,
    reward_max: float | None = None,
) -> Tensor:
    """Reward-tilted cross-entropy, -sum_i w_i log pi(y_i), [B]: KL(P* || pi) up to a constant, by samples of T.

    Weights get no gradient. Over the n valid members of the group they are, with e = reward_scale r / beta + log_ratio,

    - by default the softmax of e: bounded and biased. A group of one copies the teacher whatever its reward, as does a
      group whose rewards are all equal. The expected target of groups of G is off P* by P*(y) (E_T[w^2] - w(y)) / G to
      first order, w = P*/T here.
    - with `reward_max`, exp(e - reward_scale reward_max / beta) / n: the expected loss is Z KL(P* || pi) up to a
      constant, whatever the group's size, with Z = E_T[exp(reward_scale (r - reward_max) / beta)]. P* is the optimum,
      and prompts count by Z: a group without rewards worth learning has hardly any weight.

    Args:
        policy_BG: sequence log-probabilities of the group's members, natural, summed over completion tokens.
        mask_BG: True where a member is valid; what stands elsewhere (also inf or NaN) is not read.
        log_ratio_BG: log T - log q when the members come from another sampler q than T, e.g. `mixture_log_ratio`.

    Returns:
        [B]; 0 without gradient for a group without valid members.

    Raises:
        ValueError: beta not positive, or a reward above reward_max, whose weight would have no bound.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    valid_BG = torch.ones_like(policy_BG, dtype=torch.bool) if mask_BG is None else mask_BG.bool()
    if reward_max is not None and (reward_BG[valid_BG] > reward_max).any():
        raise ValueError(
            f"a reward is {reward_BG[valid_BG].max().item():g}, above reward_max={reward_max:g}: set reward_max to the "
            "largest reward there can be"
        )
    log_weight_BG = reward_scale / beta * (reward_BG.detach().to(policy_BG.dtype) - (reward_max or 0.0))
    if log_ratio_BG is not None:
        log_weight_BG = log_weight_BG + log_ratio_BG.detach()
    # The least finite number, not -inf: a group without valid members then has finite weights on log-probs of 0.
    log_weight_BG = torch.where(valid_BG, log_weight_BG, torch.finfo(log_weight_BG.dtype).min)
    policy_BG = torch.where(valid_BG, policy_BG, torch.zeros_like(policy_BG))
    if reward_max is None:
        weight_BG = log_weight_BG.softmax(-1)
    else:
        weight_BG = log_weight_BG.exp() / valid_BG.sum(-1, keepdim=True).clamp(min=1)
    return -(weight_BG * policy_BG).sum(-1)


def direct_loss(
    policy_BT: Tensor,
    token_kl_BT: Tensor,
    mask_BT: Tensor,
    reward_B: Tensor,
    group_B: Tensor,
    *,
    beta: float,
    reward_scale: float = 1.0,
    kl_gradient: KLGradient = "exact",
    baseline: Baseline = "leave_one_out",
) -> Tensor:
    """-J of each of the student's own samples, [B]: beta sum_t KL_t - reward_scale r, with the gradient of J's sum.

    KL_t = KL(pi(.|x, y_<t) || T(.|x, c, y_<t)) over the full vocabulary. Differentiating KL_t alone (`pathwise`)
    forgets that a token also chooses the prefixes of later tokens: the gradient of the sequence KL has a second part,
    each token's score times the KL still to come. `exact` adds it to the reward's policy gradient,

        grad = sum_t beta grad KL_t - grad log pi(y_t) (R_t - b_t),   R_t = reward_scale r - beta sum_{s > t} KL_s,

    and is stationary at P*. `pathwise` is the usual on-policy distillation term (R_t = reward_scale r): with a
    constant reward it is stationary at T as well, but with a varying reward its stationary point is not P* when
    completions have two or more tokens: there pi(y_t|.) is proportional to T(y_t|.) exp(E_pi[reward_scale r | y_<=t] /
    beta), which ignores what later divergence costs.

    b_t is the mean of R_t over the other rows of the group (0 for a lone row, and with `none`): independent of the
    row, so without bias. A mean that includes the row would shrink the policy gradient by 1 - 1/G but not grad KL_t,
    and so move the target: for one-token completions to a tilt of (1 - 1/G) reward_scale, half at G = 2.

    Args:
        policy_BT: token log-probabilities of the sampled tokens, with gradient.
        token_kl_BT: full-vocabulary KL(student || teacher) at each token's prefix, in nats, with gradient.
        mask_BT: True on completion tokens (end of sequence included); what stands elsewhere is not read.
        reward_B, group_B: reward of each row, and its group (integers >= 0, the same for samples of one prompt).

    Returns:
        [B]. The value is the sample's -J; the gradient is that of its expectation.

    Raises:
        ValueError: beta not positive, or an unknown option.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if kl_gradient not in get_args(KLGradient):
        raise ValueError(f"kl_gradient must be one of {', '.join(get_args(KLGradient))}; got {kl_gradient!r}")
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be one of {', '.join(get_args(Baseline))}; got {baseline!r}")
    valid_BT = mask_BT.bool()
    policy_BT = torch.where(valid_BT, policy_BT, torch.zeros_like(policy_BT))
    cost_BT = beta * torch.where(valid_BT, token_kl_BT, torch.zeros_like(token_kl_BT))
    gain_B = reward_scale * reward_B.detach().to(cost_BT.dtype)
    return_BT = gain_B[:, None].expand_as(cost_BT)
    if kl_gradient == "exact":
        spent_BT = cost_BT.detach()
        return_BT = return_BT - (spent_BT.sum(-1, keepdim=True) - spent_BT.cumsum(-1))
    if baseline == "leave_one_out":
        return_BT = _minus_others(return_BT, group_B)
    score_BT = policy_BT - policy_BT.detach()  # worth 0, with the gradient of log pi: the value stays -J
    return cost_BT.sum(-1) - gain_B - (score_BT * return_BT).sum(-1)


def _minus_others(value_BT: Tensor, group_B: Tensor) -> Tensor:
    """Each row less the mean of the other rows of its group; a lone row as it is."""
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    total_PT = value_BT.new_zeros(groups, value_BT.shape[1]).index_add(0, group_B, value_BT)
    others_B1 = (torch.bincount(group_B, minlength=groups)[group_B] - 1)[:, None]
    return value_BT - (total_PT[group_B] - value_BT) / others_B1.clamp(min=1)
