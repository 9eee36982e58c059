"""Sampling from a `transformers` model, on any device, with random numbers that belong to each row."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from pbsd.records import Ids
from pbsd.rollouts.decode import cache_argument, decode, prefill, prefill_chunks
from pbsd.rollouts.draw import Draw
from pbsd.rollouts.generate import generate
from pbsd.rollouts.packed_linear import packed_linears
from pbsd.rollouts.sampler import Sample, SampleRequest, SamplingParams
from pbsd.rollouts.shared_prompt import PromptStates, UnsupportedAttentionError

_WARPERS = ("temperature", "top_p", "top_k", "min_p")
_PROCESSORS = frozenset(
    {
        "bad_words_ids",
        "begin_suppress_tokens",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "min_length",
        "min_new_tokens",
        "no_repeat_ngram_size",
        "remove_invalid_values",
        "renormalize_logits",
        "repetition_penalty",
        "sequence_bias",
        "suppress_tokens",
    }
)

_TOLERANCE, _TOLERANCE_HALF = 1e-3, 0.25
"""As those of scoring: mean differences in nats that rounding may explain, in float32 and in half precision."""

logger = logging.getLogger(__name__)
_Row = tuple[SampleRequest, int]


class TransformersSampler:
    """Decodes in batches of at most `max_batch_size` completions, in the order of their prompts' lengths.

    A token is drawn by inverting the cumulative distribution at a uniform number that depends on the request's key, the
    completion's index and the token's position only. So a run can be resumed, and split over processes, without any
    random state to save.

    Every distinct prompt is forwarded once, and stopped rows leave the batch (`decode`). Where that loop cannot serve,
    because the cache is not plain attention states (sliding windows, state spaces, encoder-decoders) or because
    `generation_kwargs` ask for logits processors, transformers' `generate` samples from the same distribution with the
    same random numbers; a model's reason is logged once.

    Ids in `barred_ids`, as of rows of the embedding that no token has, are never sampled. Log-probabilities are over
    all ids all the same, as in scoring.
    """

    def __init__(
        self, *, eos_token_ids: Sequence[int], pad_token_id: int, max_batch_size: int, barred_ids: Sequence[int] = ()
    ) -> None:
        self.eos_token_ids: Sequence[int] = list(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.max_batch_size = max_batch_size
        self.barred = torch.tensor(barred_ids) if barred_ids else None
        self._generate_only: dict[type, str] = {}
        self._tried: set[type] = set()

    @torch.inference_mode()
    def sample(self, model: Any, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        draw, processors = _options(params)
        draw = replace(draw, barred=self.barred)
        rows = sorted(
            ((request, index) for request in requests for index in range(request.n)),
            key=lambda row: (len(row[0].prompt_ids), row[0].prompt_ids),
        )
        was_training = model.training
        model.eval()
        try:
            sampled = self._sample(model, rows, params, draw, processors)
        finally:
            model.train(was_training)
        samples = {(id(request), index): sample for (request, index), sample in zip(rows, sampled, strict=True)}
        return [[samples[id(request), index] for index in range(request.n)] for request in requests]

    def _sample(
        self, model: Any, rows: Sequence[_Row], params: SamplingParams, draw: Draw, processors: dict[str, Any]
    ) -> list[Sample]:
        """The samples of rows that are sorted by prompt."""
        if not processors and self._decodes(model):
            try:
                with packed_linears(model):
                    return list(self._decode(model, rows, params, draw))
            except UnsupportedAttentionError as error:
                self._refuse(model, str(error))
        return list(self._generate(model, rows, params, draw, processors))

    def _decode(self, model: Any, rows: Sequence[_Row], params: SamplingParams, draw: Draw) -> Iterator[Sample]:
        known: dict[Ids, PromptStates] = {}  # of the prompt that the batch before shares with this one
        for batch in self._batches(rows):
            counts = {ids: len(list(group)) for ids, group in groupby(request.prompt_ids for request, _ in batch)}
            prompts = [(known[ids], [counts[ids]]) for ids in counts if ids in known]
            for chunk in prefill_chunks([ids for ids in counts if ids not in known]):
                prompts.append((prefill(model, chunk), [counts[ids] for ids in chunk]))
            states = prompts[-1][0]
            known = {batch[-1][0].prompt_ids: states.select([len(states.lengths) - 1])}
            uniforms_BT = _uniforms(batch, params, draw, states.logits_PV.device)
            yield from self._cut(
                *decode(
                    model,
                    prompts,
                    draw,
                    uniforms_BT,
                    stop_ids=self.eos_token_ids,
                    max_length=params.max_completion_length,
                ),
                draw,
            )

    def _generate(
        self, model: Any, rows: Sequence[_Row], params: SamplingParams, draw: Draw, processors: dict[str, Any]
    ) -> Iterator[Sample]:
        # A state takes the padding in: then only prompts of one length go together.
        runs = (
            groupby(rows, lambda row: len(row[0].prompt_ids)) if getattr(model, "_is_stateful", False) else [(0, rows)]
        )
        for batch in (batch for _, run in runs for batch in self._batches(list(run))):
            yield from self._cut(
                *generate(
                    model,
                    [request.prompt_ids for request, _ in batch],
                    draw,
                    _uniforms(batch, params, draw, next(model.parameters()).device),
                    stop_ids=self.eos_token_ids,
                    pad_id=self.pad_token_id,
                    max_length=params.max_completion_length,
                    options=processors,
                ),
                draw,
            )

    def _batches(self, rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
        for start in range(0, len(rows), self.max_batch_size):
            yield rows[start : start + self.max_batch_size]

    def _cut(self, ids_BT: Tensor, logprobs_BT: Tensor, draw: Draw) -> Iterator[Sample]:
        """Up to and with the first stop token: lengths come from what ended the row, never from `pad == eos`."""
        stops = set(self.eos_token_ids)
        for ids, logprobs in zip(ids_BT.tolist(), logprobs_BT.tolist(), strict=True):
            end = next((position for position, token in enumerate(ids) if token in stops), None)
            length = len(ids) if end is None else end + 1
            if any(map(math.isnan, logprobs[:length])):
                raise ValueError(
                    "the model gives NaN for next-token scores: its weights are no longer finite. Go back to a "
                    "checkpoint from before, and lower the learning rate or max_grad_norm"
                )
            yield Sample(
                tuple(ids[:length]),
                tuple(logprobs[:length]),
                finished=end is not None,
                temperature=draw.temperature,
                top_p=draw.top_p,
                top_k=draw.top_k,
                min_p=draw.min_p,
            )

    def _decodes(self, model: Any) -> bool:
        """Whether the decoding loop can serve the model."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if type(base) not in self._tried:
            self._tried.add(type(base))
            if reason := _needs_generate(model, base) or _gap(model):
                self._refuse(model, reason)
        return type(base) not in self._generate_only

    def _refuse(self, model: Any, reason: str) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._generate_only[type(base)] = reason
        logger.warning("%s is sampled by generate, without shared prompts: %s", type(base).__name__, reason)


