"""Hidden states or logits -> token log-probabilities and entropy. Torch only; reductions in float32.

A vocabulary is so much wider than a hidden state that the logits of a batch are its largest tensor by far. Here at most
a chunk of them is alive, forward and backward: backward computes a chunk's logits again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pbsd.products import linear

CHUNK_LOGITS = 2**24
"""Logits alive at a time: 64 MiB in float32."""


def token_logprobs(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    """log p(id) at every position, [T] float32 (or [..., T] for leading dimensions), with gradient."""
    logits_TV = logits_TV.float()
    return logits_TV.gather(-1, ids_T.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits_TV, dim=-1)


@torch.no_grad()
def token_entropy(logits_TV: Tensor) -> Tensor:
    """Entropy of the next-token distribution in nats, [T] float32 (or [..., T]), without gradient."""
    logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    return torch.special.entr(logprobs_TV.exp_()).sum(-1)


@dataclass(frozen=True, slots=True)
class LogitHead:
    """The last step of a language model, logits = cap(scale * (hidden W^T + bias)), cap(z) = softcap tanh(z / softcap).

    The matrix product is taken in the weight's dtype (under autocast, in autocast's), everything after it in float32.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        device = self.weight_VD.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight_VD.dtype

    @property
    def chunk_tokens(self) -> int:
        return max(1, CHUNK_LOGITS // self.weight_VD.shape[0])

    def detached(self) -> LogitHead:
        """On the weights' present storage, without gradient."""
        return replace(self, weight_VD=self.weight_VD.data, bias_V=None if self.bias_V is None else self.bias_V.data)

    def cast_to(self, dtype: torch.dtype) -> LogitHead:
        bias_V = None if self.bias_V is None else self.bias_V.to(dtype)
        return replace(self, weight_VD=self.weight_VD.to(dtype), bias_V=bias_V)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, V] float32, with gradient."""
        logits_TV = linear(hidden_TD, self.weight_VD, self.bias_V).float() * self.scale
        return logits_TV if self.softcap is None else torch.tanh(logits_TV / self.softcap) * self.softcap


def chunked_logprobs(
    head: LogitHead, hidden_TD: Tensor, ids_T: Tensor, *, entropy: bool = True, chunk_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """log p(id) at every position, [T] float32 with gradient to hidden states, weight and bias, and the entropy of the
    next-token distribution in nats, [T] float32 without gradient (zeros unless asked for).

    Equal to `token_logprobs(head.logits(hidden_TD), ids_T)` to rounding, with at most `chunk_tokens` rows of logits
    alive. Where the head is frozen (LoRA, say), the gradient of each log-probability to its hidden state is made in the
    forward pass instead, one product of the head's size instead of two.
    """
    chunk_tokens = chunk_tokens or head.chunk_tokens
    return _ChunkedLogprobs.apply(hidden_TD, head.weight_VD, head.bias_V, ids_T, head, entropy, chunk_tokens)


def map_logits(
    head: Callable[[Tensor], Tensor],
    hidden_TD: Tensor,
    function: Callable[[Tensor, slice], Any],
    *,
    chunk_tokens: int,
) -> list[Any]:
    """`function(logits_CV, positions)` of every chunk, with gradient; a chunk's logits are made again in backward."""
    chunks = []
    for part in _slices(hidden_TD.shape[0], chunk_tokens):

        def of_chunk(hidden_CD: Tensor, part: slice = part) -> Any:
            return function(head(hidden_CD), part)

        chunks.append(checkpoint(of_chunk, hidden_TD[part], use_reentrant=False))
    return chunks


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        ids_T: Tensor,
        head: LogitHead,
        entropy: bool,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, *wants_head = ctx.needs_input_grad[:3]
        gradient_TD = torch.empty_like(hidden_TD) if wants_hidden and not any(wants_head) else None
        logprobs_T = torch.empty(len(ids_T), dtype=torch.float32, device=hidden_TD.device)
        entropy_T = torch.zeros_like(logprobs_T)
        cast = head.cast_to(head.dtype)
        for part in _slices(len(ids_T), chunk_tokens):
            logprobs_CV, slope_CV = _chunk_logprobs(cast, hidden_TD[part])
            logprobs_T[part] = logprobs_CV.gather(-1, ids_T[part, None]).squeeze(-1)
            if not entropy and gradient_TD is None:
                continue
            probs_CV = logprobs_CV.exp()
            if entropy:
                # A masked logit has log-probability -inf, and 0 log 0 is 0.
                entropy_T[part] = -logprobs_CV.clamp_min_(torch.finfo(torch.float32).min).mul_(probs_CV).sum(-1)
            if gradient_TD is not None:
                gradient_CV = _logit_gradient(cast, probs_CV, slope_CV, ids_T[part])
                gradient_TD[part] = linear(gradient_CV.to(cast.weight_VD.dtype), cast.weight_VD.t())
        ctx.head, ctx.compute_dtype, ctx.chunk_tokens = head, cast.weight_VD.dtype, chunk_tokens
        ctx.save_for_backward(hidden_TD, ids_T, weight_VD, bias_V, gradient_TD)
        ctx.mark_non_differentiable(entropy_T)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, ids_T, weight_VD, bias_V, gradient_TD = ctx.saved_tensors
        if gradient_TD is not None:
            return (gradient_TD * grad_T[:, None]).to(hidden_TD.dtype), *[None] * 6
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_TD = torch.empty_like(hidden_TD) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias else None
        cast = replace(ctx.head, weight_VD=weight_VD, bias_V=bias_V).cast_to(ctx.compute_dtype)
        for part in _slices(len(ids_T), ctx.chunk_tokens):
            hidden_CD = hidden_TD[part].to(ctx.compute_dtype)
            logprobs_CV, slope_CV = _chunk_logprobs(cast, hidden_CD)
            gradient_CV = _logit_gradient(cast, logprobs_CV.exp_(), slope_CV, ids_T[part]).mul_(grad_T[part, None])
            if grad_bias_V is not None:
                grad_bias_V += gradient_CV.sum(0)
            gradient_CV = gradient_CV.to(ctx.compute_dtype)
            if grad_hidden_TD is not None:
                grad_hidden_TD[part] = linear(gradient_CV, cast.weight_VD.t())
            if grad_weight_VD is None:
                continue
            if ctx.compute_dtype == torch.float32:
                grad_weight_VD.addmm_(gradient_CV.T, hidden_CD)
            else:
                grad_weight_VD += gradient_CV.T @ hidden_CD
        return (
            grad_hidden_TD,
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            *[None] * 4,
        )


