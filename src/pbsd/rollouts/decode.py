"""Decoding by a loop of our own: prompts forwarded once, one small forward per token, no work for stopped rows."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from pbsd.records import Ids
from pbsd.rollouts.draw import Draw
from pbsd.rollouts.shared_prompt import PromptStates, SharedPromptCache, shared_prompt_attention

_PREFILL_TOKENS = 4096
_PREFILL_STRETCH = 1.25
_STOPPED_SHARE = 1 / 8


def prefill_chunks(prompts: Sequence[Ids]) -> Iterator[Sequence[Ids]]:
    """Prompts of ascending length, cut into runs to be forwarded together: at most 4096 tokens with the padding (or one
    prompt), and the longest at most a quarter longer than the shortest."""
    chunk: list[Ids] = []
    for prompt in prompts:
        crowded = (len(chunk) + 1) * len(prompt) > _PREFILL_TOKENS
        if chunk and (crowded or len(prompt) > _PREFILL_STRETCH * len(chunk[0])):
            yield chunk
            chunk = []
        chunk.append(prompt)
    if chunk:
        yield chunk


def cache_argument(model: Any) -> str | None:
    """The name of the argument by which the model's forward takes its key-value cache, found by its type, as versions
    of transformers call it `past_key_values` or `cache`; None if it takes none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(type(base).forward).parameters
    typed = [name for name, parameter in parameters.items() if _is_cache(parameter.annotation)]
    if typed:
        return typed[0]
    return "past_key_values" if "past_key_values" in parameters else None  # code without annotations


def _is_cache(annotation: Any) -> bool:
    """Whether it is `Cache`, a class below it, or a union with one, as a type or in words."""
    if isinstance(annotation, str):
        return any(word.rpartition(".")[2].endswith("Cache") for word in re.findall(r"[\w.]+", annotation))
    return any(isinstance(part, type) and issubclass(part, Cache) for part in (annotation, *get_args(annotation)))


def prefill(model: Any, prompts: Sequence[Ids]) -> PromptStates:
    """One forward over distinct prompts, right-padded: under causal attention no token sees the padding after it."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids_PL = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_PL[row, : len(prompt)] = torch.tensor(prompt)
    last_U, which_P = (lengths - 1).unique(return_inverse=True)
    cache = DynamicCache()
    logits_PUV = model(
        input_ids=ids_PL.to(device),
        position_ids=torch.arange(ids_PL.shape[1], device=device)[None],
        use_cache=True,
        logits_to_keep=last_U.to(device),
        **{str(cache_argument(model)): cache},
    ).logits
    rows = torch.arange(len(prompts), device=device)
    return PromptStates(
        tuple(keys for keys, *_ in cache),
        tuple(values for _, values, *_ in cache),
        tuple(lengths.tolist()),
        logits_PUV[rows, which_P.to(device)],
    )


def decode(
    model: Any,
    prompts: Sequence[tuple[PromptStates, Sequence[int]]],
    draw: Draw,
    uniforms_BT: Tensor | None,
    *,
    stop_ids: Sequence[int],
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """Continue prompts, `counts[p]` rows for prompt p of each `PromptStates`, until every row has stopped.

    Returns token ids and their log-probabilities, [B, T] with T <= `max_length`; what follows a row's first stop token
    is meaningless. Stopped rows leave the batch once they are an eighth of it: the completions of the others are copied
    then, which for fewer would cost more than it saves. The host waits for the device once per token, for the number
    of rows that go on, and once more when rows leave.
    """
    device = prompts[0][0].logits_PV.device
    counts = [count for _, own in prompts for count in own]
    owner_B = torch.repeat_interleave(torch.tensor(counts)).to(device)
    length_P = torch.tensor([length for states, _ in prompts for length in states.lengths], device=device)
    logits_BV = torch.cat([states.logits_PV for states, _ in prompts])[owner_B]
    stop_V = torch.zeros(logits_BV.shape[1], dtype=torch.bool, device=device)
    stop_V[torch.tensor([token for token in stop_ids if token < len(stop_V)], dtype=torch.long, device=device)] = True
    ids_BT = torch.zeros(len(owner_B), max_length, dtype=torch.long, device=device)
    logprobs_BT = torch.zeros(len(owner_B), max_length, device=device)
    rows_B = torch.arange(len(owner_B), device=device)  # those in the batch; `going_B` tells which have not stopped
    going_B = torch.ones_like(rows_B, dtype=torch.bool)
    cache = SharedPromptCache(prompts, max_length)
    cache_kwargs: dict[str, Any] = {str(cache_argument(model)): cache}
    with shared_prompt_attention(model, cache):
        for step in range(max_length):
            tokens_B, step_logprobs_B = draw(logits_BV, None if uniforms_BT is None else uniforms_BT[rows_B, step])
            ids_BT[rows_B, step], logprobs_BT[rows_B, step] = tokens_B, step_logprobs_B
            going_B = going_B & ~stop_V[tokens_B]
            going = int(going_B.sum())
            if going == 0 or step + 1 == max_length:
                return ids_BT[:, : step + 1], logprobs_BT[:, : step + 1]
            if len(rows_B) - going >= _STOPPED_SHARE * len(rows_B):
                kept = going_B.nonzero().squeeze(1)
                rows_B, tokens_B, going_B = rows_B[kept], tokens_B[kept], going_B[kept]
                cache.select(kept)
            logits_BV = model(
                input_ids=tokens_B[:, None],
                position_ids=(length_P[owner_B[rows_B]] + step)[:, None],
                use_cache=True,
                logits_to_keep=1,
                **cache_kwargs,
            ).logits[:, -1]
            cache.advance()
    raise AssertionError("the loop returns at its last step")
