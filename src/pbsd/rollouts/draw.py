"""Drawing tokens from logits at given uniform numbers, and the log-probabilities that are recorded of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Draw:
    """How a token is chosen: temperature (0 is greedy), top-k, top-p and min-p, by transformers' warpers. Ids that are
    barred are not."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    barred: Tensor | None = field(default=None, compare=False)

    def __call__(self, logits_BV: Tensor, uniforms_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probabilities [B], float32, at temperature 1 over all ids, without truncation."""
        open_BV, barred = logits_BV, None if self.barred is None else self.barred.to(logits_BV.device)
        if barred is not None:
            open_BV = logits_BV.index_fill(-1, barred, -torch.inf)
        if uniforms_B is None or self.temperature == 0:
            tokens_B, normaliser_B = open_BV.argmax(-1), logits_BV.float().logsumexp(-1)
        elif warpers := self._warpers():
            # None of these warpers looks at the ids, but their signature asks for them.
            warped_BV = warpers(torch.LongTensor(), open_BV.float())
            tokens_B, normaliser_B = inverse_cdf(warped_BV, uniforms_B)[0], logits_BV.float().logsumexp(-1)
        else:
            tokens_B, normaliser_B = inverse_cdf(open_BV, uniforms_B)
            if barred is not None:
                normaliser_B = normaliser_B.logaddexp(logits_BV.index_select(-1, barred).float().logsumexp(-1))
        return tokens_B, logits_BV.gather(-1, tokens_B[:, None]).squeeze(-1).float() - normaliser_B

    def _warpers(self) -> LogitsProcessorList:
        warpers = LogitsProcessorList()
        if self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            warpers.append(MinPLogitsWarper(self.min_p))
        return warpers


def inverse_cdf(logits_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which each row's cumulative distribution first exceeds its uniform number (float64, in [0, 1)).

    Also returns log sum exp of the logits, float32. Weights exp(logit - max) are float32 and summed by blocks of the
    vocabulary; the sum goes on in float64, first over the blocks, then inside the one that holds the token. A token of
    weight 0 (logit -inf) is never drawn, wherever rounding puts the end of the distribution. Where a logit is NaN so is
    the normaliser, and the token is the last.
    """
    rows, vocabulary = logits_BV.shape
    blocks = -(-vocabulary // _BLOCK)
    weights = torch.empty(rows, blocks * _BLOCK, device=logits_BV.device)
    weights[:, vocabulary:] = 0
    largest_B1 = logits_BV.amax(-1, keepdim=True).float()
    torch.sub(logits_BV, largest_B1, out=weights[:, :vocabulary]).exp_()
    weights_BNW = weights.view(rows, blocks, _BLOCK)
    mass_BN = weights_BNW.sum(-1).double().cumsum_(-1)
    target_B1 = uniforms_B[:, None] * mass_BN[:, -1:]
    block_B1 = _first_above(mass_BN, target_B1)
    before_B1 = torch.where(block_B1 > 0, mass_BN.gather(1, (block_B1 - 1).clamp_min(0)), 0)
    inside_BW = weights_BNW.take_along_dim(block_B1[..., None], dim=1).squeeze(1).double().cumsum_(-1)
    tokens_B1 = block_B1 * _BLOCK + _first_above(inside_BW, target_B1 - before_B1)
    tokens_B1 = tokens_B1.clamp_max(vocabulary - 1)  # beyond it for NaN only
    return tokens_B1.squeeze(1), (largest_B1.double() + mass_BN[:, -1:].log()).float().squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """First index with cumulative > target; where rounding leaves none, the last index that adds weight."""
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).clamp_max_(cumulative.shape[1] - 1)
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
