"""Completions by transformers' own `generate`, for models and options that our decoding loop does not cover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from pbsd.records import Ids
from pbsd.rollouts.draw import Draw


def generate(
    model: Any,
    prompts: Sequence[Ids],
    draw: Draw,
    uniforms_BT: Tensor | None,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_length: int,
    options: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """One completion per prompt: token ids and log-probabilities, [B, T]; what follows a stop token is meaningless.

    `options` are the logits processors of `GenerationConfig`; they act before the draw, and the log-probabilities are
    those of the processed logits.
    """
    device = next(model.parameters()).device
    length = max(len(prompt) for prompt in prompts)
    ids_BL = torch.full((len(prompts), length), pad_id, dtype=torch.long)
    attention_BL = torch.zeros_like(ids_BL)
    for row, prompt in enumerate(prompts):
        ids_BL[row, length - len(prompt) :] = torch.tensor(prompt)
        attention_BL[row, length - len(prompt) :] = 1
    config = GenerationConfig(
        max_new_tokens=max_length,
        do_sample=False,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        disable_compile=True,
        **options,
    )
    chooser = _Chooser(draw, uniforms_BT)
    with _without_defaults(model):
        output_BL = model.generate(
            ids_BL.to(device),
            attention_mask=attention_BL.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
        )
    return output_BL[:, length:], torch.stack(chooser.logprobs, dim=1)


class _Chooser(LogitsProcessor):
    """Draws each row's token and leaves only that one."""

    def __init__(self, draw: Draw, uniforms_BT: Tensor | None) -> None:
        self.draw = draw
        self.uniforms_BT = uniforms_BT
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms_B = None if self.uniforms_BT is None else self.uniforms_BT[:, len(self.logprobs)]
        tokens_B, logprobs_B = self.draw(scores, uniforms_B)
        self.logprobs.append(logprobs_B)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens_B[:, None], 0.0)


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
