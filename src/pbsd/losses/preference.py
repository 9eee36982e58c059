"""Losses on preference pairs (docs/paper_map.md, 4 to 6; PBSD is arXiv 2605.05040)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

PreferenceLoss = Literal["logistic", "bradley_terry", "squared"]


def implicit_reward(policy_logprob_B: Tensor, teacher_logprob_B: Tensor, *, beta: float) -> Tensor:
    """h(y) = beta [log pi(y|x) - log T(y|x,c)], in nats times beta, [B]. The teacher's term gets no gradient."""
    return beta * (policy_logprob_B - teacher_logprob_B.detach())


def preference_loss(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    teacher_chosen_B: Tensor,
    teacher_rejected_B: Tensor,
    *,
    beta: float,
    loss: PreferenceLoss,
    reward_chosen_B: Tensor | None = None,
    reward_rejected_B: Tensor | None = None,
    reward_scale: float = 1.0,
    label_smoothing: float | Tensor = 0.0,
) -> Tensor:
    """Loss of each pair, [B], from sequence log-probabilities (natural, summed over completion tokens).

    With the margin m = h(y+) - h(y-), h = beta (log pi - log T), and the reward gap d = reward_scale (r+ - r-):

    - `logistic` (the paper's): -(1 - s) log sigmoid(m) - s log sigmoid(-m), with s the label smoothing. It reads no
      reward: a tilt comes only from which pairs it is given.
    - `bradley_terry`: -q log sigmoid(m) - (1 - q) log sigmoid(-m), q = sigmoid(d) mixed with s: (1 - s) q + s (1 - q).
    - `squared`: (m - d)^2.

    The last two are minimised at pi = P* proportional to T exp(reward_scale r / beta) when the pairs connect the
    support. Gradient flows to `policy_*` only.

    Args:
        label_smoothing: s in [0, 1/2], one number or [B]; 1/2 is a tie. `squared` has no use for it.

    Raises:
        ValueError: unknown `loss`; beta not positive; rewards missing where the loss reads them.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    margin_B = implicit_reward(policy_chosen_B, teacher_chosen_B, beta=beta) - implicit_reward(
        policy_rejected_B, teacher_rejected_B, beta=beta
    )
    if loss == "logistic":
        return _cross_entropy(margin_B, 1.0 - torch.as_tensor(label_smoothing, dtype=margin_B.dtype))
    if loss not in get_args(PreferenceLoss):
        raise ValueError(f"loss must be one of {', '.join(get_args(PreferenceLoss))}; got {loss!r}")
    if reward_chosen_B is None or reward_rejected_B is None:
        raise ValueError(f"loss {loss!r} reads rewards: pass reward_chosen_B and reward_rejected_B")
    gap_B = reward_scale * (reward_chosen_B - reward_rejected_B).detach()
    if loss == "squared":
        return (margin_B - gap_B).square()
    q_B = torch.sigmoid(gap_B)
    return _cross_entropy(margin_B, (1.0 - label_smoothing) * q_B + label_smoothing * (1.0 - q_B))


def group_log_variance_loss(
    policy_BG: Tensor,
    teacher_BG: Tensor,
    reward_BG: Tensor,
    mask_BG: Tensor | None = None,
    *,
    beta: float,
    reward_scale: float = 1.0,
) -> Tensor:
    """Unbiased variance within each group of f = h(y) - reward_scale r(y), [B], h = beta (log pi - log T).

    sum_i (f_i - mean f)^2 / (n - 1) over the n valid members: half the mean of the `squared` pair loss over the ordered
    pairs i != j. With members drawn independently from one sampler its expectation is that sampler's variance whatever
    the group's size, so groups of different sizes may be averaged (dividing by n would weigh small groups less). Zero
    exactly where f is constant on the group; in expectation at pi = P* proportional to T exp(reward_scale r / beta),
    for any sampler that covers the support. On the student's own samples its gradient is 2 beta times the policy
    gradient of -J with the KL sampled and a leave-one-out baseline. Gradient flows to `policy_BG` only.

    Args:
        policy_BG, teacher_BG: sequence log-probabilities, natural, summed over completion tokens.
        mask_BG: True where a member is valid; what stands elsewhere (also inf or NaN) is not read.

    Returns:
        [B]; 0 without gradient for a group of fewer than two valid members, which says nothing: count those outside.

    Raises:
        ValueError: beta not positive.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}")
    valid_BG = torch.ones_like(policy_BG, dtype=torch.bool) if mask_BG is None else mask_BG.bool()
    # Zeros go in before any arithmetic: where() after it would still send NaN gradients through the masked branch.
    policy_BG, teacher_BG, reward_BG = (
        torch.where(valid_BG, value, torch.zeros_like(value)) for value in (policy_BG, teacher_BG, reward_BG)
    )
    residual_BG = implicit_reward(policy_BG, teacher_BG, beta=beta) - reward_scale * reward_BG.detach()
    count_B1 = valid_BG.sum(-1, keepdim=True)
    centred_BG = (residual_BG - residual_BG.sum(-1, keepdim=True) / count_B1.clamp(min=1)) * valid_BG
    return centred_BG.square().sum(-1) / (count_B1.squeeze(-1) - 1).clamp(min=1)


def _cross_entropy(margin_B: Tensor, label_B: Tensor) -> Tensor:
    return -label_B * F.logsigmoid(margin_B) - (1.0 - label_B) * F.logsigmoid(-margin_B)
