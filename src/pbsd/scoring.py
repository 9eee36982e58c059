"""Token log-probabilities of given completions under a model, many completions per prompt.

The interface is groups (one prompt, its completions), so that an engine that computes a shared prefix once can take
the place of the padded one without its callers changing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pbsd.logprobs import token_entropy, token_logprobs
from pbsd.records import Ids


@dataclass(frozen=True, slots=True)
class ScoringGroup:
    """A prompt and the completions to score under it, as token ids."""

    prompt_ids: Ids
    completion_ids: tuple[Ids, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the groups' completions, rows in order, padded right.

    Attributes:
        logprobs_BT: log-probability of each completion token, 0 where padded; carries gradient if asked for.
        mask_BT: 1.0 on completion tokens (the stop token included), 0.0 on padding.
        entropy_BT: next-token entropy in nats, no gradient, 0 where padded.
    """

    logprobs_BT: Tensor
    mask_BT: Tensor
    entropy_BT: Tensor

    @property
    def sequence_logprobs_B(self) -> Tensor:
        return self.logprobs_BT.sum(-1)

    def token_lists(self) -> list[tuple[float, ...]]:
        """Per row the log-probabilities of its own tokens, without padding."""
        lengths = self.mask_BT.sum(-1).int().tolist()
        return [tuple(row[:n].tolist()) for row, n in zip(self.logprobs_BT.detach(), lengths, strict=True)]


def score(model: nn.Module, groups: Sequence[ScoringGroup], *, pad_id: int) -> Scores:
    """Score every completion in one forward pass of right-padded rows [prompt | completion | padding].

    Right padding needs no attention mask in a causal model: no real token can see a padded one. The position ids are
    those of the unpadded row. Logits exist only from the last prompt token of the shortest prompt onward.

    Args:
        model: called once through its own `forward` (so that wrappers such as DDP see it); any decoder of
            transformers that takes `logits_to_keep`.
        pad_id: any valid token id; the padding is never read.
    """
    rows = [(group.prompt_ids, completion) for group in groups for completion in group.completion_ids]
    assert rows and all(prompt and completion for prompt, completion in rows), "nothing to score"
    device = next(model.parameters()).device
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids_BL = torch.full((len(rows), length), pad_id, dtype=torch.long)
    for row, (prompt, completion) in enumerate(rows):
        ids_BL[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
    ids_BL = ids_BL.to(device)

    first = min(len(prompt) for prompt, _ in rows) - 1
    logits_BLV = model(input_ids=ids_BL, use_cache=False, logits_to_keep=length - first).logits

    # Row by row on views: one row's float32 logits are alive at a time, and none are copied to line them up.
    logprobs, entropies = [], []
    for logits_LV, ids_L, (prompt, completion) in zip(logits_BLV.unbind(0), ids_BL, rows, strict=True):
        start = len(prompt) - 1 - first
        logits_TV = logits_LV[start : start + len(completion)]
        logprobs.append(token_logprobs(logits_TV, ids_L[len(prompt) : len(prompt) + len(completion)]))
        entropies.append(token_entropy(logits_TV))
    return Scores(
        logprobs_BT=pad_sequence(logprobs, batch_first=True),
        mask_BT=pad_sequence([torch.ones_like(row) for row in entropies], batch_first=True),
        entropy_BT=pad_sequence(entropies, batch_first=True),
    )


@torch.no_grad()
def score_frozen(
    model: nn.Module, groups: Sequence[ScoringGroup], *, pad_id: int, max_tokens: int
) -> list[tuple[float, ...]]:
    """Log-probabilities without gradient, a list per completion in order, in chunks of at most `max_tokens` padded
    tokens (a single row may exceed it)."""
    return [row for chunk in _chunks(groups, max_tokens) for row in score(model, chunk, pad_id=pad_id).token_lists()]


def _chunks(groups: Sequence[ScoringGroup], max_tokens: int) -> Iterator[list[ScoringGroup]]:
    chunk: list[ScoringGroup] = []
    rows = longest = 0
    for group in groups:
        for completion in group.completion_ids:
            length = max(longest, len(group.prompt_ids) + len(completion))
            if chunk and (rows + 1) * length > max_tokens:
                yield chunk
                chunk, rows, length = [], 0, len(group.prompt_ids) + len(completion)
            chunk.append(ScoringGroup(group.prompt_ids, (completion,)))
            rows, longest = rows + 1, length
    if chunk:
        yield chunk