def _needs_generate(model: Any, base: Any) -> str | None:
    """Why the decoding loop cannot serve a model; None if it can, as far as can be told without running it."""
    parameters = inspect.signature(type(base).forward).parameters
    if base.config.is_encoder_decoder:
        return "it has an encoder"
    if not base._supports_attention_backend:
        return "its attention cannot be replaced"
    if missing := {"position_ids", "logits_to_keep"} - parameters.keys():
        return f"its forward takes no {', '.join(sorted(missing))}"
    if cache_argument(model) is None:
        return "its forward takes no key-value cache"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=base.config).layers):
        return "its cache is not plain attention states"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "its adapter adds virtual tokens"
    return None


def _gap(model: Any) -> str | None:
    """How far the log-probabilities of a few decoded tokens are from those of one forward pass over each row, in words;
    None if no farther than rounding may explain. A cache may hold something else than what attention is given."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (8,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [tuple(ids[:3]), tuple(ids[3:])]
    try:
        states = prefill(model, prompts)
        uniforms_BT = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).view(3, 4).to(states.logits_PV.device)
        ids_BT, found_BT = decode(model, [(states, [2, 1])], Draw(), uniforms_BT, stop_ids=(), max_length=4)
        gaps = []
        for row, prompt in enumerate((prompts[0], *prompts)):
            whole_1L = torch.cat([torch.tensor(prompt, device=ids_BT.device), ids_BT[row]])[None]
            logprobs_TV = (
                model(input_ids=whole_1L, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            )
            gaps.append(found_BT[row] - logprobs_TV.gather(-1, ids_BT[row][:, None]).squeeze(-1))
    except Exception as error:  # a forward that is not made for this cache fails in any way
        return f"{type(error).__name__}: {error}"
    gap = torch.cat(gaps).abs().mean().item()
    tolerance = _TOLERANCE if model.dtype.itemsize >= 4 else _TOLERANCE_HALF
    return f"decoded log-probabilities differ by {gap:.2g} nats on average" if gap > tolerance else None


def _options(params: SamplingParams) -> tuple[Draw, dict[str, Any]]:
    """The draw, and the logits processors among `generation_kwargs`."""
    extra = dict(params.generation_kwargs)
    draw = Draw(**{name: extra.pop(name, getattr(params, name)) for name in _WARPERS})
    for name in sorted(extra.keys() - _PROCESSORS):
        if not hasattr(GenerationConfig(), name):
            raise ValueError(f"generation_kwargs has {name}, which is no option of transformers' GenerationConfig")
        raise ValueError(
            f"generation_kwargs may not set {name}: it would change how tokens are drawn or rows end. Use temperature "
            "(0 is greedy), top_p, top_k, min_p, num_generations and max_completion_length, or one of "
            f"{', '.join(sorted(_PROCESSORS))}"
        )
    return draw, extra


def _uniforms(batch: Sequence[_Row], params: SamplingParams, draw: Draw, device: torch.device) -> Tensor | None:
    """The rows' uniform numbers [B, T]; none are needed for greedy decoding."""
    if draw.temperature == 0:
        return None
    return torch.stack(
        [torch.from_numpy(request.uniforms(index, params.max_completion_length)) for request, index in batch]
    ).to(device)
