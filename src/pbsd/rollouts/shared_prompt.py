"""Decoding over prompts that are held once: the key-value cache and its attention.

The rows of a group share their prompt's keys and values, which are neither copied nor read once per row: attention runs
over the prompt for all rows of the group together and over each row's own completion, and the two are merged by their
log-normalisers (the decomposition of Hydragen, Juravsky et al. 2024, arXiv 2402.05099). All completions of a batch have
the same length at every step, so they need no mask, however different their prompts are.

Shapes: P prompts, G rows per prompt, B rows, H query heads, K key-value heads, R = H / K, L prompt tokens, T completion
tokens, D head width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

ATTENTION = "pbsd_shared_prompt"
_INERT_KWARGS = frozenset({"position_ids", "use_cache", "cache_position", "is_causal"})

_current: ContextVar[SharedPromptCache] = ContextVar("shared_prompt_cache")


class UnsupportedAttentionError(Exception):
    """A layer asks for more than plain softmax attention."""


@dataclass(frozen=True, slots=True)
class PromptStates:
    """Keys and values of prompts, right-padded to one length, and the logits that follow each prompt.

    Attributes:
        keys_PKLD, values_PKLD: one tensor per layer.
        lengths: tokens of each prompt.
        logits_PV: of the first completion token.
    """

    keys_PKLD: tuple[Tensor, ...]
    values_PKLD: tuple[Tensor, ...]
    lengths: tuple[int, ...]
    logits_PV: Tensor

    def select(self, prompts: Sequence[int]) -> PromptStates:
        """The given prompts, in ascending order; a run of neighbours is a view."""
        if list(prompts) == list(range(prompts[0], prompts[0] + len(prompts))):
            part: Any = slice(prompts[0], prompts[0] + len(prompts))
        else:
            part = torch.tensor(prompts, device=self.logits_PV.device)
        lengths = tuple(self.lengths[prompt] for prompt in prompts)
        longest = max(lengths)
        return PromptStates(
            tuple(keys[part, :, :longest] for keys in self.keys_PKLD),
            tuple(values[part, :, :longest] for values in self.values_PKLD),
            lengths,
            self.logits_PV[part],
        )

    def to(self, dtype: torch.dtype) -> PromptStates:
        """Keys and values in the given type."""
        return replace(
            self,
            keys_PKLD=tuple(keys.to(dtype) for keys in self.keys_PKLD),
            values_PKLD=tuple(values.to(dtype) for values in self.values_PKLD),
        )


class _Group:
    """Prompts of one `PromptStates` and the live rows that continue them, which are neighbours in the batch."""

    def __init__(self, states: PromptStates, counts: Sequence[int]) -> None:
        self.states = states
        self.set_counts(counts)
        device = states.logits_PV.device
        self.mask_P11L: Tensor | None = None
        if min(states.lengths) < max(states.lengths):
            lengths_P1 = torch.tensor(states.lengths, device=device)[:, None]
            padding_PL = torch.arange(max(states.lengths), device=device) >= lengths_P1
            mask_PL = torch.zeros(padding_PL.shape, device=device)
            self.mask_P11L = mask_PL.masked_fill_(padding_PL, -torch.inf)[:, None, None]

    def set_counts(self, counts: Sequence[int]) -> None:
        """How many rows continue each prompt. Where the counts differ the queries are padded to the largest."""
        self.counts = list(counts)
        self.rows = sum(counts)
        widest = max(counts)
        self.padded = self.places = None
        if any(count != widest for count in counts):
            starts = [sum(counts[:prompt]) for prompt in range(len(counts))]
            device = self.states.logits_PV.device
            # Places that no row fills repeat some row of the group; their outputs are not read.
            padded = [start + min(g, count) for start, count in zip(starts, counts, strict=True) for g in range(widest)]
            self.padded = torch.tensor(padded, device=device).clamp_max_(self.rows - 1)
            self.places = torch.tensor(
                [prompt * widest + g for prompt, count in enumerate(counts) for g in range(count)], device=device
            )

    def attend(self, query_BKRD: Tensor, layer: int, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of the rows over their prompts: output [B, K, R, D] and log-normaliser [B, K, R]."""
        prompts = len(self.counts)
        if self.padded is not None:
            query_BKRD = query_BKRD.index_select(0, self.padded)
        _, heads, ratio, width = query_BKRD.shape
        query = query_BKRD.view(prompts, -1, heads, ratio, width).transpose(1, 2).reshape(prompts, heads, -1, width)
        keys, values = self.states.keys_PKLD[layer], self.states.values_PKLD[layer]
        output, normaliser = _attend(query, keys, values, scale, self.mask_P11L)
        output = output.view(prompts, heads, -1, ratio, output.shape[-1]).transpose(1, 2).flatten(0, 1)
        normaliser = normaliser.reshape(prompts, heads, -1, ratio).transpose(1, 2).flatten(0, 1)
        if self.places is not None:
            output, normaliser = output.index_select(0, self.places), normaliser.index_select(0, self.places)
        return output, normaliser


