"""What a sampler is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pbsd.records import Ids


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy; `top_p` 1, `top_k` 0 and `min_p` None are off.

    `generation_kwargs` are options of the backend (for transformers: the logits processors of `GenerationConfig`); a
    `temperature`, `top_p`, `top_k` or `min_p` among them wins over the field. Others are refused when sampling starts.
    """

    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    generation_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length must be at least 1, got {self.max_completion_length}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or positive, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """`n` completions of one prompt. `key` names the request: equal keys give equal random numbers."""

    prompt_ids: Ids
    n: int
    key: tuple[int, ...]

    def uniforms(self, index: int, count: int) -> np.ndarray:
        """The uniform numbers in [0, 1) that completion `index` is drawn with, one per token."""
        return np.random.default_rng([*self.key, index]).random(count)


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Attributes:
        ids: its tokens, the stop token included.
        logprobs: per token, at temperature 1 and without truncation.
        finished: whether a stop token ended it.
        temperature, top_p, top_k, min_p: what it was drawn with (0 is greedy; 1, 0 and None are off).
    """

    ids: Ids
    logprobs: tuple[float, ...]
    finished: bool
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None


class Sampler(Protocol):
    """Samples completions. The result of a request depends on the weights and on the request alone, not on what else
    is in the call (up to rounding in the forward pass). Its completions end at `eos_token_ids`."""

    eos_token_ids: Sequence[int]

    def sample(self, model: Any, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Sample]]: ...
