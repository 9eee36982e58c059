"""Token log-probabilities of given completions under a model, many completions per prompt.

Where the model allows it a prompt is computed once for all its completions (packed rows), and never more than a chunk
of logits exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pbsd.logprobs import LogitHead, token_entropy, token_logprobs
from pbsd.products import fast_linears
from pbsd.scoring.forward import (
    Packing,
    ScoringRequest,
    TokenFunction,
    TokenScores,
    enable_scoring,
    frozen_head,
    language_model,
)
from pbsd.scoring.layout import Layout, ScoringGroup, make_layout, singles

MASKED_TOKENS = 2048
"""Under a mask, which costs the square of a row, a group is cut where it exceeds twice this, or twice its prompt."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the groups' completions, rows in order, padded right.

    Attributes:
        logprobs_BT: log-probability of each completion token, 0 where padded; carries gradient if asked for.
        mask_BT: 1.0 on completion tokens (the stop token included), 0.0 on padding.
        entropy_BT: next-token entropy in nats, no gradient, 0 where padded.
        extra_BT: what the token function gave, 0 where padded; None without one.
    """

    logprobs_BT: Tensor
    mask_BT: Tensor
    entropy_BT: Tensor
    extra_BT: Tensor | None = None

    @property
    def sequence_logprobs_B(self) -> Tensor:
        return self.logprobs_BT.sum(-1)

    def token_lists(self, values: Literal["logprobs", "entropy"] = "logprobs") -> list[tuple[float, ...]]:
        """Per row the values at its own tokens, without padding."""
        lengths = self.mask_BT.sum(-1).int().tolist()
        rows = (self.logprobs_BT.detach() if values == "logprobs" else self.entropy_BT).tolist()
        return [tuple(row[:n]) for row, n in zip(rows, lengths, strict=True)]


def score(
    model: nn.Module,
    groups: Sequence[ScoringGroup],
    *,
    pad_id: int,
    entropy: bool = True,
    token_function: TokenFunction | None = None,
    packed: Packing | Literal["no"] | None = None,
) -> Scores:
    """Score every completion of every group in one forward pass.

    Args:
        model: called once through its own `forward` (so that wrappers such as DDP see it); any decoder of transformers.
        pad_id: any valid token id; the padding is never read.
        entropy: also compute entropies (else zeros).
        token_function: a value per token made from its logits, with gradient, for losses on whole distributions.
        packed: how rows of several completions are made exact, see `Capability`, or `no` for padded rows; None: the
            best that the model allows.
    """
    capability = enable_scoring(model)
    means = capability.packed if packed is None else None if packed == "no" else packed
    layout = _layout(groups, means, pad_id)
    if capability.chunked:
        scores = model(scoring=ScoringRequest(layout, means, entropy, token_function))
    else:
        scores = _of_full_logits(model, layout, token_function)
    return _in_rows(scores, layout.lengths, has_extra=token_function is not None)


def score_frozen(
    model: nn.Module, groups: Sequence[ScoringGroup], *, pad_id: int, max_tokens: int
) -> list[tuple[float, ...]]:
    """Log-probabilities without gradient, a list per completion in order, in forward passes of at most `max_tokens`
    tokens (a prompt with a single completion may exceed it)."""
    parts = frozen_scores(model, groups, pad_id=pad_id, max_tokens=max_tokens, entropy=False)
    return [row for scores in parts for row in scores.token_lists()]


@torch.no_grad()
def frozen_scores(
    model: nn.Module, groups: Sequence[ScoringGroup], *, pad_id: int, max_tokens: int, entropy: bool = True
) -> list[Scores]:
    """The scores of each of these passes, with entropies."""
    if enable_scoring(model).packed is None:
        groups = singles(groups)
    with fast_linears(model):
        return [score(model, chunk, pad_id=pad_id, entropy=entropy) for chunk in token_chunks(groups, max_tokens)]


@dataclass(frozen=True, slots=True)
class FrozenLogits:
    """Next-token logits of completions under a model, without gradient, kept as hidden states and made when needed.

    Attributes:
        hidden: [T, D] for every completion, in the order of the groups.
        head: hidden states -> logits.
    """

    hidden: tuple[Tensor, ...]
    head: LogitHead | Callable[[Tensor], Tensor]

    @torch.no_grad()
    def logits(self, hidden_CD: Tensor) -> Tensor:
        """[C, V] float32 of some rows of the hidden states."""
        return self.head.logits(hidden_CD) if isinstance(self.head, LogitHead) else self.head(hidden_CD)


@torch.no_grad()
def frozen_logits(model: nn.Module, groups: Sequence[ScoringGroup], *, pad_id: int, max_tokens: int) -> FrozenLogits:
    """The model's distribution at every completion token, at the memory of a hidden state per token. The head's weights
    are those of this moment, also if the model is given others later by replacing its parameters' data.

    Raises ValueError for a model whose body and head cannot be run apart.
    """
    capability = enable_scoring(model)
    lm = language_model(model)
    if not capability.chunked:
        raise ValueError(
            f"{type(lm).__name__}: whole distributions cannot be kept ({capability.reason}): train by a loss on "
            "sampled tokens"
        )
    if capability.packed is None:
        groups = singles(groups)
    hidden: list[Tensor] = []
    with fast_linears(model):
        for chunk in token_chunks(groups, max_tokens):
            layout = _layout(chunk, capability.packed, pad_id)
            states_MD = model(scoring=ScoringRequest(layout, capability.packed, hidden_only=True)).extra_M
            hidden += states_MD.split(list(layout.lengths))
    return FrozenLogits(tuple(hidden), frozen_head(lm))


def token_chunks(groups: Sequence[ScoringGroup], max_tokens: int) -> Iterator[list[ScoringGroup]]:
    """The groups in order, in lists whose rows, packed, hold at most `max_tokens` tokens, padding included. A group
    that alone holds more is split."""
    chunk: list[ScoringGroup] = []
    longest = 0
    for group in (part for whole in groups for part in whole.split(max_tokens)):
        length = max(longest, group.tokens)
        if chunk and (len(chunk) + 1) * length > max_tokens:
            yield chunk
            chunk, length = [], group.tokens
        chunk.append(group)
        longest = length
    if chunk:
        yield chunk


def _layout(groups: Sequence[ScoringGroup], packed: Packing | None, pad_id: int) -> Layout:
    if packed is None:
        groups = singles(groups)
    elif packed == "mask":
        groups = [part for group in groups for part in group.split(2 * max(MASKED_TOKENS, len(group.prompt_ids)))]
    return make_layout(groups, pad_id=pad_id)


def _of_full_logits(model: nn.Module, layout: Layout, function: TokenFunction | None) -> TokenScores:
    """By the model's own logits, for models whose body and head cannot be run apart."""
    device = next(model.parameters()).device
    layout = layout.to(device)
    logits_RLV = model(input_ids=layout.ids_RL, use_cache=False).logits
    logits_RLV = logits_RLV[:, -layout.ids_RL.shape[1] :]  # without an adapter's virtual tokens
    logits_MV = logits_RLV.flatten(0, 1)[layout.source_M]
    extra_M = logits_MV.new_empty(0)
    if function is not None:
        extra_M = function(logits_MV.float(), slice(0, len(layout.targets_M)))
    return TokenScores(token_logprobs(logits_MV, layout.targets_M), token_entropy(logits_MV), extra_M)


def _in_rows(scores: TokenScores, lengths: Sequence[int], *, has_extra: bool) -> Scores:
    def rows(values_M: Tensor) -> Tensor:
        return pad_sequence(list(values_M.split(list(lengths))), batch_first=True)

    return Scores(
        logprobs_BT=rows(scores.logprobs_M),
        mask_BT=rows(torch.ones_like(scores.logprobs_M, requires_grad=False)),
        entropy_BT=rows(scores.entropy_M),
        extra_BT=rows(scores.extra_M) if has_extra else None,
    )
