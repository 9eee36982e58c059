"""Logits -> token log-probabilities and entropy. Torch only; reductions in float32 whatever the logits' dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    """log p(id) at every position, [T] float32 (or [..., T] for leading dimensions), with gradient."""
    logits_TV = logits_TV.float()
    return logits_TV.gather(-1, ids_T.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits_TV, dim=-1)


@torch.no_grad()
def token_entropy(logits_TV: Tensor) -> Tensor:
    """Entropy of the next-token distribution in nats, [T] float32 (or [..., T]), without gradient."""
    logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    return torch.special.entr(logprobs_TV.exp_()).sum(-1)
