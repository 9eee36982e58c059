"""Sampling with `transformers`' own `generate`, on any device, with random numbers that belong to each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pbsd.rollouts.sampler import Sample, SampleRequest, SamplingParams

_OURS = {"do_sample", "num_beams", "num_return_sequences", "max_new_tokens", "max_length", "return_dict_in_generate"}
_WARPERS = ("temperature", "top_p", "top_k", "min_p")


class TransformersSampler:
    """`generate` in batches of at most `max_batch_size` completions, sorted by prompt length, padded left.

    A token is drawn by inverting the cumulative distribution at a uniform number that depends on the request's key, the
    completion's index and the token's position only. So a run can be resumed, and split over processes, without any
    random state to save.
    """

    def __init__(self, *, eos_token_ids: Sequence[int], pad_token_id: int, max_batch_size: int) -> None:
        self.eos_token_ids = list(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.max_batch_size = max_batch_size

    @torch.no_grad()
    def sample(self, model: Any, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]:
        rows = [(request, index) for request in requests for index in range(request.n)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0].prompt_ids))
        samples: list[Sample | None] = [None] * len(rows)
        was_training = model.training
        model.eval()
        try:
            for start in range(0, len(order), self.max_batch_size):
                places = order[start : start + self.max_batch_size]
                for place, sample in zip(places, self._generate(model, [rows[i] for i in places], params), strict=True):
                    samples[place] = sample
        finally:
            model.train(was_training)
        flat = iter(samples)
        return [[_filled(next(flat)) for _ in range(request.n)] for request in requests]

    def _generate(self, model: Any, rows: list[tuple[SampleRequest, int]], params: SamplingParams) -> list[Sample]:
        device = next(model.parameters()).device
        config, warpers = self._generation_config(params)
        length = max(len(request.prompt_ids) for request, _ in rows)
        ids_BL = torch.full((len(rows), length), self.pad_token_id, dtype=torch.long)
        attention_BL = torch.zeros_like(ids_BL)
        for row, (request, _) in enumerate(rows):
            ids_BL[row, length - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            attention_BL[row, length - len(request.prompt_ids) :] = 1
        uniforms_BT = None
        if warpers is not None:
            uniforms_BT = torch.stack(
                [torch.from_numpy(request.uniforms(index, params.max_completion_length)) for request, index in rows]
            ).to(device)
        recorder = _RawLogits()
        chooser = _InverseCDF(uniforms_BT, recorder)
        with _without_defaults(model):
            output_BL = model.generate(
                ids_BL.to(device),
                attention_mask=attention_BL.to(device),
                generation_config=config,
                logits_processor=LogitsProcessorList([recorder, *(warpers or []), chooser]),
            )
        logprobs_BT = torch.stack(chooser.logprobs, dim=1)
        return [
            self._cut(ids_T, logprobs_T)
            for ids_T, logprobs_T in zip(output_BL[:, length:].tolist(), logprobs_BT.tolist(), strict=True)
        ]

    def _generation_config(self, params: SamplingParams) -> tuple[GenerationConfig, list[LogitsProcessor] | None]:
        """The config of a deterministic `generate`, and the warpers our own draw applies (None: greedy)."""
        extra = dict(params.generation_kwargs)
        if clash := sorted(_OURS & extra.keys()):
            raise ValueError(
                f"generation_kwargs may not set {', '.join(clash)}: use temperature (0 is greedy), num_generations and "
                "max_completion_length"
            )
        temperature, top_p, top_k, min_p = (extra.pop(name, getattr(params, name)) for name in _WARPERS)
        config = GenerationConfig(
            max_new_tokens=params.max_completion_length,
            do_sample=False,
            eos_token_id=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
            disable_compile=True,
            **extra,
        )
        if temperature == 0:
            return config, None
        warpers: list[LogitsProcessor] = []
        if temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(temperature)))
        if top_k:
            warpers.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            warpers.append(TopPLogitsWarper(top_p))
        if min_p:
            warpers.append(MinPLogitsWarper(min_p))
        return config, warpers

    def _cut(self, ids: list[int], logprobs: list[float]) -> Sample:
        """Up to and with the first stop token: lengths come from what ended the row, never from `pad == eos`."""
        for position, token in enumerate(ids):
            if token in self.eos_token_ids:
                return Sample(tuple(ids[: position + 1]), tuple(logprobs[: position + 1]), finished=True)
        return Sample(tuple(ids), tuple(logprobs[: len(ids)]), finished=False)


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Keep `generate` from filling in the model's own generation config: a repetition penalty there, say, would make
    the samples another policy's than the one that is scored."""
    modules = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    own = [module.generation_config for module in modules]
    try:
        for module in modules:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, config in zip(modules, own, strict=True):
            module.generation_config = config


def _filled(sample: Sample | None) -> Sample:
    assert sample is not None, "every row is generated once"
    return sample


class _RawLogits(LogitsProcessor):
    """Keeps the step's scores as they were before temperature and truncation."""

    scores_BV: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores_BV = scores
        return scores


class _InverseCDF(LogitsProcessor):
    """Draws each row's token at its own uniform number (None: the most likely one) and leaves only that token."""

    def __init__(self, uniforms_BT: Tensor | None, raw: _RawLogits) -> None:
        self.uniforms_BT = uniforms_BT
        self.raw = raw
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.uniforms_BT is None:
            tokens_B1 = scores.argmax(-1, keepdim=True)
        else:
            cdf_BV = scores.double().softmax(-1).cumsum(-1)
            targets_B1 = self.uniforms_BT[:, len(self.logprobs), None] * cdf_BV[:, -1:]
            tokens_B1 = torch.searchsorted(cdf_BV, targets_B1, right=True).clamp_max(scores.shape[-1] - 1)
        raw_BV = self.raw.scores_BV
        self.logprobs.append((raw_BV.gather(-1, tokens_B1) - raw_BV.logsumexp(-1, keepdim=True)).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens_B1, 0.0)