class SharedPromptCache(Cache):
    """The cache of a decoding batch: prompts once, and a growing buffer of completion keys and values per row.

    Rows are ordered by prompt. `update` writes one token per row in place; `advance` must follow each forward pass.
    """

    def __init__(self, prompts: Sequence[tuple[PromptStates, Sequence[int]]], max_length: int) -> None:
        super().__init__(layers=[])
        self.groups = [_Group(states, counts) for states, counts in prompts]
        self.num_layers = len(self.groups[0].states.keys_PKLD)
        self.max_length = max_length
        self.length = 0
        self.capacity = min(64, max_length)
        self.attended = 0
        self._keys_BKTD: list[Tensor] = []
        self._values_BKTD: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new token's states [B, K, 1, D]; the completion's states so far, as views of the buffer."""
        if layer_idx == len(self._keys_BKTD):
            self._allocate(key_states, value_states)
        keys, values = self._keys_BKTD[layer_idx], self._values_BKTD[layer_idx]
        keys.select(2, self.length).copy_(key_states.squeeze(2))
        values.select(2, self.length).copy_(value_states.squeeze(2))
        return keys.narrow(2, 0, self.length + 1), values.narrow(2, 0, self.length + 1)

    def _allocate(self, key_states: Tensor, value_states: Tensor) -> None:
        """The next layer's buffers. Their type is the values' (under autocast keys are wider, and attention would
        narrow them), but float32 on a CPU, whose attention takes a third longer where it must convert bfloat16."""
        dtype = torch.float32 if value_states.device.type == "cpu" else value_states.dtype
        if not self._keys_BKTD:
            for group in self.groups:
                group.states = group.states.to(dtype)
        for buffers, states in ((self._keys_BKTD, key_states), (self._values_BKTD, value_states)):
            rows, heads, _, width = states.shape
            buffers.append(states.new_empty(rows, heads, self.capacity, width, dtype=dtype))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Completion tokens held; positions are always passed explicitly, because prompts differ in length."""
        return self.length

    def advance(self) -> None:
        """Count the token just written, and double the buffers when they are full."""
        if self.attended != self.num_layers:
            raise UnsupportedAttentionError(f"{self.attended} of {self.num_layers} layers used the attention interface")
        self.attended = 0
        self.length += 1
        if self.length == self.capacity < self.max_length:
            self.capacity = min(2 * self.capacity, self.max_length)
            self._rebuild(None)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ascending. Prompts that none of them continues are dropped once they are half of their
        group; before, dropping them would copy the others."""
        owners = [
            (group, prompt) for group in self.groups for prompt, count in enumerate(group.counts) for _ in range(count)
        ]
        left = Counter(owners[row] for row in rows.tolist())
        groups = []
        for group in self.groups:
            counts = [left[group, prompt] for prompt in range(len(group.counts))]
            alive = [prompt for prompt, count in enumerate(counts) if count]
            if 2 * len(alive) > len(counts):
                group.set_counts(counts)
                groups.append(group)
            elif alive:
                groups.append(_Group(group.states.select(alive), [counts[prompt] for prompt in alive]))
        self.groups = groups
        self._rebuild(rows)

    def _rebuild(self, rows: Tensor | None) -> None:
        for buffers in (self._keys_BKTD, self._values_BKTD):
            for layer, old in enumerate(buffers):
                held = old.narrow(2, 0, self.length)
                held = held if rows is None else held.index_select(0, rows)
                buffers[layer] = old.new_empty(*held.shape[:2], self.capacity, held.shape[3])
                buffers[layer].narrow(2, 0, self.length).copy_(held)

    def attend(self, query_BH1D: Tensor, keys_BKTD: Tensor, values_BKTD: Tensor, layer: int, scale: float) -> Tensor:
        """Attention of one token per row over its prompt and its completion; [B, 1, H, D]."""
        self.attended += 1
        rows, heads = query_BH1D.shape[0], keys_BKTD.shape[1]
        query_BKRD = query_BH1D.to(values_BKTD.dtype).reshape(rows, heads, -1, query_BH1D.shape[-1])
        output, normaliser = _attend(query_BKRD, keys_BKTD, values_BKTD, scale, None)
        queries = query_BKRD.split([group.rows for group in self.groups]) if len(self.groups) > 1 else [query_BKRD]
        parts = [group.attend(query, layer, scale) for group, query in zip(self.groups, queries, strict=True)]
        prompt, prompt_normaliser = (
            parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
        )
        share_BKR1 = (prompt_normaliser - normaliser).sigmoid_().unsqueeze(-1)
        merged = output.lerp(prompt, share_BKR1.to(output.dtype))
        return merged.to(query_BH1D.dtype).view(rows, 1, -1, output.shape[-1])


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(query keys^T scale + mask) values over [N, K, Q, D], and the softmax's log-normaliser [N, K, Q]."""
    if query.device.type == "cpu" and keys.shape[-1] == values.shape[-1]:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, attn_mask=mask, scale=scale
        )
    scores = (query @ keys.mT).float() * scale
    if mask is not None:
        scores = scores + mask
    normaliser = scores.logsumexp(-1)
    return (scores - normaliser.unsqueeze(-1)).exp().to(values.dtype) @ values, normaliser


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that layers call inside `shared_prompt_attention`."""
    scale = kwargs.pop("scaling", None)
    extra = {name: option for name, option in kwargs.items() if name not in _INERT_KWARGS}
    if asked := sorted(name for name, option in extra.items() if isinstance(option, Tensor) or option):
        raise UnsupportedAttentionError(f"attention with {', '.join(asked)}")
    layer: Any = module.layer_idx
    return _current.get().attend(query, key, value, layer, query.shape[-1] ** -0.5 if scale is None else scale), None


AttentionInterface.register(ATTENTION, _attention)


@contextmanager
def shared_prompt_attention(model: nn.Module, cache: SharedPromptCache) -> Iterator[None]:
    """Route the attention of every layer of `model` through `cache` while the block lasts.

    transformers makes no mask for an attention function that has not registered one, and none is needed.
    """
    configs: dict[int, Any] = {id(config): config for config in (vars(m).get("config") for m in model.modules())}
    own = [
        (c, c._attn_implementation_internal) for c in configs.values() if hasattr(c, "_attn_implementation_internal")
    ]
    token = _current.set(cache)
    try:
        for config, _ in own:
            config._attn_implementation_internal = ATTENTION
        yield
    finally:
        for config, implementation in own:
            config._attn_implementation_internal = implementation
        _current.reset(token)