def _slices(length: int, chunk_tokens: int) -> list[slice]:
    return [slice(start, min(start + chunk_tokens, length)) for start in range(0, length, chunk_tokens)]


def _chunk_logprobs(head: LogitHead, hidden_CD: Tensor) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities [C, V] float32, and the slope of the cap at every logit (None without a cap)."""
    with torch.autocast(hidden_CD.device.type, enabled=False):
        logits_CV = linear(hidden_CD.to(head.weight_VD.dtype), head.weight_VD, head.bias_V)
    if head.scale == 1.0 and head.softcap is None:
        return torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32), None
    logits_CV = logits_CV.float().mul_(head.scale)
    if head.softcap is None:
        return torch.log_softmax(logits_CV, dim=-1), None
    tanh_CV = logits_CV.div_(head.softcap).tanh_()
    return torch.log_softmax(tanh_CV * head.softcap, dim=-1), 1.0 - tanh_CV.square()


def _logit_gradient(head: LogitHead, probs_CV: Tensor, slope_CV: Tensor | None, ids_C: Tensor) -> Tensor:
    """Gradient of log p(id) to the head's product, [C, V]: onehot(id) - p, through cap and scale; in place of probs."""
    gradient_CV = probs_CV.neg_()
    gradient_CV.scatter_add_(-1, ids_C[:, None], torch.ones_like(gradient_CV[:, :1]))
    if slope_CV is not None:
        gradient_CV.mul_(slope_CV)
    return gradient_CV if head.scale == 1.0 else gradient_CV.mul_(head.scale)
